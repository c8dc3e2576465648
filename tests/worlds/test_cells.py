"""Requests ranked by monotone cells: the world's door, and its log."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import policies
from mtf_jax.data import session_log, transitions
from mtf_jax.kernels import fusion
from mtf_jax.kernels.monotone import MonotoneCells, monotone_fused_score
from mtf_jax.worlds import cells as cells_lib
from mtf_jax.worlds import env, log_parts
from mtf_jax.worlds import rollout as rollout_lib
from mtf_jax.worlds.scores import lookup_scores
from tests.small_world import small_world

pytestmark = pytest.mark.usefixtures("quick_to_compile")

_K, _A = 5, 10
_COUNTS = (48, 4)  # Sessions and requests.
_ACTION = jnp.linspace(-0.5, 0.5, _A)


@functools.cache
def _cells():
  return jax.jit(cells_lib.formula_cells)(small_world(), _ACTION)


def _of_state(params, observation):
  """Cells that differ between states."""
  stretch = 1 + jax.nn.sigmoid(10 * observation[0])
  return params._replace(increments=params.increments * stretch)


@functools.cache
def _rollout(cells=policies.same_cells, half_width=0.15, exploration="request"):
  return rollout_lib.rollout(
    jax.random.key(0),
    small_world(),
    policies.explore_cells(cells),
    policies.PolicyParams(_cells(), half_width, 0.0),
    *_COUNTS,
    exploration,
  )


def test_cells_of_the_formula_have_equal_steps_and_cover_all_scores():
  world, cells = small_world(), _cells()
  weights = fusion.weights_from_action(_ACTION, world.fusion_spec)
  values = np.asarray(world.scores.values)
  np.testing.assert_allclose(cells.knots[:, 0], values.min(1), rtol=1e-6)
  np.testing.assert_allclose(cells.knots[:, -1], values.max(1), rtol=1e-4)
  assert np.all(np.diff(cells.knots, axis=1) > 0)
  steps = cells.increments
  np.testing.assert_allclose(
    steps, np.broadcast_to(steps[:, :1], steps.shape), rtol=2e-3
  )
  low = weights.power * np.log(values.min(1) + weights.bias)
  high = weights.power * np.log(values.max(1) + weights.bias)
  np.testing.assert_allclose(cells.start, low, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(cells.start + steps.sum(1), high, atol=1e-3)


def test_at_rest_they_serve_nearly_what_the_formula_serves():
  """All that is between them are chords."""

  @jax.jit
  def slates(key, world, cells):
    state = env.reset(key, world)
    by_formula, *_ = env.serve(world, state, _ACTION)
    by_cells, *_ = env.serve(world, state, jnp.zeros(_K), cells)
    return by_formula, by_cells

  keys = jax.random.split(jax.random.key(2), 128)
  by_formula, by_cells = jax.vmap(slates, (0, None, None))(
    keys, small_world(), _cells()
  )
  both = (by_formula[:, :, None] == by_cells[:, None, :]).any(2)
  assert np.mean(both) > 0.97
  few = jax.jit(cells_lib.formula_cells, static_argnums=2)
  _, rough = jax.vmap(slates, (0, None, None))(
    keys, small_world(), few(small_world(), _ACTION, 2)
  )
  assert np.mean((by_formula[:, :, None] == rough[:, None, :]).any(2)) < 0.95


@functools.partial(jax.jit, static_argnames="cells_of")
def _request(key, world, cells, cells_of):
  state = env.reset(key, world)
  decision = policies.explore_cells(cells_of)(
    policies.PolicyParams(cells, 1.0, 0.0), env.observe(world, state), key
  )
  slots, *_ = env.serve(world, state, decision.action, decision.cells)
  offered = env.candidate_slots(world, state)
  scores = lookup_scores(world.scores, state.user, offered)
  logged = cells_lib.as_logged(world, state, decision.cells)
  return env.observe(world, state), decision, slots, offered, scores, logged


def test_candidates_are_ranked_by_the_cells_of_the_state_and_the_action():
  world = small_world()
  found = jax.vmap(_request, (0, None, None, None))
  observation, decision, slots, offered, scores, logged = found(
    jax.random.split(jax.random.key(4), 64), world, _cells(), _of_state
  )
  cells = jax.vmap(_of_state, (None, 0))(_cells(), observation).increments
  np.testing.assert_allclose(decision.cells.increments, cells, rtol=1e-6)
  assert np.ptp(cells, axis=0).max() > 0.01

  def best(action):
    fused = jax.vmap(monotone_fused_score)(scores, decision.cells, action)
    order = np.argsort(-np.asarray(fused), axis=1, kind="stable")
    return np.take_along_axis(np.asarray(offered), order, 1)[:, :6]

  agrees = (best(decision.action) == slots).all(1)
  assert agrees.mean() > 0.95  # A tie may fall the other way.
  assert (best(0 * decision.action) == slots).all(1).mean() < 0.7
  np.testing.assert_array_equal(logged.scores, scores[:, :16])
  assert logged.scores.shape == (64, 16, _K)
  jax.tree.map(np.testing.assert_array_equal, logged.cells, decision.cells)


def test_cells_of_another_number_of_tasks_are_refused():
  world = small_world()
  state = env.reset(jax.random.key(0), world)
  with pytest.raises(ValueError, match=r"action: expected shape \[K\] with K"):
    env.serve(world, state, _ACTION, _cells())
  with pytest.raises(ValueError, match=r"action: expected shape \(10,\), or"):
    env.serve(world, state, jnp.zeros(_K))


def test_rows_are_a_log_of_candidates_and_of_the_cells_in_service():
  log = rollout_lib.pack(_rollout(_of_state))
  session_log.validate(log)
  assert log.items is None
  assert log.action.shape[1] == _K
  assert log.candidates.scores.shape[1:] == (16, _K)
  expected = jax.vmap(_of_state, (None, 0))(_cells(), log.observation)
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5),
    log.candidates.cells,
    MonotoneCells(
      *(
        np.broadcast_to(x, (len(log.step), *np.shape(x)[-y.ndim + 1 :]))
        for x, y in zip(expected, log.candidates.cells, strict=True)
      )
    ),
  )
  # What the policy would have ranked after a cut is there, without an action.
  assert log.bootstrap_only.any()
  assert np.ptp(log.candidates.scores[log.bootstrap_only], axis=1).all()
  rows = ~log.bootstrap_only
  np.testing.assert_allclose(log.box.lower, -0.15, rtol=1e-6)
  np.testing.assert_allclose(log.log_prob[rows], -_K * np.log(0.3), rtol=1e-4)
  assert np.ptp(log.action[rows]) > 0.25
  dataset = transitions.device_dataset(log)
  assert dataset.candidates.scores.shape[0] == rows.size


def test_which_candidates_are_logged_hangs_on_no_score():
  """Their mean scores are those of all candidates, not of shown ones."""
  world = small_world()
  found = jax.vmap(_request, (0, None, None, None))
  *_, slots, offered, scores, logged = found(
    jax.random.split(jax.random.key(7), 512), world, _cells(), _of_state
  )
  log_scores = np.log(scores)
  spread = log_scores.std(axis=1).mean(0)
  logged_mean = np.log(logged.scores).mean((0, 1))
  gap = np.abs(logged_mean - log_scores.mean((0, 1))) / spread
  assert gap.max() < 0.05
  shown = (np.asarray(offered)[:, :, None] == slots[:, None, :]).any(2)
  shown_mean = np.asarray(log_scores)[shown].mean(0)
  assert np.max((shown_mean - log_scores.mean((0, 1))) / spread) > 0.3


def test_an_exploration_may_be_held_and_a_session_stays_the_same_session():
  held = rollout_lib.pack(_rollout(exploration="session"))
  rows = ~held.bootstrap_only
  for number in np.unique(held.session_id):
    own = held.action[rows & (held.session_id == number)]
    np.testing.assert_array_equal(own, np.broadcast_to(own[0], own.shape))
  # Users, hours and candidates hang on the key alone.
  other = rollout_lib.pack(_rollout(half_width=1.0))
  first = other.step == 0
  np.testing.assert_array_equal(
    other.observation[first], held.observation[held.step == 0]
  )
  np.testing.assert_array_equal(
    other.candidates.scores[first], held.candidates.scores[held.step == 0]
  )


def test_parts_are_the_rollout():
  parts = log_parts.log_sessions(
    jax.random.key(0),
    small_world(),
    policies.explore_cells(policies.same_cells),
    policies.PolicyParams(_cells(), 0.15, 0.0),
    *_COUNTS,
    part=32,
  )
  jax.tree.map(
    functools.partial(np.testing.assert_allclose, rtol=1e-5),
    parts,
    rollout_lib.pack(_rollout()),
  )
