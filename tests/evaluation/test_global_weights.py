import functools
import json

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.evaluation import global_weights
from mtf_jax.evaluation.statistics import relative_gain
from mtf_jax.learners import cem
from mtf_jax.learners.es import Search
from mtf_jax.policies import fixed_action
from mtf_jax.worlds import returns as returns_lib
from tests.small_world import small_world

_REQUESTS = 4
_EFFORT = global_weights.Effort(
  search=Search(10, 64, noise=0.05, learning_rate=0.1),
  max_stages=4,
  random_starts=1,
  sessions=512,
  tolerance=1.0,
)


@functools.cache
def _world():
  world = small_world()
  users = jnp.asarray(world.population[:16])
  world = world.replace(population=users)
  return world, returns_lib.expected_rewards(world)


@functools.cache
def _converged(effort=_EFFORT):
  world, table = _world()
  starts = jnp.zeros((1, world.num_actions))
  return global_weights.converge(
    jax.random.key(0), world, table, starts, effort, _REQUESTS
  )


def _reward(action):
  world, table = _world()
  returns = returns_lib.session_returns(
    jax.random.key(7), world, table, fixed_action, action, 2048, _REQUESTS
  )
  return np.asarray(returns.expected).sum(axis=1)


def test_the_converged_search_gains_and_says_how_much():
  found = _converged()
  uniform = jnp.zeros_like(jnp.asarray(found.action))
  gain = relative_gain(_reward(jnp.asarray(found.action)), _reward(uniform))
  assert gain.low > 2
  # Two estimates of it, on other sessions each.
  own = found.from_start[0]
  assert abs(gain.percent - own.percent) < 4 * (gain.error + own.error)
  assert found.stopped == (found.last_gain.percent < _EFFORT.tolerance)
  assert min(found.behind) == 0 and len(found.behind) == 2
  # Two starts: forwards and backwards, and what compares the stages.
  steps = 2 * _EFFORT.search.iterations * _EFFORT.search.sessions
  assert found.sessions >= found.stages * (steps + _EFFORT.sessions)


def test_a_search_that_ran_out_of_stages_says_so():
  found = _converged(_EFFORT._replace(max_stages=1, tolerance=0.0))
  assert not found.stopped
  assert found.stages == 1
  assert json.loads(json.dumps(found.to_json()))["stopped"] is False


def test_platforms_gain_from_sampled_rewards():
  """Rewards of sessions that nobody sees twice, and more than by chance."""
  world, table = _world()
  uniform = jnp.zeros((world.num_actions,))
  search = Search(20, 256, noise=0.3, learning_rate=0.1)
  of_es = global_weights.evolution(
    jax.random.key(1), world, table, uniform, search, _REQUESTS
  )
  effort = cem.Effort(iterations=10, population=32, sessions=32)
  of_cem = global_weights.cross_entropy(
    jax.random.key(1), world, table, uniform, effort, _REQUESTS
  )
  base = _reward(uniform)
  for action in (of_es, of_cem):
    assert np.abs(action).max() <= global_weights.LIMIT
    assert relative_gain(_reward(action), base).low > 1
