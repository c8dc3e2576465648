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
import os
import sys
from collections.abc import Sequence

from absl import app, flags, logging

from experiments import worlds
from mtf_jax.evaluation.tables import text as table_text
from mtf_jax.policies import EXPLORATIONS
from mtf_jax.studies.progressive import config as config_lib
from mtf_jax.studies.progressive import study
from mtf_jax.studies.progressive.run_dir import Plan, RunDir, RunDirError
from mtf_jax.worlds.leaving import LEAVING_MODELS

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
  list(EXPLORATIONS),
  "How often the deviation in the box is drawn, instead of the preset's.",
)
_ES_STEPS = flags.DEFINE_integer(
  "es_steps",
  None,
  "Steps of the evolution strategy (ES) that finds the baseline policy, instead"
  " of the preset's.",
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
  try:
    return Plan(
      world=_WORLD.value,
      preset=_PRESET.value,
      seeds=tuple(int(x) if x.isdecimal() else -1 for x in _SEEDS.value),
      parallel_seeds=_PARALLEL_SEEDS.value,
      leaving=tuple(_LEAVING.value),
      learners=tuple(_LEARNERS.value or [config.train.learner]),
      config=config,
    )
  except ValueError as error:  # It names the flag first.
    raise app.UsageError(f"--{error}") from error


def main(argv: Sequence[str]) -> None:
  """Plays all rounds, writes the report, prints the table."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  # Orbax reports every step of a save.
  logging.set_verbosity(logging.WARNING)
  plan, run_dir = _plan(), RunDir(_OUT_DIR.value)
  world = None
  if plan.world != "synthetic":
    world = worlds.load(plan.world)
  take, flag = (run_dir.claim, "out_dir")
  if _RESUME.value:
    take, flag = (run_dir.resume, "resume")
  try:
    take(plan)
  except RunDirError as error:
    raise app.UsageError(f"--{flag}: {error}") from error

  def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)

  table = study.run_study(plan, run_dir, world, say)
  print(table_text(table))
  print("\n".join(map(str, run_dir.outputs())))


if __name__ == "__main__":
  app.run(main)
