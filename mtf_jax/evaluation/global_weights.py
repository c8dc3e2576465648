"""Global weights: one action for everybody, as a platform finds it and at best.

A platform sees sampled rewards of sessions that are all different. The converged
search sees the same sessions again under every action, at their expectation, and
goes on until it stops: no method that does not personalise can do better, up to
what the search says it may have missed. What it finds is the base of a claim that
personal weights are worth something.

Letters: `A` action components, `B` sessions, `N` starts.
"""

import functools
import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mtf_jax.evaluation.statistics import Gain, relative_gain
from mtf_jax.learners import cem, es
from mtf_jax.policies import fixed_action
from mtf_jax.worlds import env
from mtf_jax.worlds import returns as returns_lib
from mtf_jax.worlds.returns import ExpectedRewards
from mtf_jax.worlds.world import World

# Pairs of sessions that are all different tell a direction only where it changes
# the reward by much: at a deviation of .05, the privileged one, as many sessions
# gain a third of it (`benchmarks.global_weights`).
PLATFORM_ES = es.Search(
  iterations=40, sessions=1024, noise=0.3, learning_rate=0.1
)

# No search may reach the limits, so that a box has room on both sides of it.
LIMIT = 0.95


def _fitness(world, table, max_requests, sampled):
  """`(action [A], world key, policy key) -> scalar` reward of a session."""

  def fitness(action, world_key, policy_key):
    returns = returns_lib.session_return(
      world,
      table,
      fixed_action,
      action,
      max_requests,
      env.observe,
      world_key,
      policy_key,
    )
    return jnp.sum(returns.sampled if sampled else returns.expected)

  return fitness


def centred(action: chex.Array) -> jax.Array:
  """The same ranking, the powers' components around 0, `[A]`.

  One number more for all of them multiplies every power, and so every fused log
  score, by one factor: the order stays. Rates are those of one world, alike for
  all tasks.
  """
  powers, biases = jnp.split(action, 2)
  middle = (jnp.max(powers) + jnp.min(powers)) / 2
  return jnp.concatenate([powers - middle, biases])


def _project(action):
  return jnp.clip(centred(action), -LIMIT, LIMIT)


@functools.partial(
  jax.jit, static_argnames=("search", "max_requests", "privileged", "mesh")
)
def evolution(
  rng_key: chex.PRNGKey,
  world: World,
  table: ExpectedRewards,
  action: chex.Array,
  search: es.Search,
  max_requests: int,
  privileged: bool = False,
  mesh: Mesh | None = None,
) -> jax.Array:
  """Evolution strategy on one global action.

  Args:
    rng_key: random number generator key, consumed.
    world: the world.
    table: `returns.expected_rewards(world)`.
    action: `[A]` where to start.
    search: effort, static; a step costs `2 * search.sessions` sessions. Its
      noise is the deviation of each component.
    max_requests: `T` of a session, static.
    privileged: expected rewards and the same sessions for both of a pair, static;
      else sampled rewards and sessions that are all different.
    mesh: the sessions are divided over its axis `data`, static; one device if
      omitted.

  Returns:
    `[A]`, within `LIMIT`.
  """
  return es.ascend(
    rng_key,
    action,
    _fitness(world, table, max_requests, sampled=not privileged),
    search,
    jnp.full_like(action, search.noise),
    _project,
    common=privileged,
    mesh=mesh,
  )


@functools.partial(jax.jit, static_argnames=("effort", "max_requests"))
def cross_entropy(
  rng_key: chex.PRNGKey,
  world: World,
  table: ExpectedRewards,
  action: chex.Array,
  effort: cem.Effort,
  max_requests: int,
) -> jax.Array:
  """Cross-entropy method on one global action, as a platform could run it.

  Arguments and result are those of `evolution`; a generation costs
  `effort.population * effort.sessions` sessions.
  """
  fitness = _fitness(world, table, max_requests, sampled=True)
  return cem.search(rng_key, action, fitness, effort, _project)


def _rewards(rng_key, world, table, actions, num_sessions, max_requests):
  """Expected reward `[N, B]` of actions `[N, A]` in the same sessions."""
  found = [
    # One program, whatever the number of actions.
    returns_lib.session_returns(
      rng_key, world, table, fixed_action, action, num_sessions, max_requests
    ).expected
    for action in actions
  ]
  return np.asarray(jnp.stack(found), np.float64).sum(axis=2)


