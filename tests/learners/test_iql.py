"""Implicit Q-learning against its equations and its closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import networks
from mtf_jax.data import transitions
from mtf_jax.learners import iql
from mtf_jax.training import loop
from tests.learners import float64
from tests.learners.float64 import (
  ACTOR,
  CRITIC,
  WEIGHTS,
  A,
  Adam,
  B,
  assert_close,
  critics,
  least,
  make_batch,
  weigh,
)
from tests.learners.test_integrated_rl import example_of
from tests.learners.test_probes import CONSTANT_ACTOR
from tests.session_logs import log_of

LEARNER = iql.iql(ACTOR, CRITIC)
UPDATE = jax.jit(LEARNER.update)


class Reference:
  """The update of the paper in float64."""

  def __init__(self, state):
    self.state = state
    numpy = float64.as_float64(state)
    self.numbers = numpy.hyperparams
    self.actor = numpy.actor_params
    self.value = numpy.value_params
    self.critic = numpy.critic_params
    self.target = numpy.target_critic_params
    parts = (self.actor, self.value, self.critic)
    self.adams = [Adam(part) for part in parts]

  def update(self, batch):
    n = self.numbers
    b = float64.read(self.state, batch, told=n.told_box > 0)
    s, s_t, a = b.observation_tm1, b.observation_t, b.action_tm1
    zero = np.zeros_like(a)
    q = least(critics(self.target, s, a))

    def value_loss(params):
      error = q[:, :, None] - critics(params, s, zero)
      tau = np.where(weigh(error) < 0, 1 - n.expectile, n.expectile)
      return np.mean(tau[:, None] * error**2)

    rate, norm = n.critic_learning_rate, n.max_gradient_norm
    losses = [self.adams[1].step(self.value, value_loss, rate, norm)]
    v_t = critics(self.value, s_t, zero).mean(2)
    y = b.r_t + n.discount * b.discount_t[:, None] * v_t

    def critic_loss(params):
      return np.mean((critics(params, s, a) - y[:, :, None]) ** 2)

    losses.append(self.adams[2].step(self.critic, critic_loss, rate, norm))
    advantage = weigh(q - critics(self.value, s, zero).mean(2))
    if n.scale_advantage:
      advantage = advantage / (advantage.std() + 1e-6)
    weight = np.exp(n.inverse_temperature * advantage)
    weight = np.minimum(weight, n.max_weight)
    self.weight = weight

    size = []

    def actor_loss(params):
      mean = float64.actor(params["mean"], s)
      log_std = n.learn_spread * np.clip(params["log_std"], -5, 2)
      density = np.exp(-0.5 * ((a - mean) / np.exp(log_std)) ** 2)
      density = density / np.sqrt(2 * np.pi) / np.exp(log_std)
      log_prob = np.log(density).sum(1)
      climbed = weigh(least(critics(self.critic, s, mean)))
      size.append(np.abs(climbed).mean())  # The first is the one before.
      return -n.cloning_scale * np.mean(
        weight * log_prob
      ) - n.value_scale * climbed.mean() / (size[0] + 1e-6)

    decay = np.cos(np.pi * min(self.adams[0].count / n.actor_decay, 1))
    rate = n.actor_learning_rate * (1 + decay) / 2
    losses.append(self.adams[0].step(self.actor, actor_loss, rate, norm))
    float64.soften(self.target, self.critic, n.target_step_size)
    return losses


@pytest.mark.parametrize(
  "changed",
  [
    {},
    {"scale_advantage": 1.0, "told_box": 1.0, "max_gradient_norm": 0.3},
    {**iql.DDPG_BC._asdict(), "actor_decay": 3.0},
  ],
  ids=["published", "told_scaled_clipped", "ddpg_bc"],
)
def test_updates_equal_an_independent_float64_implementation(changed):
  numbers = iql.Hyperparams()._replace(
    **{
      "max_weight": 1.5,
      **changed,
      "group_weights": WEIGHTS,
      "target_step_size": 0.2,
      "actor_learning_rate": 0.01,
      "critic_learning_rate": 0.02,
    }
  )
  state = float64.start(LEARNER, numbers)
  reference = Reference(state)
  for step in range(2):
    batch = make_batch(step + 1)
    expected = reference.update(batch)
    state, metrics = UPDATE(state, batch)
  found = (metrics.value_loss, metrics.critic_loss, metrics.actor_loss)
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  weight = reference.weight
  share = weight.sum() ** 2 / (B * (weight**2).sum())
  np.testing.assert_allclose(
    (metrics.weight, metrics.weight_share), (weight.mean(), share), rtol=1e-4
  )
  assert_close(state.actor_params, reference.actor)
  assert_close(state.value_params, reference.value)
  assert_close(state.critic_params, reference.critic)
  assert_close(state.target_critic_params, reference.target)


# One group of one critic, `Q = slope . a`, and a V that is one number.
_SLOPE = networks.Critic(
  init=lambda rng_key, observation, action, box: jnp.zeros(action.shape),
  apply=lambda params, observation, action, box: (action @ params)[
    :, None, None
  ],
)
_LEVEL = networks.Critic(
  init=lambda rng_key, observation, action, box: jnp.zeros(1),
  apply=lambda params, observation, action, box: jnp.broadcast_to(
    params[:, None, None], (observation.shape[0], 1, 1)
  ),
)


def _train(log, numbers, updates, *, slope=None, critic=_SLOPE, batch_size=512):
  """With critics that stay at `slope`, if it is given."""
  learner = iql.iql(CONSTANT_ACTOR, critic, value=_LEVEL)
  dataset = transitions.device_dataset(log)
  one = transitions.sample_transitions(jax.random.key(9), dataset, 1)
  state = learner.init(jax.random.key(0), example_of(one), numbers)
  if slope is not None:
    state = state._replace(
      critic_params=jnp.array(slope), target_critic_params=jnp.array(slope)
    )
  state = loop.train(
    learner,
    loop.start(jax.random.key(1), state),
    dataset,
    updates,
    batch_size=batch_size,
  )
  return learner, state.learner


def test_the_expectile_of_a_coin_is_tau():
  """Fair rewards of 0 and 1, seen by a critic that knows them: V is tau."""
  coin = np.tile([[0.0], [1.0]], (64, 1))
  log = log_of(np.ones((128, 1)), coin, coin, centre=0.5, half_width=0.5)
  numbers = iql.Hyperparams(
    expectile=0.7, critic_learning_rate=0.01, target_step_size=0.0
  )
  _, state = _train(log, numbers, 300, slope=[1.0])
  np.testing.assert_allclose(state.value_params, [0.7], atol=0.02)


@pytest.mark.parametrize("told", [0.0, 1.0])
def test_on_a_box_the_policy_moves_as_langevin_says(told):
  """Uniform u and `A = g . u`: the mean is `coth x - 1 / x`, `x = beta g`.

  In half-widths: .313 at 1, .672 at 3, and inside the box whatever g.
  """
  rng = np.random.default_rng(0)
  u = rng.uniform(-1, 1, (4096, 1))
  log = log_of(np.ones((4096, 1)), 0.3 + 0.15 * u, 0 * u, centre=0.3)
  expected = {1.0: 0.313, 3.0: 0.672}
  for x, shift in expected.items():
    # V stays 0: a constant in the advantage changes no weighted mean.
    slope = x / 3.0 if told else x / 3.0 / 0.15
    numbers = iql.Hyperparams(
      told_box=told,
      critic_learning_rate=0.0,
      actor_learning_rate=1e-2,
      actor_decay=600.0,
      learn_spread=0.0,
      max_weight=np.inf,
    )
    learner, state = _train(log, numbers, 600, slope=[slope])
    action = learner.act(
      learner.policy(state), np.ones(1, np.float32), jax.random.key(0)
    )
    np.testing.assert_allclose(action, [0.3 + 0.15 * shift], atol=0.003)


def test_a_scaled_advantage_knows_no_unit_of_the_reward():
  advantage = np.random.default_rng(0).normal(size=64).astype(np.float32)
  scaled = iql.Hyperparams(inverse_temperature=1.0, scale_advantage=1.0)
  for numbers, differ in ((scaled, False), (iql.Hyperparams(), True)):
    weight, _ = iql.advantage_weights(jnp.asarray(advantage), numbers)
    other, _ = iql.advantage_weights(jnp.asarray(0.01 * advantage), numbers)
    assert bool(jnp.max(jnp.abs(weight - other)) > 0.1) is differ
  # Constant ones are no reason to prefer an action, nor to overflow.
  for level in (0.0, 1e6):
    weight, _ = iql.advantage_weights(jnp.full(8, level), scaled)
    assert np.all(np.isfinite(weight))


def test_with_beta_0_and_no_value_it_is_cloning():
  """Actions are a constant, rewards say the opposite."""
  log = log_of(
    np.ones((64, 1)), np.full((64, A), 0.2), -np.full((64, 1), 0.2), centre=0.2
  )
  numbers = iql.Hyperparams(
    inverse_temperature=0.0, actor_learning_rate=0.01, actor_decay=300.0
  )
  learner = iql.iql(
    CONSTANT_ACTOR._replace(init=lambda rng_key, observation: jnp.zeros(A)),
    _LEVEL,
  )
  dataset = transitions.device_dataset(log)
  one = transitions.sample_transitions(jax.random.key(9), dataset, 1)
  state = loop.train(
    learner,
    loop.start(
      jax.random.key(1),
      learner.init(jax.random.key(0), example_of(one), numbers),
    ),
    dataset,
    300,
    batch_size=64,
  )
  policy = learner.policy(state.learner)
  np.testing.assert_allclose(policy.actor_params, [0.2, 0.2], atol=0.003)
