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

from mtf_jax.data.candidate_scores import CandidateScores
from mtf_jax.data.session_log import SessionLog
from mtf_jax.data.shown_items import ShownItems
from mtf_jax.io import InputError, as_array
from mtf_jax.kernels.exploration import ActionBox


class Transition(NamedTuple):
  """One transition, or a batch of them with leading axes.

  observation_tm1: float32 `[S]` state features before the request.
  action_tm1: float32 `[A]` logged action.
  box_tm1: float32 `[A]` bounds at the request.
  r_t: float32 `[G]` rewards that followed; with several steps, see
    `dataset_from`, their discounted sum.
  discount_t: float32 scalar, 0 where the user left, else the discount of all
    steps but one, 1 for one step: the learner multiplies it by its factor.
  observation_t: float32 `[S]` features of the request that follows, arbitrary
    where `discount_t` is 0.
  box_t: float32 `[A]` bounds there, likewise.
  log_prob_tm1: float32 scalar, log density of `action_tm1` under the policy
    that logged it; None where a caller has no use for it.
  exploration_held_tm1: bool scalar, whether that deviation was drawn once for
    the session, so that the density is no density of the sequence; or None.
  action_t: float32 `[A]` action logged at the request that follows, arbitrary
    where there is none; or None.
  action_logged_t: bool scalar, whether there is one: not where `discount_t` is
    0, nor where the log was cut and only the observation is known; or None.
  step_tm1: int32 scalar, requests of the session before this one; or None.
  items_tm1: the shown items, `[L, F]`, `[L, A]`; None where the log has none.
  items_t: those of the request that follows, arbitrary where `discount_t` is 0.
  candidates_tm1: scores of candidates of the request, `[C, K]`, and the cells in
    service, `[K, J]`, `[K]`, `[K, J-1]`; None where the log has none.
  """

  observation_tm1: chex.Array
  action_tm1: chex.Array
  box_tm1: ActionBox
  r_t: chex.Array
  discount_t: chex.Array
  observation_t: chex.Array
  box_t: ActionBox
  log_prob_tm1: chex.Array | None = None
  exploration_held_tm1: chex.Array | None = None
  action_t: chex.Array | None = None
  action_logged_t: chex.Array | None = None
  step_tm1: chex.Array | None = None
  items_tm1: ShownItems | None = None
  items_t: ShownItems | None = None
  candidates_tm1: CandidateScores | None = None


class Rows(NamedTuple):
  """Rows that transitions are made of, `[N, ...]`, on the device.

  observation, action, box, log_prob, exploration_held, reward, terminal,
    bootstrap_only, step, items, candidates: the fields of `SessionLog`.
  valid: bool, whether the row exists. Rows of a round keep the places of
    requests that did not take place, so that every round has one shape.
  """

  observation: jax.Array
  action: jax.Array
  box: ActionBox
  log_prob: jax.Array
  exploration_held: jax.Array
  reward: jax.Array
  terminal: jax.Array
  bootstrap_only: jax.Array
  step: jax.Array
  valid: jax.Array
  items: ShownItems | None = None
  candidates: CandidateScores | None = None


class TransitionDataset(NamedTuple):
  """Rows of a log on the device, ready to be drawn from inside jit.

  observation, action, box, log_prob, exploration_held, step, items, candidates:
    the fields of `SessionLog`.
  reward, discount, next_row: float32 `[N, G]`, float32 `[N]`, int32 `[N]`:
    `r_t` and `discount_t` of the transition that starts at a row, and the row
    of its `observation_t`.
  next_is_request: bool `[N]`, `action_logged_t` of that transition.
  start_row: int32 `[N]`, its first `num_transitions` entries are the rows that
    a transition starts from. Padded to `N`, so logs of one size share one
    compiled program.
  num_transitions: int32 scalar.
  """

  observation: jax.Array
  action: jax.Array
  box: ActionBox
  log_prob: jax.Array
  exploration_held: jax.Array
  reward: jax.Array
  discount: jax.Array
  next_row: jax.Array
  next_is_request: jax.Array
  step: jax.Array
  start_row: jax.Array
  num_transitions: jax.Array
  items: ShownItems | None = None
  candidates: CandidateScores | None = None


# What the end of a session means that the log cut, see `dataset_from`.
CUTS = ("bootstrap", "drop", "end")


