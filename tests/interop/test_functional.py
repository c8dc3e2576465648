"""The functional form steps through the sessions that `rollout` logs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import policies
from mtf_jax.interop import functional
from mtf_jax.interop.six_results import SixResults
from mtf_jax.io import InputError
from mtf_jax.worlds import env
from mtf_jax.worlds import rollout as rollout_lib

pytestmark = pytest.mark.usefixtures("quick_to_compile")

_SESSIONS, _REQUESTS = 32, 8
_KEY = 7
_ZERO = jnp.zeros(10, jnp.float32)


def _linear(params, observation, rng_key):
  del rng_key
  return 0.3 * jnp.tanh(params @ observation)


def _explore(params, observation, rng_key):
  """A policy in service that explores, as sessions are logged."""
  own = policies.PolicyParams(params, jnp.float32(0.15), jnp.float32(0.0))
  return policies.explore_around(_linear)(own, observation, rng_key)


@pytest.fixture(scope="module")
def actor(small_world):
  shape = (10, len(small_world.observation_names))
  return 0.2 * jax.random.normal(jax.random.key(1), shape)


@pytest.fixture(scope="module")
def rows(small_world, actor):
  return rollout_lib.rollout(
    *(jax.random.key(_KEY), small_world, _explore, actor, _SESSIONS, _REQUESTS)
  )


def _replay(environment, params, log, to_action):
  """Steps through all sessions with the logged actions."""
  keys, _ = rollout_lib.session_keys(jax.random.key(_KEY), _SESSIONS)
  start = jax.vmap(environment.reset, (0, None))(keys, params)

  def request(carry, action):
    observation, state = carry
    sent = to_action(observation, action)
    step = jax.vmap(environment.step_env, (None, 0, 0, None))
    following, state, reward, done, info = step(
      jax.random.key(0), state, sent, params
    )
    return (following, state), (observation, reward, done, info)

  actions = jnp.moveaxis(log.action[:, :_REQUESTS], 1, 0)
  _, out = jax.lax.scan(request, start, actions)
  return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), out)


def _check_equal(rows, out, weights):
  observation, reward, done, info = jax.tree.map(np.asarray, out)
  log, valid = rows.log, np.asarray(rows.valid)
  served = valid[:, :_REQUESTS]
  assert served.any() and not served.all()

  def equal(ours, logged, rtol=1e-5):
    logged = np.asarray(logged)[:, :_REQUESTS]
    np.testing.assert_allclose(ours[served], logged[served], rtol, 1e-6)

  equal(observation, log.observation)
  equal(info["reward_groups"], log.reward)
  equal(info["feedback"], log.feedback)
  equal(reward, np.asarray(log.reward) @ np.asarray(weights), 1e-4)
  equal(info["fusion_action"], log.action)
  terminal = np.asarray(log.terminal)[:, :_REQUESTS]
  np.testing.assert_array_equal(info["terminated"][served], terminal[served])
  np.testing.assert_array_equal(info["discount"], 1.0 - info["terminated"])
  # Cut after the last request where the log has a row of what follows.
  cut = np.asarray(log.bootstrap_only)[:, _REQUESTS]
  np.testing.assert_array_equal(info["truncated"][:, -1], cut)
  assert not info["truncated"][:, :-1].any()
  np.testing.assert_array_equal(done, info["terminated"] | info["truncated"])
  # A user who has left brings nothing and stays away.
  assert not reward[~served].any() and done[~served].all()


def test_equals_the_rollout_request_for_request(small_world, rows):
  weights = jnp.asarray([2.0, 0.5])
  environment, params = functional.make(
    small_world, max_requests=_REQUESTS, reward_weights=weights
  )
  replay = jax.jit(
    lambda params: _replay(environment, params, rows.log, lambda _, a: a)
  )
  _check_equal(rows, replay(params), weights)


def test_a_box_around_a_policy_takes_deviations(small_world, rows, actor):
  environment, params = functional.make(
    small_world,
    max_requests=_REQUESTS,
    baseline=_linear,
    baseline_params=actor,
    half_width=0.15,
  )

  def deviation(observation, action):
    centre = jax.vmap(_linear, (None, 0, None))(actor, observation, None)
    return (action - centre) / 0.15

  replay = jax.jit(
    lambda params: _replay(environment, params, rows.log, deviation)
  )
  _check_equal(rows, replay(params), jnp.ones(2))
  # Beyond the box counts as its edge, and no action leaves [-1, 1].
  observation, _ = environment.reset(jax.random.key(0), params)
  centre = _linear(actor, observation, None)
  key = jax.random.key(1)
  wide = environment.fusion_action(key, observation, 5 * (_ZERO + 1), params)
  np.testing.assert_allclose(wide, centre + 0.15, rtol=1e-5)
  params = params.replace(half_width=jnp.float32(3.0))
  wide = environment.fusion_action(key, observation, _ZERO - 1, params)
  np.testing.assert_array_equal(wide, _ZERO - 1)


def test_step_opens_the_next_session_where_one_is_done(small_world):
  environment, params = functional.make(small_world, max_requests=2)
  key = jax.random.key(3)
  before, state = environment.reset(jax.random.key(2), params)
  step_env = jax.jit(environment.step_env)
  for number in (1, 2):
    after, following, reward, done, info = environment.step(
      key, state, _ZERO, params
    )
    step_key, reset_key = jax.random.split(key)
    alone = step_env(step_key, state, _ZERO, params)
    np.testing.assert_allclose(reward, alone[2], rtol=1e-6)
    np.testing.assert_allclose(info["final_observation"], alone[0], rtol=1e-6)
    if info["terminated"]:
      break
    assert bool(done) == (number == 2)
    if number == 1:
      np.testing.assert_allclose(after, alone[0], rtol=1e-6)
      assert not np.allclose(after, before)
    state = following
  opened = jax.jit(env.reset)(reset_key, small_world)
  jax.tree.map(np.testing.assert_array_equal, following, opened)
  np.testing.assert_allclose(after, env.observe(small_world, opened), rtol=1e-6)


def test_six_results_are_the_five_with_the_ends_apart(small_world):
  environment, params = functional.make(small_world, max_requests=2)
  six = SixResults(environment)
  keys = jax.random.split(jax.random.key(5), 64)
  _, state = jax.vmap(six.reset, (0, None))(keys, params)
  actions = jnp.zeros((64, six.num_actions))
  ends = []
  for _ in range(2):
    args = keys, state, actions, params
    five = jax.vmap(environment.step, (0, 0, 0, None))(*args)
    found = jax.vmap(six.step, (0, 0, 0, None))(*args)
    observation, following, reward, terminated, truncated, info = found
    jax.tree.map(
      np.testing.assert_array_equal,
      (observation, following, reward, terminated | truncated, info),
      five,
    )
    *_, alone, _ = jax.vmap(six.step_env, (0, 0, 0, None))(*args)
    np.testing.assert_array_equal(alone, terminated)
    _, after, *_ = jax.vmap(environment.step_env, (0, 0, 0, None))(*args)
    cut = jax.vmap(six.is_truncated, (0, None))(after, params)
    np.testing.assert_array_equal(cut, truncated)
    assert not np.any(terminated & truncated)
    ends.append((np.asarray(terminated), np.asarray(truncated)))
    state = following
  # Some leave, and of those who stay all are cut at the second request.
  assert ends[0][0].any() and not ends[0][1].any() and ends[1][1].any()


def test_a_session_goes_on_for_another_limit_without_compiling(small_world):
  environment, params = functional.make(small_world, max_requests=1)
  other, more = functional.make(small_world, max_requests=9)
  assert environment == other and hash(environment) == hash(other)
  _, state = environment.reset(jax.random.key(2), params)
  *_, done, _ = environment.step(jax.random.key(1), state, _ZERO, params)
  assert done
  compiled = type(environment).step._cache_size()
  *_, info = other.step(jax.random.key(1), state, _ZERO, more)
  assert not info["truncated"]
  assert type(environment).step._cache_size() == compiled


def test_no_array_of_the_world_is_a_constant_of_the_program(small_world):
  environment, params = functional.make(small_world)
  _, state = environment.reset(jax.random.key(0), params)
  traced = jax.make_jaxpr(environment.step)(
    jax.random.key(0), state, _ZERO, params
  )
  assert sum(np.size(constant) for constant in traced.consts) < 100


def test_spaces(small_world):
  environment, params = functional.make(small_world)
  space = environment.action_space(params)
  assert space.shape == (environment.num_actions,) == (small_world.num_actions,)
  action = space.sample(jax.random.key(0))
  assert space.contains(action) and not space.contains(action + 2)
  observation, _ = environment.reset(jax.random.key(0), params)
  seen = environment.observation_space(params)
  assert seen.shape == observation.shape and seen.contains(observation)
  assert environment.observation_space() == seen


def test_a_policy_of_the_environment_is_one_of_the_package(small_world, actor):
  environment, params = functional.make(
    small_world, baseline=_linear, baseline_params=actor
  )

  def policy(own, observation, rng_key):
    del observation, rng_key
    return own

  act = functional.act_in(environment, policy)
  assert act is functional.act_in(environment, policy)
  log = rollout_lib.pack(
    rollout_lib.rollout(
      *(jax.random.key(0), small_world, act, (params, _ZERO + 1), 4, 3)
    )
  )
  served = ~log.bootstrap_only
  centre = 0.3 * np.tanh(log.observation @ np.asarray(actor).T)
  np.testing.assert_allclose(
    log.action[served], centre[served] + 0.15, rtol=1e-4, atol=1e-5
  )


def test_refusals(small_world):
  with pytest.raises(InputError, match=r"max_requests: expected 1 .* found 0"):
    functional.make(small_world, max_requests=0)
  with pytest.raises(InputError, match=r"reward_weights: .*\(2,\).*\(3,\)"):
    functional.make(small_world, reward_weights=jnp.ones(3))
  environment, params = functional.make(small_world)
  _, state = environment.reset(jax.random.key(0), params)
  with pytest.raises(ValueError, match=r"action: expected shape \(10,\)"):
    environment.step(jax.random.key(0), state, jnp.zeros(1), params)
