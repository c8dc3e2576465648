"""BCQ against its equations, its hand checks and its two regimes on a box."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import networks
from mtf_jax.data import transitions
from mtf_jax.learners import bcq
from mtf_jax.training import loop
from tests.learners import float64
from tests.learners.float64 import (
  ACTOR,
  CRITIC,
  SIZES,
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
from tests.session_logs import log_of

N, Z = 3, 2 * A
LEARNER = bcq.bcq(
  ACTOR, CRITIC, networks.mlp_vae(SIZES), num_candidates=N, num_served=5
)
UPDATE = jax.jit(LEARNER.update)


def decode(decoder, s, z):
  return np.tanh(float64.mlp(decoder["params"], np.hstack([s, z])))


def perturbed(params, s, a, rho):
  return np.clip(a + rho * float64.actor(params, np.hstack([s, a])), -1, 1)


class Reference:
  """The update of the paper in float64, one candidate at a time."""

  def __init__(self, state):
    self.state = state
    numpy = float64.as_float64(state)
    self.numbers = numpy.hyperparams
    self.actor, self.target_actor = (
      numpy.actor_params,
      numpy.target_actor_params,
    )
    self.critic = numpy.critic_params
    self.target_critic = numpy.target_critic_params
    self.vae, self.target_vae = (
      numpy.generator_params,
      numpy.target_generator_params,
    )
    self.actor_adam = Adam(self.actor)
    self.critic_adam = Adam(self.critic)
    self.vae_adam = Adam(self.vae)

  def update(self, batch, rng_key):
    n = self.numbers
    b = float64.read(self.state, batch, told=n.told_box > 0)
    s, a = b.observation_tm1, b.action_tm1
    rng_key, now = jax.random.split(rng_key)
    draws = np.float64(jax.random.normal(now, ((1 + N) * B, Z)))
    noise, latents = draws[:B], draws[B:].reshape(N, B, Z).clip(-0.5, 0.5)
    parts = []

    def vae_loss(params):
      hidden = float64.mlp(params["encoder"]["params"], np.hstack([s, a]))
      mean, log_std = hidden[:, :Z], np.clip(hidden[:, Z:], -4, 15)
      found = decode(params["decoder"], s, mean + np.exp(log_std) * noise)
      std = np.exp(log_std)
      kl = np.mean(-0.5 * (1 + np.log(std**2) - mean**2 - std**2))
      error = np.mean((found - a) ** 2)
      parts.append((error, kl))
      return error + n.kl_scale * kl

    limit = n.max_gradient_norm
    losses = [
      self.vae_adam.step(self.vae, vae_loss, n.generator_learning_rate, limit)
    ]
    losses += parts[0]
    float64.soften(self.target_vae, self.vae, n.generator_target_step_size)

    best = np.full(B, -np.inf)
    value = np.zeros((B, len(WEIGHTS)))
    for z in latents:
      a_t = decode(self.target_vae["decoder"], b.observation_t, z)
      a_t = perturbed(self.target_actor, b.observation_t, a_t, n.perturbation)
      q = critics(self.target_critic, b.observation_t, a_t)
      for row in range(B):
        total = weigh(q[row : row + 1])[0]
        low, high = np.argmin(total), np.argmax(total)
        mixed = n.min_weight * q[row, :, low]
        mixed = mixed + (1 - n.min_weight) * q[row, :, high]
        if mixed @ np.float64(WEIGHTS) > best[row]:
          best[row] = mixed @ np.float64(WEIGHTS)
          value[row] = mixed
    y = b.r_t + n.discount * b.discount_t[:, None] * value

    def critic_loss(params):
      return np.mean((critics(params, s, a) - y[:, :, None]) ** 2)

    rate = n.critic_learning_rate
    losses.append(self.critic_adam.step(self.critic, critic_loss, rate, limit))

    _, now = jax.random.split(rng_key)
    z = np.float64(jax.random.normal(now, (B, Z))).clip(-0.5, 0.5)
    decoded = decode(self.vae["decoder"], s, z)

    def actor_loss(params):
      action = perturbed(params, s, decoded, n.perturbation)
      return -np.mean(weigh(critics(self.critic, s, action)[:, :, 0]))

    rate = n.actor_learning_rate
    losses.append(self.actor_adam.step(self.actor, actor_loss, rate, limit))
    float64.soften(self.target_actor, self.actor, n.target_step_size)
    float64.soften(self.target_critic, self.critic, n.target_step_size)
    return losses


@pytest.mark.parametrize(
  "changed",
  [
    {},
    {
      "min_weight": 1.0,
      "generator_target_step_size": 0.1,
      "perturbation": 0.3,
      "told_box": 1.0,
      "max_gradient_norm": 0.3,
    },
  ],
  ids=["published", "batch_rl_mtf_told"],
)
def test_updates_equal_an_independent_float64_implementation(changed):
  numbers = bcq.Hyperparams(
    group_weights=WEIGHTS,
    target_step_size=0.2,
    actor_learning_rate=0.01,
    critic_learning_rate=0.02,
    generator_learning_rate=0.01,
  )._replace(**changed)
  state = float64.start(LEARNER, numbers)
  reference = Reference(state)
  for step in range(2):
    batch = make_batch(step + 1)
    expected = reference.update(batch, state.rng_key)
    state, metrics = UPDATE(state, batch)
  found = (
    metrics.generator_loss,
    metrics.reconstruction_error,
    metrics.kl,
    metrics.critic_loss,
    metrics.actor_loss,
  )
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  assert_close(state.generator_params, reference.vae)
  assert_close(state.target_generator_params, reference.target_vae)
  assert_close(state.critic_params, reference.critic)
  assert_close(state.target_critic_params, reference.target_critic)
  assert_close(state.actor_params, reference.actor)
  assert_close(state.target_actor_params, reference.target_actor)


@pytest.mark.parametrize(("min_weight", "expected"), [(0.75, 2.5), (1.0, 2.0)])
def test_targets_are_of_the_best_of_mixed_values(min_weight, expected):
  """Two candidates, critics that say 1 and 3 of one, 4 and 2 of the other."""
  q = jnp.array([[[1.0, 3.0]], [[4.0, 2.0]]])
  value = bcq.mixed_value(q, jnp.ones(1), jnp.float32(min_weight))
  low, high = (1.5, 2.5) if min_weight < 1 else (1.0, 2.0)
  np.testing.assert_allclose(value[:, 0], [low, high])
  best = bcq.best_candidate(value[:, None, :], value)
  np.testing.assert_allclose(best, [[expected]])


def test_a_standard_normal_has_no_divergence():
  zero = jnp.zeros(3)
  np.testing.assert_array_equal(bcq.latent_divergence(zero, zero), zero)
  np.testing.assert_allclose(
    bcq.latent_divergence(zero + 2, zero + np.float32(np.log(0.5))),
    0.5 * (4 + 0.25 - 1) + np.log(2),
    rtol=1e-6,
  )


@pytest.mark.parametrize("told", [0.0, 1.0])
def test_the_policy_is_near_a_generated_action_and_the_best_of_them(told):
  numbers = bcq.Hyperparams(
    perturbation=0.2, told_box=told, group_weights=np.ones(2, np.float32)
  )
  state = float64.start(LEARNER, numbers)
  params = LEARNER.policy(state)
  key, act = jax.random.key(0), jax.jit(LEARNER.act)
  numpy = float64.as_float64(params)
  half_width, centre = numpy.frame.half_width, numpy.frame.centre
  assert np.all(np.abs(numpy.latents) <= 0.5)
  for observation in make_batch(4).observation_tm1:
    s = (observation - numpy.normalization.mean) / numpy.normalization.scale
    s = np.tile(s, (5, 1))
    decoded = decode(numpy.actor_params["generator"], s, numpy.latents)
    action = perturbed(numpy.actor_params["perturbation"], s, decoded, 0.2)
    q = critics(numpy.actor_params["critic"], s, action)[:, :, 0]
    best = int(np.argmax(q.sum(1)))
    found = np.asarray(act(params, observation, key))
    expected = np.clip(centre + half_width * action[best], -1, 1)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.all(np.abs(action - decoded) <= 0.2 + 1e-6)
  still = params._replace(perturbation=jnp.float32(0))
  found = np.asarray(act(still, observation, key))
  of_vae = np.clip(centre + half_width * decoded, -1, 1)
  assert np.min(np.abs(of_vae - found).max(axis=1)) < 1e-5


def test_in_a_small_box_the_vae_collapses_and_in_its_units_it_does_not():
  """One component: `min exp(-2 R) / 3 + .25 R` is at .49 nats, for u.

  For the action itself the first term is .0075 and R is 0: one candidate, the
  box's centre.
  """
  rng = np.random.default_rng(0)
  u = rng.uniform(-1, 1, (4096, 1))
  log = log_of(np.ones((4096, 1)), 0.3 + 0.15 * u, u, centre=0.3)
  dataset = transitions.device_dataset(log)
  one = transitions.sample_transitions(jax.random.key(9), dataset, 1)
  learner = bcq.bcq(
    networks.mlp_actor(1, (8,)),
    networks.mlp_critic(1, 2, (8,)),
    networks.mlp_vae((16, 16)),
    num_candidates=4,
  )

  init = jax.jit(learner.init)

  def start(told):
    numbers = bcq.Hyperparams(told_box=told, generator_learning_rate=5e-3)
    state = init(jax.random.key(0), example_of(one), numbers)
    return loop.start(jax.random.key(1), state)

  rows = []
  loop.train_many(
    learner,
    jax.tree.map(lambda *leaves: jnp.stack(leaves), start(0.0), start(1.0)),
    dataset,
    900,
    batch_size=64,
    chunk_size=300,
    on_chunk=lambda _, metrics: rows.append(metrics),
  )
  last = jax.tree.map(lambda leaf: np.mean(leaf, axis=1), rows[-1])
  # The mean over two latent components, of which one is used.
  np.testing.assert_allclose(2 * last.kl, [0, 0.49], atol=0.1)
  assert last.kl[0] < 0.005
  np.testing.assert_allclose(last.reconstruction_error[0], 0.0075, atol=1e-3)
  assert last.reconstruction_error[1] < 0.2
  assert last.candidate_spread[0] < 0.01 < 0.1 < last.candidate_spread[1]
