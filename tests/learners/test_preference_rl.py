"""One policy for every preference: its ends, its draws, what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import networks
from mtf_jax.data import transitions
from mtf_jax.io import InputError
from mtf_jax.learners import integrated_rl, preference_rl
from mtf_jax.learners.base import Normalization, normalization_from
from mtf_jax.training import loop
from tests.session_logs import log_of, random_log

A, G = 2, 2
BUILT = (networks.mlp_actor(A, (8,)), networks.mlp_critic(G, 3, (8,)))
NUMBERS = {
  "uncertainty_scale": 0.5,
  "reward_shift": np.array([0.2, 0.1], np.float32),
  "target_step_size": 0.2,
  "actor_learning_rate": 0.01,
  "critic_learning_rate": 0.02,
}


def _example(batch):
  return jax.tree.map(lambda leaf: leaf[0], batch)


def _with_preference(batch, preference):
  beside = jnp.broadcast_to(
    jnp.asarray(preference, jnp.float32) - 1, batch.r_t.shape
  )
  return batch._replace(
    observation_tm1=jnp.concatenate([batch.observation_tm1, beside], axis=1),
    observation_t=jnp.concatenate([batch.observation_t, beside], axis=1),
  )


@pytest.mark.parametrize("group", [0, 1])
def test_an_end_is_integrated_rl_of_that_group_alone(monkeypatch, group):
  """Bit for bit, where no other preference is drawn."""
  end = G * np.eye(G, dtype=np.float32)[group]
  monkeypatch.setattr(
    preference_rl.jax.random,
    "dirichlet",
    lambda key, alpha, shape, dtype: jnp.broadcast_to(end / G, (*shape, G)),
  )
  dataset = transitions.device_dataset(random_log())
  mean, scale = normalization_from(dataset)
  wide = Normalization(jnp.pad(mean, (0, G)), jnp.r_[scale, jnp.ones(G)])
  rng_key = jax.random.key(1)
  ours = preference_rl.preference_rl(*BUILT, critic_updates=2)
  alone = integrated_rl.integrated_rl(*BUILT, critic_updates=2)
  states = None
  for seed in range(4):
    batch = transitions.sample_transitions(jax.random.key(seed), dataset, 64)
    at_end = _with_preference(batch, end)
    if states is None:
      states = [
        ours.init(
          rng_key,
          _example(batch),
          preference_rl.Hyperparams(**NUMBERS, group_weights=end / G),
          Normalization(mean, scale),
        ),
        alone.init(
          jax.random.split(rng_key)[0],
          _example(at_end),
          integrated_rl.Hyperparams(**NUMBERS, group_weights=end),
          wide,
        ),
      ]
    states[0], metrics = jax.jit(ours.update)(states[0], batch)
    states[1], expected = jax.jit(alone.update)(states[1], at_end)
    jax.tree.map(np.testing.assert_array_equal, metrics, expected)
  for name in integrated_rl.State._fields[:6]:
    jax.tree.map(
      np.testing.assert_array_equal,
      *(getattr(state, name) for state in states),
    )
  # It serves the end, too.
  observation, key = dataset.observation[0], jax.random.key(0)
  at_end = jnp.concatenate([observation, jnp.asarray(end) - 1])
  np.testing.assert_array_equal(
    ours.act(ours.policy(states[0]), observation, key),
    alone.act(alone.policy(states[1]), at_end, key),
  )


def test_every_transition_of_every_update_has_a_preference_of_its_own():
  seen = []
  _, critic = BUILT

  def apply(params, observation, action, box):
    jax.debug.callback(lambda x: seen.append(np.array(x)), observation[:, -G:])
    return critic.apply(params, observation, action, box)

  learner = preference_rl.preference_rl(
    BUILT[0], networks.Critic(critic.init, apply, critic.hidden_sizes)
  )
  dataset = transitions.device_dataset(random_log())
  batch = transitions.sample_transitions(jax.random.key(0), dataset, 512)
  state = learner.init(jax.random.key(1), _example(batch))
  update, drawn = jax.jit(learner.update), []
  for _ in range(2):
    seen.clear()
    state, _ = update(state, batch)
    jax.effects_barrier()
    drawn.append(seen[0])
    # Targets, critics and actor see the same.
    assert len(seen) >= 3
    for other in seen[1:]:
      np.testing.assert_array_equal(other, drawn[-1])
  first, second = drawn
  assert not np.any(first[:, 0] == second[:, 0])
  assert np.unique(first[:, 0]).size == 512
  np.testing.assert_allclose(first.sum(axis=1), 0, atol=1e-5)
  assert first.min() >= -1
  # All alike: of two groups each share is uniform.
  share = np.sort((first[:, 0] + 1) / 2)
  assert np.abs(share - np.linspace(0, 1, 512)).max() < 0.08


def _opposed(seed=0, sessions=512):
  """The first group wants the first component high, the second wants it low."""
  rng = np.random.default_rng(seed)
  deviation = rng.uniform(-0.15, 0.15, (sessions, A))
  reward = 1 + deviation[:, :1] * np.array([[1.0, -1.0]])
  reward += 0.05 * rng.normal(size=reward.shape)
  return log_of(
    rng.normal(size=(sessions, 3)), deviation, reward, session_length=1
  )


def test_one_training_serves_what_is_wanted():
  """Also between the ends, and equal weights want neither."""
  learner = preference_rl.preference_rl(*BUILT)
  dataset = transitions.device_dataset(_opposed())
  one = transitions.sample_transitions(jax.random.key(0), dataset, 1)
  numbers = preference_rl.Hyperparams(
    actor_learning_rate=3e-3, critic_learning_rate=3e-3
  )
  state = loop.start(
    jax.random.key(2),
    learner.init(
      jax.random.key(1), _example(one), numbers, normalization_from(dataset)
    ),
  )
  trained = loop.train(
    learner, state, dataset, 1500, batch_size=128, chunk_size=1500
  ).learner
  moved = []
  for weights in ((1.0, 0.0), (0.75, 0.25), (1.0, 1.0), (0.5, 1.5), (0, 5.0)):
    served = trained._replace(
      hyperparams=trained.hyperparams._replace(
        group_weights=jnp.asarray(weights, jnp.float32)
      )
    )
    act = jax.vmap(learner.act, (None, 0, None))
    action = act(learner.policy(served), dataset.observation, one.r_t[0, 0])
    moved.append(float(jnp.mean(action[:, 0])))
  assert moved == sorted(moved, reverse=True)
  assert moved[0] > 0.08 and moved[-1] < -0.08
  assert abs(moved[2]) < 0.08


def test_weights_are_taken_by_their_shares():
  found = preference_rl.as_preference(jnp.asarray([3.0, 1.0]))
  np.testing.assert_allclose(found, [1.5, 0.5])
  for equal in (0.0, 1e30):
    np.testing.assert_array_equal(
      preference_rl.as_preference(jnp.full(3, equal)), np.ones(3)
    )
  np.testing.assert_array_equal(
    preference_rl.as_preference(jnp.asarray([3.0, -1.0])), [2, 0]
  )


@pytest.mark.parametrize(
  ("field", "bad"),
  [
    ("group_weights", np.array([1.0, -0.1])),
    ("group_weights", np.array([1.0, np.inf])),
    ("concentration", 0.0),
  ],
)
def test_numbers_out_of_range_are_refused(field, bad):
  learner = preference_rl.preference_rl(*BUILT)
  dataset = transitions.device_dataset(random_log())
  batch = transitions.sample_transitions(jax.random.key(0), dataset, 1)
  numbers = preference_rl.Hyperparams(**{field: bad})
  with pytest.raises(InputError, match=f"^{field}: expected a value in"):
    learner.init(jax.random.key(0), _example(batch), numbers)
