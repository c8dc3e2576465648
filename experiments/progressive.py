"""Progressive training: explore, train, redeploy, and tell what users gained.

  python -m experiments.progressive
  python -m experiments.progressive --preset=smoke --out_dir=runs/smoke
  python -m experiments.progressive --world=kuairand.world --seeds=0,1
  python -m experiments.progressive --seeds=10,11,12,13 --parallel_seeds=2
  python -m experiments.progressive --learners=integrated_rl,integrated_rl:mlp

Killed in any round, the same command with `--resume` goes on from there.
Matplotlib (the `plots` extra) adds `report.html`.
"""

import dataclasses
import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence

import jax
from absl import app, flags, logging

from mtf_jax.evaluation.tables import text as table_text
from mtf_jax.studies.progressive import config as config_lib
from mtf_jax.studies.progressive import study
from mtf_jax.studies.progressive.run_dir import Plan, RunDir, RunDirError
from mtf_jax.worlds import io as world_io
from mtf_jax.worlds.leaving import LEAVING_MODELS

_PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint")

_WORLD = flags.DEFINE_string(
  "world", "synthetic", "`synthetic`, or a world file of fit_world."
)
_PRESET = flags.DEFINE_enum(
  "preset", "cpu", list(config_lib.PRESETS), "Size of the run."
)
_ROUNDS = flags.DEFINE_integer(
  "rounds", None, "Rounds, instead of the preset's.", lower_bound=1
)
_SEEDS = flags.DEFINE_list(
  "seeds", ["0"], "Seeds; each decides users, synthetic world and learner."
)
_PARALLEL_SEEDS = flags.DEFINE_integer(
  "parallel_seeds",
  1,
  "Seeds that run side by side as one program; divides the number of seeds. The"
  " worlds, logged rows and networks of all of them are then in memory at once:"
  " so many times what one seed needs.",
  lower_bound=1,
)
_LEARNERS = flags.DEFINE_list(
  "learners",
  None,
  "Learners, instead of the preset's: names as `experiments.train --learner` has"
  " them, or name:critic. Each is trained on its own; the first is the one that"
  " summary.json speaks of.",
)
_EXPLORATION = flags.DEFINE_enum(
  "exploration",
  None,
  list(config_lib.EXPLORATIONS),
  "How often the deviation in the box is drawn, instead of the preset's.",
)
_ES_STEPS = flags.DEFINE_integer(
  "es_steps",
  None,
  "Steps of the evolution strategy (ES) that is in service first, instead of the"
  " preset's; 240 converge it in preset `cpu`.",
  lower_bound=2,
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
flags.register_multi_flags_validator(
  ["seeds", "parallel_seeds"],
  lambda values: len(values["seeds"]) % values["parallel_seeds"] == 0,
  "--parallel_seeds: expected a number that divides the number of --seeds.",
)


def _plan() -> Plan:
  """What the flags ask for."""
  config = config_lib.PRESETS[_PRESET.value]
  if _ROUNDS.value is not None:
    config = dataclasses.replace(config, rounds=_ROUNDS.value)
  if _EXPLORATION.value is not None:
    config = dataclasses.replace(config, exploration=_EXPLORATION.value)
  if _ES_STEPS.value is not None:
    search = config.es_search._replace(iterations=_ES_STEPS.value)
    config = dataclasses.replace(config, es_search=search)
  learners = _LEARNERS.value or [config.train.learner]
  try:
    for name in learners:
      config.with_learner(name)
    if len(set(learners)) != len(learners):
      raise ValueError(f"expected different names, found {','.join(learners)}.")
  except ValueError as error:
    raise app.UsageError(f"--learners: {error}") from error
  return Plan(
    world=_WORLD.value,
    preset=_PRESET.value,
    seeds=tuple(int(value) for value in _SEEDS.value),
    parallel_seeds=_PARALLEL_SEEDS.value,
    leaving=tuple(_LEAVING.value),
    learners=tuple(learners),
    config=config,
  )


def _versions() -> dict[str, str]:
  device = jax.devices()[0]
  return {
    "python": platform.python_version(),
    **{name: importlib.metadata.version(name) for name in _PACKAGES},
    "device": f"{jax.device_count()} x {device.device_kind}",
    "cores": str(os.cpu_count()),
  }


def main(argv: Sequence[str]) -> None:
  """Plays all rounds, writes the report, prints the table."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  # Orbax reports every step of a save.
  logging.set_verbosity(logging.WARNING)
  plan, run_dir = _plan(), RunDir(_OUT_DIR.value)
  world = None
  if plan.world != "synthetic":
    try:
      world = world_io.load_world(plan.world)
    except ValueError as error:
      raise app.UsageError(f"--world: {error}") from error
  take, flag = (run_dir.claim, "out_dir")
  if _RESUME.value:
    take, flag = (run_dir.resume, "resume")
  try:
    take(plan)
  except RunDirError as error:
    raise app.UsageError(f"--{flag}: {error}") from error

  def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)

  table = study.run_study(plan, run_dir, world, _versions(), say)
  print(table_text(table))
  print("\n".join(map(str, run_dir.outputs())))


if __name__ == "__main__":
  app.run(main)
