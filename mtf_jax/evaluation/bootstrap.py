"""Bootstrap over users: which users a replicate has, and what it leads to."""

from typing import Any

import numpy as np


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
  """Percentile interval of 95%, as JSON has it; None where it is undefined."""
  if not np.isfinite(replicates).all():
    return [None, None]
  return np.quantile(replicates, [0.025, 0.975]).tolist()
