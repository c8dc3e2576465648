"""Networks that answer monotone cells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtf_jax
from mtf_jax import networks
from mtf_jax.learners import base

B, S, K, J, C = 6, 5, 3, 8, 40


def _base():
  knots = jnp.broadcast_to(jnp.linspace(0.0, 1.0, J), (K, J))
  weights = mtf_jax.FusionWeights(jnp.array([0.5, 1.0, 2.0]), jnp.full(K, 0.1))
  return mtf_jax.cells_from_weights(weights, knots)


def _network(dtype=jnp.float32, scale=1.0):
  network = networks.mlp_cells(_base(), (8,), dtype)
  params = network.init(jax.random.key(0), jnp.zeros(S))
  # The last layer starts near 0; only with others do the cells leave the base.
  return network, jax.tree.map(lambda leaf: scale * leaf, params)


def _observations():
  return np.random.default_rng(0).normal(size=(B, S)).astype(np.float32)


def _fuse(cells, scores, action):
  return np.asarray(
    jax.vmap(mtf_jax.monotone_fused_score)(scores, cells, action)
  )


def test_a_new_network_answers_the_formula_in_service():
  network, params = _network()
  cells = network.apply(params, _observations())
  base = _base()
  assert cells.increments.shape == (B, K, J - 1)
  for found, leaf in zip(cells, base, strict=True):
    assert found.shape == (B, *leaf.shape) and found.dtype == jnp.float32
    np.testing.assert_allclose(
      found, np.broadcast_to(leaf, found.shape), rtol=0.05
    )


@pytest.mark.parametrize("scale", [1.0, 30.0, 1e4])
def test_whatever_the_parameters_no_score_counts_against_a_candidate(scale):
  network, params = _network(scale=scale)
  cells = network.apply(params, _observations())
  assert np.all(cells.increments >= 0)
  rng = np.random.default_rng(1)
  scores = rng.uniform(-0.1, 1.1, (B, C, K)).astype(np.float32)
  action = rng.uniform(-1, 1, (B, K)).astype(np.float32)
  before = _fuse(cells, scores, action)
  for k in range(K):
    raised = scores.copy()
    raised[:, :, k] += rng.uniform(0, 0.3, (B, C)).astype(np.float32)
    assert np.all(_fuse(cells, raised, action) >= before)


def test_states_have_functions_and_not_only_weights_of_their_own():
  """Two states disagree about where in a task's range its score matters."""
  network, params = _network(scale=30.0)
  increments = np.asarray(network.apply(params, _observations()).increments)
  share = increments / increments.sum(axis=2, keepdims=True)
  assert np.abs(share[0] - share[1]).max() > 0.05


def test_every_increment_can_be_learnt_by_itself():
  network, params = _network()
  bias = params["params"]["MLP_0"]["Dense_1"]["bias"]

  def increments(change):
    moved = jax.tree.map(lambda leaf: leaf, params)
    moved["params"]["MLP_0"]["Dense_1"]["bias"] = bias + change
    return network.apply(moved, _observations()[:1]).increments.reshape(-1)

  slopes = np.asarray(jax.jacobian(increments)(jnp.zeros_like(bias)))
  assert np.all(np.diag(slopes) > 0)
  np.testing.assert_array_equal(slopes, np.diag(np.diag(slopes)))


def test_bfloat16_computes_near_float32():
  rough, params = _network(jnp.bfloat16, scale=10.0)
  exact, _ = _network()
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {
    jnp.dtype(jnp.float32)
  }
  found = rough.apply(params, _observations()).increments
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(
    found, exact.apply(params, _observations()).increments, rtol=0.05
  )


def test_the_inner_stage_takes_over_the_order_of_the_outer_one():
  """`q (1 + a q)` of a cell is a cell, so that the transfer can reach it."""
  network, params = _network()
  rng = np.random.default_rng(2)
  observation = rng.normal(size=(32, S)).astype(np.float32)
  scores = rng.uniform(0, 1, (32, C, K)).astype(np.float32)
  action = np.tile(np.float32([1, -1, 0.9]), (32, 1))
  cells = network.apply(params, observation)
  outer = _fuse(cells, scores, action)

  def inner(params):
    cells = network.apply(params, observation)
    return jax.vmap(mtf_jax.monotone_fused_score)(scores, cells, 0 * action)

  @jax.jit
  def step(params, optimizer):
    loss, gradient = jax.value_and_grad(
      lambda params: jnp.mean(
        jax.vmap(mtf_jax.ranking_transfer_loss)(inner(params), outer)
      )
    )(params)
    params, optimizer, _ = base.descend(
      gradient, params, optimizer, 0.01, np.inf
    )
    return params, optimizer, loss

  def disagreement(params):
    z = np.asarray(inner(params))
    pairs = np.sign(outer[:, :, None] - outer[:, None, :])
    return np.mean(np.sign(z[:, :, None] - z[:, None, :]) != pairs)

  trained, optimizer = params, base.start_optimizer(params)
  for _ in range(300):
    trained, optimizer, _ = step(trained, optimizer)
  assert disagreement(params) > 0.05
  assert disagreement(trained) < 0.2 * disagreement(params)
