"""Audit of a world: what must be believed before anything is trained on it.

Pure measurements, no policy learning beyond the privileged optimisers of
`oracle`. `experiments.audit_world` writes them down.

Letters: `A` action components, `B` sessions, `T` requests, `L` slate positions,
`E` behaviours.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mtf_jax import policies
from mtf_jax.data.behaviours import (
  BEHAVIOURS,
  INDEX,
  POSITIVE_INTERACTIONS,
  TASKS,
)
from mtf_jax.evaluation import oracle
from mtf_jax.evaluation import statistics as stats
from mtf_jax.evaluation.oracle import LinearPolicy
from mtf_jax.evaluation.statistics import Gain
from mtf_jax.kernels.exploration import HALF_WIDTH
from mtf_jax.steps import Count, OnStep, Steps, nobody
from mtf_jax.studies.audit.effort import Effort
from mtf_jax.studies.audit.marginals import (
  describe,
  load_reference,
  marginal_errors,
  respond_to,
)
from mtf_jax.studies.audit.probe import explained_share, linear_probe
from mtf_jax.worlds import env
from mtf_jax.worlds import returns as returns_lib
from mtf_jax.worlds import rollout as rollout_lib
from mtf_jax.worlds.leaving import LEAVING_MODELS
from mtf_jax.worlds.returns import ExpectedRewards
from mtf_jax.worlds.world import World, fingerprint


def shown_under_defaults(
  world: World, num_sessions: int, max_requests: int, seed: int = 1
) -> dict[str, Any]:
  """`describe` of what the default weights (action 0) show."""
  shown = rollout_lib.impressions(
    jax.random.key(seed),
    world,
    policies.fixed_action,
    jnp.zeros((world.num_actions,), jnp.float32),
    num_sessions,
    max_requests,
  )
  active = np.asarray(shown.active)
  items = np.asarray(shown.items)[active]
  user = np.broadcast_to(np.asarray(shown.user)[:, None], active.shape)[active]
  user = np.repeat(user, items.shape[1])
  items = items.reshape(-1)
  feedback = np.asarray(shown.feedback)[active].reshape(items.size, -1)
  return describe(
    feedback, np.asarray(world.response.duration)[items], user, items
  )


def ranking_gain(
  world: World, found: Mapping, seed: int = 3
) -> dict[str, float]:
  """Clicks and interactions of the default slates over random exposure."""
  rng = np.random.default_rng(seed)
  num_pairs = 200_000
  user = rng.choice(np.asarray(world.population), num_pairs)
  item = rng.integers(0, world.response.num_items, num_pairs)
  random = respond_to(world.response, user, item).mean(axis=0)
  columns = [INDEX[name] for name in POSITIVE_INTERACTIONS]
  shown = sum(found["rates"][BEHAVIOURS[n]] for n in columns)
  return {
    "ranking_gain_click": found["rates"]["click"]
    / float(random[INDEX["click"]]),
    "ranking_gain_interaction": shown / float(random[columns].sum()),
    "random_click": float(random[INDEX["click"]]),
  }


def _totals(
  world,
  table,
  policy,
  effort,
  observe_fn=env.observe,
  seed=11,
  sampled=False,
):
  returns = returns_lib.session_returns(
    jax.random.key(seed),
    world,
    table,
    oracle.linear_act,
    policy,
    effort.sessions,
    effort.max_requests,
    observe_fn=observe_fn,
  )
  rewards = returns.sampled if sampled else returns.expected
  return np.asarray(rewards).sum(axis=1), float(jnp.mean(returns.requests))


def _fixed(policy: LinearPolicy, action: jax.Array) -> LinearPolicy:
  """A blind policy that answers `action`; shares the others' program."""
  weights = jnp.zeros_like(policy.weights).at[:, 0].set(action)
  one = jnp.ones_like(policy.lower)
  return policy._replace(weights=weights, lower=-one, upper=one)


