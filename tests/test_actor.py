"""Hand-computed cases of `mtf_jax.actor`."""

import jax
import jax.numpy as jnp
import numpy as np

import mtf_jax


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
