import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import policies
from mtf_jax.data import session_log
from mtf_jax.kernels import fusion
from mtf_jax.worlds import env, leaving
from mtf_jax.worlds import returns as returns_lib
from mtf_jax.worlds import rollout as rollout_lib
from mtf_jax.worlds.scores import lookup_scores

pytestmark = pytest.mark.usefixtures("quick_to_compile")

_NUM_SESSIONS = 64
_MAX_REQUESTS = 10
_ZERO = jnp.zeros(10)
# One program for all tests: run operation by operation, each would compile.
_reset, _step = jax.jit(env.reset), jax.jit(env.step)


def _rollout(world, action=_ZERO, act=policies.explore_in_box, seed=0):
  return rollout_lib.rollout(
    jax.random.key(seed), world, act, action, _NUM_SESSIONS, _MAX_REQUESTS
  )


def _impressions(world, action, seed=0):
  return rollout_lib.impressions(
    jax.random.key(seed),
    world,
    policies.fixed_action,
    action,
    _NUM_SESSIONS,
    _MAX_REQUESTS,
  )


@pytest.mark.parametrize("name", leaving.LEAVING_MODELS)
def test_rollout_is_a_valid_log(small_world, name):
  rows = _rollout(small_world.with_leaving(name))
  log = rollout_lib.pack(rows)
  session_log.validate(log)
  assert log.observation.shape[1] == len(small_world.observation_names)
  assert len(np.unique(log.session_id)) == _NUM_SESSIONS
  # Every session ends once: the user left, or the cut row says so.
  assert np.sum(log.terminal | log.bootstrap_only) == _NUM_SESSIONS
  np.testing.assert_allclose(
    log.log_prob[~log.bootstrap_only], -10 * np.log(0.3), rtol=1e-4
  )


def test_same_key_same_rows(small_world):
  first, second = _rollout(small_world), _rollout(small_world)
  jax.tree.map(np.testing.assert_array_equal, first, second)
  other = _rollout(small_world, seed=1)
  assert not np.array_equal(first.log.observation, other.log.observation)


def test_ended_sessions_emit_nothing(small_world):
  rows = _rollout(small_world)
  gone = ~np.asarray(rows.valid)
  assert gone.any()
  for leaf in jax.tree.leaves(rows.log):
    assert not np.any(np.asarray(leaf)[gone])

  key = jax.random.key(0)
  state = _reset(key, small_world)._replace(active=jnp.zeros((), bool))
  following, result = _step(small_world, state, _ZERO)
  jax.tree.map(np.testing.assert_array_equal, following, state)
  assert not any(np.any(np.asarray(leaf)) for leaf in jax.tree.leaves(result))


def test_session_stepped_by_hand_equals_its_rows(small_world):
  rows = _rollout(small_world, act=policies.fixed_action)
  world_keys, _ = rollout_lib.session_keys(jax.random.key(0), _NUM_SESSIONS)
  observe = jax.jit(env.observe)
  number = int(np.argmax(rows.valid.sum(axis=1)))
  state = _reset(world_keys[number], small_world)
  for n in range(_MAX_REQUESTS):
    assert bool(state.active) == bool(rows.valid[number, n])
    if not state.active:
      break
    np.testing.assert_allclose(
      observe(small_world, state), rows.log.observation[number, n], rtol=1e-5
    )
    state, result = _step(small_world, state, _ZERO)
    np.testing.assert_allclose(
      result.feedback.sum(axis=0), rows.log.feedback[number, n], rtol=1e-5
    )
    np.testing.assert_allclose(
      result.reward, rows.log.reward[number, n], rtol=1e-5
    )
    assert bool(result.terminal) == bool(rows.log.terminal[number, n])