class Effort(NamedTuple):
  """Effort of the converged search.

  search: of one stage, static; its noise is that of each component.
  first: of a start's first stage, static, which crosses the range.
  max_stages: stages at most.
  random_starts: starts besides the given ones.
  sessions: on which stages are compared; those of the last comparison are
    others.
  tolerance: a stage that gains less than this has stopped, percent of reward.
  """

  search: es.Search = es.Search(iterations=40, sessions=1024, noise=0.05)
  first: es.Search = PLATFORM_ES
  max_stages: int = 10
  random_starts: int = 1
  sessions: int = 16_384
  tolerance: float = 0.05


class Converged(NamedTuple):
  """What the converged search found.

  action: `[A]` the best of all starts.
  stopped: whether the best start met the criterion before `max_stages`.
  last_gain: what its last stage gained.
  behind: by how much each start's end is behind the best one's, percent.
  from_start: gain of the best over each start.
  stages: of the best start.
  sessions: run in all.
  """

  action: np.ndarray
  stopped: bool
  last_gain: Gain
  behind: list[float]
  from_start: list[Gain]
  stages: int
  sessions: int

  def to_json(self) -> dict[str, Any]:
    """As JSON has it."""
    return {
      "action": np.asarray(self.action, np.float64).tolist(),
      "at_limit": int(np.sum(np.abs(self.action) > LIMIT - 0.01)),
      "stopped": self.stopped,
      "last_gain_pct": self.last_gain.percent,
      "last_gain_ci95": [self.last_gain.low, self.last_gain.high],
      "behind_pct": self.behind,
      "gain_over_starts_pct": [gain.percent for gain in self.from_start],
      "stages": self.stages,
      "sessions": self.sessions,
    }


def converge(
  rng_key: chex.PRNGKey,
  world: World,
  table: ExpectedRewards,
  starts: chex.Array,
  effort: Effort,
  max_requests: int,
) -> Converged:
  """The best global action that a privileged search finds.

  From each start an evolution strategy with common random numbers and expected
  rewards climbs in stages, the first one in long steps. A start has stopped when a stage gains less than
  `effort.tolerance` percent on sessions that all stages are compared on. The best
  end of all starts is chosen on other sessions.

  Args:
    rng_key: random number generator key, consumed.
    world: the world, its population some thousands of users at most.
    table: `returns.expected_rewards(world)`.
    starts: `[N, A]`, uniform weights (zeros) for example; random ones, uniform
      in half of the range, are added.
    effort: how long.
    max_requests: `T` of a session.

  Returns:
    What was found. A search that ran out of stages says so in `stopped`.
  """
  start_key, compare_key, choose_key, *keys = jax.random.split(
    rng_key, 3 + effort.max_stages
  )
  drawn = jax.random.uniform(
    start_key, (effort.random_starts, starts.shape[1]), minval=-0.5, maxval=0.5
  )
  begun = jnp.concatenate([jax.vmap(_project)(starts), drawn])

  def rewards(key, actions):
    found = _rewards(key, world, table, actions, effort.sessions, max_requests)
    return np.asarray(found, np.float64)

  ends, stages, stopped, last_gain = [], [], [], []
  for number, start in enumerate(begun):
    action, before = start, rewards(compare_key, start[None])[0]
    gain = Gain(math.inf, 0.0)
    stage = 0
    # A first stage that went astray is followed by one that does not.
    while stage < effort.max_stages and (
      stage < 2 or gain.percent >= effort.tolerance
    ):
      new = evolution(
        jax.random.fold_in(keys[stage], number),
        world,
        table,
        action,
        effort.first if stage == 0 else effort.search,
        max_requests,
        privileged=True,
      )
      after = rewards(compare_key, new[None])[0]
      gain = relative_gain(after, before)
      if gain.percent > 0:
        action, before = new, after
      stage += 1
    ends.append(action)
    stages.append(stage)
    stopped.append(gain.percent < effort.tolerance)
    last_gain.append(gain)
  found = rewards(choose_key, jnp.concatenate([jnp.stack(ends), begun]))
  count = len(ends)
  means = found[:count].mean(axis=1)
  best = int(np.argmax(means))
  spent = sum(
    2 * search.iterations * search.sessions * count
    for search, count in (
      (effort.first, len(stages)),
      (effort.search, sum(stages) - len(stages)),
    )
  )
  return Converged(
    action=np.asarray(ends[best]),
    stopped=bool(stopped[best]),
    last_gain=last_gain[best],
    behind=[float(100 * (1 - mean / means[best])) for mean in means],
    from_start=[relative_gain(found[best], other) for other in found[count:]],
    stages=stages[best],
    sessions=spent + effort.sessions * (sum(stages) + 3 * count),
  )
