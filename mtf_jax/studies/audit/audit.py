"""Audit of a world: what must be believed before anything is trained on it.

Pure measurements, no policy learning beyond the privileged optimisers of
`oracle`. `experiments.audit_world` writes them down.

Letters: `A` action components, `B` sessions, `T` requests, `L` slate positions,
`E` behaviours.
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mtf_jax import policies
from mtf_jax.evaluation import oracle
from mtf_jax.evaluation.oracle import Gain, LinearPolicy, Search
from mtf_jax.worlds import env
from mtf_jax.worlds import response as response_lib
from mtf_jax.worlds import returns as returns_lib
from mtf_jax.worlds import rollout as rollout_lib
from mtf_jax.worlds.leaving import LEAVING_MODELS
from mtf_jax.worlds.response import BEHAVIOURS
from mtf_jax.worlds.returns import ExpectedRewards
from mtf_jax.worlds.world import TASKS, World, fingerprint

_B = {name: n for n, name in enumerate(BEHAVIOURS)}
_BINARY = tuple(name for name in BEHAVIOURS if name != "play_seconds")
# Behaviours with enough events for a relative error of a few percent; the rare
# ones are reported with their standard errors.
_FREQUENT = ("valid", "finish", "click", "long_view", "like")
_DECILES = np.arange(0.1, 0.95, 0.1)
# Play times under this, in seconds, are equal for the audit: the log has an
# atom at 0 and a user's thumb is no stopwatch.
_PLAY_FLOOR = 0.3
_DURATION_EDGES = (0, 15, 30, 60, 120, 240, np.inf)
_PLAY_EDGES = (0, 1, 3, 7, 18, 60, np.inf)
_REFERENCE = pathlib.Path(__file__).with_name("kuairand_reference.json")


class Effort(NamedTuple):
  """How much an audit computes; a preset.

  users: population kept for the headroom.
  sessions: sessions of an estimate.
  max_requests: requests of a session at most.
  global_search, personal_search: of the privileged optimisers.
  probe_sessions: sessions logged for the linear probe.
  grid: values of an action component in the sensitivity curves.
  """

  users: int
  sessions: int
  max_requests: int
  global_search: Search
  personal_search: Search
  probe_sessions: int
  grid: int


# A component moves by less than the learning rate a step, which falls: 40 steps
# cannot reach the bounds of [-1, 1], where several components belong.
_GLOBAL = Search(120, 4096)
# Hundreds of weights need smaller steps than the ten of global weights: at .03
# Adam walks at random and the search ends below what learners reach.
_PERSONAL = Search(80, 2048, learning_rate=0.01)
PRESETS = {
  "smoke": Effort(64, 512, 8, Search(6, 256), Search(6, 256), 1024, 3),
  "medium": Effort(512, 8192, 16, _GLOBAL, _PERSONAL, 32768, 5),
  "full": Effort(
    768, 8192, 16, _GLOBAL, _PERSONAL._replace(sessions=4096), 65536, 5
  ),
}


def describe(
  feedback: np.ndarray, duration: np.ndarray, user: np.ndarray, item: np.ndarray
) -> dict[str, Any]:
  """Marginal facts of impressions, real or simulated, ready for JSON.

  Args:
    feedback: `[N, E]` behaviours.
    duration: `[N]` seconds, `inf` for pictures.
    user: `[N]` integer.
    item: `[N]` integer.

  Returns:
    Rates with standard errors, play-time deciles, rates by duration and by play
    time, co-occurrence lifts with their expected counts, and the intra-class
    correlation of clicks and likes by user and by item.
  """
  num_rows = len(feedback)
  play = feedback[:, _B["play_seconds"]]
  binary = {name: feedback[:, _B[name]] > 0 for name in _BINARY}
  rates = {name: float(event.mean()) for name, event in binary.items()}
  unit = np.where(np.isinf(duration), 60.0, duration)

  def by(values, edges):
    place = np.digitize(values, edges[1:-1])
    return [
      {
        name: float(binary[name][place == n].mean())
        for name in ("finish", "valid", "click", "like")
      }
      if np.any(place == n)
      else None
      for n in range(len(edges) - 1)
    ]

  lifts = {}
  names = ("click", "long_view", "like", "comment", "follow", "forward")
  for n, a in enumerate(names):
    for b in names[n + 1 :]:
      both = float((binary[a] & binary[b]).mean())
      chance = rates[a] * rates[b]
      if chance > 0:
        lifts[f"{a}&{b}"] = {
          "lift": both / chance,
          "count": both * num_rows,
        }
  return {
    "rows": num_rows,
    "rates": rates,
    "standard_errors": {
      name: float(np.sqrt(rate * (1 - rate) / num_rows))
      for name, rate in rates.items()
    },
    "play_deciles": np.quantile(play, _DECILES).tolist(),
    "play_mean": float(play.mean()),
    "by_duration": by(unit, _DURATION_EDGES),
    "by_play": by(play, _PLAY_EDGES),
    "lifts": lifts,
    "icc": {
      f"{name}_by_{side}": _icc(binary[name], groups)
      for name in ("click", "like")
      for side, groups in (("user", user), ("item", item))
    },
  }


def _icc(event: np.ndarray, groups: np.ndarray) -> float:
  """Intra-class correlation of a 0/1 variable, analysis of variance."""
  _, code = np.unique(groups, return_inverse=True)
  size = np.bincount(code).astype(float)
  mean = np.bincount(code, event) / size
  total, num_groups = event.size, size.size
  if num_groups < 2 or total <= num_groups:
    return 0.0
  between = np.sum(size * (mean - event.mean()) ** 2) / (num_groups - 1)
  within = np.sum(size * mean * (1 - mean)) / (total - num_groups)
  typical = (total - np.sum(size**2) / total) / (num_groups - 1)
  total_variance = between + (typical - 1) * within
  return float((between - within) / total_variance) if total_variance else 0.0


def load_reference() -> dict[str, Any]:
  """`describe` of KuaiRand-Pure's standard log, the aggregates alone."""
  return json.loads(_REFERENCE.read_text(encoding="utf-8"))