def test_request_shows_the_best_candidates(small_world):
  state = _reset(jax.random.key(4), small_world)
  slots = env.candidate_slots(small_world, state)
  assert len(np.unique(slots)) == small_world.num_candidates
  action = jnp.linspace(-0.5, 0.5, 10)
  scores = np.asarray(lookup_scores(small_world.scores, state.user, slots))
  weights = fusion.weights_from_action(action, small_world.fusion_spec)
  fused = np.log(scores + np.asarray(weights.bias)) @ np.asarray(weights.power)
  best = np.asarray(slots)[np.argsort(-fused)[: small_world.slate_size]]
  _, result = _step(small_world, state, action)
  expected = np.asarray(small_world.pool)[int(state.user), best]
  np.testing.assert_array_equal(result.items, expected)


def test_common_random_numbers(small_world):
  one = _impressions(small_world, _ZERO)
  other = _impressions(small_world, jnp.full(10, 0.4))
  np.testing.assert_array_equal(one.user, other.user)
  # The first slates overlap in part, in other positions; a common item has met
  # the same noise and so the same feedback.
  common = 0
  for n in range(_NUM_SESSIONS):
    items_a, items_b = (
      np.asarray(one.items[n, 0]),
      np.asarray(other.items[n, 0]),
    )
    for a, item in enumerate(items_a):
      for b in np.flatnonzero(items_b == item):
        common += 1
        np.testing.assert_array_equal(
          one.feedback[n, 0, a], other.feedback[n, 0, b]
        )
  assert common > _NUM_SESSIONS
  assert not np.array_equal(one.items[:, 0], other.items[:, 0])


def test_exploration_does_not_move_the_world(small_world):
  explored = _rollout(small_world)
  fixed = _rollout(small_world, act=policies.fixed_action)
  np.testing.assert_array_equal(
    explored.log.observation[:, 0], fixed.log.observation[:, 0]
  )


@pytest.mark.parametrize("exploration", policies.EXPLORATIONS)
def test_exploration_is_held_over_a_session(small_world, exploration):
  rows = rollout_lib.rollout(
    *(jax.random.key(0), small_world, policies.explore_in_box, _ZERO),
    *(1024, 4, exploration),
  )
  log, box = rows.log, rows.log.box
  width = np.asarray(box.upper - box.lower)
  width = np.where(width > 0, width, 1)
  place = np.asarray(log.action - box.lower) / width
  served = np.asarray(rows.valid & ~log.bootstrap_only)
  assert served[:, 1].sum() > 500
  held = exploration == "session"
  np.testing.assert_array_equal(log.exploration_held, served & held)
  second = place[served[:, 1]][:, 1] - place[served[:, 1]][:, 0]
  # Of one session: the same place in the box, or a new one of all components.
  if exploration == "session":
    np.testing.assert_allclose(second, 0, atol=1e-6)
  else:
    assert np.all(np.abs(second) > 0)
    assert np.std(second) == pytest.approx(1 / 6**0.5, abs=0.02)
  # Over sessions: uniform in the box, each component.
  first = np.sort(place[:, 0], axis=0)
  distance = np.abs(first - (np.arange(1024)[:, None] + 0.5) / 1024)
  assert distance.max() < 2.2 / 1024**0.5
  # Exploration moves neither the users nor the box around the policy.
  fixed = _rollout(small_world, act=policies.fixed_action)
  count = _NUM_SESSIONS
  again = rollout_lib.rollout(
    *(jax.random.key(0), small_world, policies.explore_in_box, _ZERO),
    *(count, 10, exploration),
  )
  np.testing.assert_array_equal(
    again.log.observation[:, 0], fixed.log.observation[:, 0]
  )
  np.testing.assert_allclose(box.upper[served], 0.15, rtol=1e-6)


def test_an_unknown_exploration_is_refused(small_world):
  with pytest.raises(ValueError, match=r"exploration: .*, found 'user'"):
    rollout_lib.rollout(
      *(jax.random.key(0), small_world, policies.explore_in_box, _ZERO),
      *(4, 2, "user"),
    )


