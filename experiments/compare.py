"""Compares every method on the same logs, with the true value of each policy.

  python -m experiments.compare --preset=smoke --out_dir=runs/compare
  python -m experiments.compare --seeds=10,11 --leaving=slate_fatigue
  python -m experiments.compare --learners=integrated_rl,td3_bc --data=box
  python -m experiments.compare --world=kuairand.world --seeds=10
  python -m experiments.compare --tune --seeds=0,1,2,3,4 --out_dir=runs/tuning

Killed at any moment, the same command with `--resume` goes on with the first cell
that is not done. Matplotlib (the `plots` extra) adds `report.html`.
"""

import sys
from collections.abc import Sequence

from absl import flags

from experiments import launch, worlds
from mtf_jax.evaluation.tables import text as table_text
from mtf_jax.io import MAX_SEED
from mtf_jax.studies.compare import config as config_lib
from mtf_jax.studies.compare import study, tuning
from mtf_jax.studies.compare.methods import METHODS, VERSIONS
from mtf_jax.studies.compare.plan import CompareDir, Plan
from mtf_jax.worlds.leaving import LEAVING_MODELS

_WORLD = worlds.define_world()
_PRESET = flags.DEFINE_enum(
  "preset", "cpu", list(config_lib.PRESETS), "Size of the comparison."
)
_SEEDS = launch.define_integers(
  "seeds",
  [0],
  "Seeds; each decides users, synthetic world, logs and learners.",
  low=0,
  high=MAX_SEED,
)
_LEARNERS = flags.DEFINE_list(
  "learners", ["all"], f"`all`, or methods: {', '.join(METHODS)}."
)
_VERSIONS = flags.DEFINE_list(
  "versions", list(VERSIONS), f"Versions of a method: {', '.join(VERSIONS)}."
)
_DATA = flags.DEFINE_list(
  "data", list(config_lib.DATA), f"Logs: {', '.join(config_lib.DATA)}."
)
_LEAVING = flags.DEFINE_list(
  "leaving",
  [next(iter(LEAVING_MODELS))],
  f"Leaving models: {', '.join(LEAVING_MODELS)}.",
)
_TUNE = flags.DEFINE_boolean(
  "tune",
  False,
  "Try every method's settings on box logs of --seeds under the first of"
  " --leaving instead, and write tuning.json.",
)
_OUT_DIR = launch.define_out_dir("runs/compare")
_RESUME = flags.DEFINE_boolean(
  "resume", False, "Go on with the comparison in --out_dir."
)


def _plan() -> Plan:
  """What the flags ask for."""
  names = tuple(_LEARNERS.value)
  with launch.refusals("--"):  # They name the flag first.
    return Plan(
      world=_WORLD.value,
      preset=_PRESET.value,
      seeds=tuple(_SEEDS.value),
      leaving=tuple(_LEAVING.value),
      methods=tuple(METHODS) if names == ("all",) else names,
      versions=tuple(_VERSIONS.value),
      data=tuple(_DATA.value),
      config=config_lib.PRESETS[_PRESET.value],
      tuned=config_lib.tuned_numbers(),
    )


def _resume() -> Sequence[str]:
  """Flags that go on with this comparison, once there is one."""
  begun = CompareDir(_OUT_DIR.value).begun
  return ["--resume"] if begun and not _RESUME.value else []


def main() -> None:
  """Plays all cells, writes the report, prints the tables."""
  plan, folder = _plan(), CompareDir(_OUT_DIR.value)
  world = None
  if plan.world != "synthetic":
    world = worlds.load(plan.world)

  def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)

  resume = _RESUME.value
  with launch.refusals("--resume: " if resume else "--out_dir: "):
    if _TUNE.value:
      table = tuning.run_tuning(plan, folder, world, say, resume=resume)
      print(f"{table_text(table)}\n{folder.path / 'tuning.json'}")
      return
    tables = study.run_study(plan, folder, world, say, resume=resume)
  print("\n".join(map(table_text, tables)))
  print(f"{folder.path / 'compare.json'}\n{folder.path / 'report.md'}")


if __name__ == "__main__":
  launch.run(main, resume=_resume)
