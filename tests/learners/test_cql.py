"""CQL against its equations, its hand checks and its optimum on a box."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import networks
from mtf_jax.data import transitions
from mtf_jax.io import InputError
from mtf_jax.learners import cql
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
  make_batch,
  weigh,
)
from tests.learners.test_integrated_rl import example_of
from tests.learners.test_probes import SLOPE_CRITIC
from tests.learners.test_sac_n import (
  SQUASHED_CONSTANT,
  SoftReference,
  draws,
  gaussian,
)
from tests.session_logs import log_of

N = 3
LEARNER = cql.cql(ACTOR, CRITIC, num_samples=N)
UPDATE = jax.jit(LEARNER.update)


class Reference(SoftReference):
  """The update of the paper in float64, one sample at a time."""

  def __init__(self, state):
    super().__init__(state)
    self.log_multiplier = np.zeros(())
    self.multiplier_adam = Adam(self.log_multiplier)

  def update(self, batch, rng_key):
    n = self.numbers
    b = float64.read(self.state, batch, told=n.told_box > 0)
    rng_key, noise = draws(rng_key)
    losses = self.update_actor(b, noise)
    _, now = jax.random.split(rng_key)
    noise_key, uniform_key = jax.random.split(now)
    noise = np.float64(jax.random.normal(noise_key, (2 * N + 1, B, A)))
    y = self.targets(b, noise[-1], entropy=n.entropy_backup)
    sampled = list(self.samples(b, noise[:-1], uniform_key))
    s, multiplier = b.observation_tm1, np.exp(self.log_multiplier)
    gaps = []

    def critic_loss(params):
      q = critics(params, s, b.action_tm1)
      total = 0.0
      for action, log_prob in sampled:
        value = weigh(critics(params, s, action))
        total = total + np.exp(value - log_prob[:, None])
      gaps.append(np.mean(np.log(total) - weigh(q)))
      td = np.mean((q - y[:, :, None]) ** 2)
      return td + multiplier * n.conservative_scale * gaps[-1]

    rate, limit = n.critic_learning_rate, n.max_gradient_norm
    loss = self.critic_adam.step(self.critic, critic_loss, rate, limit)
    if np.isfinite(n.lagrange_threshold):
      excess = n.conservative_scale * gaps[0] - n.lagrange_threshold
      self.multiplier_adam.step(
        self.log_multiplier, lambda value: -np.exp(value) * excess, rate, limit
      )
    float64.soften(self.target, self.critic, n.target_step_size)
    return loss, gaps[0], *losses

  def samples(self, b, noises, uniform_key):
    ends = b.discount_t[:, None] == 0
    following = np.where(ends, b.observation_tm1, b.observation_t)
    for i, noise in enumerate(noises):
      s = b.observation_tm1 if i < N else following
      yield gaussian(self.actor, s, noise)
    uniform = jax.random.uniform(uniform_key, (N, B, A), minval=-1)
    for action in np.float64(uniform):
      yield action, np.full(B, A * np.log(0.5))


@pytest.mark.parametrize(
  "changed",
  [
    {},
    {"lagrange_threshold": 4.0, "entropy_backup": 1.0, "told_box": 1.0},
  ],
  ids=["published", "lagrange_told"],
)
def test_updates_equal_an_independent_float64_implementation(changed):
  numbers = cql.Hyperparams(
    conservative_scale=2.0,
    group_weights=WEIGHTS,
    initial_temperature=0.3,
    temperature_learning_rate=0.05,
    target_step_size=0.2,
    actor_learning_rate=0.01,
    critic_learning_rate=0.02,
  )._replace(**changed)
  state = float64.start(LEARNER, numbers, grow=20)
  reference = Reference(state)
  for step in range(2):
    batch = make_batch(step + 1)
    expected = reference.update(batch, state.rng_key)
    state, metrics = UPDATE(state, batch)
  found = (
    metrics.critic_loss,
    metrics.gap,
    metrics.temperature_loss,
    metrics.actor_loss,
    metrics.entropy,
  )
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  assert_close(state.actor_params, reference.actor)
  assert_close(state.critic_params, reference.critic)
  assert_close(state.target_critic_params, reference.target)
  assert_close(state.temperature_params, reference.log_temperature)
  assert_close(state.multiplier_params, reference.log_multiplier)
  assert (metrics.multiplier == 1) == (not changed)


@pytest.mark.parametrize(
  ("components", "expected"), [(1, 4.9957), (10, 11.2341)]
)
def test_a_constant_value_shifts_the_gap_and_has_no_gradient(
  components, expected
):
  """`log n + q + A log 2` for n = 10 uniform actions and q = 2."""
  log_prob = jnp.full((10, 1), -components * np.log(2), jnp.float32)

  def gap(level, logged):
    return cql.gap_of(jnp.full((10, 1, 1), level), log_prob, logged[None, None])

  two = jnp.float32(2)
  found = gap(two, jnp.float32(0))
  np.testing.assert_allclose(found, [[expected]], atol=1e-4)
  level_slope = jax.grad(lambda q: gap(q, q)[0, 0])(two)
  np.testing.assert_allclose(level_slope, 0, atol=1e-6)
  # Of the logged value alone it is -1, for each row.
  np.testing.assert_allclose(
    jax.grad(lambda q: gap(two, q)[0, 0])(two), -1, rtol=1e-6
  )


# `Q = V + g . u`, one group of one; its parameters are V and g.
_LINEAR_CRITIC = networks.Critic(
  init=lambda rng_key, observation, action, box: jnp.zeros(1 + action.shape[0]),
  apply=lambda params, observation, action, box: (
    params[0] + action @ params[1:]
  )[:, None, None],
  apply_many=lambda params, observation, actions, box: (
    params[0] + actions @ params[1:]
  )[..., None, None],
)


def test_its_critics_answer_for_several_actions():
  with pytest.raises(InputError, match="expected a network with apply_many"):
    cql.cql(SQUASHED_CONSTANT, SLOPE_CRITIC)


def test_told_the_box_it_shrinks_the_slope_and_not_its_sign():
  """`g = g* 2 / (2 + scale)` with uniform deviations, V unbiased."""
  rng = np.random.default_rng(0)
  u = rng.uniform(-1, 1, (8192, 1))
  log = log_of(np.ones((8192, 1)), 0.3 + 0.15 * u, 1 + 0.7 * u, centre=0.3)
  dataset = transitions.device_dataset(log)
  one = transitions.sample_transitions(jax.random.key(9), dataset, 1)
  learner = cql.cql(SQUASHED_CONSTANT, _LINEAR_CRITIC, num_samples=16)
  numbers = cql.Hyperparams(
    told_box=1.0,
    actor_learning_rate=0.0,
    temperature_learning_rate=0.0,
    critic_learning_rate=0.01,
  )
  state = learner.init(jax.random.key(0), example_of(one), numbers)
  run = loop.start(jax.random.key(1), state)
  for updates, rate in ((300, 0.01), (600, 1e-3), (900, 1e-4)):
    hyperparams = run.learner.hyperparams._replace(
      critic_learning_rate=jnp.float32(rate)
    )
    run = run._replace(learner=run.learner._replace(hyperparams=hyperparams))
    run = loop.train(learner, run, dataset, updates, batch_size=256)
  level, slope = run.learner.critic_params
  np.testing.assert_allclose(slope, 0.7 * 2 / 7, rtol=0.03)
  np.testing.assert_allclose(level, 1.0, atol=0.01)
