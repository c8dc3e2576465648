"""A policy of a progressive run as it goes into service elsewhere."""

import os
from typing import Any, NamedTuple

from mtf_jax.fitting import synthetic
from mtf_jax.io import InputError
from mtf_jax.kernels.exploration import HALF_WIDTH
from mtf_jax.serving.export import Served
from mtf_jax.studies.progressive import experiment as experiment_lib
from mtf_jax.studies.progressive import study_learner as study_learner_lib
from mtf_jax.studies.progressive.group_dir import check_same_run
from mtf_jax.studies.progressive.run_dir import RunDir
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


def read_run_policy(
  run_dir: str | os.PathLike[str],
  *,
  round_number: int | None = None,
  seed: int | None = None,
  leaving: str | None = None,
  learner: str | None = None,
  half_width: float = HALF_WIDTH,
) -> RunPolicy:
  """Reads the policy that a round of a run put into service.

  The run may be going on: nothing in its folder is changed.

  Args:
    run_dir: `--out_dir` of `experiments.progressive`.
    round_number: from 1; the last one if omitted.
    seed, leaving, learner: which of the run's; its first if omitted.
    half_width: of the box to explore in; 0 does not explore.

  Returns:
    The policy.

  Raises:
    InputError: there is no such run, seed, leaving model, learner or round, the
      checkpoint is damaged, or the run's world is another one now.
  """
  run_dir = RunDir(run_dir)
  plan = run_dir.plan()
  seed = _chosen("seed", seed, plan.seeds)
  leaving = _chosen("leaving", leaving, plan.leaving)
  learner = _chosen("learner", learner, plan.learners)
  rounds = range(plan.config.rounds, 0, -1)
  round_number = _chosen("round", round_number, rounds)
  config = plan.configs[learner]
  seeds = next(group for group in plan.groups if seed in group)
  if plan.world == "synthetic":
    worlds = [
      synthetic.synthetic_world(config.world_size, each) for each in seeds
    ]
  else:
    worlds = [world_io.load_world(plan.world)] * len(seeds)
  worlds = [world.with_leaving(leaving) for world in worlds]
  study_learner = study_learner_lib.make_study_learner(config.train, worlds[0])
  experiment = experiment_lib.assemble(config, worlds, seeds, study_learner)
  template = experiment_lib.with_study_learner(
    experiment, config, study_learner
  ).start
  folder = run_dir.group(leaving, seeds).learner(learner).rounds
  same = {
    "config": config.to_json(),
    "worlds": [fingerprint(world) for world in worlds],
    "seeds": list(seeds),
  }
  checkpoints = Checkpoints(folder, read_only=True)
  try:
    restored = checkpoints.restore(
      template,
      lambda record: check_same_run(folder, same, record),
      step=round_number,
    )
  finally:
    checkpoints.close()
  if restored is None:
    raise InputError(
      f"{folder}: expected round {round_number}, found none yet."
    )
  state = experiment_lib.tree_index(restored[0], seeds.index(seed))
  params = study_learner.learner.policy(state)
  world = worlds[seeds.index(seed)]
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
    exploration=config.exploration,
    source={
      "learner": learner,
      "round": round_number,
      "seed": seed,
      "leaving": leaving,
      "world": fingerprint(world),
    },
  )
