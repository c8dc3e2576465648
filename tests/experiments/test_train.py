import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

import pytest

from mtf_jax.data import session_log
from tests.session_logs import random_log
from tests.sharded_logs import parts_of, write_log

_ROOT = pathlib.Path(__file__).parents[2]


def command(dataset, out_dir, *flags):
  kind = "log" if dataset.is_dir() else "dataset"
  return [
    sys.executable,
    "-m",
    "experiments.train",
    f"--{kind}={dataset}",
    f"--out_dir={out_dir}",
    "--preset=smoke",
    *flags,
  ]


# As the fixture `quick_to_compile`, for a process.
QUICK_TO_COMPILE = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


def run(dataset, *args, **environment):
  return subprocess.run(
    command(dataset, *args),
    cwd=_ROOT,
    env={**os.environ, **environment},
    capture_output=True,
    text=True,
    timeout=300,
  )


def stop(dataset, out_dir, long, number, *, after_rows):
  """Starts a run and sends it a signal once it has written so many rows."""
  process = subprocess.Popen(
    command(dataset, out_dir, *long),
    cwd=_ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )
  metrics = out_dir / "metrics.jsonl"
  deadline = time.monotonic() + 200
  try:
    while not (
      metrics.exists() and metrics.read_text().count("\n") >= after_rows
    ):
      assert process.poll() is None, "it ended before it could be stopped"
      assert time.monotonic() < deadline
      time.sleep(0.02)
  finally:
    os.kill(process.pid, number)
    said = process.communicate()[1]
  assert metrics.read_text().count("\n") < 60
  return process.returncode, said


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  path = tmp_path_factory.mktemp("data") / "log.npz"
  session_log.save_sessions(path, random_log(), {"world": "w1"})
  return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("data") / "log"
  write_log(path, parts_of(6))
  return path


# A pool of three of its six shards: 5 of 40 rows of 89 bytes.
STREAMED = "--device_gib=1.66e-5"


@pytest.mark.parametrize("streamed", [False, True])
def test_stopped_and_resumed_ends_in_the_same_bits(
  dataset, folder, tmp_path, streamed
):
  long = ["--num_updates=1200"]
  if streamed:
    dataset, long = folder, [*long, STREAMED]
  whole = run(dataset, tmp_path / "whole", *long)
  assert whole.returncode == 0, whole.stderr
  result = json.loads(whole.stdout)
  assert result["step"] == 1200

  stopped = tmp_path / "stopped"
  status, said = stop(dataset, stopped, long, signal.SIGKILL, after_rows=5)
  assert status == -signal.SIGKILL
  status, said = stop(dataset, stopped, long, signal.SIGINT, after_rows=15)
  assert status == 130
  (same,) = [x for x in said.splitlines() if x.startswith("Interrupted")]
  again = shlex.join(command(dataset, stopped, *long)[1:])
  assert same == f"Interrupted; to go on: python {again}"

  resumed = run(dataset, stopped, *long)
  assert resumed.returncode == 0, resumed.stderr
  assert "Going on from update" in resumed.stderr
  assert json.loads(resumed.stdout) == result

  def rows(name):
    lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [
      {k: v for k, v in row.items() if k not in ("time", "updates_per_s")}
      for row in rows
    ]

  assert rows("stopped") == rows("whole")


def test_a_streamed_run_is_not_gone_on_with_another_pool(folder, tmp_path):
  out = tmp_path / "run"
  few = ["--num_updates=20"]
  done = run(folder, out, *few, STREAMED, **QUICK_TO_COMPILE)
  assert done.returncode == 0, done.stderr
  assert "Streaming 240 rows: 3 of 6 shards" in done.stderr
  record = json.loads(next(out.rglob("20/record/*")).read_text())
  assert record["stream"] == {
    "shards": 3,
    "batch_size": 64,
    "chunk_size": 20,
    "seed": 0,
  }
  # 20 x 64 draws from 40 transitions a shard, but no more than the pool.
  assert record["stream_position"] == 3
  other = run(folder, out, *few, **QUICK_TO_COMPILE)
  assert other.returncode == 2
  assert "stream: expected {'shards': 3," in other.stderr
  assert other.stderr.count("\n") == 1


def test_flags_reach_the_run(dataset, tmp_path):
  done = run(
    dataset,
    tmp_path / "run",
    "--num_updates=20",
    "--critic=box_quadratic",
    "--actor=ple",
    "--critic_updates=2",
    "--ensemble_size=3",
    "--hyperparam=penalty_scale=0.5",
    "--hyperparam=group_weights=1,2",
    **QUICK_TO_COMPILE,
  )
  assert done.returncode == 0, done.stderr
  record = next((tmp_path / "run").rglob("record/*")).read_text()
  config = json.loads(record)["config"]
  assert config["hyperparams"] == {
    "group_weights": [1.0, 2.0],
    "penalty_scale": 0.5,
  }
  assert (config["learner"], config["actor"]) == ("integrated_rl", "ple")
  assert (config["critic_updates"], config["ensemble_size"]) == (2, 3)
  assert json.loads(record)["world"] == "w1"
  assert "could be seen" not in done.stderr  # It has no bounds.


def test_a_run_with_bounds_says_what_could_be_seen_and_what_is_not_kept(
  folder, tmp_path
):
  done = run(
    folder,
    tmp_path / "run",
    "--num_updates=20",
    "--learner=constrained_rl",
    "--hyperparam=allowed_loss=inf,-0.9",
    "--hyperparam=multiplier_cap=0.001",
    "--hyperparam=multiplier_learning_rate=1",
    **QUICK_TO_COMPILE,
  )
  assert done.returncode == 0, done.stderr
  table, _, training = done.stderr.partition("No checkpoint in")
  cells = [line.split() for line in table.splitlines()]
  names = [line[0] for line in cells if len(line) >= 4]
  assert names[-4:] == ["g0", "g1", "e0", "e1"]
  assert next(line for line in cells if line[:1] == ["g1"])[2] == "-90"
  assert "reward group 1 is at its cap" in training
  assert "reward group 0 is at its cap" not in training
  row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
  assert row["multiplier"] == pytest.approx([0, 0.001])


def test_compiled_programs_are_kept_where_they_are_asked_for(dataset, tmp_path):
  folder = tmp_path / "compiled"
  flags = ("--num_updates=20", f"--compilation_cache_dir={folder}")
  first = run(dataset, tmp_path / "a", *flags, **QUICK_TO_COMPILE)
  assert first.returncode == 0, first.stderr
  kept = sorted(folder.glob("*-cache"))
  assert any("update_chunk" in path.name for path in kept)
  second = run(dataset, tmp_path / "b", *flags, **QUICK_TO_COMPILE)
  assert second.stdout == first.stdout
  assert sorted(folder.glob("*-cache")) == kept