def sensitivity(
  world: World,
  table: ExpectedRewards,
  best: LinearPolicy,
  effort: Effort,
  count: Count,
) -> dict[str, Any]:
  """Return against each action component, the others at their best, paired.

  Args:
    world: the world, its population cut to the table's.
    table: `returns.expected_rewards(world)`.
    best: the best global weights.
    effort: of the preset.
    count: told of the sessions of each point.

  Returns:
    `grid [V]` values of a component, `gain`, `low`, `high` `[A, V]` percent
    over the best global return, with 95% intervals.
  """
  # Pairing leaves little noise, and there are many points.
  effort = effort._replace(sessions=effort.sessions // 2)
  center = best.weights[:, 0]
  base, _ = _totals(world, table, _fixed(best, center), effort)
  grid = np.linspace(-1.0, 1.0, effort.grid)
  gains = np.zeros((world.num_actions, effort.grid, 3))
  for component in range(world.num_actions):
    for n, value in enumerate(grid):
      action = center.at[component].set(float(value))
      moved, _ = _totals(world, table, _fixed(best, action), effort)
      gain = stats.relative_gain(moved, base)
      gains[component, n] = (gain.percent, gain.low, gain.high)
      count(effort.sessions)
  return {
    "grid": grid.tolist(),
    **{
      name: gains[..., n].tolist()
      for n, name in enumerate(("gain", "low", "high"))
    },
  }


def _with_interval(name: str, gain: Gain) -> dict[str, Any]:
  return {name: gain.percent, f"{name}_ci95": [gain.low, gain.high]}


def num_sessions(effort: Effort, num_actions: int) -> int:
  """Sessions of searches and curves of one leaving model; few are elsewhere."""
  searches = (effort.global_search, *(effort.personal_search,) * 3)
  return (
    sum(search.num_sessions for search in searches)
    + effort.sessions // 2 * effort.grid * num_actions
  )


def audit_leaving(
  world: World,
  table: ExpectedRewards,
  effort: Effort,
  count: Count,
) -> dict[str, Any]:
  """(c), (d) and (e) under the world's leaving model.

  Args:
    world: the world, its population cut to the table's.
    table: `returns.expected_rewards(world)`.
    effort: of the preset.
    count: told of the `num_sessions`.

  Returns:
    The figures, ready for JSON.
  """
  zero = jnp.zeros((world.num_actions,), jnp.float32)
  start = oracle.blinded(oracle.start_policy(world, env.observe, zero, 2.0))
  best = jax.block_until_ready(
    oracle.optimise(
      jax.random.key(51),
      world,
      table,
      start,
      effort.global_search,
      effort.max_requests,
      env.observe,
    )
  )
  count(effort.global_search.num_sessions)
  center = best.weights[:, 0]
  base, length = _totals(world, table, _fixed(best, center), effort)
  uniform, uniform_length = _totals(world, table, _fixed(best, zero), effort)
  sampled, _ = _totals(world, table, _fixed(best, center), effort, sampled=True)
  result: dict[str, Any] = {
    "mean_session_length": uniform_length,
    "mean_session_length_best_global": length,
    "session_return_cv": float(sampled.std() / sampled.mean()),
    "expected_return_cv": float(base.std() / base.mean()),
    "best_global_action": np.asarray(center).tolist(),
    **_with_interval("global_gain_pct", stats.relative_gain(base, uniform)),
  }
  observe, privileged = env.observe, env.privileged_observation
  search = effort.personal_search
  # From an optimum a third of the learning rate: a fast search first loses what
  # it starts with.
  slow = search._replace(learning_rate=search.learning_rate / 3)
  searches = (
    ("in_box_gain_pct", observe, HALF_WIDTH, search),
    ("personal_headroom_pct", observe, 2.0, search),
    ("privileged_headroom_pct", privileged, 2.0, slow),
  )
  warm = None
  for name, observe_fn, half_width, search in searches:
    start = oracle.start_policy(world, observe_fn, center, half_width)
    if warm is not None:
      # From the smaller class's best: a larger class is never the worse.
      columns = warm.weights.shape[1]
      weights = start.weights.at[:, :columns].set(warm.weights)
      start = start._replace(weights=weights)
    found = oracle.optimise(
      jax.random.key(52),
      world,
      table,
      start,
      search,
      effort.max_requests,
      observe_fn,
    )
    totals = functools.partial(
      _totals, world, table, effort=effort, observe_fn=observe_fn
    )
    # A search may end below its start: other sessions than the judging ones
    # tell which to keep.
    values = [totals(policy, seed=12)[0].mean() for policy in (start, found)]
    warm = found if values[1] > values[0] else start
    reached, _ = totals(warm)
    result.update(_with_interval(name, stats.relative_gain(reached, base)))
    count(search.num_sessions)
  scaling = oracle.start_policy(world, env.observe, center, HALF_WIDTH)
  probe, figures = linear_probe(world, center, scaling, effort)
  reached, _ = _totals(world, table, probe, effort)
  result.update(
    _with_interval("linear_probe_gain_pct", stats.relative_gain(reached, base))
  )
  result["linear_probe"] = figures
  result["explained_share_pct"] = explained_share(world, table, center, effort)
  result["sensitivity"] = sensitivity(world, table, best, effort, count)
  return result


def session_lengths(world: World, num_sessions: int) -> list[int]:
  """Requests of sampled sessions under the default weights, cut at 60."""
  shown = rollout_lib.impressions(
    jax.random.key(4),
    world,
    policies.fixed_action,
    jnp.zeros((world.num_actions,), jnp.float32),
    num_sessions,
    60,
  )
  return np.asarray(shown.active).sum(axis=1).tolist()


def small_population(world: World, num_users: int, seed: int = 5) -> World:
  """The world with a population of so many sessions' users."""
  rng = np.random.default_rng(seed)
  users = np.unique(np.asarray(world.population))
  kept = rng.choice(users, min(num_users, users.size), replace=False)
  return world.replace(population=jnp.asarray(kept, jnp.int32))


def audit(
  world: World,
  effort: Effort,
  reference: Mapping | None = None,
  found: Mapping | None = None,
  on_step: OnStep = nobody,
) -> dict[str, Any]:
  """Audits a world under every leaving model.

  Args:
    world: the world.
    effort: a preset.
    reference: `describe` of a log, the embedded one if omitted.
    found: `describe` of what is compared with it: the fitted responses on the
      log's own impressions. If omitted, what the default weights show.
    on_step: told how many sessions are played, of all leaving models.

  Returns:
    `audit.json` as a dictionary.
  """
  slates = shown_under_defaults(world, effort.sessions, 8)
  reference = load_reference() if reference is None else reference
  found = slates if found is None else found
  result: dict[str, Any] = {
    "fingerprint": fingerprint(world),
    "world": world.name,
    "effort": effort._asdict(),
    "tasks": list(TASKS),
    **marginal_errors(found, reference),
    "slates_max_rel_error": marginal_errors(slates, reference)[
      "marginals_max_rel_error"
    ],
    **ranking_gain(world, slates),
    "reference": reference,
    "found": found,
    "slates": slates,
    "leaving": {},
  }
  of_leaving = num_sessions(effort, world.num_actions)
  steps = Steps(len(LEAVING_MODELS) * of_leaving, on_step)
  few = small_population(world, effort.users)
  table = returns_lib.expected_rewards(few)
  for name in LEAVING_MODELS:
    figures = audit_leaving(few.with_leaving(name), table, effort, steps.count)
    lengths = session_lengths(world.with_leaving(name), effort.sessions // 2)
    figures["session_length_histogram"] = np.bincount(lengths).tolist()
    result["leaving"][name] = figures
    gains = ("global_gain_pct", "in_box_gain_pct", "personal_headroom_pct")
    logging.info(
      "%s: %s", name, ", ".join(f"{key} {figures[key]:.2f}" for key in gains)
    )
  return result
