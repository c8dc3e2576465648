"""Policies that answer each candidate by itself: the world's door, and its log."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import policies
from mtf_jax.data import session_log, transitions
from mtf_jax.data.shown_items import pair_observation
from mtf_jax.kernels import fusion
from mtf_jax.worlds import candidates, env, log_parts
from mtf_jax.worlds import rollout as rollout_lib
from mtf_jax.worlds.scores import lookup_scores
from tests.small_world import small_world

_A = 10
_COUNTS = (48, 4)  # Sessions and requests.


def _by_item(params, pair, rng_key):
  """Answers that differ between candidates: the last features decide."""
  del rng_key
  return params * jnp.tanh(pair[-_A:])


@functools.cache
def _rollout(act, shared="list", half_width=0.15, exploration="request"):
  return rollout_lib.rollout(
    jax.random.key(0),
    small_world(),
    policies.explore_each(act, shared),
    policies.PolicyParams(jnp.full(_A, 0.5), half_width, 0.0),
    *_COUNTS,
    exploration,
    observe_fn=candidates.observe_candidates,
  )


def test_one_answer_for_all_candidates_is_a_policy_of_the_request():
  found = _rollout(policies.global_action, half_width=0.0)
  action = jnp.full(_A, 0.5)
  expected = rollout_lib.rollout(
    jax.random.key(0), small_world(), policies.fixed_action, action, *_COUNTS
  )
  for name in ("observation", "reward", "feedback", "terminal"):
    np.testing.assert_allclose(
      getattr(found.log, name), getattr(expected.log, name), rtol=1e-5
    )
  assert expected.log.items is None


def test_rows_are_a_log_of_the_shown_items():
  world = small_world()
  log = rollout_lib.pack(_rollout(_by_item))
  session_log.validate(log)
  items, requests = log.items, ~log.bootstrap_only
  assert items.features.shape[1:] == (
    world.slate_size,
    len(candidates.FEATURE_NAMES),
  )
  np.testing.assert_array_equal(items.action[requests, 0], log.action[requests])
  np.testing.assert_array_equal(items.box.lower[:, 0], log.box.lower)
  # What the policy would have shown after a cut is there, without an action.
  assert log.bootstrap_only.any()
  assert np.ptp(items.features[log.bootstrap_only], axis=1).any(axis=1).all()
  assert not items.action[log.bootstrap_only].any()
  # A box is about the answer to this item's own features.
  pairs = np.asarray(
    jax.vmap(pair_observation)(log.observation, items.features)
  )
  centre = np.clip(0.5 * np.tanh(pairs[..., -_A:]) - 0.15, -1, 1)
  np.testing.assert_allclose(items.box.lower, centre, atol=1e-5)
  dataset = transitions.device_dataset(log)
  assert dataset.items.features.shape[0] == requests.size


@jax.jit
def _request(key, world):
  """The first request of a session, each candidate with a deviation of its own."""
  state = env.reset(key, world)
  observed = candidates.observe_candidates(world, state)
  decision = policies.explore_each(_by_item, "item")(
    policies.PolicyParams(jnp.full(_A, 0.5), 1.0, 0.0), observed, key
  )
  slots, _, result = env.serve(world, state, decision.action)
  logged = candidates.as_logged(world, state, observed, decision, slots)
  offered = env.candidate_slots(world, state)
  scores = lookup_scores(world.scores, state.user, offered)
  features = candidates.item_features(world, state.user, slots)
  seen = (env.observe(world, state), observed, offered, scores, features)
  return state, seen, decision, slots, result, logged


def test_features_are_those_of_the_items_in_range():
  world = small_world()
  state, seen, *_ = jax.device_get(_request(jax.random.key(1), world))
  observation, observed, offered, scores, _ = seen
  np.testing.assert_array_equal(observed.observation, observation)
  features = observed.features
  assert np.abs(features).max() <= 2
  for task in range(scores.shape[1]):
    order = np.argsort(features[:, task], kind="stable")
    assert np.all(np.diff(scores[order, task]) >= 0)
  pool = np.asarray(world.pool)[int(state.user), offered]
  duration = np.asarray(world.response.duration_bucket)[pool]
  assert np.corrcoef(duration, features[:, -1])[0, 1] == pytest.approx(1)


def test_each_candidate_is_ranked_by_its_own_weights():
  world = small_world()
  state, seen, decision, slots, result, _ = jax.device_get(
    _request(jax.random.key(4), world)
  )
  *_, offered, scores, _ = seen
  mean, fused = scores.mean(axis=0), []
  for own, one in zip(scores, decision.action, strict=True):
    power, bias = fusion.weights_from_action(one, world.fusion_spec)
    fused.append(np.sum(power * np.log((own + bias) / (mean + bias))))
  best = offered[np.argsort(-np.asarray(fused))[: world.slate_size]]
  np.testing.assert_array_equal(slots, best)
  pool = np.asarray(world.pool)
  np.testing.assert_array_equal(result.items, pool[int(state.user), best])
  with pytest.raises(ValueError, match=r"action: expected shape \(10,\), or"):
    env.serve(world, state, decision.action[1:])


def test_logged_items_are_the_shown_ones():
  _, seen, decision, slots, _, logged = jax.device_get(
    _request(jax.random.key(5), small_world())
  )
  observation, _, offered, _, features = seen
  found, first, items = logged
  np.testing.assert_array_equal(found, observation)
  np.testing.assert_array_equal(items.features, features)
  # Nobody else has these actions: each was drawn for its candidate.
  for action, slot in zip(items.action, slots, strict=True):
    (place,) = np.flatnonzero((decision.action == action).all(axis=1))
    assert offered[place] == slot
  np.testing.assert_array_equal(first.action, items.action[0])
  assert first.log_prob.shape == ()


def _deviations(shared, exploration="request"):
  log = rollout_lib.pack(_rollout(_by_item, shared, exploration=exploration))
  lower, upper = log.items.box
  rows = ~log.bootstrap_only
  deviation = (log.items.action - lower) / (upper - lower)
  return deviation[rows], log.session_id[rows], log.log_prob[rows]


def test_a_list_shares_its_deviation_or_each_item_has_its_own():
  together, _, log_prob = _deviations("list")
  np.testing.assert_allclose(together, together[:, :1].repeat(6, 1), atol=1e-5)
  np.testing.assert_allclose(log_prob, -_A * np.log(0.3), rtol=1e-4)
  alone, _, _ = _deviations("item")
  assert np.abs(alone - alone[:, :1]).max(axis=2)[:, 1:].min() > 0.01
  held, session, _ = _deviations("list", "session")
  for number in np.unique(session):
    rows = held[session == number]
    np.testing.assert_allclose(
      rows, np.broadcast_to(rows[0], rows.shape), atol=1e-5
    )
  with pytest.raises(ValueError, match="shared: expected one of list, item"):
    policies.explore_each(_by_item, "slate")


def test_parts_are_the_rollout():
  whole = rollout_lib.pack(_rollout(_by_item))
  parts = log_parts.log_sessions(
    jax.random.key(0),
    small_world(),
    policies.explore_each(_by_item),
    policies.PolicyParams(jnp.full(_A, 0.5), 0.15, 0.0),
    *_COUNTS,
    part=32,
    observe_fn=candidates.observe_candidates,
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5), parts, whole
  )
