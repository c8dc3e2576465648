"""Hand-computed cases of `mtf_jax.kernels.rewards`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtf_jax


def test_list_reward_weights_behaviours_and_sums_the_list():
  # Two items; seconds watched and a like.
  feedback = jnp.array([[10.0, 0.0], [30.0, 1.0]])
  group_weights = jnp.array([[0.1, 0.0], [0.0, 2.0], [0.1, 2.0]])
  np.testing.assert_allclose(
    mtf_jax.list_reward(feedback, group_weights), [4, 2, 6], rtol=1e-6
  )


def test_returns_discount_backwards():
  returns = mtf_jax.discounted_returns(
    jnp.array([1.0, 2.0, 4.0]), jnp.array([0.5, 0.5, 0.5])
  )
  np.testing.assert_allclose(returns, [3, 4, 4])


def test_discount_zero_ends_a_session_even_before_nan():
  r_t = jnp.array([1.0, 1.0, jnp.nan, 5.0])
  discount_t = jnp.array([0.9, 0.0, 0.0, 0.9])
  returns = mtf_jax.discounted_returns(r_t, discount_t)
  np.testing.assert_allclose(returns, [1.9, 1, np.nan, 5], rtol=1e-6)
  gradient = jax.grad(
    lambda discount: mtf_jax.discounted_returns(r_t, discount)[0]
  )(discount_t)
  np.testing.assert_allclose(gradient[0], 1.0)
  assert np.all(np.isfinite(gradient))


def test_bfloat16_returns_do_not_saturate():
  # 256 + 1 is 256 in bfloat16.
  ones = jnp.ones(1000, jnp.bfloat16)
  assert mtf_jax.discounted_returns(ones, ones)[0] == 1000


def test_returns_of_groups_are_separate():
  r_t = jnp.array([[1.0, 10.0], [2.0, 20.0]])
  returns = mtf_jax.discounted_returns(r_t, jnp.array([0.5, 0.0]))
  np.testing.assert_allclose(returns, [[2, 20], [2, 20]])


def test_sessions_side_by_side_need_no_vmap():
  rng = np.random.default_rng(0)
  r_t = jnp.asarray(rng.normal(size=(5, 2, 3)), jnp.float32)
  discount_t = jnp.asarray(rng.choice([0.0, 0.9], (5, 3)), jnp.float32)
  by_session = jax.vmap(mtf_jax.discounted_returns, (2, 1), 2)(r_t, discount_t)
  np.testing.assert_allclose(
    mtf_jax.discounted_returns(r_t, discount_t[:, None]), by_session, rtol=1e-6
  )


@pytest.mark.parametrize("shape", [(5, 3), (5, 4, 2, 3), (5, 2, 1, 3)])
def test_discounts_that_do_not_broadcast_are_refused(shape):
  with pytest.raises(ValueError, match=r"discount_t: expected .* found"):
    mtf_jax.discounted_returns(jnp.ones((5, 2)), jnp.ones(shape))
