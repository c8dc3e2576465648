"""Hand-computed cases of `mtf_jax.kernels.losses`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtf_jax


def test_mean_and_population_std():
  mean, std = mtf_jax.ensemble_mean_std(jnp.array([[1.0, 3.0], [2.0, 2.0]]))
  np.testing.assert_allclose(mean, [2, 2])
  np.testing.assert_allclose(std, [1, 0])


def test_std_gradient_is_zero_where_critics_agree():
  def total_std(q):
    return jnp.sum(mtf_jax.ensemble_mean_std(q)[1])

  gradient = jax.grad(total_std)(jnp.array([[1.0, 3.0], [2.0, 2.0]]))
  np.testing.assert_allclose(gradient, [[-0.5, 0.5], [0, 0]])


@pytest.mark.parametrize(("value", "critics"), [(0.1, 24), (123.4, 10)])
def test_a_mean_that_rounds_beside_equal_critics_moves_none(value, critics):
  equal = jnp.full((1, critics), value)

  def std(q):
    return jnp.sum(mtf_jax.ensemble_mean_std(q)[1])

  assert std(equal) < 1e-5 * value
  np.testing.assert_array_equal(jax.grad(std)(equal), 0)


def test_std_gradient_of_critics_that_nearly_agree():
  rng = np.random.default_rng(0)
  q = (50 + 1e-3 * rng.standard_normal((2, 24))).astype(np.float32)
  found = jax.grad(lambda q: jnp.sum(mtf_jax.ensemble_mean_std(q)[1]))(q)
  deviation = q.astype(np.float64) - q.mean(1, np.float64)[:, None]
  wanted = deviation / q.astype(np.float64).std(1)[:, None] / 24
  # Floats near 50 are 4e-6 apart, a 250th of the spread; the mean is two off at most.
  np.testing.assert_allclose(found, wanted, atol=2 / 250 / 24)


def test_bfloat16_std_is_not_lost_in_the_mean():
  # The mean, 100.25, is no bfloat16; rounded, it would give 0.35 or 0.
  q = jnp.array([[100.0, 100.5]], jnp.bfloat16)
  _, std = mtf_jax.ensemble_mean_std(q)
  np.testing.assert_allclose(np.float64(std[0]), 0.25)


def test_each_critic_has_its_own_target():
  targets = mtf_jax.td_targets(
    jnp.array([1.0, 2.0]), 0.5, 0.5, jnp.array([[4.0, 8.0], [0.0, -4.0]])
  )
  np.testing.assert_allclose(targets, [[2, 3], [2, 1]])


def test_at_the_end_of_a_session_the_next_value_is_not_read():
  q_t = jnp.array([[jnp.nan, jnp.inf]])
  for weight in (1.0, float("nan")):
    targets = mtf_jax.td_targets(jnp.array([1.0]), 0.0, weight, q_t)
    np.testing.assert_array_equal(targets, [[1, 1]])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_diverged_critic_is_not_an_agreement(value):
  _, std = mtf_jax.ensemble_mean_std(jnp.array([[value, 1.0], [1.0, 2.0]]))
  np.testing.assert_array_equal(std, [np.nan, 0.5])


def test_no_gradient_flows_into_the_target():
  gradients = jax.grad(
    lambda *args: jnp.sum(mtf_jax.td_targets(*args)), argnums=(0, 1, 2, 3)
  )(jnp.ones(1), 0.9, 1.0, jnp.ones((1, 2)))
  for gradient in gradients:
    np.testing.assert_array_equal(gradient, np.zeros_like(gradient))


def test_loss_is_the_mean_of_squared_errors():
  q_tm1 = jnp.array([[1.0, 2.0], [3.0, 4.0]])
  targets = jnp.array([[0.0, 2.0], [5.0, 1.0]])
  np.testing.assert_allclose(mtf_jax.critic_loss(q_tm1, targets), 14 / 4)


def test_value_price_and_uncertainty_by_hand():
  q = jnp.array([[1.0, 3.0], [4.0, 8.0]])
  # Means 2 and 6, deviations 1 and 2.
  loss = mtf_jax.actor_loss(q, jnp.array([1.0, 0.5]), 3.0, 2.0, 0.1)
  np.testing.assert_allclose(loss, -(2 + 3) + 2 * 3 + 0.1 * (1 + 1), rtol=1e-6)


def test_without_penalties_it_is_minus_the_mean_value():
  q = jnp.array([[1.0, 3.0]])
  gradient = jax.grad(mtf_jax.actor_loss)(q, jnp.ones(1), 5.0, 0.0, 0.0)
  np.testing.assert_allclose(gradient, [[-0.5, -0.5]])


def test_a_single_critic_has_a_plain_gradient():
  gradient = jax.grad(mtf_jax.actor_loss)(
    jnp.array([[2.0]]), jnp.ones(1), 0.0, 1.0, 1.0
  )
  np.testing.assert_allclose(gradient, [[-1.0]])


def test_a_list_of_one_item_has_the_targets_of_one_transition():
  rng = np.random.default_rng(0)
  r_t, q_t = (
    jnp.asarray(rng.normal(size=size), jnp.float32) for size in (2, (1, 2, 3))
  )
  found = mtf_jax.list_td_targets(r_t, 0.9, jnp.array([0.7]), q_t)
  expected = mtf_jax.td_targets(r_t, 0.9, 0.7, q_t[0])
  np.testing.assert_array_equal(found, expected)
  np.testing.assert_array_equal(mtf_jax.list_value(q_t), q_t[0])


def test_each_item_of_a_list_has_a_phi_of_its_own():
  q_t = jnp.array([[[10.0]], [[20.0]]])
  targets = mtf_jax.list_td_targets(
    jnp.array([1.0]), 0.5, jnp.array([1.0, 0.1]), q_t
  )
  np.testing.assert_allclose(targets, [[1 + 0.5 * (10 + 2)]])
