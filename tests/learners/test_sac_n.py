"""SAC-N and EDAC against their equations, and where a temperature settles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import networks
from mtf_jax.data import transitions
from mtf_jax.io import InputError
from mtf_jax.learners import sac_n
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
from tests.learners.test_probes import SLOPE_CRITIC
from tests.session_logs import log_of


def draws(rng_key, shape=(B, A)):
  """The next key, and standard normals as the learner draws them."""
  rng_key, now = jax.random.split(rng_key)
  return rng_key, np.asarray(jax.random.normal(now, shape), np.float64)


def gaussian(params, s, noise):
  """Actions and log densities of the policy, by the change of variables."""
  mean = np.arctanh(float64.actor(params["mode"], s))
  head = params["log_std"]
  log_std = np.clip(s @ head["kernel"] + head["bias"], -5, 2)
  action = np.tanh(mean + np.exp(log_std) * noise)
  density = np.exp(-0.5 * noise**2) / np.sqrt(2 * np.pi) / np.exp(log_std)
  return action, np.log(density / (1 - action**2)).sum(1)


class SoftReference:
  """What SAC-N has in common with CQL: temperature, actor and targets."""

  def __init__(self, state):
    self.state = state
    numpy = float64.as_float64(state)
    self.numbers = numpy.hyperparams
    self.actor = numpy.actor_params
    self.critic = numpy.critic_params
    self.target = numpy.target_critic_params
    self.log_temperature = np.array(numpy.temperature_params)
    parts = (self.actor, self.critic, self.log_temperature)
    self.actor_adam, self.critic_adam, self.temperature_adam = map(Adam, parts)

  def update_actor(self, b, noise):
    n, s, limit = (
      self.numbers,
      b.observation_tm1,
      self.numbers.max_gradient_norm,
    )
    log_prob = gaussian(self.actor, s, noise)[1]
    entropy_gap = np.mean(log_prob + n.target_entropy * A)
    temperature_loss = self.temperature_adam.step(
      self.log_temperature,
      lambda value: -value * entropy_gap,
      n.temperature_learning_rate,
      limit,
    )
    temperature = np.exp(self.log_temperature)

    def loss(params):
      action, log_prob = gaussian(params, s, noise)
      q = weigh(least(critics(self.critic, s, action)))
      return np.mean(temperature * log_prob - q)

    rate = n.actor_learning_rate
    actor_loss = self.actor_adam.step(self.actor, loss, rate, limit)
    return temperature_loss, actor_loss, -log_prob.mean()

  def targets(self, b, noise, entropy=1.0):
    n, w = self.numbers, np.float64(WEIGHTS)
    action, log_prob = gaussian(self.actor, b.observation_t, noise)
    value = least(critics(self.target, b.observation_t, action))
    bonus = -entropy * np.exp(self.log_temperature) * log_prob
    value = value + bonus[:, None] * (w / np.sum(w**2))[None]
    # What the paper has for the weighted reward.
    total = weigh(critics(self.target, b.observation_t, action)).min(1) + bonus
    np.testing.assert_allclose(weigh(value), total)
    return b.r_t + n.discount * b.discount_t[:, None] * value


class Reference(SoftReference):
  def update(self, batch, rng_key):
    n = self.numbers
    b = float64.read(self.state, batch, told=n.told_box > 0)
    rng_key, noise = draws(rng_key)
    losses = self.update_actor(b, noise)
    rng_key, noise = draws(rng_key)
    y = self.targets(b, noise)

    def critic_loss(params):
      q = critics(params, b.observation_tm1, b.action_tm1)
      return np.mean((q - y[:, :, None]) ** 2) + self.penalty(params, b)

    rate, limit = n.critic_learning_rate, n.max_gradient_norm
    loss = self.critic_adam.step(self.critic, critic_loss, rate, limit)
    float64.soften(self.target, self.critic, n.target_step_size)
    return loss, *losses

  def penalty(self, params, b):
    del params, b
    return 0.0


def slopes(params, observation, action):
  """`dQ/da`, `[G, M, B, A]`, by the chain rule."""
  p = params["params"]
  h = np.einsum("gmhi,bi->gmbh", p["value_0_kernel_observation"], observation)
  h += np.einsum("gmha,ba->gmbh", p["value_0_kernel_action"], action)
  first = h + p["value_0_bias"][:, :, None]
  second = np.einsum(
    "gmkh,gmbh->gmbk", p["value_1_kernel"], np.maximum(first, 0)
  )
  second += p["value_1_bias"][:, :, None]
  d = (second > 0) * p["value_2_kernel"][:, :, :1]
  d = np.einsum("gmbk,gmkh->gmbh", d, p["value_1_kernel"]) * (first > 0)
  return np.einsum("gmbh,gmha->gmba", d, p["value_0_kernel_action"])


def pair_sum(vectors):
  """`sum_{i != j} cos(v_i, v_j)` of `[M, A]`, pair by pair."""
  total = 0.0
  for i, v in enumerate(vectors):
    for j, w in enumerate(vectors):
      size = np.linalg.norm(v) * np.linalg.norm(w)
      total += v @ w / size if i != j and size > 0 else 0.0
  return total


class DiverseReference(Reference):
  """EDAC as published, divided by M because the critics' loss is."""

  def penalty(self, params, b):
    found = slopes(params, b.observation_tm1, b.action_tm1)
    groups, ensemble, rows = found.shape[:3]
    of_group = [
      np.mean([pair_sum(found[g, :, row]) for row in range(rows)])
      for g in range(groups)
    ]
    scale = self.numbers.diversity_scale / (ensemble - 1)
    return scale * np.mean(of_group) / ensemble


