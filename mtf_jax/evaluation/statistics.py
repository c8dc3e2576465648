"""Intervals and paired comparisons: what a difference is worth.

Letters: `B` sessions, `N` units, `R` replicates.
"""

import math
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import numpy as np

from mtf_jax.arrays import as_columns
from mtf_jax.io import InputError, as_array


class Gain(NamedTuple):
  """Relative gain of a policy over another.

  percent: the gain.
  error: its standard error, percent.
  """

  percent: float
  error: float

  @property
  def low(self) -> float:
    """Lower end of the 95% interval, percent; normal."""
    return self.percent - 1.96 * self.error

  @property
  def high(self) -> float:
    """Upper end of the 95% interval, percent; normal."""
    return self.percent + 1.96 * self.error


def relative_gain(better: np.ndarray, base: np.ndarray) -> Gain:
  """Gain of paired per-session returns, delta method.

  Args:
    better: `[B]` returns of the policy.
    base: `[B]` returns of the other one, same sessions in the same order.

  Returns:
    `100 (mean(better) / mean(base) - 1)` and its standard error; NaN where the
    base's returns have mean 0.

  Raises:
    InputError: returns that are masked or not finite, or numbers of sessions
      that differ or are 0.
  """
  better, base = (
    column.astype(np.float64)
    for column in as_columns({"better": better, "base": base})
  )
  if not base.mean():
    return Gain(math.nan, math.nan)
  ratio = better.mean() / base.mean()
  error = np.std(better - ratio * base) / (base.mean() * np.sqrt(base.size))
  return Gain(100.0 * (ratio - 1.0), 100.0 * error)


def resample(num_units: int, replicates: int, seed: int) -> np.ndarray:
  """How often each replicate has each unit, as many draws as there are units.

  Args:
    num_units: `N`.
    replicates: `R`.
    seed: of the draws.

  Returns:
    float32 `[R, N]`, rows that sum to `N`.
  """
  rng = np.random.default_rng(seed)
  counts = np.empty((replicates, num_units), np.float32)
  for row in counts:
    drawn = rng.integers(num_units, size=num_units)
    row[:] = np.bincount(drawn, minlength=num_units)
  return counts


def interval(replicates: np.ndarray) -> list[Any]:
  """Percentile interval of 95%, as JSON has it.

  Args:
    replicates: `[R]`; NaN or infinite where a replicate is undefined.

  Returns:
    Its ends; None and None where a replicate is undefined, or there is none.

  Raises:
    InputError: replicates that are masked.
  """
  replicates = as_array(replicates, "replicates")
  if not replicates.size or not np.isfinite(replicates).all():
    return [None, None]
  return np.quantile(replicates, [0.025, 0.975]).tolist()


class Comparison(NamedTuple):
  """Relative gain of one policy over another, percent.

  gain: over the base.
  ci95: its 95% interval.
  p_value: two-sided, of no gain.
  """

  gain: float
  ci95: tuple[float, float]
  p_value: float


def paired_comparison(
  policy: chex.Array, base: chex.Array, user: chex.Array
) -> Comparison:
  """Paired comparison of sums per session, users being the units.

  Sessions of one user are not independent, so each user's sessions are added up
  first; the interval is that of the ratio of means over users (delta method,
  normal), and speaks of other users of the same world.

  Args:
    policy: `[B]` of the policy.
    base: `[B]` of the base, same sessions.
    user: `[B]` the sessions' users.

  Returns:
    The gain; NaN throughout where the base's sum is 0.

  Raises:
    InputError: values that are masked or not finite, or numbers of sessions
      that differ or are 0.
  """
  policy, base, user = as_columns(
    {"policy": policy, "base": base, "user": user}
  )
  _, unit = np.unique(user, return_inverse=True)
  gain = relative_gain(np.bincount(unit, policy), np.bincount(unit, base))
  # Equal policies have no error and no gain. What is undefined has no p either.
  z = gain.percent / gain.error if gain.error else 0.0
  return Comparison(
    float(gain.percent),
    (float(gain.low), float(gain.high)),
    math.erfc(abs(z) / math.sqrt(2)),
  )


# 97.5% quantiles of Student's t by degrees of freedom, from 1.
_STUDENT = (
  *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
  *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
  *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
  """95% interval of a mean over seeds, Student's t.

  Args:
    values: two or more, one a seed.

  Returns:
    Its ends.

  Raises:
    InputError: fewer than two values, or some that are masked or not finite.
  """
  (column,) = as_columns({"values": values})
  if column.size < 2:
    raise InputError(
      f"values: expected two or more seeds, found {column.size}."
    )
  quantile = (*_STUDENT, 1.96)[min(len(values) - 2, len(_STUDENT))]
  error = quantile * statistics.stdev(values) / math.sqrt(len(values))
  mean = statistics.fmean(values)
  return mean - error, mean + error
