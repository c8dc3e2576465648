"""Progressive training: explore, train, redeploy, and tell what users gained.

  python -m experiments.progressive
  python -m experiments.progressive --preset=smoke --out_dir=runs/smoke
  python -m experiments.progressive --world=kuairand.world --seeds=0,1

Killed in any round, the same command with `--resume` goes on from there.
Matplotlib (the `plots` extra) adds `report.html`.
"""

import dataclasses
import importlib.util
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
from absl import app, flags, logging

from mtf_jax.training import progressive, progressive_report
from mtf_jax.training.checkpoints import Checkpoints
from mtf_jax.training.metrics import (
  MetricsWriter,
  NegativeTargetWarning,
  Progress,
  summarize,
)
from mtf_jax.worlds import files, synthetic
from mtf_jax.worlds.leaving import LEAVING_MODELS
from mtf_jax.worlds.world import World, fingerprint

_WORLD = flags.DEFINE_string(
  "world", "synthetic", "`synthetic`, or a world file of fit_world."
)
_PRESET = flags.DEFINE_enum(
  "preset", "cpu", list(progressive.PRESETS), "Size of the run."
)
_ROUNDS = flags.DEFINE_integer(
  "rounds", None, "Rounds, instead of the preset's.", lower_bound=1
)
_SEEDS = flags.DEFINE_list(
  "seeds", ["0"], "Seeds; each decides users, synthetic world and learner."
)
_LEAVING = flags.DEFINE_list(
  "leaving",
  [next(iter(LEAVING_MODELS))],
  f"Leaving models: {', '.join(LEAVING_MODELS)}.",
)
_OUT_DIR = flags.DEFINE_string(
  "out_dir", "runs/progressive", "Folder to write into."
)
_RESUME = flags.DEFINE_boolean(
  "resume", False, "Go on with the run in --out_dir."
)

flags.register_validator(
  "world",
  lambda value: value == "synthetic" or os.path.isfile(value),
  "expected `synthetic` or a file that exists.",
)
flags.register_validator(
  "seeds",
  lambda values: (
    bool(values)
    and all(value.isdecimal() for value in values)
    and len(set(map(int, values))) == len(values)
  ),
  "expected different non-negative integers, separated by commas.",
)
flags.register_validator(
  "leaving",
  lambda values: (
    bool(values)
    and set(values) <= set(LEAVING_MODELS)
    and len(set(values)) == len(values)
  ),
  f"expected different names of {', '.join(LEAVING_MODELS)}.",
)


def _say(message: str) -> None:
  print(message, file=sys.stderr, flush=True)


def _write(path: pathlib.Path, text: str) -> None:
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  temporary.write_text(text, encoding="utf-8")
  temporary.replace(path)


def _claim(out_dir: pathlib.Path, plan: dict[str, Any]) -> str | None:
  """Takes the folder for this run; a sentence if that cannot be."""
  path = out_dir / "run.json"
  if not _RESUME.value:
    if path.exists():
      return (
        f"--out_dir: {out_dir} holds a run; add --resume to go on with it, or"
        " name another folder."
      )
    out_dir.mkdir(parents=True, exist_ok=True)
    _write(path, json.dumps(plan, indent=1))
    return None
  if not path.exists():
    return f"--resume: there is no run in {out_dir}."
  before = json.loads(path.read_text(encoding="utf-8"))
  for name, value in plan.items():
    if before.get(name) != value:
      return (
        f"--resume: the run in {out_dir} has another {name}; give the flags it"
        " was started with."
      )
  return None


def _same_run(expected: dict[str, Any]):
  def check(found: dict[str, Any]) -> None:
    for name, value in expected.items():
      if found[name] != value:
        raise ValueError(
          f"{name}: expected {value!r} as in this run, found {found[name]!r} in"
          " the checkpoint."
        )

  return check


class _Watch:
  """Counts the updates of all runs, and writes those of one to a file."""

  def __init__(self, done: int, total: int, chunk_size: int):
    self._progress = Progress(done, total)
    self._negative_targets = NegativeTargetWarning()
    self._done = done
    self._chunk_size = chunk_size

  def skip(self, updates: int) -> None:
    self._done += updates

  def follow(self, writer: MetricsWriter | None, before: int):
    """`on_chunk` of a training run whose rows count from `before`."""

    def on_chunk(state, metrics):
      row = summarize(metrics)
      self._negative_targets.check(row)
      self._done += self._chunk_size
      self._progress.update(self._done)
      if writer is not None:
        writer.write({"step": before + int(state.step), **row})

    return on_chunk