@pytest.mark.parametrize("exploration", policies.EXPLORATIONS)
def test_one_key_explores_alike_when_logged_and_when_judged(
  small_world, exploration
):
  """The actions of both are written down where they are taken."""
  few = small_world.replace(population=small_world.population[:16])
  table = returns_lib.expected_rewards(few)
  taken = []

  def act(params, observation, rng_key):
    decision = policies.explore_in_box(params, observation, rng_key)
    jax.debug.callback(
      lambda *seen: taken.append(np.concatenate(seen)),
      observation,
      decision.action,
    )
    return decision

  def judged(keys, held):
    return returns_lib.session_return(
      *(few, table, act, _ZERO, 5, env.observe, *keys, held)
    )

  rows = rollout_lib.rollout(
    jax.random.key(2), few, act, _ZERO, 8, 5, exploration
  )
  jax.effects_barrier()
  taken.clear()
  keys = rollout_lib.session_keys(jax.random.key(2), 8)
  held = jnp.asarray(exploration == "session")
  returns = jax.jit(jax.vmap(judged, in_axes=(0, None)))(keys, held)
  jax.effects_barrier()
  assert len(taken) == 8 * 5
  # Judging goes on where a user has left; what was logged is all there.
  log = rollout_lib.pack(rows)
  served = ~log.bootstrap_only
  logged = np.concatenate([log.observation, log.action], axis=1)[served]
  assert len(logged) > 16
  gap = np.abs(np.asarray(taken)[None] - logged[:, None]).max(axis=2)
  np.testing.assert_array_less(gap.min(axis=1), 1e-6)
  np.testing.assert_allclose(
    returns.sampled, rows.log.reward.sum(axis=1), rtol=1e-5
  )


def test_pool_is_walked_without_repeats(small_world):
  state = _reset(jax.random.key(2), small_world)
  requests = small_world.pool.shape[1] // small_world.num_candidates
  slots = jnp.concatenate(
    [
      env.candidate_slots(
        small_world, state._replace(step=jnp.asarray(n, jnp.int32))
      )
      for n in range(requests)
    ]
  )
  assert len(np.unique(slots)) == slots.size


def test_no_recompile_across_worlds_of_one_size(small_world):
  traces = []

  def act(params, observation, rng_key):
    traces.append(observation.shape)
    return policies.fixed_action(params, observation, rng_key)

  _rollout(small_world, act=act)
  once = len(traces)
  assert once
  spec = small_world.fusion_spec
  other = small_world.replace(
    pool=small_world.pool[::-1],
    group_weights=small_world.group_weights * 2.0,
    fusion_spec=spec._replace(power_rate=spec.power_rate * 0.5),
    leaving=small_world.leaving._replace(floor=jnp.float32(-0.2)),
  )
  _rollout(other, action=jnp.full(10, 0.1, jnp.float32), act=act)
  assert len(traces) == once


def test_returns_agree_with_sampled_logs(small_world):
  few = small_world.replace(population=small_world.population[:64])
  table = returns_lib.expected_rewards(few)
  num_sessions = 8192
  returns = returns_lib.session_returns(
    jax.random.key(5),
    few,
    table,
    policies.fixed_action,
    _ZERO,
    num_sessions,
    _MAX_REQUESTS,
  )
  expected, sampled = (
    np.asarray(x).sum(axis=1) for x in (returns.expected, returns.sampled)
  )
  difference = expected - sampled
  error = difference.std() / np.sqrt(num_sessions)
  assert abs(difference.mean()) < 4 * error
  assert expected.std() < sampled.std()
  rows = rollout_lib.rollout(
    jax.random.key(5),
    few,
    policies.fixed_action,
    _ZERO,
    num_sessions,
    _MAX_REQUESTS,
  )
  logged = np.asarray(rows.log.reward).sum(axis=(1, 2))
  np.testing.assert_allclose(sampled, logged, rtol=1e-4, atol=1e-3)


def test_wrong_action_is_refused(small_world):
  state = _reset(jax.random.key(0), small_world)
  with pytest.raises(ValueError, match="action"):
    env.step(small_world, state, jnp.zeros(5))
