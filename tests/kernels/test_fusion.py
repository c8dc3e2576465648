"""Hand-computed cases of `mtf_jax.kernels.fusion`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtf_jax
from mtf_jax.kernels import fusion


def test_action_zero_gives_the_base_weights():
  spec = mtf_jax.FusionSpec(power_base=2.0, bias_base=0.5)
  weights = mtf_jax.weights_from_action(jnp.zeros(6), spec)
  np.testing.assert_allclose(weights.power, [2, 2, 2])
  np.testing.assert_allclose(weights.bias, [0.5, 0.5, 0.5])


def test_powers_come_first_and_a_negative_base_stays_negative():
  spec = mtf_jax.FusionSpec(
    power_base=jnp.array([1.0, -1.0]), power_rate=1.0, bias_rate=2.0
  )
  log_two = float(np.log(2))
  action = jnp.array([log_two, log_two, 0.0, log_two / 2])
  weights = mtf_jax.weights_from_action(action, spec)
  np.testing.assert_allclose(weights.power, [2, -2], rtol=1e-6)
  np.testing.assert_allclose(weights.bias, [0.1, 0.2], rtol=1e-6)


def test_fused_log_score_is_the_logarithm_of_equation_1():
  scores = jnp.array([[0.5, 0.2], [0.1, 0.9]])
  weights = mtf_jax.FusionWeights(jnp.array([2.0, 0.5]), jnp.array([0.5, 0.05]))
  # (0.5 + 0.5)^2 * (0.2 + 0.05)^0.5 = 0.5 and (0.6)^2 * (0.95)^0.5.
  expected = [np.log(0.5), np.log(0.36 * 0.95**0.5)]
  np.testing.assert_allclose(
    mtf_jax.fused_log_score(scores, weights), expected, rtol=1e-6
  )


def test_zero_score_and_zero_bias_is_the_documented_floor():
  weights = mtf_jax.FusionWeights(jnp.array([2.0]), jnp.array([0.0]))
  log_score = mtf_jax.fused_log_score(jnp.zeros((1, 1)), weights)
  np.testing.assert_allclose(log_score, [2 * np.log(fusion.SCORE_FLOOR)])
  gradient = jax.grad(
    lambda bias: mtf_jax.fused_log_score(
      jnp.zeros((1, 1)), weights._replace(bias=bias)
    )[0]
  )
  for bias in (-1.0, fusion.SCORE_FLOOR):
    assert gradient(jnp.array([bias])) == 0


def _of_each(weights, count):
  return jax.tree.map(lambda leaf: jnp.tile(leaf, (count, 1)), weights)


def test_weights_of_each_candidate_are_eq_1_relative_to_the_mean_candidate():
  scores = jnp.array([[0.5], [0.1]])  # Their mean is 0.3.
  weights = mtf_jax.FusionWeights(
    jnp.array([[2.0], [3.0]]), jnp.array([[0.5], [0.1]])
  )
  expected = [2 * np.log(1.0 / 0.8), 3 * np.log(0.2 / 0.4)]
  np.testing.assert_allclose(
    mtf_jax.itemwise_log_score(scores, weights), expected, rtol=1e-6
  )
  # Twice the weights of an item like the mean do not lift it.
  alike = jnp.full((2, 1), 0.3)
  np.testing.assert_allclose(
    mtf_jax.itemwise_log_score(alike, weights), [0, 0], atol=1e-6
  )


def test_one_set_of_weights_for_all_orders_as_equation_1():
  rng = np.random.default_rng(0)
  scores = jnp.asarray(rng.uniform(0, 1, (20, 3)), jnp.float32)
  weights = mtf_jax.FusionWeights(jnp.array([2.0, -1.0, 0.5]), jnp.full(3, 0.1))
  itemwise = mtf_jax.itemwise_log_score(scores, _of_each(weights, 20))
  apart = itemwise - mtf_jax.fused_log_score(scores, weights)
  np.testing.assert_allclose(apart, np.full(20, apart[0]), rtol=1e-5)


def test_a_masked_candidate_is_no_part_of_the_mean():
  scores = jnp.array([[0.5], [0.1], [jnp.nan]])
  weights = _of_each(mtf_jax.FusionWeights(jnp.ones(1), jnp.zeros(1)), 3)
  mask = jnp.array([True, True, False])
  found = mtf_jax.itemwise_log_score(scores, weights, mask)
  two = jax.tree.map(lambda leaf: leaf[:2], (scores, weights))
  np.testing.assert_array_equal(found[:2], mtf_jax.itemwise_log_score(*two))
  assert np.all(np.isnan(mtf_jax.itemwise_log_score(scores, weights)))


def test_a_nan_score_stays_visible_and_ranks_last():
  scores = jnp.array([[0.1], [jnp.nan], [0.2]])
  weights = mtf_jax.FusionWeights(jnp.ones(1), jnp.zeros(1))
  log_scores = mtf_jax.fused_log_score(scores, weights)
  assert np.isnan(log_scores[1])
  np.testing.assert_array_equal(mtf_jax.rank_slate(log_scores, 3), [2, 0, 1])


def test_rank_slate_orders_and_breaks_ties_by_index():
  log_scores = jnp.array([1.0, 3.0, 2.0, 3.0, 0.0])
  np.testing.assert_array_equal(mtf_jax.rank_slate(log_scores, 4), [1, 3, 2, 0])


def test_rank_slate_never_shows_a_masked_candidate():
  log_scores = jnp.array([9.0, -jnp.inf, 8.0, 1.0])
  mask = jnp.array([False, True, False, True])
  np.testing.assert_array_equal(
    mtf_jax.rank_slate(log_scores, 3, mask), [3, 1, -1]
  )
  empty = jnp.zeros(4, bool)
  np.testing.assert_array_equal(
    mtf_jax.rank_slate(log_scores, 2, empty), [-1, -1]
  )


@pytest.mark.parametrize("num_candidates", [256, 257])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_both_selections_agree_with_a_sort(num_candidates, dtype):
  # bfloat16 rounds many of them to the same value.
  scores = np.random.default_rng(0).normal(size=num_candidates)
  log_scores = jnp.asarray(scores, dtype)
  order = np.argsort(-np.asarray(log_scores, np.float64), kind="stable")
  np.testing.assert_array_equal(
    mtf_jax.rank_slate(log_scores, num_candidates), order
  )


@pytest.mark.parametrize("slate_size", [0, 5, -1, 2.0, "3", None])
def test_slate_size_out_of_range_is_refused(slate_size):
  with pytest.raises(ValueError, match=r"^slate_size: expected .*found"):
    mtf_jax.rank_slate(jnp.zeros(4), slate_size)


def test_a_traced_slate_size_is_refused():
  with pytest.raises(ValueError, match=r"^slate_size: expected a static"):
    jax.jit(mtf_jax.rank_slate)(jnp.zeros(4), 2)


def test_a_mask_that_is_not_bool_is_refused():
  with pytest.raises(ValueError, match=r"^mask: expected bool .* found int32"):
    mtf_jax.rank_slate(jnp.zeros(4), 2, jnp.ones(4, jnp.int32))


def test_a_negative_bias_is_refused():
  spec = mtf_jax.FusionSpec(bias_base=-0.1)
  call = functools.partial(mtf_jax.weights_from_action, spec=spec)
  for function in (call, jax.jit(lambda action: call(action))):
    with pytest.raises(ValueError, match="bias_base: expected non-negative"):
      function(jnp.zeros(4))
