"""Guardrails on a log in which what one group gains the other one loses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import networks
from mtf_jax.data import transitions
from mtf_jax.learners import base, constrained_rl, integrated_rl
from mtf_jax.training import loop, metrics
from tests.session_logs import log_of

A, G, SIZES = 2, 2, (8, 8)
NETWORKS = (
  networks.mlp_actor(A, SIZES),
  networks.box_critic(G, 2, SIZES),
)
LEARNER = constrained_rl.constrained_rl(*NETWORKS)
UNCONSTRAINED = integrated_rl.integrated_rl(*NETWORKS)
GAIN, LOSS = 0.5, 0.3  # By a half-width of the first component.
RATES = {"actor_learning_rate": 1e-3, "critic_learning_rate": 3e-3}
# The second group is only to be kept.
ONLY_FIRST = {"group_weights": np.array([1, 0], np.float32)}
SIZE = {"batch_size": 64, "chunk_size": 500}


@functools.cache
def dataset():
  """Sessions of one request; rewards of 2 and 1 on average."""
  rng = np.random.default_rng(0)
  rows = 4096
  u = rng.uniform(-1, 1, (rows, A))
  x = rng.normal(size=(rows, 3))
  noise = 0.3 * rng.normal(size=(rows, G))
  reward = np.stack([2 + GAIN * u[:, 0], 1 - LOSS * u[:, 0]], axis=1)
  return transitions.device_dataset(log_of(x, 0.15 * u, reward + noise))


def start(learner, hyperparams):
  one = transitions.sample_transitions(jax.random.key(9), dataset(), 1)
  example = jax.tree.map(lambda leaf: leaf[0], one)
  normalization = base.normalization_from(dataset())
  return learner.init(jax.random.key(0), example, hyperparams, normalization)


def trained(learner, hyperparams, num_updates):
  """The state, and the metrics of all updates."""
  seen = []
  state = loop.train(
    learner,
    loop.start(jax.random.key(1), start(learner, hyperparams)),
    dataset(),
    num_updates,
    on_chunk=lambda _, metrics: seen.append(metrics),
    **SIZE,
  )
  return state.learner, jax.tree.map(lambda *m: np.concatenate(m), *seen)


def numbers(**changed):
  return constrained_rl.Hyperparams(**RATES, **ONLY_FIRST, **changed)


def bound(share):
  """Of the second group."""
  return np.array([np.inf, share], np.float32)


def moved(state):
  """How far the policy moves the first component, half-widths, `[N]`."""
  act = jax.vmap(LEARNER.act, (None, 0, None))
  action = act(LEARNER.policy(state), dataset().observation, jax.random.key(0))
  return np.asarray(action[:, 0] / 0.15, np.float64)


@functools.cache
def without_guardrail():
  hyperparams = integrated_rl.Hyperparams(**RATES, **ONLY_FIRST)
  return trained(UNCONSTRAINED, hyperparams, 1000)


@pytest.mark.parametrize("share", [np.inf, 0.9])
def test_while_no_bound_binds_it_is_integrated_rl_bit_for_bit(share):
  expected, _ = without_guardrail()
  state, seen = trained(LEARNER, numbers(allowed_loss=bound(share)), 1000)
  assert not seen.multiplier.any()
  # More than a third of what may be lost is.
  assert seen.value_lost[-100:, 1].mean() > 0.25
  for name in set(expected._fields) - {"hyperparams"}:
    jax.tree.map(
      np.testing.assert_array_equal,
      getattr(state, name),
      getattr(expected, name),
    )


def test_a_bound_holds_and_its_multiplier_settles():
  free, _ = without_guardrail()
  assert LOSS * moved(free).mean() > 0.25
  state, seen = trained(LEARNER, numbers(allowed_loss=bound(0.1)), 3000)
  # What is lost on average, of a mean reward of 1; and the rest is used.
  assert 0.05 < LOSS * moved(state).mean() < 0.15
  np.testing.assert_allclose(seen.value_lost[-1000:, 1].mean(), 0.1, atol=0.03)
  # There the two groups weigh as much: no direction is better.
  last = seen.multiplier[-1000:, 1]
  np.testing.assert_allclose(last.mean(), GAIN / LOSS, rtol=0.15)
  assert last.std() < 0.1
  assert seen.value_lost[-1000:, 1].std() < 0.05
  assert not seen.multiplier[:, 0].any()
  assert not seen.multiplier_at_cap[-1000:].any()


def test_a_bound_that_no_policy_keeps_ends_at_the_cap_and_is_said(caplog):
  """The second group would have to gain half, and can gain 0.3."""
  hyperparams = numbers(
    allowed_loss=bound(-0.5), multiplier_learning_rate=0.01, multiplier_cap=5.0
  )
  trained(LEARNER, numbers(), SIZE["chunk_size"])
  programs = loop.update_chunk._cache_size()
  state, seen = trained(LEARNER, hyperparams, 2000)
  # Other numbers, the same program.
  assert loop.update_chunk._cache_size() == programs
  assert np.all(seen.multiplier[-500:, 1] == 5)
  assert np.all(seen.multiplier_at_cap[-500:] == [0, 1])
  assert np.all(seen.shortfall[-500:, 1] > 0)
  # All that it can do, and the box is not left for it.
  assert -1.2 < moved(state).mean() < -0.9
  warning = metrics.MultiplierAtCapWarning()
  warning.check(metrics.summarize(jax.tree.map(lambda m: m[-500:], seen)))
  assert "reward group 1 is at its cap" in caplog.text


def test_a_step_of_the_multipliers():
  hyperparams = numbers(
    allowed_loss=np.array([0.2, -0.3], np.float32),
    uncertainty_scale=0.0,
    multiplier_learning_rate=0.02,
  )
  batch = transitions.sample_transitions(jax.random.key(2), dataset(), 64)
  state, found = jax.jit(LEARNER.update)(start(LEARNER, hyperparams), batch)
  act = jax.jit(jax.vmap(LEARNER.act, (None, 0, None)))
  own = act(LEARNER.policy(state), batch.observation_tm1, jax.random.key(0))
  value_of = jax.jit(jax.vmap(LEARNER.value, (None, 0, 0, 0)))

  def value(action):
    return value_of(state, batch.observation_tm1, action, batch.box_tm1)

  lost = (value(jnp.zeros_like(own)) - value(own)).mean(axis=0)
  np.testing.assert_allclose(found.value_lost, lost, atol=1e-6)
  reward = np.asarray(batch.r_t, np.float64).mean(axis=0)
  shortfall = lost - np.array([0.2, -0.3]) * reward
  np.testing.assert_allclose(found.shortfall, shortfall, rtol=1e-4)
  # Adam's first step is its step size; the first group has nothing to regain.
  assert shortfall[0] < 0 < shortfall[1]
  np.testing.assert_allclose(found.multiplier, [0, 0.02], rtol=1e-4)


def test_weights_in_force_keep_their_sum():
  state = start(
    LEARNER,
    numbers()._replace(
      group_weights=jnp.array([1.0, 0.5]), multiplier_damping=2.0
    ),
  )

  def weights(multiplier, shortfall):
    changed = state._replace(
      multiplier=jnp.array(multiplier),
      multiplier_optimizer=state.multiplier_optimizer._replace(
        mu=-jnp.array(shortfall)
      ),
    )
    return constrained_rl._unconstrained(changed).hyperparams.group_weights

  np.testing.assert_array_equal(weights([0.0, 0.0], [-1.0, -2.0]), [1, 0.5])
  # 1.5 more for the second: 1.3 that has grown, 0.2 at once.
  found = weights([0.0, 1.3], [-1.0, 0.1])
  np.testing.assert_allclose(found, [0.5, 1.0], rtol=1e-6)


@pytest.mark.parametrize(
  ("field", "bad", "sentence"),
  [
    ("allowed_loss", -1.5, "expected a value in"),
    ("allowed_loss", np.nan, "expected a value in"),
    ("multiplier_cap", -1.0, "expected a value in"),
    ("multiplier_learning_rate", -1e-3, "expected a value in"),
    ("discount", 2.0, "expected a value in"),
    ("allowed_loss", np.zeros(3), "one for each of 2 reward groups"),
    ("multiplier_cap", np.zeros(3), "one for each of 2 reward groups"),
  ],
)
def test_numbers_that_cannot_be_used_are_refused(field, bad, sentence):
  with pytest.raises(ValueError, match=f"{field}: .*{sentence}"):
    start(LEARNER, numbers(**{field: bad}))
