"""What a progressive run learnt, read for use elsewhere: in service, in studies."""

import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from mtf_jax.fitting import synthetic
from mtf_jax.io import InputError
from mtf_jax.kernels.exploration import HALF_WIDTH
from mtf_jax.serving.export import Served
from mtf_jax.steps import OnStep, nobody
from mtf_jax.studies.progressive import experiment as experiment_lib
from mtf_jax.studies.progressive import study_learner as study_learner_lib
from mtf_jax.studies.progressive.config import ProgressiveConfig
from mtf_jax.studies.progressive.experiment import Experiment
from mtf_jax.studies.progressive.group_dir import (
  GroupDir,
  LearnerDir,
  check_same_run,
  made_of,
)
from mtf_jax.studies.progressive.run_dir import RunDir
from mtf_jax.studies.progressive.study_learner import StudyLearner
from mtf_jax.training.checkpoints import Checkpoints
from mtf_jax.worlds import io as world_io
from mtf_jax.worlds.world import World, fingerprint


class RunPolicy(NamedTuple):
  """A policy of a run, with what its manifest needs.

  served: the policy.
  world: what it was trained in.
  normalization: of its observations.
  exploration: how long a draw lasted in the run, "session" or "request".
  source: which policy of which run, ready for JSON.
  """

  served: Served
  world: World
  normalization: Any
  exploration: str
  source: dict[str, Any]


def _chosen(name: str, value: Any, known: Any) -> Any:
  """The value asked for; the first where none was."""
  known = list(known)
  if value is None:
    return known[0]
  if value not in known:
    raise InputError(
      f"{name}: expected one of {', '.join(map(str, known))}, as the run has"
      f" them, found {value}."
    )
  return value


class _Opened(NamedTuple):
  """One learner of a run under one seed and leaving model, nothing restored."""

  seed: int
  leaving: str
  learner: str
  config: ProgressiveConfig
  world: World
  study_learner: StudyLearner
  template: Any
  place: int
  group: GroupDir
  folder: LearnerDir
  same: dict[str, Any]
  of: dict[str, Any]


def _open(
  run_dir: str | os.PathLike[str],
  seed: int | None,
  leaving: str | None,
  learner: str | None,
  on_step: OnStep,
) -> _Opened:
  """What is needed to read states: the run's first where nothing is asked for."""
  run = RunDir(run_dir)
  plan = run.plan()
  seed = _chosen("seed", seed, plan.seeds)
  leaving = _chosen("leaving", leaving, plan.leaving)
  learner = _chosen("learner", learner, plan.learners)
  config = plan.configs[learner]
  seeds = next(group for group in plan.groups if seed in group)
  if plan.world == "synthetic":
    worlds = [
      synthetic.synthetic_world(config.world_size, each, on_step)
      for each in seeds
    ]
  else:
    worlds = [world_io.load_world(plan.world)] * len(seeds)
  worlds = [world.with_leaving(leaving) for world in worlds]
  study_learner = study_learner_lib.make_study_learner(config.train, worlds[0])
  experiment = experiment_lib.assemble(config, worlds, seeds, study_learner)
  template = experiment_lib.with_study_learner(
    experiment, config, study_learner
  ).start
  names = [fingerprint(world) for world in worlds]
  group, place = run.group(leaving, seeds), seeds.index(seed)
  return _Opened(
    seed=seed,
    leaving=leaving,
    learner=learner,
    config=config,
    world=worlds[place],
    study_learner=study_learner,
    template=template,
    place=place,
    group=group,
    folder=group.learner(learner),
    same={"config": config.to_json(), "worlds": names, "seeds": list(seeds)},
    of=made_of(plan.configs, names, seeds),
  )


def _restore(opened: _Opened, folder: pathlib.Path, step: int) -> Any:
  """The seed's state of a checkpoint; None where there is none."""
  checkpoints = Checkpoints(folder, read_only=True)
  try:
    restored = checkpoints.restore(
      opened.template,
      lambda record: check_same_run(folder, opened.same, record),
      step=step,
    )
  finally:
    checkpoints.close()
  if restored is None:
    return None
  return experiment_lib.tree_index(restored[0], opened.place)


