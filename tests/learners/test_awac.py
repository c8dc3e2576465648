"""AWAC against its equations and its closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax.data import transitions
from mtf_jax.learners import awac
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
from tests.learners.test_probes import CONSTANT_ACTOR, SLOPE_CRITIC
from tests.session_logs import log_of

LEARNER = awac.awac(ACTOR, CRITIC)
UPDATE = jax.jit(LEARNER.update)
CONSTANT = awac.awac(CONSTANT_ACTOR, SLOPE_CRITIC)


class Reference:
  """The update of the paper in float64."""

  def __init__(self, state):
    self.state = state
    numpy = float64.as_float64(state)
    self.numbers = numpy.hyperparams
    self.actor = numpy.actor_params
    self.critic = numpy.critic_params
    self.target = numpy.target_critic_params
    self.actor_adam, self.critic_adam = Adam(self.actor), Adam(self.critic)

  def draw(self, s, rng_key):
    rng_key, now = jax.random.split(rng_key)
    noise = np.asarray(jax.random.normal(now, (B, A)), np.float64)
    mean = float64.actor(self.actor["mean"], s)
    std = np.exp(np.clip(self.actor["log_std"], -5, 2))
    return rng_key, np.clip(mean + std * noise, -1, 1)

  def update(self, batch, rng_key):
    n = self.numbers
    b = float64.read(self.state, batch, told=n.told_box > 0)
    s, a, norm = b.observation_tm1, b.action_tm1, n.max_gradient_norm
    rng_key, drawn = self.draw(b.observation_t, rng_key)
    q_t = least(critics(self.target, b.observation_t, drawn))
    y = b.r_t + n.discount * b.discount_t[:, None] * q_t

    def critic_loss(params):
      return np.mean((critics(params, s, a) - y[:, :, None]) ** 2)

    rate = n.critic_learning_rate
    losses = [self.critic_adam.step(self.critic, critic_loss, rate, norm)]
    float64.soften(self.target, self.critic, n.target_step_size)
    rng_key, drawn = self.draw(s, rng_key)
    advantage = weigh(critics(self.critic, s, a)).min(1)
    advantage -= weigh(critics(self.critic, s, drawn)).min(1)
    weight = np.exp(advantage / n.temperature)
    if n.normalize_weights:
      weight = B * weight / weight.sum()
    weight = self.weight = np.minimum(weight, n.max_weight)

    def actor_loss(params):
      mean = float64.actor(params["mean"], s)
      std = np.exp(np.clip(params["log_std"], -5, 2))
      density = np.exp(-0.5 * ((a - mean) / std) ** 2) / std
      return -np.mean(weight * np.log(density / np.sqrt(2 * np.pi)).sum(1))

    rate = n.actor_learning_rate
    losses.append(self.actor_adam.step(self.actor, actor_loss, rate, norm))
    return losses


@pytest.mark.parametrize(
  "changed",
  [
    {},
    {"normalize_weights": 0.0, "max_weight": 1.5, "told_box": 1.0},
    {"temperature": 0.5, "max_gradient_norm": 0.3},
  ],
  ids=["softmax", "exponential_told", "clipped"],
)
def test_updates_equal_an_independent_float64_implementation(changed):
  numbers = awac.Hyperparams(
    group_weights=WEIGHTS,
    target_step_size=0.2,
    actor_learning_rate=0.01,
    critic_learning_rate=0.02,
  )._replace(**changed)
  state = float64.start(LEARNER, numbers)
  reference = Reference(state)
  for step in range(2):
    batch = make_batch(step + 1)
    expected = reference.update(batch, state.rng_key)
    state, metrics = UPDATE(state, batch)
  found = (metrics.critic_loss, metrics.actor_loss)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  weight = reference.weight
  share = weight.sum() ** 2 / (B * (weight**2).sum())
  np.testing.assert_allclose(
    (metrics.weight, metrics.weight_share), (weight.mean(), share), rtol=1e-4
  )
  assert_close(state.actor_params, reference.actor)
  assert_close(state.critic_params, reference.critic)
  assert_close(state.target_critic_params, reference.target)


@pytest.mark.parametrize(
  ("changed", "expected"),
  [
    ({}, [2 / 3, 4 / 3]),
    ({"temperature": 0.5}, [0.4, 1.6]),
    ({"normalize_weights": 0.0}, [1.0, 2.0]),
    ({"normalize_weights": 0.0, "max_weight": 1.5}, [1.0, 1.5]),
    ({"temperature": np.inf}, [1.0, 1.0]),
  ],
)
def test_weights_of_an_advantage_of_log_2(changed, expected):
  advantage = jnp.array([0.0, np.log(2)], jnp.float32)
  found = awac.advantage_weights(
    advantage, awac.Hyperparams()._replace(**changed)
  )
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_softmax_weights_know_no_level_and_are_1_on_average():
  advantage = np.random.default_rng(0).normal(size=64).astype(np.float32)
  numbers = awac.Hyperparams()
  weight = awac.advantage_weights(jnp.asarray(advantage), numbers)
  np.testing.assert_allclose(np.mean(weight), 1, rtol=1e-5)
  for level in (-3.0, 3.0):
    other = awac.advantage_weights(jnp.asarray(advantage + level), numbers)
    np.testing.assert_allclose(other, weight, rtol=1e-5)
    plain = awac.advantage_weights(
      jnp.asarray(advantage + level), numbers._replace(normalize_weights=0.0)
    )
    np.testing.assert_allclose(plain, np.exp(advantage + level), rtol=1e-5)
  # Beyond what `exp` can hold.
  huge = awac.advantage_weights(jnp.array([1e4, 0.0]), numbers)
  np.testing.assert_allclose(huge, [2.0, 0.0], rtol=1e-6)
  limited = numbers._replace(normalize_weights=0.0, max_weight=100.0)
  found = awac.advantage_weights(jnp.array([1e4, 0.0]), limited)
  np.testing.assert_allclose(found, [100.0, 1.0], rtol=1e-5)


# Not 3 without normalisation: the drawn actions' values make weights too uneven.
@pytest.mark.parametrize(
  ("normalize", "x", "shift"),
  [(0.0, 1.0, 0.313), (1.0, 1.0, 0.313), (1.0, 3.0, 0.672)],
)
def test_on_a_box_the_policy_moves_as_langevin_says(normalize, x, shift):
  """Uniform u and `A = g . u`: the mean is `coth x - 1 / x`, `x = g / lambda`.

  In half-widths: .313 at 1, .672 at 3, and inside the box whatever g.
  """
  rng = np.random.default_rng(0)
  u = rng.uniform(-1, 1, (4096, 1))
  log = log_of(np.ones((4096, 1)), 0.3 + 0.15 * u, 0 * u, centre=0.3)
  dataset = transitions.device_dataset(log)
  one = transitions.sample_transitions(jax.random.key(9), dataset, 1)
  learner = CONSTANT
  numbers = awac.Hyperparams(
    told_box=1.0,
    temperature=0.5,
    normalize_weights=normalize,
    critic_learning_rate=0.0,
    actor_learning_rate=3e-3,
  )
  state = learner.init(jax.random.key(0), example_of(one), numbers)
  state = state._replace(critic_params=jnp.array([0.5 * x]))
  # Some updates with a smaller step: the mean then rests.
  state = loop.start(jax.random.key(1), state)
  state = loop.train(learner, state, dataset, 600, batch_size=512)
  rest = state.learner.hyperparams._replace(
    actor_learning_rate=jnp.float32(3e-4)
  )
  state = state._replace(learner=state.learner._replace(hyperparams=rest))
  state = loop.train(learner, state, dataset, 1000, batch_size=512)
  action = learner.act(
    learner.policy(state.learner), np.ones(1, np.float32), jax.random.key(0)
  )
  np.testing.assert_allclose(action, [0.3 + 0.15 * shift], atol=0.003)


def test_the_target_is_of_an_action_that_the_policy_draws():
  """`Q' = a` at a mean of .4: `gamma` times the draws, which are clipped."""
  learner = CONSTANT
  log = log_of(
    np.ones((512, 1)), np.zeros((512, 1)), np.zeros((512, 1)), session_length=2
  )
  dataset = transitions.device_dataset(log)
  batch = transitions.sample_transitions(jax.random.key(0), dataset, 20_000)
  numbers = awac.Hyperparams(critic_learning_rate=0.0, target_step_size=0.0)
  state = learner.init(jax.random.key(1), example_of(batch), numbers)
  state = state._replace(
    actor_params={"mean": jnp.array([0.4]), "log_std": jnp.array([0.0])},
    target_critic_params=jnp.array([1.0]),
  )
  _, metrics = jax.jit(learner.update)(state, batch)
  noise = np.random.default_rng(0).normal(size=200_000)
  second = np.mean(np.clip(0.4 + noise, -1, 1) ** 2)
  # The critics say 0, so that their loss is the mean square of the targets.
  share = float(jnp.mean(batch.discount_t))
  np.testing.assert_allclose(
    metrics.critic_loss, share * 0.81 * second, rtol=0.03
  )
