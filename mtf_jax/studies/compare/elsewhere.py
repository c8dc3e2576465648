"""The comparison's rivals against d3rlpy's, on one log and in one world.

TD3+BC, IQL and CQL are trained by both packages on the box log of a seed: same
rows, same weights at the start, same batches, one reward. Both policies are then
the parameters of one network, and are judged by one program on the same sessions.
Ours is trained once more from the same weights on other batches: what that
changes is what the draws alone make, against which a difference is to be held.
The version of the comparison, with critics for each reward group, is trained and
judged besides.

Letters: `N` observations, `A` action components.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax import networks
from mtf_jax.evaluation.ab_test import EvalResult, check_paired
from mtf_jax.evaluation.statistics import (
  Comparison,
  mean_interval,
  paired_comparison,
)
from mtf_jax.interop import d3rlpy_learners
from mtf_jax.learners import box_units, iql
from mtf_jax.learners.base import Normalization
from mtf_jax.policies import PolicyParams, explore_around
from mtf_jax.studies.compare import bench as bench_lib
from mtf_jax.studies.compare.bench import Bench
from mtf_jax.studies.compare.cells import study_learner, train_cell
from mtf_jax.studies.compare.config import CompareConfig
from mtf_jax.studies.compare.elsewhere_log import Place, draws_of
from mtf_jax.studies.compare.methods import METHODS
from mtf_jax.studies.progressive.experiment import tree_index
from mtf_jax.studies.progressive.study_learner import (
  StudyLearner,
  initial_state,
  started_actor,
)
from mtf_jax.training import loop
from mtf_jax.training.config import (
  TrainConfig,
  build_learner,
  hyperparams_of,
  make_networks,
)


class Setting(NamedTuple):
  """An algorithm with numbers.

  learner: its name in the registry.
  tried: numbers of the comparison's grid that are not the published ones.
  same: numbers that make ours the algorithm that d3rlpy has.
  """

  learner: str
  tried: Mapping[str, float] = {}
  same: Mapping[str, float] = {}


# With its published 2.5, TD3+BC goes to a corner of [-1, 1]^A here, where policies
# are equal that need not be: at 0.2 the log holds it. d3rlpy scales no advantage,
# so that IQL's beta is in units of the return; its sampled target has the entropy.
SETTINGS = {
  "td3_bc": Setting("td3_bc"),
  "td3_bc_held": Setting("td3_bc", tried={"value_scale": 0.2}),
  "iql": Setting(
    "iql", same={"scale_advantage": 0.0, "inverse_temperature": 1.0}
  ),
  "cql": Setting("cql", same={"entropy_backup": 1.0}),
}
_AT_LIMIT = 0.99
_DISTANCE_ROWS = 8192


def _as_compared(config: CompareConfig, setting: Setting) -> TrainConfig:
  """What the comparison trains with."""
  numbers = {f"{setting.learner}:as_published": dict(setting.tried)}
  return config.train_of(setting.learner, "as_published", numbers)


def config_of(config: CompareConfig, name: str) -> TrainConfig:
  """Networks and numbers that both packages train with.

  Args:
    config: of the comparison.
    name: a key of `SETTINGS`.
  """
  setting = SETTINGS[name]
  train = _as_compared(config, setting)
  return dataclasses.replace(
    train,
    critic="mlp",
    num_steps=1,
    ensemble_size=2,
    critic_updates=METHODS[setting.learner].critic_updates,
    hyperparams={**train.hyperparams, **setting.same},
  )


def learner_of(train: TrainConfig, num_actions: int) -> StudyLearner:
  """A learner of one reward, its actor a `started_actor`.

  Args:
    train: of `config_of`.
    num_actions: `A`.
  """
  actor, critic = make_networks(train, num_actions, 1)
  actor = started_actor(actor)
  if train.learner == "iql":
    # One V, as published; the comparison's has as many as there are critics.
    value = networks.mlp_critic(1, 1, train.hidden_sizes)
    build = functools.partial(iql.iql, critic=critic, value=value)
  else:
    build = functools.partial(build_learner, train, critic=critic)
  learner = build(actor)
  return StudyLearner(
    learner,
    explore_around(learner.act),
    actor,
    build,
    hyperparams_of(train.learner),
    True,
  )


def _framed(actor_params: Any, normalization: Normalization) -> Any:
  """Parameters of the one program that answers for all policies."""
  size = actor_params["start"].shape[0]
  return box_units.Policy(
    actor_params,
    normalization,
    box_units.Frame(np.zeros(size, np.float32), np.ones(size, np.float32)),
  )


def _judge(bench: Bench, actor: networks.Actor, params: Any) -> EvalResult:
  act = explore_around(box_units.deterministic_act(actor))
  served = PolicyParams(params, 0.0, 0.0)
  return jax.device_get(bench_lib.judge(bench, act, served))


def _gain(policy: EvalResult, base: EvalResult) -> dict[str, Any]:
  check_paired(policy, base)
  return as_json(paired_comparison(policy.reward, base.reward, base.user))


def as_json(found: Comparison) -> dict[str, Any]:
  """A comparison as results have it, percent."""
  return {
    "pct": found.gain,
    "ci95": list(found.ci95),
    "p_value": found.p_value,
  }


def _rms(one: np.ndarray, other: np.ndarray) -> float:
  """Root of the mean squared distance of a component, of actions `[N, A]`."""
  return float(np.sqrt(np.mean(np.square(one - other))))


def measure(
  config: CompareConfig, place: Place, seed: int, training: int, name: str
) -> dict[str, Any]:
  """One learner trained by both packages, and what is found, ready for JSON.

  Args:
    config: of the comparison.
    place: of the seed.
    seed: of the world.
    training: number of the training, which decides weights and batches.
    name: a key of `SETTINGS`.

  Returns:
    `gain` over the baseline policy by policy, differences, distances, and by
    policy the share of its components `at_limit`, beyond 0.99 in size.
  """
  bench, train = place.bench, config_of(config, name)
  learner = learner_of(train, place.log.action.shape[1])
  num_updates = config.sizes.rounds * train.num_updates
  root = jax.random.fold_in(bench.keys["answers"], training)
  start_key, *keys = jax.random.split(root, 3)
  experiment = bench.experiment
  normalization = tree_index(experiment.normalization, 0)
  state = initial_state(
    learner,
    tuple(sorted(train.hyperparams.items())),
    start_key[None],
    experiment.normalization,
    experiment.baseline_action,
    1,
  )
  start = tree_index(state, 0)

  # Before training, which donates the key.
  draw = np.asarray(
    draws_of(
      keys[0], place.dataset.num_transitions, num_updates, train.batch_size
    )
  )
  started = time.monotonic()
  policies = {}
  for label, key in zip(("ours", "ours_other_batches"), keys, strict=True):
    ours = loop.train(
      learner.learner,
      loop.start(key, jax.tree.map(jnp.copy, start)),
      place.dataset,
      num_updates,
      batch_size=train.batch_size,
      chunk_size=train.chunk_size,
    ).learner
    policies[label] = learner.learner.policy(ours).actor_params
  ours_s = time.monotonic() - started

  numbers = learner.hyperparams(**train.hyperparams)
  started = time.monotonic()
  algorithm = d3rlpy_learners.create(
    train.learner,
    numbers,
    train.hidden_sizes,
    train.batch_size // train.critic_updates,
    train.critic_updates,
  )
  d3rlpy_learners.begin(train.learner, algorithm, start)
  d3rlpy_learners.train(
    algorithm, place.arrays, draw, train.critic_updates, training
  )
  theirs_s = time.monotonic() - started
  policies["d3rlpy"] = d3rlpy_learners.actor_params(
    algorithm, train.hidden_sizes
  )

  seen = place.log.observation[:_DISTANCE_ROWS]
  actions = {
    label: np.asarray(learner.actor.apply(params, seen))
    for label, params in policies.items()
  }
  copied = float(np.abs(actions["d3rlpy"] - algorithm.predict(seen)).max())
  if copied > 1e-4:
    raise AssertionError(
      f"the copied network answers {copied} away from d3rlpy's own"
    )
  results = {
    label: _judge(bench, learner.actor, _framed(params, normalization))
    for label, params in policies.items()
  }
  base = bench.results["baseline"]
  return {
    "learner": name,
    "seed": seed,
    "training": training,
    "updates": num_updates,
    "train": train.to_json(),
    "gain": {label: _gain(own, base) for label, own in results.items()},
    "ours_over_d3rlpy": _gain(results["ours"], results["d3rlpy"]),
    "ours_over_other_batches": _gain(
      results["ours"], results["ours_other_batches"]
    ),
    "rms": {
      "ours_d3rlpy": _rms(actions["ours"], actions["d3rlpy"]),
      "ours_other_batches": _rms(
        actions["ours"], actions["ours_other_batches"]
      ),
      "ours_baseline": _rms(actions["ours"], bench.actions["baseline"][None]),
    },
    "at_limit": {
      label: float(np.mean(np.abs(own) > _AT_LIMIT))
      for label, own in actions.items()
    },
    "copied_actions_differ_by": copied,
    "seconds": {"ours": ours_s / 2, "d3rlpy": theirs_s},
  }


def compared(config: CompareConfig, place: Place, name: str) -> dict[str, Any]:
  """Gain of the comparison's own version of a learner, ready for JSON.

  Args:
    config: of the comparison.
    place: of a seed.
    name: a key of `SETTINGS`.
  """
  train = _as_compared(config, SETTINGS[name])
  world = tree_index(place.bench.experiment.world, 0)
  trained = train_cell(
    place.bench, study_learner({}, train, world), train, place.rows
  )
  result = bench_lib.judge(
    place.bench,
    explore_around(trained.act),
    PolicyParams(trained.params, 0.0, 0.0),
  )
  return _gain(jax.device_get(result), place.bench.results["baseline"])


def summary(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Means over seeds and trainings, a dict for each learner.

  Args:
    rows: of `measure`.

  Returns:
    Mean gains and differences with Student's t intervals over the rows, None
    for one row; how many of the differences have 0 in their own interval.
  """
  found: list[dict[str, Any]] = []
  for name in dict.fromkeys(row["learner"] for row in rows):
    own = [row for row in rows if row["learner"] == name]
    means: dict[str, Any] = {}
    for label, values in {
      **{
        f"gain_{label}": [row["gain"][label]["pct"] for row in own]
        for label in own[0]["gain"]
      },
      **{
        label: [row[label]["pct"] for row in own]
        for label in ("ours_over_d3rlpy", "ours_over_other_batches")
      },
    }.items():
      means[label] = {
        "pct": float(np.mean(values)),
        "ci95": list(mean_interval(values)) if len(values) > 1 else None,
      }
    covered = [
      row["ours_over_d3rlpy"]["ci95"][0]
      <= 0
      <= row["ours_over_d3rlpy"]["ci95"][1]
      for row in own
    ]
    found.append(
      {
        "learner": name,
        "rows": len(own),
        **means,
        "intervals_with_0": sum(covered),
        "at_limit": float(np.mean([row["at_limit"]["ours"] for row in own])),
        "rms": {
          label: float(np.mean([row["rms"][label] for row in own]))
          for label in own[0]["rms"]
        },
      }
    )
  return found
