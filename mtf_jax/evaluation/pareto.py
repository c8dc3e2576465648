"""Pareto fronts of two figures that should both be high.

Letters: `N` points.

References:
  [1] Zitzler and Thiele, "Multiobjective Optimization Using Evolutionary
  Algorithms - A Comparative Case Study", PPSN 1998, the size of the space
  covered.
"""

import chex
import numpy as np

from mtf_jax.io import InputError, as_array


def _points(points: chex.Array) -> np.ndarray:
  found = as_array(points, "points")
  if found.ndim != 2 or found.shape[1] != 2 or not len(found):
    raise InputError(
      "points: expected one point or more of two figures each, found shape"
      f" {found.shape}."
    )
  if not np.isfinite(found).all():
    raise InputError(
      "points: expected finite figures, found some that are not."
    )
  return found.astype(np.float64)


def on_front(points: chex.Array) -> np.ndarray:
  """Which points no other one dominates.

  A point dominates another if it is at least as high in both figures and higher
  in one. Equal points do not dominate each other.

  Args:
    points: `[N, 2]`.

  Returns:
    bool `[N]`.

  Raises:
    InputError: no points, or some that are not finite.
  """
  found = _points(points)
  # [n, m]: whether m dominates n.
  least = (found[None] >= found[:, None]).all(axis=2)
  more = (found[None] > found[:, None]).any(axis=2)
  return ~(least & more).any(axis=1)


def hypervolume(points: chex.Array, reference: chex.Array) -> float:
  """Area that the points dominate beyond a reference point [1].

  Args:
    points: `[N, 2]`; one that is no higher than the reference in both figures
      adds nothing.
    reference: `[2]`.

  Returns:
    The area, in the product of the two units.

  Raises:
    InputError: no points, or some that are not finite.
  """
  found = _points(points)
  (corner,) = _points(np.asarray(reference)[None])
  found = found[(found > corner).all(axis=1)]
  # From the right: each strip is as high as the highest point so far.
  order = np.argsort(-found[:, 0], kind="stable")
  first, second = found[order].T
  height = np.maximum.accumulate(second) - corner[1]
  left = np.append(first[1:], corner[0])
  return float(np.sum((first - left) * height))