def _play(
  config: progressive.ProgressiveConfig,
  algorithm: progressive.Algorithm,
  world: World,
  seed: int,
  folder: pathlib.Path,
  watch: _Watch,
) -> dict[str, Any]:
  """All rounds of one seed and leaving model, from where they were left."""
  updates = config.train.num_updates
  done = folder / "result.json"
  if done.exists():
    watch.skip(2 * config.rounds * updates)
    return json.loads(done.read_text(encoding="utf-8"))
  folder.mkdir(parents=True, exist_ok=True)
  started = time.monotonic()
  run = progressive.prepare(config, world, seed, algorithm)
  state, rounds = run.start, []
  seconds = {"prepare": time.monotonic() - started}
  record = {"config": config.to_json(), "world": fingerprint(world)}
  record["seed"] = seed
  checkpoints = Checkpoints(folder / "checkpoints", keep=config.rounds)
  try:
    restored = checkpoints.restore(state, check=_same_run(record))
    if restored is not None:
      state, found = restored
      rounds = found["rounds"]
      watch.skip(len(rounds) * updates)
      _say(f"{folder}: going on after round {len(rounds)}.")
    writer = MetricsWriter(folder / "metrics.jsonl", len(rounds) * updates)
    for number in range(len(rounds), config.rounds):
      on_chunk = watch.follow(writer, number * updates)
      state, figures = progressive.play_round(run, state, number, on_chunk)
      rounds.append(figures)
      checkpoints.save(number + 1, state, {**record, "rounds": rounds})
      low, high = figures["reward_gain_ci95"]
      _say(
        f"{folder.name}, round {number + 1} of {config.rounds}: reward"
        f" {figures['reward_gain_pct']:+.2f}% [{low:+.2f}, {high:+.2f}] over ES"
      )
  finally:
    checkpoints.close()
  for name in ("collect", "train", "judge"):
    seconds[name] = sum(row["seconds"][name] for row in rounds)
  started = time.monotonic()
  one_round = progressive.play_once(run, watch.follow(None, 0))
  seconds["one_round"] = time.monotonic() - started
  started = time.monotonic()
  bound = progressive.headroom_figures(run)
  seconds["headroom"] = time.monotonic() - started
  result = {
    "fingerprint": record["world"],
    "rounds": rounds,
    "one_round": one_round,
    "headroom": bound,
    "es": progressive.es_figures(run),
    "seconds": seconds,
  }
  _write(done, json.dumps(result, indent=1))
  return result


def _summary(result: dict[str, Any]) -> dict[str, Any]:
  """The figures of one seed and leaving model that a reader wants first."""
  rounds, last = result["rounds"], result["rounds"][-1]

  def over_rounds(name):
    return sum(row[name] for row in rounds) / len(rounds)

  gain, bound = last["reward_gain_pct"], result["headroom"]["headroom_pct"]
  return {
    "fingerprint": result["fingerprint"],
    **{
      name: last[name]
      for name in (
        "reward_gain_pct",
        "reward_gain_ci95",
        "reward_p_value",
        "uvc_gain_pct",
        "udt_gain_pct",
        "session_length_gain_pct",
        "hate_rate",
        "hate_rate_base",
      )
    },
    "one_round_gain_pct": result["one_round"]["reward_gain_pct"],
    "one_round_gain_ci95": result["one_round"]["reward_gain_ci95"],
    "headroom_pct": bound,
    "headroom_reached": gain / bound if bound > 0 else None,
    "exploration_cost_pct": over_rounds("exploration_cost_pct"),
    "gaussian_cost_pct": over_rounds("gaussian_cost_pct"),
    "outside_share": over_rounds("outside_share"),
  }


def main(argv: Sequence[str]) -> None:
  """Plays all rounds, writes the report, prints the table."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  # Orbax reports every step of a save.
  logging.set_verbosity(logging.WARNING)
  started = time.monotonic()
  config = progressive.PRESETS[_PRESET.value]
  if _ROUNDS.value is not None:
    config = dataclasses.replace(config, rounds=_ROUNDS.value)
  out_dir = pathlib.Path(_OUT_DIR.value)
  seeds = [int(value) for value in _SEEDS.value]
  plan = {
    "world": _WORLD.value,
    "preset": _PRESET.value,
    "rounds": config.rounds,
    "seeds": seeds,
    "leaving": _LEAVING.value,
    "config": config.to_json(),
  }
  problem = _claim(out_dir, plan)
  if problem is not None:
    raise app.UsageError(problem)

  total = len(seeds) * len(_LEAVING.value) * 2 * config.rounds
  updates = config.train.num_updates
  watch = _Watch(0, total * updates, config.train.chunk_size)
  results, summaries, algorithm = {}, {}, None
  for seed in seeds:
    if _WORLD.value == "synthetic":
      _say(f"Building the synthetic world of seed {seed}.")
      built = synthetic.synthetic_world("small", seed)
    else:
      built = files.load_world(_WORLD.value)
    for leaving in _LEAVING.value:
      world = built.with_leaving(leaving)
      if algorithm is None:
        algorithm = progressive.make_algorithm(config.train, world)
      folder = out_dir / f"seed_{seed}_{leaving}"
      result = _play(config, algorithm, world, seed, folder, watch)
      results[f"seed {seed}, leaving {leaving}"] = result
      summaries.setdefault(str(seed), {})[leaving] = _summary(result)

  names = dict.fromkeys(result["fingerprint"] for result in results.values())
  summary = {
    "fingerprint": ",".join(names),
    "preset": _PRESET.value,
    "rounds": config.rounds,
    "wall_s": time.monotonic() - started,
    "seeds": summaries,
  }
  _write(out_dir / "summary.json", json.dumps(summary, indent=1))
  tables = [
    progressive_report.result_table(title, result)
    for title, result in results.items()
  ]
  versions = {"python": platform.python_version(), "jax": jax.__version__}
  configuration = json.dumps(
    {**plan, "fingerprint": list(names), "versions": versions}, indent=1
  )
  pages = [*tables, progressive_report.seconds_table(results)]
  written = ["summary.json", "report.md", "seed_*/metrics.jsonl"]
  written.append("seed_*/checkpoints")
  report = progressive_report.markdown(pages)
  _write(
    out_dir / "report.md",
    f"# Progressive training\n\n{report}\n```json\n{configuration}\n```\n",
  )
  if importlib.util.find_spec("matplotlib") is None:
    _say("No report.html: matplotlib (the `plots` extra) is not installed.")
  else:
    page = progressive_report.html(results, pages, configuration)
    _write(out_dir / "report.html", page)
    written.append("report.html")
  for table in tables:
    print(progressive_report.text(table))
  print("\n".join(str(out_dir / name) for name in written))


if __name__ == "__main__":
  app.run(main)
