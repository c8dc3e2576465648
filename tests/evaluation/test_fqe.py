import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import networks
from mtf_jax.data import transitions
from mtf_jax.evaluation.fqe import first_rows, policy_value
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.learners import fqe
from mtf_jax.learners.base import normalization_from
from mtf_jax.learners.fqe import Hyperparams
from mtf_jax.training import loop
from tests.session_logs import log_of, random_log

_SLOPE = np.array([0.4, -0.3], np.float32)
_HALF_WIDTH = 0.15
_DISCOUNT = 0.8


def _constant(params, observation, rng_key):
  """A policy of one action."""
  del observation, rng_key
  return params


def _log(rows=6000, noise=0.0):
  """Sessions of three requests, reward `1 + slope . u`, u anew each request."""
  rng = np.random.default_rng(0)
  u = rng.uniform(-1, 1, (rows, 2))
  reward = 1 + u @ _SLOPE + noise * rng.standard_normal(rows)
  step = np.arange(rows) % 3
  return log_of(
    np.eye(3)[step],
    _HALF_WIDTH * u,
    reward[:, None],
    session_length=3,
    half_width=_HALF_WIDTH,
  )


def _fit(
  log,
  action,
  critic,
  hyperparams,
  *,
  updates=1500,
  batch_size=256,
  num_samples=0,
):
  dataset = transitions.device_dataset(log)
  learner = fqe.fqe(_constant, critic, num_samples=num_samples)
  example = jax.tree.map(
    lambda leaf: leaf[0],
    transitions.sample_transitions(jax.random.key(0), dataset, 1),
  )
  state = learner.init(
    jax.random.key(1),
    example,
    hyperparams,
    normalization_from(dataset),
    policy_params=jnp.asarray(action, jnp.float32),
  )
  state = loop.train(
    learner,
    loop.start(jax.random.key(2), state),
    dataset,
    updates,
    batch_size=batch_size,
    chunk_size=updates,
  ).learner
  return (
    learner,
    state,
    policy_value(
      learner, state, jax.random.key(3), *first_rows(dataset, log.step)
    ),
  )


_FAST = Hyperparams(
  discount=_DISCOUNT, critic_learning_rate=3e-3, target_step_size=0.02
)


@pytest.mark.parametrize("deviation", [(0.0, 0.0), (1.0, -1.0)])
def test_value_of_a_policy_is_that_of_all_its_actions(deviation):
  deviation = np.array(deviation, np.float32)
  _, _, found = _fit(
    _log(), _HALF_WIDTH * deviation, networks.box_critic(1, 2, (16,)), _FAST
  )
  reward = 1 + deviation @ _SLOPE
  expected = reward * (1 + _DISCOUNT + _DISCOUNT**2)
  assert found.value == pytest.approx(expected, rel=0.02)
  assert found.outside_share == 0 and not found.extrapolates
  assert found.effective_sample_size == 2000
  # It claims no interval.
  assert np.isnan(found.low) and np.isnan(found.high)


def test_the_penalty_shrinks_slopes_as_two_over_two_plus_alpha():
  alpha, num_samples = 5.0, 16
  log = _log()._replace(
    terminal=np.ones(6000, bool),
    step=np.zeros(6000, np.int32),
    session_id=np.arange(6000, dtype=np.int32),
  )
  box = ActionBox(*jnp.asarray([[-1, -1], [1, 1]], jnp.float32) * _HALF_WIDTH)
  corners = _HALF_WIDTH * jnp.asarray(
    [[1, 0], [-1, 0], [0, 1], [0, -1]], jnp.float32
  )

  def slopes(scale):
    learner, state, _ = _fit(
      log,
      np.zeros(2),
      networks.box_critic(1, 1, (4,)),
      _FAST._replace(conservative_scale=scale, critic_learning_rate=1e-3),
      batch_size=2048,
      num_samples=num_samples,
    )
    q = [
      learner.value(state, jnp.asarray(row), action, box)[0]
      for row in np.eye(3, dtype=np.float32)
      for action in corners
    ]
    q = np.array(q).reshape(3, 2, 2)
    return (q[:, :, 0] - q[:, :, 1]).mean(axis=0) / 2

  np.testing.assert_allclose(slopes(0.0), _SLOPE, rtol=0.03)
  # A mean over few samples misses their share of the curvature.
  shrunk = 2 / (2 + alpha * (1 - 1 / num_samples))
  np.testing.assert_allclose(slopes(alpha), _SLOPE * shrunk, rtol=0.08)