def compare(found: Mapping, reference: Mapping) -> dict[str, float]:
  """The three errors of the marginals, relative.

  Rates: the worst of the frequent behaviours. Deciles: the worst, play times
  below 0.3 s counting as equal. Lifts: the worst of the pairs whose lift in the
  reference is above 2 with at least 100 joint events.
  """
  rates = [
    abs(found["rates"][name] / reference["rates"][name] - 1)
    for name in _FREQUENT
  ]
  deciles = [
    abs(a - b) / max(b, _PLAY_FLOOR) if max(a, b) > _PLAY_FLOOR else 0.0
    for a, b in zip(
      found["play_deciles"], reference["play_deciles"], strict=True
    )
  ]
  lifts = [
    abs(found["lifts"].get(pair, {"lift": 0.0})["lift"] / entry["lift"] - 1)
    for pair, entry in reference["lifts"].items()
    if entry["lift"] > 2 and entry["count"] >= 100
  ]
  return {
    "marginals_max_rel_error": float(max(rates)),
    "play_time_deciles_max_rel_error": float(max(deciles)),
    "lift_max_rel_error": float(max(lifts, default=0.0)),
  }


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


@jax.jit
def _respond(uniforms, response, user, items):
  return jax.vmap(response_lib.sample_responses, in_axes=(0, None, 0, 0))(
    uniforms, response, user, items
  )[:, 0]


