"""What an off-policy estimator sees of a log, and what it answers.

A unit is what one draw of the exploration decided: a whole session where the
deviation was held, one request where it was drawn anew. Weights belong to units:
the product of a held session's densities is the density of nothing.

Letters: `n` units, `S` state features, `A` action components, `G` reward groups,
`N` rows of the log.
"""

from typing import NamedTuple

import chex
import numpy as np

from mtf_jax.arrays import as_numbers
from mtf_jax.data.session_log import SessionLog
from mtf_jax.data.shown_items import check_deviate_alike
from mtf_jax.io import InputError, as_array

# A deviation that is held is the same in every box of its session, but for the
# rounding of float32 actions. Narrower boxes than this share of an action's
# range cannot show it.
_HELD_ERROR = 1e-3
_NARROW = 1e-3
# Of a sum of float32 logarithms.
_DENSITY_ERROR = 1e-3
# Half-widths by which a float32 action may be beyond its bound.
ROUNDING = 1e-4


class LoggedUnits(NamedTuple):
  """Draws of the exploration and what followed; NumPy, float64.

  observation: `[n, S]` when the draw was made.
  lower, upper: `[n, A]` bounds of the box then.
  deviation: `[n, A]` u, the logged action in half-widths of its box, in
    [-1, 1]; 0 for a component whose box has no width.
  explores: bool `[n, A]` whether the box has a width.
  outcome: `[n]` what is to be estimated, see `units_from`.
  session: int `[n]`, from 0: outcomes of one session are not independent.
  """

  observation: np.ndarray
  lower: np.ndarray
  upper: np.ndarray
  deviation: np.ndarray
  explores: np.ndarray
  outcome: np.ndarray
  session: np.ndarray


class Estimate(NamedTuple):
  """Value of a policy, from a log of another one.

  value: mean outcome.
  low, high: ends of the 95% interval, normal; NaN where an estimator claims
    none.
  effective_sample_size: `(sum w)^2 / sum w^2` over the units, or rows.
  outside_share: share of them whose box does not hold the policy's action.
  contributions: `[sessions]` whose mean is `value` and whose spread gave the
    interval. Those of two policies are paired:
    `statistics.relative_gain(a.contributions, b.contributions)`.
  """

  value: float
  low: float
  high: float
  effective_sample_size: float
  outside_share: float
  contributions: np.ndarray

  @property
  def extrapolates(self) -> bool:
    """Whether the log cannot have shown what the policy does everywhere."""
    return self.outside_share > 0


def scalar_reward(
  log: SessionLog, group_weights: chex.Array | None
) -> np.ndarray:
  """`[N]` weighted sum of the groups' rewards, weights of 1 if None.

  Raises:
    InputError: weights that are no finite numbers, or not `[G]`.
  """
  reward = as_numbers(log.reward, "reward").astype(np.float64)
  if group_weights is None:
    return reward.sum(axis=1)
  weights = as_numbers(group_weights, "group_weights").astype(np.float64)
  if weights.shape != reward.shape[1:]:
    raise InputError(
      f"group_weights: expected shape {reward.shape[1:]}, found"
      f" {weights.shape}."
    )
  return reward @ weights