def test_one_update_has_the_loss_of_its_equation():
  log = random_log()
  dataset = transitions.device_dataset(log)
  batch = transitions.sample_transitions(jax.random.key(5), dataset, 32)
  critic = networks.mlp_critic(2, 3, (8,))

  def act(params, observation, rng_key):
    del rng_key
    return jnp.tanh(observation @ params)

  learner = fqe.fqe(act, critic, num_samples=0)
  params = jnp.asarray(
    np.random.default_rng(0).normal(size=(3, 2)), jnp.float32
  )
  state = learner.init(
    jax.random.key(0),
    jax.tree.map(lambda leaf: leaf[0], batch),
    Hyperparams(discount=0.7),
    policy_params=params,
  )
  after, metrics = jax.jit(learner.update)(state, batch)
  q = np.asarray(
    critic.apply(
      state.critic_params,
      batch.observation_tm1,
      batch.action_tm1,
      batch.box_tm1,
    ),
    np.float64,
  )
  action_t = np.tanh(np.asarray(batch.observation_t) @ np.asarray(params))
  q_t = critic.apply(
    state.target_critic_params,
    batch.observation_t,
    jnp.asarray(action_t),
    batch.box_t,
  )
  weight = 0.7 * np.asarray(batch.discount_t, np.float64)[:, None, None]
  targets = np.asarray(batch.r_t, np.float64)[:, :, None] + weight * np.asarray(
    q_t, np.float64
  )
  expected = np.mean(np.square(q - targets))
  assert metrics.td_loss == pytest.approx(expected, rel=1e-5)
  assert metrics.critic_loss == metrics.td_loss
  # Only the critics and the key moved.
  np.testing.assert_array_equal(after.policy_params, params)
  moved = jax.tree.map(
    lambda new, old: float(jnp.max(jnp.abs(new - old))),
    after.critic_params,
    state.critic_params,
  )
  assert max(jax.tree.leaves(moved)) == pytest.approx(3e-4, rel=1e-2)


def test_a_state_after_an_exit_is_never_read():
  log = random_log()
  dataset = transitions.device_dataset(log)
  batch = transitions.sample_transitions(jax.random.key(5), dataset, 32)
  learner = fqe.fqe(_constant, networks.box_critic(2, 1, (8,)), num_samples=4)
  state = learner.init(
    jax.random.key(0),
    jax.tree.map(lambda leaf: leaf[0], batch),
    Hyperparams(conservative_scale=1.0),
    policy_params=jnp.zeros(2, jnp.float32),
  )
  ended = batch._replace(discount_t=jnp.zeros_like(batch.discount_t))
  unknown = jax.tree.map(
    lambda leaf: jnp.full_like(leaf, jnp.nan),
    (batch.observation_t, batch.box_t),
  )
  hidden = ended._replace(observation_t=unknown[0], box_t=unknown[1])
  update = jax.jit(learner.update)
  expected, found = (update(state, each)[1] for each in (ended, hidden))
  assert np.isfinite(found.critic_loss)
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  # Other numbers are the same program.
  numbers = jax.tree.map(lambda leaf: leaf / 2, state.hyperparams)
  other = update(state._replace(hyperparams=numbers), ended)[1]
  assert other.critic_loss != expected.critic_loss
  assert update._cache_size() == 1


def test_outside_the_box_is_told():
  log = _log(600)
  action = np.array([1.5 * _HALF_WIDTH, 0])
  _, _, found = _fit(
    log, action, networks.box_critic(1, 1, (8,)), _FAST, updates=2
  )
  assert found.outside_share == 1 and found.extrapolates


@pytest.mark.parametrize(
  ("numbers", "num_samples", "name"),
  [
    ({"discount": 1.5}, 10, "discount"),
    ({"conservative_scale": -1.0}, 10, "conservative_scale"),
    ({"conservative_scale": 1.0}, 0, "conservative_scale"),
  ],
)
def test_bad_numbers_are_refused(numbers, num_samples, name):
  dataset = transitions.device_dataset(random_log())
  batch = transitions.sample_transitions(jax.random.key(5), dataset, 1)
  learner = fqe.fqe(
    _constant, networks.box_critic(2, 1, (8,)), num_samples=num_samples
  )
  with pytest.raises(ValueError, match=f"{name}: expected a value in"):
    learner.init(
      jax.random.key(0),
      jax.tree.map(lambda leaf: leaf[0], batch),
      Hyperparams(**numbers),
      policy_params=jnp.zeros(2, jnp.float32),
    )
