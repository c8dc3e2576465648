"""Progressive training: explore, train, redeploy, and tell what users gained.

  python -m experiments.progressive
  python -m experiments.progressive --preset=smoke --out_dir=runs/smoke
  python -m experiments.progressive --world=kuairand.world --seeds=0,1
  python -m experiments.progressive --seeds=10,11,12,13 --parallel_seeds=2
  python -m experiments.progressive --learners=slope_regression,integrated_rl

Killed in any round, the same command with `--resume` goes on from there, on
whatever devices there are.
Matplotlib (the `plots` extra) adds `report.html`.
"""

import dataclasses
import sys
from collections.abc import Sequence

from absl import flags

from experiments import devices, launch, worlds
from mtf_jax.evaluation.tables import text as table_text
from mtf_jax.policies import EXPLORATIONS
from mtf_jax.studies.progressive import config as config_lib
from mtf_jax.studies.progressive import study
from mtf_jax.studies.progressive.run_dir import Plan, RunDir
from mtf_jax.training import tensorboard
from mtf_jax.worlds.leaving import LEAVING_MODELS

_WORLD = worlds.define_world()
_PRESET = flags.DEFINE_enum(
  "preset", "cpu", list(config_lib.PRESETS), "Size of the run."
)
_ROUNDS = flags.DEFINE_integer(
  "rounds", None, "Rounds, instead of the preset's.", lower_bound=1
)
_SEEDS = launch.define_seeds()
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
_LEAVING = flags.DEFINE_list(
  "leaving",
  [next(iter(LEAVING_MODELS))],
  f"Leaving models: {', '.join(LEAVING_MODELS)}.",
)
_OUT_DIR = launch.define_out_dir("runs/progressive")
_TENSORBOARD = flags.DEFINE_boolean(
  "tensorboard",
  False,
  "Write a folder tensorboard beside every metrics.jsonl, too; needs the extra"
  " of that name.",
)
_RESUME = flags.DEFINE_boolean(
  "resume", False, "Go on with the run in --out_dir."
)


def _plan() -> Plan:
  """What the flags ask for."""
  config = config_lib.PRESETS[_PRESET.value]
  if _ROUNDS.value is not None:
    config = dataclasses.replace(config, rounds=_ROUNDS.value)
  if _EXPLORATION.value is not None:
    config = dataclasses.replace(config, exploration=_EXPLORATION.value)
  with launch.refusals("--"):  # They name the flag first.
    return Plan(
      world=_WORLD.value,
      preset=_PRESET.value,
      seeds=tuple(_SEEDS.value),
      parallel_seeds=_PARALLEL_SEEDS.value,
      leaving=tuple(_LEAVING.value),
      learners=tuple(
        _LEARNERS.value or config_lib.DEFAULT_LEARNERS[_PRESET.value]
      ),
      config=config,
    )


def _resume() -> Sequence[str]:
  """Flags that go on with this run, once there is one."""
  begun = (RunDir(_OUT_DIR.value).path / "run.json").exists()
  return ["--resume"] if begun and not _RESUME.value else []


def main() -> None:
  """Plays all rounds, writes the report, prints the table."""
  plan, run_dir, mesh = _plan(), RunDir(_OUT_DIR.value), devices.mesh()
  study.check_fits(plan, mesh)
  if _TENSORBOARD.value:
    tensorboard.require()
  world = None
  if plan.world != "synthetic":
    world = worlds.load(plan.world)
  with launch.refusals("--resume: " if _RESUME.value else "--out_dir: "):
    (run_dir.resume if _RESUME.value else run_dir.claim)(plan)

  def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)

  table = study.run_study(
    plan, run_dir, world, say, mesh=mesh, tensorboard=_TENSORBOARD.value
  )
  print(table_text(table))
  print("\n".join(map(str, run_dir.outputs())))


if __name__ == "__main__":
  launch.run(main, resume=_resume)
