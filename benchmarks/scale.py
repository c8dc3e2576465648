"""A large log imported and trained on, killed and resumed in both steps.

  python -m benchmarks.platform_log --rows=20000000 --out_dir=runs/requests
  python -m benchmarks.scale --input=runs/requests --schema=runs/schema.toml \
    --out_dir=runs/scale --json_out=benchmarks/results/scale_cpu.json

Every step is a process of its own, whose peak memory the system tells. The
folder that the killed and resumed import leaves is what is trained on.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

from absl import flags

from benchmarks import harness
from experiments import launch
from mtf_jax.data import sharded
from mtf_jax.io import InputError

_INPUT = launch.define_in_dir("input", None, "Folder of files.")
flags.mark_flag_as_required("input")
_SCHEMA = launch.define_in_file(
  "schema", None, "What the columns are.", "a schema file (.toml)"
)
_OUT_DIR = launch.define_out_dir("runs/scale")
_NUM_UPDATES = flags.DEFINE_integer("num_updates", 2000, "Of the training.", 1)
_DEVICE_GIB = flags.DEFINE_float(
  "device_gib", 0.5, "Memory for the rows that are trained on.", 0.0
)
_ROOT = pathlib.Path(__file__).parents[1]


def _run(module: str, *args: str, kill_when: Any = None) -> dict[str, Any]:
  """Seconds, peak memory and what a launcher printed.

  `kill_when` is asked again and again, and the process killed once it is true.
  """
  start = time.monotonic()
  process = subprocess.Popen(
    [sys.executable, "-m", module, *args],
    cwd=_ROOT,
    stdout=subprocess.PIPE,
    text=True,
  )
  killed = False
  while kill_when is not None and process.poll() is None:
    if kill_when():
      os.kill(process.pid, signal.SIGKILL)
      killed = True
      break
    time.sleep(0.2)
  stdout = process.stdout.read() if process.stdout else ""
  _, status, usage = os.wait4(process.pid, 0)
  process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode and not killed:
    raise InputError(f"{module}: expected to end well, found {stdout!r}.")
  return {
    "seconds": time.monotonic() - start,
    "peak_gib": usage.ru_maxrss / 2**20,
    "killed": killed,
    "printed": stdout.splitlines(),
  }


def _import(log: pathlib.Path) -> list[dict[str, Any]]:
  """Killed once in each pass."""
  args = (
    f"--schema={_SCHEMA.value}",
    f"--input={_INPUT.value}",
    f"--out_dir={log}",
    "--resume",
  )
  work = log / "import"
  size = sum(p.stat().st_size for p in pathlib.Path(_INPUT.value).iterdir())

  def runs_written(share: float) -> bool:
    # Records take somewhat more than the compressed input.
    there = sum(p.stat().st_size for p in work.glob("run-*.records"))
    return there > share * size

  def shards_written(count: int) -> bool:
    return len(list(work.glob("shard-*.json"))) >= count

  return [
    _run("experiments.import_log", *args, kill_when=kill_when)
    for kill_when in (
      lambda: runs_written(0.4),
      lambda: shards_written(50),
      None,
    )
  ]


def _train(log: pathlib.Path, out_dir: pathlib.Path) -> list[dict[str, Any]]:
  """Once without, once with a kill in the middle."""
  args = (
    f"--log={log}",
    f"--device_gib={_DEVICE_GIB.value}",
    "--preset=smoke",
    f"--num_updates={_NUM_UPDATES.value}",
  )
  whole = _run("experiments.train", *args, f"--out_dir={out_dir / 'whole'}")
  killed_dir = out_dir / "killed"

  def half_way() -> bool:
    steps = (killed_dir / "checkpoints").glob("*")
    names = [path.name for path in steps if path.name.isdecimal()]
    return bool(names) and max(map(int, names)) >= _NUM_UPDATES.value // 2

  killed = _run(
    "experiments.train",
    *args,
    f"--out_dir={killed_dir}",
    kill_when=half_way,
  )
  resumed = _run("experiments.train", *args, f"--out_dir={killed_dir}")
  return [whole, killed, resumed]


def main() -> None:
  """Imports, trains, prints a row a process."""
  out_dir = pathlib.Path(_OUT_DIR.value)
  out_dir.mkdir(parents=True, exist_ok=True)
  size = sum(p.stat().st_size for p in pathlib.Path(_INPUT.value).iterdir())
  imports = _import(out_dir / "log")
  manifest = sharded.open_log(out_dir / "log").manifest
  trainings = _train(out_dir / "log", out_dir)
  same = trainings[0]["printed"] == trainings[2]["printed"]
  rows = [
    *(("import", step) for step in imports),
    *(("train", step) for step in trainings),
  ]
  print(
    harness.markdown_table(
      ("step", "killed", "seconds", "peak memory, GiB"),
      [
        (
          name,
          "yes" if step["killed"] else "no",
          f"{step['seconds']:.0f}",
          f"{step['peak_gib']:.2f}",
        )
        for name, step in rows
      ],
    )
  )
  print(f"resumed training ends in the same bits: {'yes' if same else 'no'}")
  if harness.JSON_OUT.value:
    harness.write_json(
      harness.JSON_OUT.value,
      {
        "environment": harness.environment(),
        "input_bytes": size,
        "rows": manifest.rows,
        "sessions": manifest.sessions,
        "shards": len(manifest.shards),
        "shard_bytes": sum(shard.bytes for shard in manifest.shards),
        "counts": manifest.counts,
        "import": imports,
        "train": trainings,
        "same_bits": same,
        "trained_on_gib": _DEVICE_GIB.value,
      },
    )
  if not same:
    raise InputError(
      f"{out_dir}: expected {json.dumps(trainings[0]['printed'])}, found"
      f" {json.dumps(trainings[2]['printed'])}."
    )


if __name__ == "__main__":
  launch.run(main)
