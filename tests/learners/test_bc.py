"""Behaviour cloning against its equation, and on a log that it can repeat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import networks
from mtf_jax.data import transitions
from mtf_jax.learners.bc import Hyperparams, bc
from mtf_jax.training import loop
from tests.learners.test_integrated_rl import A, S, example_of, make_batch
from tests.session_logs import log_of

LINEAR = networks.Actor(
  init=lambda rng_key, observation: jnp.full((S, A), 0.3, jnp.float32),
  apply=lambda params, observation: jnp.tanh(observation @ params),
)


@pytest.mark.parametrize("max_norm", [np.inf, 0.05])
def test_an_update_equals_its_equation_in_float64(max_norm):
  batch = make_batch(1)
  learner = bc(LINEAR)
  state = learner.init(
    jax.random.key(0),
    example_of(batch),
    Hyperparams(actor_learning_rate=0.01, max_gradient_norm=max_norm),
  )
  params = np.full((S, A), 0.3)
  moments = [np.zeros((S, A)), np.zeros((S, A))]
  for count in (1, 2):
    state, metrics = learner.update(state, batch)
    s, a = (
      np.asarray(value, np.float64)
      for value in (batch.observation_tm1, batch.action_tm1)
    )
    mu = np.tanh(s @ params)
    loss = np.mean((mu - a) ** 2)
    gradient = s.T @ (2 * (mu - a) * (1 - mu**2) / a.size)
    norm = np.sqrt(np.sum(gradient**2))
    np.testing.assert_allclose(metrics.actor_loss, loss, rtol=1e-5)
    np.testing.assert_allclose(metrics.actor_gradient_norm, norm, rtol=1e-5)
    gradient = gradient * min(1, max_norm / norm)
    moments[0] = 0.9 * moments[0] + 0.1 * gradient
    moments[1] = 0.999 * moments[1] + 0.001 * gradient**2
    step = moments[0] / (1 - 0.9**count)
    step = step / (np.sqrt(moments[1] / (1 - 0.999**count)) + 1e-8)
    params = params - 0.01 * step
    np.testing.assert_allclose(state.actor_params, params, atol=1e-6)
  assert norm > 0.05  # The clipped case is clipped.


def test_it_repeats_the_policy_that_logged():
  """Actions that are a function of the state; rewards say the opposite."""
  rng = np.random.default_rng(0)
  weights = np.array([[0.5, -0.2], [0.0, 0.4], [-0.3, 0.1]])
  observation = rng.normal(size=(128, S))
  action = np.tanh(observation @ weights)
  log = log_of(observation, action, -action, centre=action)
  dataset = transitions.device_dataset(log)
  learner = bc(LINEAR)
  state = learner.init(
    jax.random.key(0),
    example_of(transitions.sample_transitions(jax.random.key(9), dataset, 1)),
    Hyperparams(actor_learning_rate=0.02),
  )
  state = loop.train(
    learner,
    loop.start(jax.random.key(1), state),
    dataset,
    200,
    batch_size=32,
  )
  np.testing.assert_allclose(state.learner.actor_params, weights, atol=0.01)