LEARNER = sac_n.sac_n(ACTOR, CRITIC)
UPDATE = jax.jit(LEARNER.update)
EDAC = sac_n.sac_n(ACTOR, CRITIC, diversified=True)
UPDATE_EDAC = jax.jit(EDAC.update)


@pytest.mark.parametrize(
  ("diversified", "changed"),
  [
    (False, {}),
    (False, {"told_box": 1.0, "max_gradient_norm": 0.3}),
    (True, {"diversity_scale": 3.0}),
    (
      True,
      {"diversity_scale": 3.0, "told_box": 1.0, "max_gradient_norm": 0.3},
    ),
  ],
  ids=["sac_n", "sac_n_told_clipped", "edac", "edac_told_clipped"],
)
def test_updates_equal_an_independent_float64_implementation(
  diversified, changed
):
  kinds = (sac_n.Hyperparams, LEARNER, UPDATE, Reference)
  if diversified:
    kinds = (sac_n.EDACHyperparams, EDAC, UPDATE_EDAC, DiverseReference)
  hyperparams, learner, update_of, reference_of = kinds
  numbers = hyperparams(
    group_weights=WEIGHTS,
    initial_temperature=0.3,
    temperature_learning_rate=0.05,
    target_step_size=0.2,
    actor_learning_rate=0.01,
    critic_learning_rate=0.02,
  )._replace(**changed)
  state = float64.start(learner, numbers, grow=20)
  reference = reference_of(state)
  for step in range(2):
    batch = make_batch(step + 1)
    expected = reference.update(batch, state.rng_key)
    state, metrics = update_of(state, batch)
  found = (
    metrics.critic_loss,
    metrics.temperature_loss,
    metrics.actor_loss,
    metrics.entropy,
  )
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  assert_close(state.actor_params, reference.actor)
  assert_close(state.critic_params, reference.critic)
  assert_close(state.target_critic_params, reference.target)
  assert_close(state.temperature_params, reference.log_temperature)


@pytest.mark.parametrize(
  ("vectors", "expected"),
  [
    ([[3.0, 4.0], [0.6, 0.8]], 2.0),
    ([[3.0, 0.0], [0.0, 0.1]], 0.0),
    ([[3.0, 4.0], [-0.3, -0.4]], -2.0),
    ([[3.0, 4.0], [0.0, 0.0]], 0.0),
    ([[0.0, 0.0], [0.0, 0.0]], 0.0),
  ],
  ids=["equal", "orthogonal", "opposite", "one is 0", "both are 0"],
)
def test_the_cosine_of_two_critics(vectors, expected):
  """`1 / (M - 1)` of the sum over pairs, which is M times the mean."""

  def agreement(vectors):
    return 2 * sac_n.mean_cosine(vectors[None, :, None])[0, 0]

  vectors = jnp.array(vectors)
  value, gradient = jax.value_and_grad(agreement)(vectors)
  np.testing.assert_allclose(value, expected, atol=1e-6)
  # Finite, and across what it turns: a length changes no direction.
  assert np.all(np.isfinite(gradient)) and np.abs(gradient).max() < 100
  np.testing.assert_allclose(
    np.sum(gradient * vectors, axis=1), [0, 0], atol=1e-6
  )


@pytest.mark.parametrize("num_critics", [1, 2, 5])
def test_the_mean_cosine_is_that_of_all_pairs(num_critics):
  rng = np.random.default_rng(0)
  vectors = rng.normal(size=(2, num_critics, 4, 3))
  vectors[0, 0, 1] = 0
  found = sac_n.mean_cosine(jnp.asarray(vectors, jnp.float32))
  pairs = max(num_critics * (num_critics - 1), 1)
  for g in range(2):
    for b in range(4):
      expected = pair_sum(vectors[g, :, b]) / pairs
      np.testing.assert_allclose(found[g, b], expected, atol=1e-6)


