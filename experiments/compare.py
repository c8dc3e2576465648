"""Compares every method on the same logs, with the true value of each policy.

  python -m experiments.compare --preset=smoke --out_dir=runs/compare
  python -m experiments.compare --seeds=10,11 --leaving=temper_budget
  python -m experiments.compare --learners=integrated_rl,td3_bc --data=box
  python -m experiments.compare --world=kuairand.world --seeds=10 \
    --log_dir=kuairand_pure
  python -m experiments.compare --tune --seeds=0,1,2,3,4 --out_dir=runs/tuning

Killed at any moment, the same command with `--resume` goes on with the first cell
that is not done. With `--log_dir`, the folder in KuaiRand's layout that the world was
fitted to with seed 0, policies are judged on the log's held-out days too (the `data`
extra); `--test_from` and `--fit_before` must be those of the fit. Matplotlib (the
`plots` extra) adds `report.html`.
"""

import sys
from collections.abc import Sequence

from absl import flags

from experiments import launch, worlds
from mtf_jax.evaluation.tables import text as table_text
from mtf_jax.io import InputError
from mtf_jax.studies.compare import config as config_lib
from mtf_jax.studies.compare import study, tuning
from mtf_jax.studies.compare.methods import ABLATIONS, METHODS, VERSIONS
from mtf_jax.studies.compare.plan import CompareDir, Plan
from mtf_jax.studies.log_gauc import held_out
from mtf_jax.studies.log_gauc.held_out import HeldOut
from mtf_jax.training.metrics import shown_steps
from mtf_jax.worlds.leaving import LEAVING_MODELS
from mtf_jax.worlds.world import World

_WORLD = worlds.define_world()
_PRESET = flags.DEFINE_enum(
  "preset", "cpu", list(config_lib.PRESETS), "Size of the comparison."
)
_SEEDS = launch.define_seeds()
_LEARNERS = flags.DEFINE_list(
  "learners", ["all"], f"`all`, or methods: {', '.join(METHODS)}."
)
_VERSIONS = flags.DEFINE_list(
  "versions",
  list(VERSIONS),
  f"Versions of a method: {', '.join(VERSIONS)}, or in between:"
  f" {', '.join(ABLATIONS)}.",
)
_DATA = flags.DEFINE_list(
  "data", list(config_lib.DATA), f"Logs: {', '.join(config_lib.DATA)}."
)
_LEAVING = flags.DEFINE_list(
  "leaving",
  [next(iter(LEAVING_MODELS))],
  f"Leaving models: {', '.join(LEAVING_MODELS)}.",
)
_LOG_DIR = launch.define_in_dir(
  "log_dir",
  None,
  "Log that --world was fitted to, to judge on its held-out days too.",
)
_TEST_FROM = flags.DEFINE_integer(
  "test_from", 20220505, "Ranker's first held-out day, as in the fit.", 1
)
_FIT_BEFORE = flags.DEFINE_integer(
  "fit_before", None, "First day that the fit did not see, as in the fit.", 1
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
      log_dir=_LOG_DIR.value,
    )


def _resume() -> Sequence[str]:
  """Flags that go on with this comparison, once there is one."""
  begun = CompareDir(_OUT_DIR.value).begun
  return ["--resume"] if begun and not _RESUME.value else []


def _held_out(log_dir: str | None, world: World | None) -> HeldOut | None:
  """The held-out days of the world's log, if there is one to judge on."""
  if log_dir is None:
    return None
  if _TUNE.value:
    raise InputError(
      "--log_dir: expected none with --tune, which judges by the true gain,"
      f" found {log_dir}."
    )
  with launch.refusals():  # They name the flags themselves.
    return held_out.read(
      log_dir,
      world,
      test_from=_TEST_FROM.value,
      seed=0,
      fit_before=_FIT_BEFORE.value,
      on_step=shown_steps("epochs"),
    )


def main() -> None:
  """Plays all cells, writes the report, prints the tables."""
  plan, folder = _plan(), CompareDir(_OUT_DIR.value)
  world = None
  if plan.world != "synthetic":
    world = worlds.load(plan.world)
  shown = _held_out(plan.log_dir, world)

  def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)

  resume = _RESUME.value
  with launch.refusals("--resume: " if resume else "--out_dir: "):
    if _TUNE.value:
      table = tuning.run_tuning(plan, folder, world, say, resume=resume)
      print(f"{table_text(table)}\n{folder.path / 'tuning.json'}")
      return
    tables = study.run_study(
      plan, folder, world, say, held_out=shown, resume=resume
    )
  print("\n".join(map(table_text, tables)))
  print(f"{folder.path / 'compare.json'}\n{folder.path / 'report.md'}")


if __name__ == "__main__":
  launch.run(main, resume=_resume)
