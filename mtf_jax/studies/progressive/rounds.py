"""Progressive training in a world: explore, train, redeploy, round after round.

The paper's main job. The baseline policy, first in service, is one global set
of fusion weights found by an evolution strategy (ES). A round logs sessions
explored in a box around the policy in service, trains on them, and puts the new
policy into service. Policies are judged on the same sessions (common random
numbers) with expected-value accounting, see `returns.session_return`.

Seeds run side by side: what belongs to a seed has a leading axis `R` in an
`Experiment` and in all that its functions take and return, and the functions of
one seed are vmapped over it. One seed is `R = 1`.

Letters: `R` seeds, `B` sessions, `T` requests, `N` rows, `S` state features, `A`
action components, `G` reward groups, `O` outcomes, `H` bins.

References:
  [1] Liu et al., "UnifiedRL: A Reinforcement Learning Algorithm Tailored for
  Multi-Task Fusion in Large-Scale Recommender Systems", arXiv 2404.17589,
  bounded exploration and progressive training mode.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.transitions import TransitionDataset
from mtf_jax.evaluation.ab_test import figures
from mtf_jax.io import InputError
from mtf_jax.kernels.exploration import HALF_WIDTH
from mtf_jax.policies import is_held
from mtf_jax.studies.progressive.collect import (
  as_dataset,
  collect_part,
  empty_rows,
  put_rows,
)
from mtf_jax.studies.progressive.comparisons import compare_sessions
from mtf_jax.studies.progressive.config import GAUSSIAN_STDDEV
from mtf_jax.studies.progressive.drift import drift
from mtf_jax.studies.progressive.experiment import (
  Experiment,
  evaluate_state,
  on_one_device,
  params_in_service,
  put_state,
  training_mesh,
  tree_index,
)
from mtf_jax.studies.progressive.records import undefined_as_none
from mtf_jax.training import loop

OnChunk = Callable[[loop.TrainState, Any], None]


def _collect(
  experiment: Experiment, rng_key: chex.PRNGKey, state: Any, rounds: int = 1
) -> TransitionDataset:
  """Sessions explored in the box around the policy, each row with its box.

  There is room for the rows of all rounds, whatever is collected, so that
  training on one round's and on all rounds' sessions is one program.
  """
  config = experiment.config
  size = config.sessions_per_round // config.collect_parts
  parts = rounds * config.collect_parts
  keys = jax.vmap(lambda key: jax.random.split(key, parts))(rng_key)
  params = params_in_service(experiment, state, HALF_WIDTH, draw=config.draw)
  rows = None
  for number in range(parts):
    part = collect_part(
      keys[:, number],
      experiment.world,
      experiment.study_learner.act,
      params,
      size,
      config.max_requests,
      config.exploration,
      experiment.mesh,
    )
    if rows is None:
      rows = empty_rows(part, config.rounds * config.collect_parts)
    first = number * part.terminal.shape[1]
    rows = put_rows(rows, part, jnp.asarray(first, jnp.int32))
  if training_mesh(experiment) is None:
    rows = on_one_device(experiment, rows)
  return as_dataset(rows, config.train.num_steps, config.train.discount)


class NonFiniteSeedError(InputError, FloatingPointError):
  """Training of a seed met a value that is not finite; it is named."""


def train_seeds(
  experiment: Experiment,
  rng_key: chex.PRNGKey,
  state: Any,
  dataset: TransitionDataset,
  num_updates: int,
  on_chunk: OnChunk | None = None,
) -> Any:
  """A learner's state after updates on a dataset, leading axes `R`.

  Args:
    experiment: its learner and configuration.
    rng_key: keys `[R]`, consumed.
    state: the learner's, kept.
    dataset: of each seed.
    num_updates: how many.
    on_chunk: as in `loop.train_many`.

  Raises:
    NonFiniteSeedError: a seed met what is not finite.
  """
  train = experiment.config.train
  # Copies: training donates its state, and the caller keeps the old policy.
  begin = jax.vmap(loop.start)(rng_key, jax.tree.map(jnp.copy, state))
  begin = put_state(experiment, begin)
  trained = loop.train_many(
    experiment.study_learner.learner,
    begin,
    dataset,
    num_updates,
    batch_size=train.batch_size,
    chunk_size=train.chunk_size,
    mesh=training_mesh(experiment),
    on_chunk=on_chunk,
  )
  failed = np.flatnonzero(~np.asarray(trained.healthy))
  if failed.size:
    raise NonFiniteSeedError(
      f"seed {experiment.seeds[failed[0]]}: expected finite metrics and a finite"
      f" state of training, found what is not after update"
      f" {trained.step[failed[0]]} of the round; the rounds before are kept."
    )
  return trained.learner


def _drift(
  experiment: Experiment, new: Any, old: Any, dataset: TransitionDataset
) -> list[dict[str, Any]]:
  found = jax.vmap(functools.partial(drift, experiment.study_learner.learner))(
    new, old, dataset
  )
  found = jax.device_get(found)
  return [
    {
      "outside_share": float(found.outside[n]),
      "drift": found.change[n].astype(float).tolist(),
      "drift_histogram": found.histogram[n].astype(float).tolist(),
    }
    for n in range(len(experiment.seeds))
  ]


def _figures(experiment: Experiment, state: Any) -> list[dict[str, Any]]:
  """What the policy of a state gains over the baseline policy, by seed."""
  policy, base = jax.device_get(
    (evaluate_state(experiment, state), experiment.base)
  )
  return [
    figures(
      tree_index(policy, n), tree_index(base, n), experiment.world.slate_size
    )
    for n in range(len(experiment.seeds))
  ]


def play_round(
  experiment: Experiment,
  state: Any,
  number: int,
  on_chunk: OnChunk | None = None,
) -> tuple[Any, list[dict[str, Any]]]:
  """One round: explore around the policy in service, train, evaluate.

  Training goes on from the state of the round before, critics included. It
  draws from this round's rows alone: older rows carry boxes around older
  policies, which the actor's penalty would hold the new one to.

  Args:
    experiment: of `prepare`.
    state: the learner's, its policy in service.
    number: of the round, from 0; with the seed it decides all draws.
    on_chunk: as in `loop.train_many`.

  Returns:
    The state with the new policy, and the round's figures by seed.
  """
  config = experiment.config
  split = jax.vmap(
    lambda key: jax.random.split(jax.random.fold_in(key, number))
  )(experiment.keys["round"])
  started = time.monotonic()
  before = evaluate_state(experiment, state)
  costs: list[dict[str, Any]] = [{} for _ in experiment.seeds]
  held = is_held(config.exploration)
  for name, noise in (
    ("exploration_cost", {"half_width": HALF_WIDTH, "draw": config.draw}),
    ("gaussian_cost", {"stddev": GAUSSIAN_STDDEV}),
  ):
    explored = evaluate_state(experiment, state, held=held, **noise)
    gains = compare_sessions(explored, before, "reward")
    for cost, gain in zip(costs, gains, strict=True):
      cost[f"{name}_pct"] = -gain.gain
      cost[f"{name}_ci95"] = [-gain.ci95[1], -gain.ci95[0]]
  evaluated = time.monotonic()
  dataset = _collect(experiment, split[:, 0], state)
  num_rows = np.asarray(dataset.num_transitions)
  collected = time.monotonic()
  updates = config.train.num_updates
  new = train_seeds(experiment, split[:, 1], state, dataset, updates, on_chunk)
  drifts = _drift(experiment, new, state, dataset)
  trained = time.monotonic()
  gained = _figures(experiment, new)
  seconds = {
    "collect": collected - evaluated,
    "train": trained - collected,
    "evaluate": time.monotonic() - trained + evaluated - started,
  }
  results = [
    {
      "round": number + 1,
      "rows": int(num_rows[n]),
      **gained[n],
      **costs[n],
      **drifts[n],
      "seconds": seconds,
    }
    for n in range(len(experiment.seeds))
  ]
  return new, undefined_as_none(results)


def play_single_batch(
  experiment: Experiment, on_chunk: OnChunk | None = None
) -> tuple[Any, list[dict[str, Any]]]:
  """Without progressive training: as many sessions and updates in one round.

  Returns:
    The state with the new policy, and its figures by seed.
  """
  config = experiment.config
  split = jax.vmap(jax.random.split)(experiment.keys["single_batch"])
  dataset = _collect(experiment, split[:, 0], experiment.start, config.rounds)
  updates = config.rounds * config.train.num_updates
  new = train_seeds(
    experiment, split[:, 1], experiment.start, dataset, updates, on_chunk
  )
  drifts = _drift(experiment, new, experiment.start, dataset)
  gained = _figures(experiment, new)
  return new, undefined_as_none(
    [
      {**of_seed, **moved}
      for of_seed, moved in zip(gained, drifts, strict=True)
    ]
  )
