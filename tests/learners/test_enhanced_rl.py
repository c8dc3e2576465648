"""EnhancedRL: lists of one item, its equations in float64, what it can learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import networks
from mtf_jax.data import transitions
from mtf_jax.data.shown_items import ShownItems, pair_observation
from mtf_jax.io import InputError
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.learners import enhanced_rl, integrated_rl
from mtf_jax.learners.base import Normalization, normalization_from
from mtf_jax.training import loop
from tests.learners import float64
from tests.learners import test_integrated_rl as ours
from tests.session_logs import log_of, random_log, with_items

L, F = 3, 2
A, B = float64.A, float64.B
NUMBERS = {
  "discount": 0.9,
  "sharpness": 4.0,
  "penalty_scale": 0.3,
  "uncertainty_scale": 0.5,
  "group_weights": float64.WEIGHTS,
  "reward_shift": 0.2,
  "target_step_size": 0.2,
  "actor_learning_rate": 0.01,
  "critic_learning_rate": 0.02,
}


def _of_request(items, observation):
  """Pairs of lists of one item as requests of a log without items."""
  return jax.vmap(pair_observation)(observation, items.features)[:, 0]


@pytest.mark.parametrize("critic_updates", [1, 2])
def test_with_lists_of_one_item_it_is_integrated_rl_bit_for_bit(critic_updates):
  dataset = transitions.device_dataset(with_items(random_log(), positions=1))
  mean, scale = normalization_from(dataset)
  wide = Normalization(jnp.pad(mean, (0, F)), jnp.r_[scale, jnp.ones(F)])
  built = (networks.mlp_actor(A, (8,)), networks.mlp_critic(2, 3, (8,)))
  learners = (
    (enhanced_rl.enhanced_rl, enhanced_rl.Hyperparams, (mean, scale)),
    (integrated_rl.integrated_rl, integrated_rl.Hyperparams, wide),
  )
  found = []
  for build, hyperparams, normalization in learners:
    learner = build(*built, critic_updates=critic_updates)
    update = jax.jit(learner.update)
    state = None
    for seed in range(5):
      batch = transitions.sample_transitions(jax.random.key(seed), dataset, 64)
      if build is integrated_rl.integrated_rl:
        batch = batch._replace(
          observation_tm1=_of_request(batch.items_tm1, batch.observation_tm1),
          observation_t=_of_request(batch.items_t, batch.observation_t),
        )
      if state is None:
        state = learner.init(
          jax.random.key(1),
          ours.example_of(batch),
          hyperparams(**NUMBERS),
          Normalization(*normalization),
        )
      state, metrics = update(state, batch)
    assert metrics.outside_share > 0  # Both penalties count.
    found.append((tuple(state._replace(hyperparams=0)), metrics))
  jax.tree.map(np.testing.assert_array_equal, *found)


def _items(rng, spread=0.15):
  def box():
    centre = rng.uniform(-0.5, 0.5, (B, L, A)).astype(np.float32)
    return ActionBox(centre - np.float32(spread), centre + np.float32(spread))

  return ShownItems(
    features=rng.normal(size=(B, L, F)).astype(np.float32),
    action=rng.uniform(-1, 1, (B, L, A)).astype(np.float32),
    box=box(),
  )


def _batch(seed):
  rng = np.random.default_rng(100 + seed)
  return float64.make_batch(seed)._replace(
    items_tm1=_items(rng), items_t=_items(rng)
  )


class Reference:
  """The update in NumPy float64, from the equations of the docstring."""

  def __init__(self, state):
    state = float64.as_float64(state)
    self.numbers, self.norm = state.hyperparams, state.normalization
    self.actor, self.critic = state.actor_params, state.critic_params
    self.target_actor = state.target_actor_params
    self.target = state.target_critic_params
    self.adam = float64.Adam(self.actor), float64.Adam(self.critic)

  def pairs(self, observation, items):
    wide = np.repeat(observation[:, None], L, axis=1)
    wide = np.concatenate([wide, items.features], axis=2).reshape(B * L, -1)
    wide = (wide - self.norm.mean) / self.norm.scale
    flat = [
      x.reshape(B * L, A) for x in (items.action, items.box[0], items.box[1])
    ]
    return wide, *flat

  def update(self, batch):
    n, batch = self.numbers, float64.as_float64(batch)
    s, a, low, high = self.pairs(batch.observation_tm1, batch.items_tm1)
    s_t, _, low_t, high_t = self.pairs(batch.observation_t, batch.items_t)

    def outside(action, low, high):
      return np.maximum(np.maximum(action - high, low - action), 0).sum(1)

    a_t = float64.actor(self.target_actor, s_t)
    phi = np.exp(-n.sharpness * outside(a_t, low_t, high_t))
    q_t = float64.critics(self.target, s_t, a_t) * phi[:, None, None]
    follows = n.discount * batch.discount_t[:, None, None]
    y = batch.r_t[:, :, None] + np.reshape(n.reward_shift, (1, -1, 1))
    y = y + follows * q_t.reshape(B, L, *q_t.shape[1:]).sum(1)

    def critic_loss(params):
      q = float64.critics(params, s, a)
      return np.mean((q.reshape(B, L, *q.shape[1:]).sum(1) - y) ** 2)

    def actor_loss(params):
      action = float64.actor(params, s)
      q = float64.critics(self.critic, s, action)
      d = np.expm1(n.sharpness * outside(action, low, high))
      std = np.sqrt(((q - q.mean(2, keepdims=True)) ** 2).mean(2))
      value = float64.weigh(q.mean(2) - n.uncertainty_scale * std)
      return np.mean(n.penalty_scale * d - value)

    of_actor, of_critic = self.adam
    losses = [of_critic.step(self.critic, critic_loss, n.critic_learning_rate)]
    float64.soften(self.target, self.critic, n.target_step_size)
    rate = n.actor_learning_rate
    losses.append(of_actor.step(self.actor, actor_loss, rate))
    float64.soften(self.target_actor, self.actor, n.target_step_size)
    return losses


def test_updates_equal_an_independent_float64_implementation():
  learner = enhanced_rl.enhanced_rl(float64.ACTOR, float64.CRITIC)

  def init(rng_key, example, hyperparams, normalization):
    items = ours.example_of(_batch(0)).items_tm1
    example = example._replace(items_tm1=items)
    return learner.init(rng_key, example, hyperparams, normalization)

  state = float64.start(
    learner._replace(init=init), enhanced_rl.Hyperparams(**NUMBERS), grow=10
  )
  reference, update = Reference(state), jax.jit(learner.update)
  for step in range(2):
    expected = reference.update(_batch(step + 1))
    state, metrics = update(state, _batch(step + 1))
  assert 0.1 < metrics.outside_share < 1
  found = (metrics.critic_loss, metrics.actor_loss)
  np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
  for ours_, theirs in (
    (state.actor_params, reference.actor),
    (state.critic_params, reference.critic),
    (state.target_critic_params, reference.target),
    (state.target_actor_params, reference.target_actor),
  ):
    float64.assert_close(ours_, theirs)


def _log_where_items_differ(seed=0, sessions=1024):
  """An item's deviation raises the reward, or lowers it, by its own feature."""
  rng = np.random.default_rng(seed)
  observation = rng.normal(size=(sessions, 3))
  features = rng.choice([-1.0, 1.0], (sessions, L, 1)).astype(np.float32)
  action = rng.uniform(-0.15, 0.15, (sessions, L, A)).astype(np.float32)
  reward = 1 + (features * action).sum(axis=(1, 2))[:, None]
  reward = np.repeat(reward, 2, axis=1) + 0.1 * rng.normal(size=(sessions, 2))
  log = log_of(observation, action[:, 0], reward)
  bound = np.full(action.shape, 0.15, np.float32)
  return log._replace(
    items=ShownItems(features, action, ActionBox(-bound, bound))
  )


