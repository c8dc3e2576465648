"""Actions in units of their box, and policies that are told it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.learners import box_units
from mtf_jax.learners.base import Normalization
from tests.learners.float64 import make_batch
from tests.learners.test_probes import CONSTANT_ACTOR

# Clipped at 1, wide, and without width.
BOX = ActionBox(
  np.array([0.8, -0.5, 0.2], np.float32), np.array([1.0, 0.5, 0.2], np.float32)
)
ACTION = np.array([0.95, -0.25, 0.2], np.float32)


@pytest.mark.parametrize(
  ("told", "action", "lower", "upper"),
  [
    (0.0, ACTION, BOX.lower, BOX.upper),
    (1.0, [0.5, -0.5, 0], [-1, -1, 0], [1, 1, 0]),
  ],
)
def test_units_are_half_widths_for_those_who_are_told(
  told, action, lower, upper
):
  found, box = box_units.to_units(told, ACTION, BOX)
  np.testing.assert_allclose(found, action, atol=1e-6)
  np.testing.assert_allclose(box.lower, lower, atol=1e-6)
  np.testing.assert_allclose(box.upper, upper, atol=1e-6)
  frame = box_units.frame_of(told, BOX)
  np.testing.assert_allclose(
    box_units.in_frame(frame, found), ACTION, atol=1e-6
  )


def test_a_batch_is_told_row_by_row():
  batch = make_batch(0)
  found = box_units.batch_to_units(1.0, batch)
  for row in range(batch.discount_t.shape[0]):
    box = jax.tree.map(lambda leaf, row=row: leaf[row], batch.box_tm1)
    expected, _ = box_units.to_units(1.0, batch.action_tm1[row], box)
    np.testing.assert_allclose(found.action_tm1[row], expected, rtol=1e-6)
  for box in (found.box_tm1, found.box_t):
    np.testing.assert_allclose(box.lower, -np.ones_like(box.lower), atol=1e-5)
    np.testing.assert_allclose(box.upper, np.ones_like(box.upper), atol=1e-5)
  untold = box_units.batch_to_units(0.0, batch)
  jax.tree.map(np.testing.assert_array_equal, untold, batch)


def test_who_serves_a_policy_may_move_its_box():
  frame = box_units.frame_of(1.0, BOX)
  params = box_units.Policy(
    jnp.array([0.5, -0.5, 1.0]), Normalization(jnp.zeros(1), jnp.ones(1)), frame
  )
  act = box_units.deterministic_act(CONSTANT_ACTOR)
  given = (np.ones(1, np.float32), jax.random.key(0))
  np.testing.assert_allclose(act(params, *given), ACTION, atol=1e-6)
  moved = params._replace(frame=frame._replace(centre=frame.centre - 0.5))
  np.testing.assert_allclose(
    act(moved, *given), ACTION - np.float32(0.5), atol=1e-6
  )
