"""Policies of a finished progressive run, read from its folder."""

import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.numpy as jnp

from mtf_jax import policies
from mtf_jax.policies import PolicyParams, fixed_action
from mtf_jax.studies.progressive import experiment as experiment_lib
from mtf_jax.studies.progressive import study_learner as study_learner_lib
from mtf_jax.studies.progressive.group_dir import (
  GroupDir,
  check_same_run,
  made_of,
)
from mtf_jax.studies.progressive.records import RunDirError
from mtf_jax.studies.progressive.run_dir import RunDir
from mtf_jax.training.checkpoints import Checkpoints
from mtf_jax.worlds.world import World, fingerprint


class FinishedPolicy(NamedTuple):
  """A policy of a finished run, not exploring.

  seed, leaving: which run it is of.
  name: "baseline policy", or the learner and whether it is the policy of the
    last round or of the single batch.
  act, params: the policy.
  """

  seed: int
  leaving: str
  name: str
  act: policies.Act
  params: PolicyParams | Any


def _restore(
  folder: pathlib.Path, template: Any, expected: dict[str, Any], rounds: int
):
  """The newest whole checkpoint; it must be the one that is `expected`.

  A damaged one makes way for the one before it, whose policy is of an earlier
  round.
  """

  def check(record: dict[str, Any]) -> None:
    check_same_run(folder, expected, record)
    found = len(record.get("rounds", ()))
    if found != rounds:
      raise RunDirError(
        f"{folder}: expected rounds {rounds}, found {found} in the newest whole"
        " checkpoint."
      )

  if not folder.is_dir():
    raise RunDirError(f"{folder}: expected checkpoints, found no folder.")
  checkpoints = Checkpoints(folder, read_only=True)
  try:
    restored = checkpoints.restore(template, check)
  finally:
    checkpoints.close()
  if restored is None:
    raise RunDirError(f"{folder}: expected a checkpoint, found none.")
  return restored[0]


def _baseline_actions(
  folder: GroupDir, expected: dict[str, Any]
) -> dict[str, Any]:
  """The action of the baseline policy by seed."""
  result = folder.read_result(expected)
  if result is None:
    raise RunDirError(f"{folder.path}: expected a finished run, found none.")
  return {
    seed: found["baseline_policy"]["action"] for seed, found in result.items()
  }


def read_policies(
  run_dir: str | os.PathLike[str], world: World
) -> Iterator[FinishedPolicy]:
  """Reads the policies of a run whose seeds share one fitted world.

  Args:
    run_dir: `--out_dir` of `experiments.progressive`.
    world: the run's world, under any leaving model.

  Yields:
    The policies by leaving model, group of seeds, learner and seed.

  Raises:
    InputError: there is no run, it is damaged, not finished, or was in another
      world, or its last checkpoint is damaged.
    CheckpointError: no checkpoint is whole.
  """
  run_dir = RunDir(run_dir)
  plan = run_dir.plan()
  configs = plan.configs
  study_learners = {
    name: study_learner_lib.make_study_learner(config.train, world)
    for name, config in configs.items()
  }
  for leaving in plan.leaving:
    left = world.with_leaving(leaving)
    for seeds in plan.groups:
      folder = run_dir.group(leaving, seeds)
      worlds = [fingerprint(left)] * len(seeds)
      # First: before a run is finished, another process may be writing.
      actions = _baseline_actions(folder, made_of(configs, worlds, seeds))
      for name, config in configs.items():
        study_learner = study_learners[name]
        experiment = experiment_lib.assemble(
          config, [left] * len(seeds), seeds, study_learner
        )
        template = experiment_lib.with_study_learner(
          experiment, config, study_learner
        ).start
        same = {
          "config": config.to_json(),
          "worlds": worlds,
          "seeds": list(seeds),
        }
        last = _restore(
          folder.learner(name).rounds, template, same, config.rounds
        )
        alone = _restore(folder.learner(name).single_batch, template, same, 0)
        for label, state in (("progressive", last), ("single batch", alone)):
          params = experiment_lib.policy_params(study_learner, state)
          for n, seed in enumerate(seeds):
            yield FinishedPolicy(
              seed=seed,
              leaving=leaving,
              name=f"{label}, {name}",
              act=study_learner.act,
              params=experiment_lib.tree_index(params, n),
            )
      for seed in seeds:
        yield FinishedPolicy(
          seed,
          leaving,
          "baseline policy",
          fixed_action,
          jnp.asarray(actions[str(seed)], jnp.float32),
        )
