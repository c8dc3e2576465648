"""Fronts and the area they dominate, against counting."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtf_jax.evaluation import pareto
from mtf_jax.io import InputError

_CELLS = st.lists(
  st.tuples(st.integers(-3, 8), st.integers(-3, 8)), min_size=1, max_size=8
)


def test_by_hand():
  points = np.array(
    [[1.0, 3.0], [2.0, 2.0], [1.0, 2.0], [3.0, 1.0], [3.0, 1.0]]
  )
  assert pareto.on_front(points).tolist() == [True, True, False, True, True]
  # Unit squares: three in the first column, two in the second, one in the third.
  assert pareto.hypervolume(points, np.zeros(2)) == 6.0
  assert pareto.hypervolume(points, np.array([1.0, 1.0])) == 1.0
  assert pareto.hypervolume(points, np.array([3.0, 0.0])) == 0.0


@given(_CELLS)
def test_the_area_is_that_of_the_cells_below_a_point(cells):
  points = np.array(cells, float)
  counted = sum(
    bool(((points[:, 0] > x) & (points[:, 1] > y)).any())
    for x in range(8)
    for y in range(8)
  )
  assert pareto.hypervolume(points, np.zeros(2)) == counted


@given(_CELLS)
def test_the_front_alone_has_all_of_the_area(cells):
  points = np.array(cells, float)
  kept = pareto.on_front(points)
  corner = np.array([-4.0, -4.0])
  assert kept.any()
  assert pareto.hypervolume(points[kept], corner) == pareto.hypervolume(
    points, corner
  )
  for point in points[~kept]:
    better = points[kept]
    assert ((better >= point).all(axis=1) & (better > point).any(axis=1)).any()


@pytest.mark.parametrize(
  ("points", "sentence"),
  [
    (np.zeros((0, 2)), "one point or more"),
    (np.zeros((3, 3)), "two figures each"),
    (np.zeros(2), "two figures each"),
    (np.array([[0.0, np.nan]]), "expected finite"),
  ],
)
def test_what_is_no_point_is_refused(points, sentence):
  with pytest.raises(InputError, match=sentence):
    pareto.on_front(points)
  with pytest.raises(InputError, match=sentence):
    pareto.hypervolume(points, np.zeros(2))
