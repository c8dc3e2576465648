"""Sessions of a round, logged and left on the device as rows.

Letters: `R` seeds, `B` sessions, `T` requests, `N` rows, `S` state features, `A`
action components, `G` reward groups, `O` outcomes, `H` bins.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from mtf_jax import policies
from mtf_jax.data.transitions import (
  TransitionDataset,
  one_step_transitions,
)
from mtf_jax.kernels.exploration import (
  ActionBox,
)
from mtf_jax.worlds import rollout as rollout_lib
from mtf_jax.worlds.rollout import Rollout
from mtf_jax.worlds.world import World


class Rows(NamedTuple):
  """Rows of logged sessions that training draws from, `[N, ...]`.

  observation, action, box, reward, terminal: the fields of `SessionLog`.
  start: bool, whether a transition starts there.
  """

  observation: jax.Array
  action: jax.Array
  box: ActionBox
  reward: jax.Array
  terminal: jax.Array
  start: jax.Array


def flat_rows(rows: Rollout) -> Rows:
  """Rows of a rollout, `N = B (T + 1)`, those that do not exist among them.

  A session that was cut counts as ended. What is judged are the first `T`
  requests; critics that bootstrap beyond them value what is not judged, here
  nearly twice the value at hand, and pay for long sessions with reward.
  """
  after = jnp.pad(rows.log.bootstrap_only[:, 1:], ((0, 0), (0, 1)))
  terminal = rows.log.terminal | after
  rows = rows._replace(log=rows.log._replace(terminal=terminal))
  log = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows.log)
  return Rows(
    observation=log.observation,
    action=log.action,
    box=log.box,
    reward=log.reward,
    terminal=log.terminal,
    start=rows.valid.reshape(-1) & ~log.bootstrap_only,
  )


@jax.jit
def start_rows(start: chex.Array) -> tuple[jax.Array, jax.Array]:
  """Index of the rows that a transition starts from, padded, and their number.

  Args:
    start: bool `[N]`.

  Returns:
    int32 `[N]` and int32 scalar, as in `TransitionDataset`.
  """
  (row,) = jnp.nonzero(start, size=start.shape[0], fill_value=0)
  return row.astype(jnp.int32), jnp.sum(start, dtype=jnp.int32)


def as_dataset(rows: Rows) -> TransitionDataset:
  """Rows as a dataset, without leaving the device; `[R, N, ...]`.

  The rows that do not exist stay where they are and are never drawn: every
  round then has one shape, which `rollout.pack` would not give.
  """
  start_row, num_transitions = jax.vmap(start_rows)(rows.start)
  discount, next_row = jax.vmap(one_step_transitions)(rows.terminal)
  return TransitionDataset(
    observation=rows.observation,
    action=rows.action,
    box=rows.box,
    reward=rows.reward,
    discount=discount,
    next_row=next_row,
    start_row=start_row,
    num_transitions=num_transitions,
  )


@functools.partial(
  jax.jit, static_argnames=("act", "num_sessions", "max_requests", "held")
)
def collect_part(
  rng_key: chex.PRNGKey,
  world: World,
  act: policies.Act,
  params: policies.PolicyParams,
  num_sessions: int,
  max_requests: int,
  held: bool,
) -> Rows:
  """Logs sessions of each seed; arguments and result have the axis `R`."""

  def one(rng_key, world, params):
    return flat_rows(
      rollout_lib.rollout(
        rng_key, world, act, params, num_sessions, max_requests, held
      )
    )

  return jax.vmap(one)(rng_key, world, params)


@functools.partial(jax.jit, static_argnames="parts")
def empty_rows(part: Rows, parts: int) -> Rows:
  """Zeros for `parts` times the rows of one part, `[R, N, ...]`."""
  return jax.tree.map(
    lambda leaf: jnp.zeros(
      (leaf.shape[0], parts * leaf.shape[1], *leaf.shape[2:]), leaf.dtype
    ),
    part,
  )


@functools.partial(jax.jit, donate_argnames="rows")
def put_rows(rows: Rows, part: Rows, first: chex.Array) -> Rows:
  """Writes a part, in place, from row `first` on."""
  return jax.tree.map(
    lambda whole, new: jax.lax.dynamic_update_slice_in_dim(
      whole, new, first, axis=1
    ),
    rows,
    part,
  )
