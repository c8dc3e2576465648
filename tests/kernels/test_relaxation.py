"""Hand-computed cases of `mtf_jax.kernels.relaxation`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtf_jax
from mtf_jax.kernels import relaxation

_BOX = mtf_jax.ActionBox(jnp.array([-0.5, 0.0]), jnp.array([0.5, 0.25]))


def test_exceedance_sums_what_lies_outside():
  action = jnp.array([0.75, -0.5])
  np.testing.assert_allclose(mtf_jax.exceedance(action, _BOX), 0.75)


@pytest.mark.parametrize("action", [[0.0, 0.1], [0.5, 0.25], [-0.5, 0.0]])
def test_inside_and_on_the_bound_nothing_is_paid(action):
  action = jnp.array(action)
  value, gradient = jax.value_and_grad(mtf_jax.exceedance)(action, _BOX)
  assert value == 0
  np.testing.assert_array_equal(gradient, [0, 0])
  assert mtf_jax.relaxation_penalty(value, 10.0) == 0
  assert mtf_jax.bootstrap_weight(value, 10.0) == 1


def test_gradient_points_back_to_the_box():
  gradient = jax.grad(mtf_jax.exceedance)(jnp.array([0.75, -0.5]), _BOX)
  np.testing.assert_array_equal(gradient, [1, -1])


def test_nan_is_not_inside():
  action = jnp.array([jnp.nan, 0.1])
  assert np.isnan(mtf_jax.exceedance(action, _BOX))


def test_penalty_and_weight_by_hand():
  np.testing.assert_allclose(
    mtf_jax.relaxation_penalty(0.2, 10.0), np.exp(2) - 1, rtol=1e-6
  )
  np.testing.assert_allclose(
    mtf_jax.bootstrap_weight(0.2, 10.0), np.exp(-2), rtol=1e-6
  )


def test_penalty_gradient_by_hand():
  # Also where the exponent is a billion times smaller than the linear slope.
  for e in (0.0, 1e-4, 0.3, 2.0):
    gradient = jax.grad(mtf_jax.relaxation_penalty)(e, 2.0)
    np.testing.assert_allclose(gradient, 2 * np.exp(2 * e), rtol=1e-6)


def test_weight_is_one_over_one_plus_penalty():
  e = jnp.linspace(0, 2.9, 30)
  penalty = jax.vmap(lambda e: mtf_jax.relaxation_penalty(e, 10.0))(e)
  weight = jax.vmap(lambda e: mtf_jax.bootstrap_weight(e, 10.0))(e)
  np.testing.assert_allclose(weight, 1 / (1 + penalty), rtol=1e-5)


def test_penalty_is_smooth_where_it_becomes_linear():
  def at(exponent):
    return jax.value_and_grad(mtf_jax.relaxation_penalty)(exponent, 1.0)

  edge = relaxation.LINEAR_FROM
  below, at_edge, above = at(edge - 1e-4), at(edge), at(edge + 1e-4)
  np.testing.assert_allclose(below, at_edge, rtol=2e-4)
  np.testing.assert_allclose(above, at_edge, rtol=2e-4)
  np.testing.assert_allclose(at(edge + 5.0)[1], at_edge[1], rtol=1e-6)
  np.testing.assert_allclose(
    at(edge + 5.0)[0], at_edge[0] + 5 * at_edge[1], rtol=1e-6
  )


def test_penalty_far_away_keeps_a_summable_gradient():
  # Ten components a million units away at sharpness 100, squared and summed
  # over a million parameters.
  value, gradient = jax.value_and_grad(mtf_jax.relaxation_penalty)(1e7, 100.0)
  assert np.isfinite(value) and np.isfinite(gradient)
  assert np.isfinite(jnp.float32(1e6) * jnp.square(gradient))


def test_negative_sharpness_is_refused():
  for kernel in (mtf_jax.relaxation_penalty, mtf_jax.bootstrap_weight):
    with pytest.raises(ValueError, match=r"^sharpness: expected non-negative"):
      kernel(0.1, -1.0)
    with pytest.raises(ValueError, match=r"^sharpness: expected non-negative"):
      jax.jit(lambda e, kernel=kernel: kernel(e, -1.0))(0.1)
    with pytest.raises(ValueError, match=r"^exceedance: expected non-negative"):
      kernel(-0.1, 1.0)