def respond_to(
  world_response: response_lib.ResponseModel,
  user: np.ndarray,
  item: np.ndarray,
  seed: int = 2,
) -> np.ndarray:
  """Sampled behaviours `[N, E]` on given impressions, no policy involved."""
  uniforms = jax.random.uniform(
    jax.random.key(seed), (len(user), 1, response_lib.NUM_UNIFORMS)
  )

  return np.asarray(
    _respond(
      uniforms,
      world_response,
      jnp.asarray(user, jnp.int32),
      jnp.asarray(item, jnp.int32)[:, None],
    )
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
  columns = [_B[name] for name in ("like", "comment", "follow", "forward")]
  shown = sum(found["rates"][BEHAVIOURS[n]] for n in columns)
  return {
    "ranking_gain_click": found["rates"]["click"] / float(random[_B["click"]]),
    "ranking_gain_interaction": shown / float(random[columns].sum()),
    "random_click": float(random[_B["click"]]),
  }


def _totals(
  world, table, policy, effort, privileged=False, seed=11, sampled=False
):
  returns = returns_lib.session_returns(
    jax.random.key(seed),
    world,
    table,
    oracle.linear_act,
    policy,
    effort.sessions,
    effort.max_requests,
    privileged=privileged,
  )
  rewards = returns.sampled if sampled else returns.expected
  return np.asarray(rewards).sum(axis=1), float(jnp.mean(returns.requests))


def _fixed(policy: LinearPolicy, action: jax.Array) -> LinearPolicy:
  """A blind policy that answers `action`; shares the others' program."""
  weights = jnp.zeros_like(policy.weights).at[:, 0].set(action)
  one = jnp.ones_like(policy.lower)
  return policy._replace(weights=weights, lower=-one, upper=one)


def sensitivity(
  world: World, table: ExpectedRewards, best: LinearPolicy, effort: Effort
) -> dict[str, Any]:
  """Return against each action component, the others at their best, paired.

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
      gains[component, n] = oracle.relative_gain(moved, base)
  return {
    "grid": grid.tolist(),
    **{
      name: gains[..., n].tolist()
      for n, name in enumerate(("gain", "low", "high"))
    },
  }


def explained_share(
  world: World, table: ExpectedRewards, center: jax.Array, effort: Effort
) -> dict[str, float]:
  """Share of the return's variance that exploring in the box explains.

  A session keeps one action of the box; it is run with two actions under each
  of two noises of the same user. The covariance of the two differences is twice
  the variance of the expected return over actions.
  """

  @functools.partial(jax.jit, static_argnames=("num_sessions", "max_requests"))
  def differences(rng_key, world, table, num_sessions, max_requests):
    def one(key):
      action_key, first, second = jax.random.split(key, 3)
      offset = jax.random.uniform(
        action_key, (2, center.shape[0]), minval=-0.15, maxval=0.15
      )
      actions = jnp.clip(center[None, :] + offset, -1.0, 1.0)
      user = env.reset(first, world).user
      # Both noises meet the same user: the population of this session is one.
      alone = world.replace(population=user[None])

      def run(key, action):
        returns = returns_lib.session_return(
          alone,
          table,
          policies.fixed_action,
          action,
          max_requests,
          env.observe,
          key,
          key,
        )
        return jnp.sum(returns.expected), jnp.sum(returns.sampled)

      (a1, sampled), (b1, _) = run(first, actions[0]), run(first, actions[1])
      (a2, _), (b2, _) = run(second, actions[0]), run(second, actions[1])
      return a1 - b1, a2 - b2, sampled

    keys = jax.random.split(rng_key, num_sessions)
    return jax.lax.map(one, keys, batch_size=min(num_sessions, 4096))

  first, second, sampled = (
    np.asarray(x)
    for x in differences(
      jax.random.key(31), world, table, effort.sessions, effort.max_requests
    )
  )
  product = first * second / 2.0
  variance = sampled.var()
  return {
    "percent": float(100 * product.mean() / variance),
    "standard_error": float(
      100 * product.std() / np.sqrt(product.size) / variance
    ),
  }


def linear_probe(
  world: World,
  center: jax.Array,
  policy: LinearPolicy,
  effort: Effort,
  seed: int = 41,
) -> tuple[LinearPolicy, dict[str, float]]:
  """Ridge regression of logged returns on `epsilon x (1, observation)`.

  Rows are explored in the box around `center` with sampled feedback, the
  deviation held over a session, as `experiments.progressive` logs them. The
  return-to-go is centred by a linear function of the observation; `epsilon` is
  the deviation over the box's half-width. Standard errors take sessions as
  units: rows of one share the deviation and what is to come.

  Args:
    world: the world.
    center: `[A]` action in service.
    policy: scaling of the observation.
    effort: number of sessions.
    seed: of the log.

  Returns:
    The probe's policy and the number of rows and of significant coefficients.
  """
  rows = rollout_lib.rollout(
    jax.random.key(seed),
    world,
    policies.explore_in_box,
    center,
    effort.probe_sessions,
    effort.max_requests,
    held=True,
  )
  log = rows.log
  served = np.asarray(rows.valid & ~log.bootstrap_only)
  reward = np.asarray(jnp.sum(log.reward, axis=-1)) * served
  to_go = np.cumsum(reward[:, ::-1], axis=1)[:, ::-1][served]
  observation = np.asarray(log.observation)[served]
  box_centre = np.asarray((log.box.lower + log.box.upper) / 2)[served]
  half_width = np.asarray((log.box.upper - log.box.lower) / 2)[served]
  epsilon = (np.asarray(log.action)[served] - box_centre) / half_width
  standard = (observation - np.asarray(policy.mean)) / np.asarray(policy.scale)
  features = np.concatenate(
    [np.ones((len(standard), 1)), np.clip(standard, -3, 3)], axis=1
  )
  num_actions, num_features = epsilon.shape[1], features.shape[1]
  value = np.linalg.lstsq(features, to_go, rcond=None)[0]
  residual = to_go - features @ value
  num_coefficients = num_actions * num_features
  gram = np.zeros((num_coefficients,) * 2)
  moment = np.zeros(num_coefficients)
  spread = np.zeros_like(gram)
  # Rows of a session are neighbours, and each has at least one.
  num_rows = served.sum(axis=1)
  begins = np.cumsum(num_rows) - num_rows
  for first in range(0, len(served), 8192):
    starts = begins[first : first + 8192]
    part = slice(starts[0], starts[-1] + num_rows[first : first + 8192][-1])
    design = (epsilon[part, :, None] * features[part, None, :]).reshape(
      -1, num_coefficients
    )
    gram += design.T @ design
    by_session = np.add.reduceat(
      design * residual[part, None], starts - starts[0]
    )
    moment += by_session.sum(axis=0)
    spread += by_session.T @ by_session
  inverse = np.linalg.inv(gram + 1e-3 * len(residual) * np.eye(len(gram)))
  slope = inverse @ moment
  error = np.sqrt(np.diag(inverse @ spread @ inverse))
  z = slope / error
  # Soft threshold of one standard error against acting on noise.
  kept = np.sign(slope) * np.maximum(np.abs(slope) - error, 0.0)
  kept = kept.reshape(num_actions, num_features)
  typical = np.sqrt(np.mean(np.sum(kept**2, axis=1)))
  # Deviations of typical size act at three times the box, and are clipped.
  weights = 0.15 * 3.0 * kept / max(typical, 1e-9)
  weights[:, 0] += np.asarray(center)
  probe = policy._replace(weights=jnp.asarray(weights, jnp.float32))
  return probe, {
    "rows": len(residual),
    "coefficients": len(slope),
    "beyond_3_sigma": int((np.abs(z) > 3).sum()),
  }


def _with_interval(name: str, gain: Gain) -> dict[str, Any]:
  return {name: gain.percent, f"{name}_ci95": [gain.low, gain.high]}


def audit_leaving(
  world: World, table: ExpectedRewards, effort: Effort
) -> dict[str, Any]:
  """(c), (d) and (e) under the world's leaving model.

  Args:
    world: the world, its population cut to the table's.
    table: `returns.expected_rewards(world)`.
    effort: of the preset.

  Returns:
    The figures, ready for JSON.
  """
  zero = jnp.zeros((world.num_actions,), jnp.float32)
  start = oracle.start_policy(world, env.observe, zero, 2.0, True)
  best = oracle.optimise(
    jax.random.key(51),
    world,
    table,
    start,
    effort.global_search,
    effort.max_requests,
    env.observe,
  )
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
    **_with_interval("global_gain_pct", oracle.relative_gain(base, uniform)),
  }
  observe, privileged = env.observe, env.privileged_observation
  search = effort.personal_search
  # From an optimum a third of the learning rate: a fast search first loses what
  # it starts with.
  slow = search._replace(learning_rate=search.learning_rate / 3)
  searches = (
    ("in_box_gain_pct", observe, 0.15, search),
    ("personal_headroom_pct", observe, 2.0, search),
    ("privileged_headroom_pct", privileged, 2.0, slow),
  )
  warm = None
  for name, look, half_width, search in searches:
    start = oracle.start_policy(world, look, center, half_width, False)
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
      look,
    )
    totals = functools.partial(
      _totals, world, table, effort=effort, privileged=look is privileged
    )
    # A search may end below its start: other sessions than the judging ones
    # tell which to keep.
    values = [totals(policy, seed=12)[0].mean() for policy in (start, found)]
    warm = found if values[1] > values[0] else start
    reached, _ = totals(warm)
    result.update(_with_interval(name, oracle.relative_gain(reached, base)))
  scaling = oracle.start_policy(world, env.observe, center, 0.15, False)
  probe, figures = linear_probe(world, center, scaling, effort)
  reached, _ = _totals(world, table, probe, effort)
  result.update(
    _with_interval("linear_probe_gain_pct", oracle.relative_gain(reached, base))
  )
  result["linear_probe"] = figures
  result["explained_share_pct"] = explained_share(world, table, center, effort)
  result["sensitivity"] = sensitivity(world, table, best, effort)
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
) -> dict[str, Any]:
  """Audits a world under every leaving model.

  Args:
    world: the world.
    effort: a preset.
    reference: `describe` of a log, the embedded one if omitted.
    found: `describe` of what is compared with it: the fitted responses on the
      log's own impressions. If omitted, what the default weights show.

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
    **compare(found, reference),
    **ranking_gain(world, slates),
    "reference": reference,
    "found": found,
    "slates": slates,
    "leaving": {},
  }
  few = small_population(world, effort.users)
  table = returns_lib.expected_rewards(few)
  for name in LEAVING_MODELS:
    figures = audit_leaving(few.with_leaving(name), table, effort)
    lengths = session_lengths(world.with_leaving(name), effort.sessions // 2)
    figures["session_length_histogram"] = np.bincount(lengths).tolist()
    result["leaving"][name] = figures
    gains = ("global_gain_pct", "in_box_gain_pct", "personal_headroom_pct")
    logging.info(
      "%s: %s", name, ", ".join(f"{key} {figures[key]:.2f}" for key in gains)
    )
  return result
