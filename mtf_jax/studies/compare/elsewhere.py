"""The comparison's rivals against d3rlpy's, on one log and in one world.

TD3+BC, IQL and CQL are trained by both packages on the box log of a seed: same
rows, same weights at the start, same batches, one reward. Both policies are then
the parameters of one network, and are judged by one program on the same sessions.
Ours is trained once more from the same weights on other batches: what that
changes is what the draws alone make, against which a difference is to be held.
The version of the comparison, with critics for each reward group, is trained and
judged besides.

Letters: `R` runs, `N` rows, `S` state features, `A` action components, `U`
updates, `B` transitions of an update.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax import networks
from mtf_jax.data.session_log import SessionLog
from mtf_jax.data.transitions import Rows, TransitionDataset
from mtf_jax.evaluation.ab_test import EvalResult, check_paired
from mtf_jax.evaluation.statistics import (
  Comparison,
  mean_interval,
  paired_comparison,
)
from mtf_jax.fitting import synthetic
from mtf_jax.interop import d3rlpy_learners, datasets
from mtf_jax.learners import box_units, iql
from mtf_jax.learners.base import Normalization
from mtf_jax.policies import PolicyParams, explore_around
from mtf_jax.studies.compare import bench as bench_lib
from mtf_jax.studies.compare.bench import Bench
from mtf_jax.studies.compare.cells import study_learner, train_cell
from mtf_jax.studies.compare.config import CompareConfig
from mtf_jax.studies.compare.methods import METHODS
from mtf_jax.studies.progressive.collect import as_dataset
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

LEARNERS = ("td3_bc", "iql", "cql")

# What makes a learner the algorithm that d3rlpy has. It scales no advantage, so
# that beta is in units of the return; its sampled target has the entropy.
_SAME = {
  "td3_bc": {},
  "iql": {"scale_advantage": 0.0, "inverse_temperature": 1.0},
  "cql": {"entropy_backup": 1.0},
}
_DISTANCE_ROWS = 8192


def config_of(config: CompareConfig, name: str) -> TrainConfig:
  """Networks and numbers that both packages train with.

  Args:
    config: of the comparison.
    name: one of `LEARNERS`.
  """
  train = config.train_of(name, "as_published", {})
  return dataclasses.replace(
    train,
    critic="mlp",
    num_steps=1,
    ensemble_size=2,
    critic_updates=METHODS[name].critic_updates,
    hyperparams={**train.hyperparams, **_SAME[name]},
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


def one_reward(rows: Rows) -> Rows:
  """The rows, their reward the sum over the groups, `[..., 1]`."""
  return rows._replace(reward=jnp.sum(rows.reward, axis=-1, keepdims=True))


def exported(rows: Rows, normalization: Normalization) -> SessionLog:
  """Rows as the log that d3rlpy is given.

  Observations are as our networks see them, and a session that was cut ends as
  if the user had left, as everywhere in the comparison. Rows have no feedback.

  Args:
    rows: `[N, ...]`, those that do not exist among them.
    normalization: of the observations, `[S]`.

  Returns:
    The log of the requests alone.
  """
  rows = jax.tree.map(np.asarray, rows)
  kept = rows.valid & ~rows.bootstrap_only
  rows = jax.tree.map(lambda values: values[kept], rows)
  terminal = np.append(rows.step[1:] == 0, True)
  mean, scale = (np.asarray(values)[None] for values in normalization)
  return SessionLog(
    observation=(rows.observation - mean) / scale,
    action=rows.action,
    box=rows.box,
    log_prob=rows.log_prob,
    exploration_held=rows.exploration_held,
    reward=rows.reward,
    feedback=np.zeros((len(terminal), 1), np.float32),
    terminal=terminal,
    bootstrap_only=rows.bootstrap_only,
    session_id=np.cumsum(rows.step == 0, dtype=np.int32),
    step=rows.step,
  )


@functools.partial(jax.jit, static_argnames=("num_updates", "batch_size"))
def draws_of(
  rng_key: chex.PRNGKey,
  num_transitions: chex.Array,
  num_updates: int,
  batch_size: int,
) -> jax.Array:
  """The transitions that `training.loop` draws from a key, int32 `[U, B]`."""

  def draw(rng_key, _):
    rng_key, batch_key = jax.random.split(rng_key)
    return rng_key, jax.random.randint(
      batch_key, (batch_size,), 0, num_transitions
    )

  return jax.lax.scan(draw, rng_key, length=num_updates)[1]


class Place(NamedTuple):
  """A seed's bench and its log in the forms that both packages take.

  bench: of the comparison, the baseline policy alone.
  rows: the box log, `[1, N, ...]`, reward groups apart.
  dataset: of one reward, `[N, ...]`.
  log: `exported`.
  arrays: the transitions of d3rlpy's dataset of it.
  """

  bench: Bench
  rows: Rows
  dataset: TransitionDataset
  log: SessionLog
  arrays: d3rlpy_learners.Arrays


def prepare(
  config: CompareConfig, seed: int, leaving: str, say: Callable[[str], None]
) -> Place:
  """Makes the world, the baseline policy and the log of a seed.

  Args:
    config: of the comparison.
    seed: as there.
    leaving: name of the leaving model.
    say: told of what happens.
  """
  world = synthetic.synthetic_world(config.sizes.world_size, seed)
  bench, _ = bench_lib.prepare(
    config, world.with_leaving(leaving), seed, None, say, baseline_only=True
  )
  rows = bench_lib.collect_log(bench, "box")
  single = one_reward(rows)
  log = exported(
    tree_index(single, 0), tree_index(bench.experiment.normalization, 0)
  )
  arrays = d3rlpy_learners.arrays_of(datasets.to_d3rlpy(log)[0])
  dataset = tree_index(as_dataset(single), 0)
  if len(arrays.reward) != int(dataset.num_transitions):
    raise AssertionError("the two packages have different transitions")
  say(f"seed {seed}: {len(arrays.reward)} transitions.")
  return Place(bench, rows, dataset, log, arrays)


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
    name: one of `LEARNERS`.

  Returns:
    `gain` over the baseline policy by policy, differences and distances.
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
    name,
    numbers,
    train.hidden_sizes,
    train.batch_size // train.critic_updates,
    train.critic_updates,
  )
  d3rlpy_learners.begin(name, algorithm, start)
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
    "copied_actions_differ_by": copied,
    "seconds": {"ours": ours_s / 2, "d3rlpy": theirs_s},
  }


def compared(config: CompareConfig, place: Place, name: str) -> dict[str, Any]:
  """Gain of the comparison's own version of a learner, ready for JSON.

  Args:
    config: of the comparison.
    place: of a seed.
    name: one of `LEARNERS`.
  """
  train = config.train_of(name, "as_published", {})
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
  found = []
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
        "rms": {
          label: float(np.mean([row["rms"][label] for row in own]))
          for label in own[0]["rms"]
        },
      }
    )
  return found