def rows_from(log: SessionLog, valid: chex.Array | None = None) -> Rows:
  """The part of a log that transitions are made of, on the device.

  Args:
    log: rows in order, NumPy or JAX arrays.
    valid: bool `[N]`, which rows exist; all of them if omitted.

  Returns:
    The rows.

  Raises:
    InputError: an array with masked values, which would be taken for values.
  """
  if valid is None:
    valid = np.ones(np.shape(log.terminal), bool)
  fields: dict[str, Any] = {
    name: getattr(log, name) for name in Rows._fields if name != "valid"
  }
  fields["valid"] = valid

  def on_device(path: Any, array: chex.Array) -> jax.Array:
    if isinstance(array, np.ma.MaskedArray):
      array = as_array(array, jax.tree_util.keystr(path).removeprefix("."))
    return jnp.asarray(array)

  return jax.tree_util.tree_map_with_path(on_device, Rows(**fields))


def dataset_from(
  rows: Rows,
  *,
  cut: str = "bootstrap",
  num_steps: int = 1,
  discount: chex.Numeric = 1.0,
) -> TransitionDataset:
  """Transitions of logged sessions, without leaving the device.

  The one road from rows to transitions, for a file and for a round alike; the
  caller vmaps. A row follows another if its `step` is one more: sessions count
  from 0, so that the row after a session's last one never is.

  Over several requests a transition takes up to `num_steps` of its session:
  `r_t = sum_{i < k} discount^i r_{t+i+1}`, then `discount_t = discount^(k-1)`
  and the state after `k` requests, `k` being smaller only where the session
  ends or the log breaks off. The actions in between are those logged, so that
  the target follows the policy that logged them for `k` requests.

  Args:
    rows: of `rows_from`.
    cut: what follows the last request of a session that the log cut, static.
      "bootstrap": the stored final observation (`bootstrap_only`); where there
      is none, no transition starts from that request. "drop": no transition
      starts from it. "end": nothing (discount 0), as if the user had left.
    num_steps: n of n-step returns, static.
    discount: gamma, scalar in [0, 1], that of the learner; not used with one
      step.

  Returns:
    The dataset, with the same rows. Those that do not exist, or that no
    transition starts from, are never drawn.

  Raises:
    InputError: `cut` is none of `CUTS`, or `num_steps` is below 1.
  """
  if cut not in CUTS:
    raise InputError(f"cut: expected one of {', '.join(CUTS)}, found {cut!r}.")
  if num_steps < 1:
    raise InputError(f"num_steps: expected 1 or more, found {num_steps}.")
  # What is only handed on stays outside jit, which would copy it.
  weight, next_row, start_row, num_transitions = _one_step(
    rows.terminal, rows.bootstrap_only, rows.step, rows.valid, cut
  )
  reward = rows.reward
  if num_steps > 1:
    reward, weight, next_row = _n_step(
      reward,
      weight,
      next_row,
      start_row,
      num_transitions,
      discount,
      num_steps,
    )
  is_request = rows.valid & ~rows.bootstrap_only
  return TransitionDataset(
    observation=rows.observation,
    action=rows.action,
    box=rows.box,
    log_prob=rows.log_prob,
    exploration_held=rows.exploration_held,
    reward=reward,
    discount=weight,
    next_row=next_row,
    next_is_request=(weight > 0) & is_request[next_row],
    step=rows.step,
    start_row=start_row,
    num_transitions=num_transitions,
    items=rows.items,
    candidates=rows.candidates,
  )


