"""From logged sessions to transitions: rows on the device, n-step, batches.

Letters: `N` rows, `S` state features, `A` action components, `G` reward groups,
`B` transitions of a batch.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.session_log import SessionLog
from mtf_jax.kernels.exploration import ActionBox


class Transition(NamedTuple):
  """One transition, or a batch of them with leading axes.

  observation_tm1: float32 `[S]` state features before the request.
  action_tm1: float32 `[A]` logged action.
  box_tm1: float32 `[A]` bounds at the request.
  r_t: float32 `[G]` rewards that followed; with several steps, see
    `n_step_transitions`, their discounted sum.
  discount_t: float32 scalar, 0 where the user left, else the discount of all
    steps but one, 1 for one step: the learner multiplies it by its factor.
  observation_t: float32 `[S]` features of the request that follows, arbitrary
    where `discount_t` is 0.
  box_t: float32 `[A]` bounds there, likewise.
  """

  observation_tm1: chex.Array
  action_tm1: chex.Array
  box_tm1: ActionBox
  r_t: chex.Array
  discount_t: chex.Array
  observation_t: chex.Array
  box_t: ActionBox


class TransitionDataset(NamedTuple):
  """Rows of a log on the device, ready to be drawn from inside jit.

  observation, action, box: the fields of `SessionLog`.
  reward, discount, next_row: float32 `[N, G]`, float32 `[N]`, int32 `[N]`:
    `r_t` and `discount_t` of the transition that starts at a row, and the row
    of its `observation_t`.
  start_row: int32 `[N]`, its first `num_transitions` entries are the rows that
    a transition starts from. Padded to `N`, so logs of one size share one
    compiled program.
  num_transitions: int32 scalar.
  """

  observation: jax.Array
  action: jax.Array
  box: ActionBox
  reward: jax.Array
  discount: jax.Array
  next_row: jax.Array
  start_row: jax.Array
  num_transitions: jax.Array


def one_step_transitions(terminal: chex.Array) -> tuple[jax.Array, jax.Array]:
  """`discount` and `next_row` of transitions of one step.

  Args:
    terminal: bool `[N]`, of `SessionLog`.

  Returns:
    float32 `[N]`, 0 at a session's end, and int32 `[N]`, the row after.
  """
  row = jnp.arange(terminal.shape[0], dtype=jnp.int32)
  # The log's very last row has no next one; there the discount is 0.
  following = jnp.minimum(row + 1, terminal.shape[0] - 1)
  return jnp.where(terminal, 0.0, 1.0).astype(jnp.float32), following


def n_step_transitions(
  dataset: TransitionDataset, num_steps: int, discount: chex.Numeric
) -> TransitionDataset:
  """Transitions over several requests, for `n`-step returns.

  A transition takes up to `num_steps` requests of its session: `r_t = sum_{i <
  k} discount^i r_{t+i+1}`, then `discount_t = discount^(k-1)` and the state
  after `k` requests, `k` being smaller only where the session ends or the log
  breaks off. The actions in between are those logged, so that the target
  follows the policy that logged them for `k` requests.

  Args:
    dataset: of transitions of one step.
    num_steps: n, static.
    discount: gamma, scalar in [0, 1], that of the learner.

  Returns:
    The dataset, with the same rows.

  Raises:
    ValueError: `num_steps` below 1.
  """
  if num_steps < 1:
    raise ValueError(f"num_steps: expected 1 or more, found {num_steps}.")
  if num_steps == 1:
    return dataset
  none: Any = ()
  # Observations and actions stay outside jit, which would copy them.
  reward, weight, next_row = _n_step_transitions(
    dataset._replace(observation=none, action=none, box=none),
    num_steps,
    discount,
  )
  return dataset._replace(reward=reward, discount=weight, next_row=next_row)


@functools.partial(jax.jit, static_argnames="num_steps")
def _n_step_transitions(
  dataset: TransitionDataset, num_steps: int, discount: chex.Numeric
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """`reward`, `discount` and `next_row` of two steps or more."""
  num_rows = dataset.discount.shape[0]
  place = jnp.arange(num_rows, dtype=jnp.int32)
  # Padded entries write a row that is written anyway.
  drawn = jnp.where(
    place < dataset.num_transitions, dataset.start_row, dataset.start_row[0]
  )
  starts = jnp.zeros((num_rows,), jnp.bool_).at[drawn].set(True)
  following = dataset.next_row
  # A row that no transition starts from has nothing to add.
  goes_on = (dataset.discount > 0) & starts[following]

  def longer(_, found):
    reward, weight, next_row = found
    further = jnp.where(goes_on, discount, 0).astype(reward.dtype)
    return (
      dataset.reward + further[:, None] * reward[following],
      jnp.where(goes_on, further * weight[following], dataset.discount),
      jnp.where(goes_on, next_row[following], following),
    )

  start = (dataset.reward, dataset.discount, following)
  return jax.lax.fori_loop(0, num_steps - 1, longer, start)


def device_dataset(log: SessionLog) -> TransitionDataset:
  """Puts the rows that a learner needs on the default device.

  Args:
    log: a valid log.

  Returns:
    The dataset. Rows that are no transition (`bootstrap_only`, and the last row
    of a session cut without a known next observation) are never drawn.

  Raises:
    ValueError: the log has no transition.
  """
  terminal = np.asarray(log.terminal)
  session_id = np.asarray(log.session_id)
  has_next = np.zeros(terminal.shape, bool)
  has_next[:-1] = session_id[1:] == session_id[:-1]
  rows = np.flatnonzero(terminal | has_next)
  if not rows.size:
    raise ValueError(
      "log: expected at least one transition, found none in"
      f" {terminal.size} rows."
    )
  start_row = np.zeros(terminal.shape, np.int32)
  start_row[: rows.size] = rows
  discount, next_row = one_step_transitions(jnp.asarray(terminal))
  return TransitionDataset(
    observation=jnp.asarray(log.observation),
    action=jnp.asarray(log.action),
    box=jax.tree.map(jnp.asarray, log.box),
    reward=jnp.asarray(log.reward),
    discount=discount,
    next_row=next_row,
    start_row=jnp.asarray(start_row),
    num_transitions=jnp.asarray(rows.size, jnp.int32),
  )


def sample_transitions(
  rng_key: chex.PRNGKey, dataset: TransitionDataset, batch_size: int
) -> Transition:
  """Draws transitions uniformly with replacement.

  Args:
    rng_key: random number generator key, consumed.
    dataset: rows on the device.
    batch_size: `B`, static.

  Returns:
    A `Transition` with a leading axis `B` on every field.
  """
  draw = jax.random.randint(rng_key, (batch_size,), 0, dataset.num_transitions)
  row = dataset.start_row[draw]
  next_row = dataset.next_row[row]
  return Transition(
    observation_tm1=dataset.observation[row],
    action_tm1=dataset.action[row],
    box_tm1=jax.tree.map(lambda bound: bound[row], dataset.box),
    r_t=dataset.reward[row],
    discount_t=dataset.discount[row],
    observation_t=dataset.observation[next_row],
    box_t=jax.tree.map(lambda bound: bound[next_row], dataset.box),
  )
