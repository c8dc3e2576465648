"""Where policies go that nothing holds to their log: to the limits."""

import functools

import jax
import numpy as np
import pytest

from mtf_jax import networks
from mtf_jax.data import transitions
from mtf_jax.learners import integrated_rl, td3_bc
from mtf_jax.learners.registry import LEARNERS
from mtf_jax.training import loop
from tests.session_logs import log_of

_ACTOR = networks.mlp_actor(4, (32, 32))
_CRITIC = networks.mlp_critic(1, 2, (32, 32))
_RATES = {"actor_learning_rate": 3e-3, "critic_learning_rate": 3e-3}
_SESSION = 4
_CASES = {
  "td3": ("td3_bc", td3_bc.TD3._asdict()),
  "td3_bc": ("td3_bc", {}),
  "integrated_rl": ("integrated_rl", integrated_rl.Hyperparams()._asdict()),
  "bcq": ("bcq", {}),
}


@functools.cache
def _dataset():
  """Rewards of 2 with noise of 1, in which a half-width is worth .1."""
  rng = np.random.default_rng(0)
  observation = rng.normal(size=(4096, 3))
  u = rng.uniform(-1, 1, (4096, 4))
  reward = 2 + 0.1 * u[:, :1] - 0.1 * u[:, 1:2] + rng.normal(size=(4096, 1))
  log = log_of(
    observation, 0.3 + 0.15 * u, reward, session_length=_SESSION, centre=0.3
  )
  return transitions.device_dataset(log)


@functools.cache
def _actions(name):
  """`[N, A]` of the policy as published after 1,500 updates."""
  learner_name, numbers = _CASES[name]
  entry = LEARNERS[learner_name]
  learner = entry.build(_ACTOR, _CRITIC)
  dataset = _dataset()
  example = jax.tree.map(
    lambda leaf: leaf[0],
    transitions.sample_transitions(jax.random.key(0), dataset, 1),
  )
  state = learner.init(
    jax.random.key(1), example, entry.hyperparams(**{**numbers, **_RATES})
  )
  state = loop.train(
    learner,
    loop.start(jax.random.key(2), state),
    dataset,
    1500,
    batch_size=128,
    chunk_size=1500,
  ).learner
  act = jax.vmap(learner.act, in_axes=(None, 0, None))
  seen = dataset.observation[:256]
  return np.asarray(act(learner.policy(state), seen, jax.random.key(3)))


def test_without_a_constraint_actions_pile_up_at_the_limits():
  """Four half-widths from the nearest logged action."""
  assert np.mean(np.abs(_actions("td3")) > 0.95) > 0.75


@pytest.mark.parametrize("name", ["td3_bc", "integrated_rl", "bcq"])
def test_what_is_held_to_its_log_does_not(name):
  assert np.mean(np.abs(_actions(name)) > 0.95) < 0.1


@pytest.mark.parametrize("name", ["integrated_rl", "bcq"])
def test_the_price_of_the_box_and_imitation_keep_actions_inside(name):
  """TD3+BC's weight on imitation is that of actions that fill [-1, 1]."""
  distance = np.abs(_actions(name) - 0.3) / 0.15
  assert np.quantile(distance, 0.99) < 1.2