def test_edac_of_scale_0_is_sac_n():
  numbers = {"group_weights": WEIGHTS, "critic_learning_rate": 0.02}
  plain = float64.start(LEARNER, sac_n.Hyperparams(**numbers))
  diverse = float64.start(
    EDAC, sac_n.EDACHyperparams(**numbers, diversity_scale=0.0)
  )
  for step in range(2):
    batch = make_batch(step)
    plain, expected = UPDATE(plain, batch)
    diverse, found = UPDATE_EDAC(diverse, batch)
  for name in ("actor_params", "critic_params", "temperature_params"):
    assert_close(
      getattr(diverse, name), float64.as_float64(getattr(plain, name)), 1e-6
    )
  for name in expected._fields:
    np.testing.assert_allclose(
      getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-6
    )


def test_critics_of_edac_part_with_each_other():
  """Without it they end on the slope that the rewards have, and agree."""
  rng = np.random.default_rng(0)
  action = rng.uniform(-0.15, 0.15, (256, 2))
  log = log_of(np.ones((256, 1)), action, action.sum(1, keepdims=True))
  dataset = transitions.device_dataset(log)
  one = transitions.sample_transitions(jax.random.key(9), dataset, 1)
  learner = sac_n.sac_n(
    networks.mlp_actor(2, (4,)),
    networks.box_critic(1, 3, (4,)),
    diversified=True,
  )
  cosines = []
  for scale in (0.0, 1.0):
    numbers = sac_n.EDACHyperparams(
      diversity_scale=scale, critic_learning_rate=0.01
    )
    rows = []
    loop.train(
      learner,
      loop.start(
        jax.random.key(1),
        learner.init(jax.random.key(0), example_of(one), numbers),
      ),
      dataset,
      400,
      batch_size=64,
      on_chunk=lambda _, metrics, rows=rows: rows.append(metrics),
    )
    cosines.append(float(rows[-1].mean_cosine[-1, 0]))
  assert cosines[0] > 0.95
  # Three directions in a plane: at best a third of a turn apart.
  np.testing.assert_allclose(cosines[1], -0.5, atol=0.05)


def test_edac_needs_critics_that_answer_alone():
  with pytest.raises(InputError, match="expected a network with apply_one"):
    sac_n.sac_n(ACTOR, SLOPE_CRITIC, diversified=True)


SQUASHED_CONSTANT = networks.Actor(
  init=lambda rng_key, observation: jnp.zeros(1),
  apply=lambda params, observation: jnp.broadcast_to(
    jnp.tanh(params), (observation.shape[0], 1)
  ),
)


def test_the_temperature_holds_the_entropy_at_its_target():
  """A slope pulls to the limit; the temperature lets it go as far as allowed.

  The policy serves the mode, which is then well inside.
  """
  learner = sac_n.sac_n(SQUASHED_CONSTANT, SLOPE_CRITIC)
  log = log_of(np.ones((4, 1)), np.zeros((4, 1)), np.zeros((4, 1)))
  dataset = transitions.device_dataset(log)
  one = transitions.sample_transitions(jax.random.key(9), dataset, 1)
  numbers = sac_n.Hyperparams(
    temperature_learning_rate=0.02,
    actor_learning_rate=0.02,
    critic_learning_rate=0.0,
  )
  state = learner.init(jax.random.key(0), example_of(one), numbers)
  state = state._replace(critic_params=jnp.ones(1))
  rows = []
  state = loop.train(
    learner,
    loop.start(jax.random.key(1), state),
    dataset,
    1000,
    batch_size=256,
    on_chunk=lambda _, metrics: rows.append(metrics),
  )
  np.testing.assert_allclose(rows[-1].entropy.mean(), -1.0, atol=0.05)
  assert 0.1 < rows[-1].temperature[-1] < 0.9
  params = learner.policy(state.learner)
  mode = learner.act(params, np.ones(1, np.float32), jax.random.key(0))
  assert 0.5 < mode[0] < 0.99


def test_one_critic_is_chosen_for_all_groups():
  """Least of sums, not the sum of least ones: 3 + 1 against 2 + 3."""
  from mtf_jax.learners import actor_critic

  q = jnp.array([[[2.0, 3.0], [3.0, 1.0]]])
  np.testing.assert_array_equal(
    actor_critic.chosen(q, jnp.ones(2)), [[3.0, 1.0]]
  )
  np.testing.assert_array_equal(
    actor_critic.chosen(q, jnp.ones(2), highest=True), [[2.0, 3.0]]
  )
  np.testing.assert_array_equal(
    actor_critic.chosen(q, jnp.array([1.0, 0.0])), [[2.0, 3.0]]
  )
  gradient = jax.grad(lambda q: actor_critic.chosen(q, jnp.ones(2)).sum())(q)
  np.testing.assert_array_equal(gradient, [[[0, 1], [0, 1]]])