class SingleBatch(NamedTuple):
  """A learner's single batch, and the sessions that it was judged on.

  experiment: of this seed alone, before it is prepared: no table, no base.
  baseline_action: `[1, A]` the baseline policy.
  state: the learner's, leading axis 1.
  source: of which run, ready for JSON.
  """

  experiment: Experiment
  baseline_action: np.ndarray
  state: Any
  source: dict[str, Any]


def read_single_batch(
  run_dir: str | os.PathLike[str],
  *,
  seed: int | None = None,
  leaving: str | None = None,
  learner: str | None = None,
  on_step: OnStep = nobody,
) -> SingleBatch:
  """Reads what a finished run learnt from all its sessions in one batch.

  Args:
    run_dir: `--out_dir` of `experiments.progressive`; nothing in it is changed.
    seed, leaving, learner: which of the run's; its first if omitted.
    on_step: told how far the run's synthetic worlds are.

  Returns:
    The state, and the run as far as it need not be prepared again.

  Raises:
    InputError: there is no such run, seed, leaving model or learner, it is not
      finished, a checkpoint is damaged, or the run's world is another one now.
  """
  opened = _open(run_dir, seed, leaving, learner, on_step)
  result = opened.group.read_result(opened.of)
  state = _restore(opened, opened.folder.single_batch, 1)
  if result is None or state is None:
    raise InputError(
      f"{opened.group.path}: expected a finished run, found one that is not;"
      " `experiments.progressive --resume` goes on with it."
    )
  action = result[str(opened.seed)]["baseline_policy"]["action"]
  return SingleBatch(
    experiment=experiment_lib.assemble(
      opened.config, [opened.world], [opened.seed], opened.study_learner
    ),
    baseline_action=np.asarray([action], np.float32),
    state=jax.tree.map(lambda leaf: leaf[None], state),
    source={
      "learner": opened.learner,
      "seed": opened.seed,
      "leaving": opened.leaving,
      "world": fingerprint(opened.world),
    },
  )


def read_run_policy(
  run_dir: str | os.PathLike[str],
  *,
  round_number: int | None = None,
  seed: int | None = None,
  leaving: str | None = None,
  learner: str | None = None,
  half_width: float = HALF_WIDTH,
  on_step: OnStep = nobody,
) -> RunPolicy:
  """Reads the policy that a round of a run put into service.

  The run may be going on: nothing in its folder is changed.

  Args:
    run_dir: `--out_dir` of `experiments.progressive`.
    round_number: from 1; the last one if omitted.
    seed, leaving, learner: which of the run's; its first if omitted.
    half_width: of the box to explore in; 0 does not explore.
    on_step: told how far the run's synthetic worlds are.

  Returns:
    The policy.

  Raises:
    InputError: there is no such run, seed, leaving model, learner or round, the
      checkpoint is damaged, or the run's world is another one now.
  """
  opened = _open(run_dir, seed, leaving, learner, on_step)
  rounds = range(opened.config.rounds, 0, -1)
  round_number = _chosen("round", round_number, rounds)
  state = _restore(opened, opened.folder.rounds, round_number)
  if state is None:
    raise InputError(
      f"{opened.folder.rounds}: expected round {round_number}, found none yet."
    )
  world, study_learner = opened.world, opened.study_learner
  params = study_learner.learner.policy(state)
  return RunPolicy(
    served=Served(
      study_learner.learner.act,
      params,
      world.fusion_spec,
      world.slate_size,
      half_width,
    ),
    world=world,
    normalization=params.normalization,
    exploration=opened.config.exploration,
    source={
      "learner": opened.learner,
      "round": round_number,
      "seed": opened.seed,
      "leaving": opened.leaving,
      "world": fingerprint(world),
    },
  )