def units_from(
  log: SessionLog,
  *,
  discount: float = 1.0,
  group_weights: chex.Array | None = None,
) -> LoggedUnits:
  """The units of a valid log whose actions were uniform in their boxes.

  Where exploration is held a unit is a session and its outcome the discounted
  sum of the session's rewards; a session that the log cut ends there. Else it
  is a request and its outcome the reward of its list: what the action does to
  later requests is not in it, and `discount` is not used.

  Args:
    log: of one kind of exploration, NumPy or JAX arrays.
    discount: gamma, in [0, 1].
    group_weights: `[G]` of the rewards; 1 each if omitted.

  Returns:
    The units, in the log's order.

  Raises:
    InputError: a discount or weights that are none, densities that are not
      those of uniform draws, a log with sessions of both kinds or without a
      request, or a session that says it held a deviation and did not; shown
      items that deviate each by itself.
  """
  if not 0 <= discount <= 1:  # NaN is outside.
    raise InputError(f"discount: expected a value in [0, 1], found {discount}.")
  check_deviate_alike(log.items)
  reward = scalar_reward(log, group_weights)
  request = ~as_array(log.bootstrap_only, "bootstrap_only")
  step = as_array(log.step, "step")
  held = as_array(log.exploration_held, "exploration_held")[request]
  if not held.size:
    raise InputError("log: expected at least one request, found none.")
  if held.any() and not held.all():
    raise InputError(
      "exploration_held: expected one kind of exploration, found"
      f" {int(held.sum())} of {held.size} requests that held theirs."
    )
  lower, upper = (
    np.asarray(bound, np.float64)[request]
    for bound in (log.box.lower, log.box.upper)
  )
  action = np.asarray(log.action, np.float64)[request]
  half_width = (upper - lower) / 2
  explores = half_width > 0
  uniform = -np.sum(
    np.log(np.where(explores, upper - lower, 1)), axis=1, initial=0
  )
  log_prob = np.asarray(log.log_prob, np.float64)[request]
  others = np.abs(log_prob - uniform) > _DENSITY_ERROR
  if others.any():
    row = int(np.argmax(others))
    raise InputError(
      "log_prob: expected the density of a uniform draw from the box, found"
      f" another at {int(others.sum())} of {others.size} requests, first at"
      f" request {row}: {log_prob[row]:.4f} instead of {uniform[row]:.4f}."
    )
  deviation = np.where(
    explores,
    (action - (upper + lower) / 2) / np.where(explores, half_width, 1),
    0.0,
  )
  reward, step = reward[request], step[request]
  first = step == 0
  session = np.cumsum(first) - 1
  unit = np.ones_like(first)
  if held.all():
    drift = np.abs(deviation - deviation[first][session])
    drift = np.where(
      (half_width > _NARROW) & (half_width[first][session] > _NARROW), drift, 0
    )
    moved = drift.max(axis=1) > _HELD_ERROR
    if moved.any():
      raise InputError(
        "exploration_held: expected one deviation in all boxes of a session,"
        f" found {int(moved.sum())} requests with another, first at request"
        f" {int(np.argmax(moved))}."
      )
    unit = first
    reward = np.bincount(session, reward * float(discount) ** step)
  observation = np.asarray(log.observation, np.float64)[request]
  return LoggedUnits(
    observation=observation[unit],
    lower=lower[unit],
    upper=upper[unit],
    deviation=deviation[unit],
    explores=explores[unit],
    outcome=reward,
    session=session[unit],
  )


def target_deviation(
  units: LoggedUnits, action: chex.Array
) -> tuple[np.ndarray, np.ndarray]:
  """A policy's actions in half-widths of the logged boxes.

  Args:
    units: of the log.
    action: `[n, A]` the policy's actions at `units.observation`.

  Returns:
    `[n, A]` deviations, 0 for a component that does not explore, and bool `[n]`
    whether an action is outside its box.

  Raises:
    InputError: actions that are masked, not finite or of another shape.
  """
  action = as_numbers(action, "action").astype(np.float64)
  if action.shape != units.deviation.shape:
    raise InputError(
      f"action: expected shape {units.deviation.shape}, found {action.shape}."
    )
  half_width = (units.upper - units.lower) / 2
  offset = action - (units.upper + units.lower) / 2
  scale = np.where(units.explores, half_width, 1)
  limit = np.where(units.explores, 1 + ROUNDING, ROUNDING)
  outside = np.any(np.abs(offset / scale) > limit, axis=1)
  return np.where(units.explores, offset / scale, 0.0), outside


def estimate_from(
  influence: np.ndarray,
  value: float,
  weights: np.ndarray,
  outside: np.ndarray,
  session: np.ndarray,
) -> Estimate:
  """An estimate with its interval, sessions being independent.

  Args:
    influence: `[n]` of mean 0, by how much each unit moves the value, times `n`.
    value: of the policy.
    weights: `[n]`.
    outside: bool `[n]`.
    session: int `[n]`, from 0 without a gap.
  """
  by_session = np.bincount(session, influence)
  by_session *= by_session.size / influence.size
  error = float(np.std(by_session) / np.sqrt(by_session.size))
  squares = float(np.sum(np.square(weights)))
  return Estimate(
    value=float(value),
    low=float(value - 1.96 * error),
    high=float(value + 1.96 * error),
    effective_sample_size=(
      float(np.square(np.sum(weights)) / squares) if squares else 0.0
    ),
    outside_share=float(np.mean(outside)),
    contributions=value + by_session,
  )
