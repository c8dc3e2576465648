"""Value of a policy from a uniform box log: linear and doubly robust estimates.

In half-widths of its box a logged deviation `u` is uniform in [-1, 1]^A and
independent of everything before it: `E[u] = 0`, `E[u u'] = I / 3`, known, not
fitted. A value that is linear in `u` is therefore an average of the log, with no
density, bandwidth or cap; the class is that of [1], whose moment is here exact.
Weights may be negative. Outside the box the linear form is an extrapolation, and
the estimate says how much of the policy is there.

Letters: `n` units, `S` state features, `A` action components, `P` features of an
observation.

References:
  [1] Chernozhukov, Demirer, Lewis and Syrgkanis, "Semi-Parametric Efficient
  Policy Learning with Continuous Actions", arXiv 1905.10116.
  [2] Nie and Wager, "Quasi-Oracle Estimation of Heterogeneous Treatment
  Effects", arXiv 1712.04912.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import numpy as np

from mtf_jax.evaluation.logged_units import (
  Estimate,
  LoggedUnits,
  estimate_from,
  target_deviation,
)
from mtf_jax.io import InputError

FOLDS = 5
_BLOCK = 8192


class Nuisance(NamedTuple):
  """What the estimators do not estimate, from sessions of other folds.

  mean: `[n]` m(s), the outcome with no deviation.
  slope: `[n, A]` th(s), its change per half-width.
  """

  mean: np.ndarray
  slope: np.ndarray


def linear_weights(units: LoggedUnits, deviation: np.ndarray) -> np.ndarray:
  """`1 + 3 u . delta`, `[n]`: exact for outcomes linear in `u`.

  Args:
    units: of the log.
    deviation: `[n, A]` delta, of the policy.
  """
  return 1 + 3 * np.sum(units.deviation * deviation, axis=1)


def quadratic_weights(units: LoggedUnits, deviation: np.ndarray) -> np.ndarray:
  """`[n]` weights that are exact for outcomes quadratic in `u`.

  `1 + 3 u . delta + (45/4) sum_k (u_k^2 - 1/3) (delta_k^2 - 1/3)
  + 9 sum_{j<k} u_j u_k delta_j delta_k`: each orthogonal polynomial at `u` times
  itself at `delta`, over its second moment.

  Args:
    units: of the log.
    deviation: `[n, A]` delta, of the policy.
  """
  u = units.deviation
  curvature = (np.square(u) - 1 / 3) * (np.square(deviation) - 1 / 3)
  curvature = np.sum(np.where(units.explores, curvature, 0), axis=1)
  product = u * deviation
  dot = np.sum(product, axis=1)
  pairs = (np.square(dot) - np.sum(np.square(product), axis=1)) / 2
  return 1 + 3 * dot + 45 / 4 * curvature + 9 * pairs


def _folds(session: np.ndarray, seed: int) -> np.ndarray:
  """`[n]` the fold of each unit, whole sessions to one fold."""
  count = int(session[-1]) + 1
  if count < 2 * FOLDS:
    raise InputError(
      f"log: expected {2 * FOLDS} sessions or more, found {count}."
    )
  fold = np.arange(count) % FOLDS
  return np.random.default_rng(seed).permutation(fold)[session]


def mean_only(units: LoggedUnits, seed: int = 0) -> Nuisance:
  """m(s) the mean outcome of the other folds, no slopes.

  Args:
    units: of the log.
    seed: of the folds.

  Raises:
    InputError: too few sessions.
  """
  fold = _folds(units.session, seed)
  sums = np.bincount(fold, units.outcome, FOLDS)
  counts = np.bincount(fold, minlength=FOLDS)
  mean = (sums.sum() - sums) / (counts.sum() - counts)
  return Nuisance(mean[fold], np.zeros_like(units.deviation))


def _shrunk(
  coefficients: np.ndarray, errors: np.ndarray, groups: tuple[slice, ...]
) -> np.ndarray:
  """Posterior means with one prior variance per group, by moments."""
  shrunk = coefficients.copy()
  for group in groups:
    noise = np.square(errors[group])
    signal = max(float(np.mean(np.square(coefficients[group]) - noise)), 0.0)
    total = signal + noise
    shrunk[group] *= np.divide(
      signal, total, out=np.zeros_like(total), where=total > 0
    )
  return shrunk


def fit_slopes(units: LoggedUnits, seed: int = 0) -> Nuisance:
  """m(s) quadratic in each feature and th(s) linear in them, cross-fitted.

  Least squares of the outcome on `(1, x, x^2)` and `u (x) (1, x)`, whose parts
  are orthogonal by design [2]. Slopes common to all and those of the features
  are then shrunk by an empirical Bayes factor each: their own noise is larger
  than what a deviation does.

  Args:
    units: of the log.
    seed: of the folds.

  Returns:
    Predictions for each unit by the other folds' fit.

  Raises:
    InputError: too few sessions, or fewer than twice as many units as there are
      coefficients.
  """
  fold = _folds(units.session, seed)
  x = units.observation
  spread = x.std(axis=0)
  x = (x - x.mean(axis=0)) / np.where(spread > 1e-6, spread, 1)
  num_units, num_actions = units.deviation.shape
  value_size = 1 + 2 * x.shape[1]
  size = value_size + num_actions * (1 + x.shape[1])
  if num_units < 2 * size:
    raise InputError(
      f"log: expected {2 * size} units or more for {size} coefficients, found"
      f" {num_units}."
    )

  def design(rows: np.ndarray) -> np.ndarray:
    own = np.column_stack([np.ones(rows.size), x[rows]])
    products = units.deviation[rows][:, :, None] * own[:, None, :]
    # Slopes of all components first, then those of the features.
    return np.concatenate(
      [
        own,
        np.square(x[rows]),
        products[:, :, 0],
        products[:, :, 1:].reshape(rows.size, -1),
      ],
      axis=1,
    )

  gram = np.zeros((FOLDS, size, size))
  moment = np.zeros((FOLDS, size))
  square = np.zeros(FOLDS)
  for number in range(FOLDS):
    members = np.flatnonzero(fold == number)
    for start in range(0, members.size, _BLOCK):
      rows = members[start : start + _BLOCK]
      features, outcome = design(rows), units.outcome[rows]
      gram[number] += features.T @ features
      moment[number] += features.T @ outcome
      square[number] += outcome @ outcome

  mean = np.empty(num_units)
  slope = np.empty((num_units, num_actions))
  groups = (
    slice(value_size, value_size + num_actions),
    slice(value_size + num_actions, size),
  )
  for number in range(FOLDS):
    members = np.flatnonzero(fold == number)
    rest = num_units - members.size
    left = gram.sum(axis=0) - gram[number]
    right = moment.sum(axis=0) - moment[number]
    # A constant feature has no column of its own; this keeps it at 0.
    inverse = np.linalg.inv(left + 1e-9 * rest * np.eye(size))
    fitted = inverse @ right
    residual = square.sum() - square[number] - fitted @ right
    variance = max(residual, 0.0) / max(rest - size, 1)
    errors = np.sqrt(variance * np.diag(inverse).clip(0))
    fitted = _shrunk(fitted, errors, groups)
    common, personal = (fitted[group] for group in groups)
    personal = personal.reshape(num_actions, -1)
    for start in range(0, members.size, _BLOCK):
      rows = members[start : start + _BLOCK]
      own = np.column_stack([np.ones(rows.size), x[rows], np.square(x[rows])])
      mean[rows] = own @ fitted[:value_size]
      slope[rows] = common + x[rows] @ personal.T
  return Nuisance(mean, np.where(units.explores, slope, 0.0))


def doubly_robust(
  units: LoggedUnits,
  action: chex.Array,
  nuisance: Nuisance,
  weights: Callable[[LoggedUnits, np.ndarray], np.ndarray] = linear_weights,
) -> Estimate:
  """Value of a policy, unbiased for any m and th where the weights are exact.

  `mean[ m(s) + th(s) . delta + w (G - m(s) - th(s) . u) ]`, with
  `w = 1 + 3 u . delta` for outcomes linear in the deviation. With
  `mean_only` it is the linear estimator about a constant, since the mean of `G`
  would multiply the noise of the weights; with `fit_slopes` its standard error
  is about `sd(G - m) sqrt((1 + 3 |delta|^2) / n)`.

  The deviation is that of the policy at the unit's observation. In a held log
  this is the value of keeping it for the session, which is what the log shows.

  Args:
    units: of the log; its actions are uniform in their boxes.
    action: `[n, A]` the policy's actions at `units.observation`.
    nuisance: m and th, from sessions of other folds.
    weights: `linear_weights` or `quadratic_weights`.

  Returns:
    The estimate, per unit.

  Raises:
    InputError: actions that are masked, not finite or of another shape.
  """
  deviation, outside = target_deviation(units, action)
  weight = weights(units, deviation)
  residual = (
    units.outcome
    - nuisance.mean
    - np.sum(nuisance.slope * units.deviation, axis=1)
  )
  found = nuisance.mean + np.sum(nuisance.slope * deviation, axis=1)
  found = found + weight * residual
  value = found.mean()
  return estimate_from(found - value, value, weight, outside, units.session)
