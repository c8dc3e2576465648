"""TD3+BC, TD3, DDPG and ReBRAC against their equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import networks
from mtf_jax.data import transitions
from mtf_jax.io import InputError
from mtf_jax.learners import box_units, td3_bc
from mtf_jax.learners.base import Normalization
from mtf_jax.learners.integrated_rl import Hyperparams, integrated_rl
from mtf_jax.training import loop
from tests.learners import test_integrated_rl as ours
from tests.learners.test_integrated_rl import (
  SIZES,
  A,
  B,
  G,
  M,
  S,
  example_of,
  make_batch,
)
from tests.learners.test_probes import CONSTANT_ACTOR
from tests.session_logs import log_of

ACTOR = networks.mlp_actor(A, SIZES)
WEIGHTS = np.array([1.0, 0.5], np.float32)
NETWORKS = (
  "actor_params",
  "critic_params",
  "target_actor_params",
  "target_critic_params",
)


LEARNER = td3_bc.td3_bc(ACTOR, networks.mlp_critic(G, M, SIZES))
UPDATE = jax.jit(LEARNER.update)


class Reference(ours.Reference):
  """The update of [1] in NumPy float64, one critic at a time."""

  def __init__(self, state):
    # All that the parent reads; a key is no array of numbers.
    super().__init__(
      ours.make(Hyperparams())[1]._replace(
        hyperparams=state.hyperparams,
        normalization=state.normalization,
        **{name: getattr(state, name) for name in NETWORKS},
      )
    )
    self.critic_count = 0
    self.actor_count = 0

  def update(self, parts, noises):
    for part, noise in zip(parts, noises, strict=True):
      self.count = self.critic_count = self.critic_count + 1
      critic_loss = self._update_critics(part, noise)
    self.count = self.actor_count = self.actor_count + 1
    return critic_loss, *self._update_actor(parts[-1])

  def _read(self, batch):
    b = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), batch)
    s = (b.observation_tm1 - self.norm.mean) / self.norm.scale
    s_t = (b.observation_t - self.norm.mean) / self.norm.scale
    return b, s, s_t

  def _update_critics(self, batch, noise):
    b, s, s_t = self._read(batch)
    c, size = self.c, b.discount_t.shape[0]
    limit = c.target_noise_clip
    noise = np.clip(
      c.target_noise * np.asarray(noise, np.float64), -limit, limit
    )
    a_t = np.tanh(self.forward(self.target_actor, s_t)[0])
    a_t = np.clip(a_t + noise, -1, 1)
    price = np.mean((a_t - b.action_t) ** 2, axis=1) * b.action_logged_t
    price *= c.next_cloning_scale / np.sum(c.group_weights**2)
    gradients, loss = {}, 0.0
    for (g, m), params in self.critics.items():
      q_t = np.min(
        [
          self.forward(self.target_critics[g, k], np.hstack([s_t, a_t]))[0]
          for k in range(M)
        ],
        axis=0,
      )
      after = q_t[:, 0] - c.group_weights[g] * price
      y = b.r_t[:, g] + c.discount * b.discount_t * after
      q, saved = self.forward(params, np.hstack([s, b.action_tm1]))
      error = q[:, 0] - y
      loss += np.sum(error**2) / (size * G * M)
      d_q = 2 * error / (size * G * M)
      gradients[g, m] = self.backward(params, saved, d_q[:, None])[0]
    norm = np.sqrt(
      sum(np.sum(leaf**2) for leaves in gradients.values() for leaf in leaves)
    )
    for key, params in self.critics.items():
      moments = self.critic_adam[key]
      rate = self.c.critic_learning_rate
      self._adam(params, gradients[key], moments, rate, norm)
    return loss

  def _update_actor(self, batch):
    b, s, _ = self._read(batch)
    c, size = self.c, b.discount_t.shape[0]
    out, actor_saved = self.forward(self.actor, s)
    a = np.tanh(out)
    value, saved, climbs = np.zeros(size), {}, {}
    for g in range(G):
      q = []
      for m in range(M):
        found = self.forward(self.critics[g, m], np.hstack([s, a]))
        q.append(found[0][:, 0])
        saved[g, m] = found[1]
      which = np.argmin(q, axis=0) if c.climb_least else np.zeros(size, int)
      value += c.group_weights[g] * np.array(q)[which, np.arange(size)]
      climbs |= {(g, m): which == m for m in range(M)}
    weight = c.value_scale
    if c.normalize_value:
      weight = weight / np.mean(np.abs(value))
    miss = a - b.action_tm1
    loss = c.cloning_scale * np.mean(miss**2) - weight * np.mean(value)
    d_a = c.cloning_scale * 2 * miss / miss.size
    for (g, m), rows in climbs.items():
      d_q = -weight * c.group_weights[g] / size * rows[:, None]
      d_a += self.backward(self.critics[g, m], saved[g, m], d_q)[1][:, S:]
    gradient = self.backward(self.actor, actor_saved, d_a * (1 - a**2))[0]
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in gradient))
    rate = c.actor_learning_rate
    self._adam(self.actor, gradient, self.actor_adam, rate, norm)
    self._soft(self.target_actor, self.actor)
    for key, params in self.critics.items():
      self._soft(self.target_critics[key], params)
    return loss, weight


def _noises(state, parts):
  """The draws of an update, as the learner makes them."""
  rng_key = state.rng_key
  for _ in parts:
    rng_key, noise_key = jax.random.split(rng_key)
    yield jax.random.normal(noise_key, (B, A))


@pytest.mark.parametrize(
  "changed",
  [
    {},
    {"max_gradient_norm": 0.3},
    {"normalize_value": 0.0, "cloning_scale": 0.0},
    {"value_scale": 1.0, "next_cloning_scale": 0.7, "climb_least": 1.0},
  ],
  ids=["published", "clipped", "td3", "rebrac"],
)
def test_updates_equal_an_independent_float64_implementation(changed):
  learner = LEARNER
  numbers = td3_bc.Hyperparams(
    group_weights=WEIGHTS,
    target_step_size=0.2,
    actor_learning_rate=0.01,
    critic_learning_rate=0.02,
  )._replace(**changed)
  normalization = Normalization(
    np.array([0.1, -0.2, 0.3], np.float32), np.array([1.5, 0.8, 1], np.float32)
  )
  state = learner.init(
    jax.random.key(0), example_of(make_batch(0)), numbers, normalization
  )
  # Actions of some size: the noise then meets the limits of the range.
  grown = jax.tree.map(jnp.copy, state.actor_params)
  last = grown["params"]["MLP_0"]["Dense_2"]
  last["kernel"] = last["kernel"] * 60
  target = jax.tree.map(lambda leaf: leaf * 0.9, grown)
  state = state._replace(actor_params=grown, target_actor_params=target)
  reference = Reference(state)
  for step in range(3):
    batch = make_batch(step + 1, batch_size=2 * B)
    parts = [
      jax.tree.map(lambda leaf, i=i: leaf[i::2], batch) for i in range(2)
    ]
    expected = reference.update(parts, list(_noises(state, parts)))
    state, metrics = UPDATE(state, batch)
  found = (metrics.actor_loss, metrics.value_weight)
  np.testing.assert_allclose(found, expected[1:], rtol=1e-4, atol=1e-5)
  after = Reference(state)
  for name in ("actor", "target_actor"):
    for found, expected in zip(
      getattr(after, name), getattr(reference, name), strict=True
    ):
      np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-5)
  for name in ("critics", "target_critics"):
    for key, critic in getattr(reference, name).items():
      for found, expected in zip(
        getattr(after, name)[key], critic, strict=True
      ):
        np.testing.assert_allclose(found, expected, atol=2e-5, rtol=1e-5)


def test_ddpg_is_integrated_rl_with_one_critic_and_no_penalties():
  critic = networks.mlp_critic(G, 1, SIZES)
  plain = integrated_rl(ACTOR, critic)
  ddpg = td3_bc.td3_bc(ACTOR, critic, critic_updates=1)
  example = example_of(make_batch(0))
  expected = plain.init(
    jax.random.key(0),
    example,
    Hyperparams(
      sharpness=0.0,
      penalty_scale=0.0,
      uncertainty_scale=0.0,
      group_weights=WEIGHTS,
    ),
  )
  found = ddpg.init(
    jax.random.key(0), example, td3_bc.DDPG._replace(group_weights=WEIGHTS)
  )
  found = found._replace(**{name: getattr(expected, name) for name in NETWORKS})
  before = jax.tree.map(np.array, expected.actor_params)
  update_plain, update_ddpg = jax.jit(plain.update), jax.jit(ddpg.update)
  for step in range(3):
    batch = make_batch(step)
    expected, expected_metrics = update_plain(expected, batch)
    found, metrics = update_ddpg(found, batch)
  for name in NETWORKS:
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6),
      getattr(found, name),
      getattr(expected, name),
    )
  for name in ("critic_loss", "actor_loss", "q_mean", "actor_gradient_norm"):
    np.testing.assert_allclose(
      getattr(metrics, name), getattr(expected_metrics, name), rtol=1e-4
    )
  moved = jax.tree.map(
    lambda a, b: np.abs(a - b).max(), expected.actor_params, before
  )
  assert max(jax.tree.leaves(moved)) > 1e-4


# `Q = level + 0.5 a`, one group of one; its parameter is the level.
_LEVEL_CRITIC = networks.Critic(
  init=lambda rng_key, observation, action, box: jnp.zeros(1),
  apply=lambda params, observation, action, box: (
    params[None, :] + 0.5 * action
  )[:, :, None],
)


@pytest.mark.parametrize("level", [1.0, 10.0])
def test_the_actor_stops_where_the_level_of_the_value_says(level):
  """Around a logged action c: `a - c = lambda g A / 2`, lambda from the level.

  So a constant added to all rewards moves the policy, unlike ours.
  """
  learner = td3_bc.td3_bc(CONSTANT_ACTOR, _LEVEL_CRITIC, critic_updates=1)
  log = log_of(np.ones((4, 1)), np.full((4, 1), 0.1), np.zeros((4, 1)))
  dataset = transitions.device_dataset(log)
  example = transitions.sample_transitions(jax.random.key(9), dataset, 1)
  numbers = td3_bc.Hyperparams(
    value_scale=0.4, critic_learning_rate=0.0, actor_learning_rate=5e-3
  )
  state = learner.init(jax.random.key(0), example_of(example), numbers)
  state = state._replace(critic_params=jnp.full(1, level))
  state = loop.train(
    learner,
    loop.start(jax.random.key(1), state),
    dataset,
    400,
    batch_size=4,
  )
  action = 0.0
  for _ in range(50):
    action = 0.1 + 0.4 / (level + 0.5 * action) * 0.5 / 2
  np.testing.assert_allclose(state.learner.actor_params, [action], atol=2e-3)


# Two critics of two components, the second the lower one; its parameters are the
# values of action 0. The slopes differ.
_PAIR_SLOPES = np.array([[1.0, 1.0], [0.5, -0.25]], np.float32)
_PAIR_CRITIC = networks.Critic(
  init=lambda rng_key, observation, action, box: jnp.zeros(2),
  apply=lambda params, observation, action, box: (
    params[None, :] + action @ _PAIR_SLOPES.T
  )[:, None, :],
)
_CONSTANT_PAIR = CONSTANT_ACTOR._replace(
  init=lambda rng_key, observation: jnp.zeros(2)
)


def test_rebrac_stops_where_the_least_critic_pays_its_price():
  """`a - c = lambda g / (2 beta)` for a squared distance that is a sum.

  The distance here is a mean, so that the published beta is times A = 2.
  """
  centre, beta, level = np.array([0.1, -0.2]), 0.5, 2.0
  log = log_of(np.ones((4, 1)), np.tile(centre, (4, 1)), np.zeros((4, 1)))
  dataset = transitions.device_dataset(log)
  example = transitions.sample_transitions(jax.random.key(9), dataset, 1)
  learner = td3_bc.td3_bc(_CONSTANT_PAIR, _PAIR_CRITIC)
  numbers = td3_bc.REBRAC._replace(
    cloning_scale=2 * beta, critic_learning_rate=0.0, actor_learning_rate=5e-3
  )
  state = learner.init(jax.random.key(0), example_of(example), numbers)
  state = state._replace(critic_params=jnp.array([level + 5, level]))
  state = loop.train(
    learner, loop.start(jax.random.key(1), state), dataset, 400, batch_size=4
  )
  action = centre
  for _ in range(50):
    value = level + _PAIR_SLOPES[1] @ action
    action = centre + _PAIR_SLOPES[1] / abs(value) / (2 * beta)
  np.testing.assert_allclose(state.learner.actor_params, action, atol=2e-3)


@pytest.mark.parametrize(
  ("discount_t", "logged", "target"),
  [(1.0, True, 2.791), (1.0, False, 2.8), (0.0, False, 1.0)],
  ids=["next request", "only its observation", "exit"],
)
def test_the_target_pays_for_leaving_what_was_logged_next(
  discount_t, logged, target
):
  """`1 + .9 (min(2, 3) - .1^2)` for a published beta of 1, times A = 2 here."""
  batch = jax.tree.map(lambda leaf: leaf[:2], make_batch(0))
  batch = batch._replace(
    r_t=jnp.ones((2, 1)),
    discount_t=jnp.full(2, discount_t),
    action_logged_t=jnp.full(2, logged),
  )
  learner = td3_bc.td3_bc(_CONSTANT_PAIR, _PAIR_CRITIC, critic_updates=1)
  numbers = td3_bc.REBRAC._replace(
    next_cloning_scale=2.0, target_noise=0.0, critic_learning_rate=0.0
  )
  state = learner.init(jax.random.key(0), example_of(batch), numbers)
  # The policy answers 0.1 and 0; critics that say 0 have a loss of `y^2`.
  action = jnp.array([0.1, 0.0])
  state = state._replace(
    target_actor_params=action,
    critic_params=jnp.array([0.0, 0.0]),
    target_critic_params=jnp.array([2.0, 3.0]) - _PAIR_SLOPES @ action,
  )
  batch = batch._replace(
    action_tm1=jnp.zeros((2, A)), action_t=jnp.zeros((2, A))
  )
  _, metrics = learner.update(state, batch)
  np.testing.assert_allclose(metrics.critic_loss, target**2, rtol=1e-6)
  np.testing.assert_allclose(
    metrics.next_cloning_error, 0.005 * logged, rtol=1e-6
  )


def test_a_batch_without_the_next_action_is_refused():
  state = LEARNER.init(jax.random.key(0), example_of(make_batch(0)))
  batch = make_batch(0)._replace(action_t=None)
  with pytest.raises(InputError, match="expected action_t and action_logged_t"):
    LEARNER.update(state, batch)


def test_the_value_is_the_least_of_a_groups_critics():
  normalization = Normalization(
    np.linspace(-1, 1, S, dtype=np.float32),
    np.linspace(0.5, 2, S, dtype=np.float32),
  )
  critic = networks.mlp_critic(G, M, SIZES)
  learner = td3_bc.td3_bc(ACTOR, critic)
  batch = make_batch(3)
  state = learner.init(
    jax.random.key(0), example_of(batch), normalization=normalization
  )
  given = (batch.observation_tm1, batch.action_tm1, batch.box_tm1)
  found = jax.vmap(learner.value, (None, 0, 0, 0))(state, *given)
  seen = (given[0] - normalization.mean[None]) / normalization.scale[None]
  q = critic.apply(state.critic_params, seen, *given[1:])
  np.testing.assert_allclose(found, q.min(axis=2), rtol=1e-5, atol=1e-6)
  assert not np.allclose(found, q.mean(axis=2), atol=1e-3)


def test_told_a_box_it_learns_what_it_learns_untold_from_actions_in_its_units():
  learner = LEARNER
  numbers = td3_bc.REBRAC._replace(
    group_weights=WEIGHTS, actor_learning_rate=0.01, critic_learning_rate=0.02
  )
  batches = [make_batch(seed, batch_size=2 * B) for seed in range(4)]
  # One box, as a log around one global action has it.
  box = jax.tree.map(lambda leaf: leaf[:1], batches[0].box_tm1)

  def inside(action):
    return box.lower + (box.upper - box.lower) * (action + 1) / 2

  batches = [
    batch._replace(
      action_tm1=inside(batch.action_tm1),
      action_t=inside(batch.action_t),
      box_tm1=jax.tree.map(lambda leaf: jnp.repeat(leaf, 2 * B, 0), box),
      box_t=jax.tree.map(lambda leaf: jnp.repeat(leaf, 2 * B, 0), box),
    )
    for batch in batches
  ]
  in_units = [box_units.batch_to_units(1.0, batch) for batch in batches]
  policies = []
  for told, seen in ((1.0, batches), (0.0, in_units)):
    state = learner.init(
      jax.random.key(0),
      example_of(seen[0]),
      numbers._replace(told_box=told),
    )
    for batch in seen[1:]:
      state, metrics = UPDATE(state, batch)
    policies.append((learner.policy(state), metrics))
  (told, told_metrics), (untold, metrics) = policies
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    (told.actor_params, told_metrics),
    (untold.actor_params, metrics),
  )
  # The same answer, and acted with inside the box.
  observation = batches[0].observation_tm1[0]
  u = learner.act(untold, observation, jax.random.key(0))
  action = learner.act(told, observation, jax.random.key(0))
  centre = (box.lower + box.upper)[0] / 2
  np.testing.assert_allclose(
    action, centre + (box.upper - box.lower)[0] / 2 * u, rtol=1e-4
  )
  assert np.all((action >= box.lower[0]) & (action <= box.upper[0]))
