"""Policies that draw: densities, limits, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import networks


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (0.7, -1.2)])
def test_the_density_is_one_of_actions(mean, log_std):
  """It integrates to 1 over [-1, 1]."""
  edges = np.linspace(-1, 1, 20001)
  action = (edges[1:] + edges[:-1]) / 2
  noise = ((np.arctanh(action) - mean) / np.exp(log_std)).astype(np.float32)
  found, log_prob = networks.sample_tanh_normal(
    noise[:, None],
    jnp.full((1, 1), mean, jnp.float32),
    jnp.full((1, 1), log_std, jnp.float32),
  )
  np.testing.assert_allclose(found[:, 0], action, atol=1e-5)
  mass = np.exp(np.asarray(log_prob, np.float64)).sum() * 1e-4
  np.testing.assert_allclose(mass, 1, atol=1e-3)


def test_the_density_stays_finite_where_tanh_is_1():
  """`-log(1 - tanh^2) = 2 (|z| - log 2)` out there, its slope 2."""

  def log_prob(mean):
    return networks.sample_tanh_normal(
      jnp.zeros((1, 1)), mean[None, None], jnp.zeros((1, 1))
    )[1][0]

  expected = 2 * (20 - np.log(2)) - 0.5 * np.log(2 * np.pi)
  for mean, slope in ((20.0, 2.0), (-20.0, -2.0)):
    found, gradient = jax.value_and_grad(log_prob)(jnp.float32(mean))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, slope, rtol=1e-6)


def test_the_mode_is_the_actors_answer_and_a_limit_is_no_trap():
  """At tanh(7.5) the mean is held to about 7.2 and still has a gradient."""
  actor = networks.Actor(
    init=lambda rng_key, observation: jnp.array([0.3, 7.5]),
    apply=lambda params, observation: jnp.broadcast_to(
      jnp.tanh(params), (observation.shape[0], 2)
    ),
  )
  policy = networks.tanh_gaussian(actor)
  observation = np.ones((2, 3), np.float32)
  params = policy.init(jax.random.key(0), observation[0])
  mean, log_std = policy.apply(params, observation)
  np.testing.assert_array_equal(log_std, np.zeros((2, 2)))
  np.testing.assert_allclose(mean[0], [0.3, 7.2], atol=0.2)
  gradient = jax.grad(lambda p: policy.apply(p, observation)[0].sum())(params)
  assert np.all(gradient["mode"] > 0.1)
  for level, limit in ((3.0, 2.0), (-3.0, -5.0)):
    head = {"kernel": jnp.full((3, 2), level), "bias": jnp.zeros(2)}
    found = policy.apply({**params, "log_std": head}, observation)[1]
    np.testing.assert_array_equal(found, np.full((2, 2), limit))