@functools.partial(jax.jit, static_argnames="cut")
def _one_step(
  terminal: chex.Array,
  bootstrap_only: chex.Array,
  step: chex.Array,
  valid: chex.Array,
  cut: str,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
  """`discount`, `next_row`, `start_row` and `num_transitions` of one step."""
  num_rows = terminal.shape[0]
  # The log's very last row has no next one; its own step is not one more.
  following = jnp.minimum(
    jnp.arange(1, num_rows + 1, dtype=jnp.int32), num_rows - 1
  )
  request = valid & ~bootstrap_only
  known = valid[following] & (step[following] == step + 1)
  goes_on = known & ~bootstrap_only[following]
  if cut == "bootstrap":
    starts = request & (terminal | known)
  elif cut == "drop":
    starts = request & (terminal | goes_on)
  else:
    starts = request
    terminal = terminal | (request & ~goes_on)
  (start_row,) = jnp.nonzero(starts, size=num_rows, fill_value=0)
  return (
    jnp.where(terminal, 0.0, 1.0).astype(jnp.float32),
    following,
    start_row.astype(jnp.int32),
    jnp.sum(starts, dtype=jnp.int32),
  )


@functools.partial(jax.jit, static_argnames="num_steps")
def _n_step(
  reward: chex.Array,
  weight: chex.Array,
  following: chex.Array,
  start_row: chex.Array,
  num_transitions: chex.Array,
  discount: chex.Numeric,
  num_steps: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """`reward`, `discount` and `next_row` of two steps or more."""
  num_rows = weight.shape[0]
  place = jnp.arange(num_rows, dtype=jnp.int32)
  # Padded entries write a row that is written anyway.
  drawn = jnp.where(place < num_transitions, start_row, start_row[0])
  starts = jnp.zeros((num_rows,), jnp.bool_).at[drawn].set(True)
  # A row that no transition starts from has nothing to add.
  goes_on = (weight > 0) & starts[following]

  def longer(_, found):
    sum_after, weight_after, row_after = found
    further = jnp.where(goes_on, discount, 0).astype(reward.dtype)
    return (
      reward + further[:, None] * sum_after[following],
      jnp.where(goes_on, further * weight_after[following], weight),
      jnp.where(goes_on, row_after[following], following),
    )

  start = (reward, weight, following)
  return jax.lax.fori_loop(0, num_steps - 1, longer, start)


def device_dataset(
  log: SessionLog,
  *,
  cut: str = "bootstrap",
  num_steps: int = 1,
  discount: chex.Numeric = 1.0,
) -> TransitionDataset:
  """Puts the rows that a learner needs on the default device.

  Args:
    log: a valid log.
    cut, num_steps, discount: as in `dataset_from`.

  Returns:
    The dataset.

  Raises:
    InputError: as `rows_from` and `dataset_from`, or the log has no transition.
  """
  dataset = dataset_from(
    rows_from(log), cut=cut, num_steps=num_steps, discount=discount
  )
  if not dataset.num_transitions:
    raise InputError(
      "log: expected at least one transition, found none in"
      f" {dataset.discount.shape[0]} rows."
    )
  return dataset


def sample_transitions(
  rng_key: chex.PRNGKey, dataset: TransitionDataset, batch_size: int
) -> Transition:
  """Draws transitions uniformly with replacement.

  Args:
    rng_key: random number generator key, consumed.
    dataset: rows on the device.
    batch_size: `B`, static.

  Returns:
    A `Transition` with a leading axis `B` on every field. One that a learner
    does not read is never gathered where both are compiled together.
  """
  draw = jax.random.randint(rng_key, (batch_size,), 0, dataset.num_transitions)
  return take_transitions(dataset, draw)


def take_transitions(
  dataset: TransitionDataset, number: chex.Array
) -> Transition:
  """The transitions of these numbers, counted in the order of the log.

  Args:
    dataset: rows on the device.
    number: int32 `[B]` below `dataset.num_transitions`.

  Returns:
    A `Transition` with a leading axis `B` on every field.
  """
  row = dataset.start_row[number]
  next_row = dataset.next_row[row]

  def at(rows: jax.Array, columns: Any) -> Any:
    return jax.tree.map(lambda column: column[rows], columns)

  return Transition(
    observation_tm1=dataset.observation[row],
    action_tm1=dataset.action[row],
    box_tm1=jax.tree.map(lambda bound: bound[row], dataset.box),
    r_t=dataset.reward[row],
    discount_t=dataset.discount[row],
    observation_t=dataset.observation[next_row],
    box_t=jax.tree.map(lambda bound: bound[next_row], dataset.box),
    log_prob_tm1=dataset.log_prob[row],
    exploration_held_tm1=dataset.exploration_held[row],
    action_t=dataset.action[next_row],
    action_logged_t=dataset.next_is_request[row],
    step_tm1=dataset.step[row],
    items_tm1=at(row, dataset.items),
    items_t=at(next_row, dataset.items),
    candidates_tm1=at(row, dataset.candidates),
  )