def test_it_finds_for_each_item_what_only_sums_of_lists_tell():
  dataset = transitions.device_dataset(_log_where_items_differ())
  learner = enhanced_rl.enhanced_rl(
    networks.mlp_actor(A, (16,)), networks.mlp_critic(2, 2, (16,))
  )
  one = transitions.take_transitions(dataset, jnp.array([0]))
  state = learner.init(
    jax.random.key(0),
    ours.example_of(one),
    enhanced_rl.Hyperparams(
      actor_learning_rate=0.01, critic_learning_rate=0.01
    ),
    normalization_from(dataset),
  )
  run = loop.train(
    learner, loop.start(jax.random.key(1), state), dataset, 400, batch_size=64
  )
  pairs = np.zeros((2, 4), np.float32)
  pairs[:, 3] = [-1, 1]
  act = jax.vmap(learner.act, (None, 0, None))
  down, up = act(learner.policy(run.learner), pairs, jax.random.key(0))
  assert np.all(down < -0.08) and np.all(up > 0.08)


def test_transitions_without_items_are_refused():
  learner = enhanced_rl.enhanced_rl(float64.ACTOR, float64.CRITIC)
  batch = float64.make_batch(0)
  message = "^items: expected a log with shown items .* found none"
  with pytest.raises(InputError, match=message):
    learner.init(jax.random.key(0), ours.example_of(batch))
  state = learner.init(jax.random.key(0), ours.example_of(_batch(0)))
  with pytest.raises(InputError, match=message):
    learner.update(state, batch)
