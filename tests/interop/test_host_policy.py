"""A policy on the host is logged as the same policy in JAX is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import policies
from mtf_jax.interop.host_policy import host_policy
from mtf_jax.worlds import rollout as rollout_lib

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def test_host_and_jax_log_the_same_sessions(small_world):
  num_features = len(small_world.observation_names)
  matrix = 0.2 * np.random.default_rng(0).normal(size=(10, num_features))
  matrix = matrix.astype(np.float32)
  sizes = []

  def predict(observation):
    sizes.append(len(observation))
    return 3 * np.tanh(observation @ matrix.T)

  def inside(params, observation, rng_key):
    action = jnp.clip(3 * jnp.tanh(params @ observation), -1.0, 1.0)
    return policies.fixed_action(action, observation, rng_key)

  def log(act, params):
    return rollout_lib.rollout(
      *(jax.random.key(0), small_world, act, params, 32, 5)
    )

  act = host_policy(predict)
  assert act is host_policy(predict)
  ours, theirs = log(act, ()), log(inside, matrix)
  np.testing.assert_array_equal(ours.valid, theirs.valid)
  np.testing.assert_allclose(ours.log.action, theirs.log.action, atol=1e-5)
  np.testing.assert_allclose(ours.log.reward, theirs.log.reward, rtol=1e-5)
  assert set(sizes) == {32}


def test_another_shape_is_refused():
  act = host_policy(lambda observation: observation)
  with pytest.raises(Exception, match=r"predict: expected .*\(1, 10\)"):
    jax.block_until_ready(
      act((), jnp.zeros(3, jnp.float32), jax.random.key(0)).action
    )
