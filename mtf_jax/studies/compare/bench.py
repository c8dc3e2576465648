"""What all methods of one seed and leaving model share: world, logs, baselines.

The baseline policy in service is what a platform's evolution strategy found: one
action, from sampled rewards of sessions that were all different. Logs explore
around it.

Letters: `A` action components, `B` sessions, `T` requests, `N` rows, `K` tasks.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax import policies
from mtf_jax.data.transitions import Rows
from mtf_jax.evaluation import global_weights
from mtf_jax.evaluation.ab_test import EvalResult, figures, rewards_of
from mtf_jax.evaluation.statistics import paired_comparison
from mtf_jax.kernels.exploration import (
  action_box,
  gaussian_log_prob,
  sample_gaussian,
)
from mtf_jax.learners.base import Normalization
from mtf_jax.policies import Decision, fixed_action
from mtf_jax.studies.compare.config import CompareConfig
from mtf_jax.studies.progressive.collect import (
  collect_part,
  empty_rows,
  put_rows,
)
from mtf_jax.studies.progressive.config import GAUSSIAN_STDDEV
from mtf_jax.studies.progressive.experiment import (
  Experiment,
  assemble,
  evaluate_policy,
  linear_policy,
  tree_index,
)
from mtf_jax.worlds import returns as returns_lib
from mtf_jax.worlds.world import World

# Methods that learn no policy of the observation; each sees as many sessions as
# all rounds log, but for the privileged one.
GLOBAL = {
  "es": "ES, as many sessions more",
  "cem": "CEM, as many sessions",
  "global_weights": "converged global weights",
}
_KEYS = (
  *("es", "converged", "more_es", "cem", "gaussian", "box"),
  *("test", "fqe", "answers"),
)


class Bench(NamedTuple):
  """What methods are trained and judged on; seeds have an axis `R = 1`.

  config: sizes.
  experiment: world, table, normalisation, keys and the baseline policy judged.
  actions: name in `GLOBAL`, or "baseline", -> action `[A]`.
  results: the same names -> judged, without the axis `R`.
  converged: what the privileged search says of itself, ready for JSON.
  keys: random number generator keys by use.
  """

  config: CompareConfig
  experiment: Experiment
  actions: dict[str, np.ndarray]
  results: dict[str, EvalResult]
  converged: dict[str, Any]
  keys: dict[str, chex.PRNGKey]


def explore_gaussian(
  action: jax.Array, observation: jax.Array, rng_key: jax.Array
) -> Decision:
  """The exploration that the paper replaces, around one global action `[A]`.

  The box of the decision is the one that the bounded exploration would have had:
  logged actions may be outside of it.
  """
  del observation
  explored = sample_gaussian(rng_key, action, GAUSSIAN_STDDEV)
  return Decision(
    explored,
    action_box(action),
    gaussian_log_prob(explored, action, GAUSSIAN_STDDEV),
  )


EXPLORE: dict[str, policies.Act] = {
  "gaussian": explore_gaussian,
  "box": policies.explore_in_box,
}


def collect(
  experiment: Experiment,
  act: policies.Act,
  params: Any,
  rng_key: chex.PRNGKey,
  rounds: int,
) -> Rows:
  """Rows of as many sessions as so many rounds log, `[1, N, ...]`.

  Args:
    experiment: with the configuration's sizes.
    act: the policy, exploring.
    params: its parameters, leading axis 1.
    rng_key: one key.
    rounds: how many; there is room for all of the configuration's.
  """
  config = experiment.config
  size = config.sessions_per_round // config.collect_parts
  keys = jax.random.split(rng_key, rounds * config.collect_parts)
  rows = None
  for number, key in enumerate(keys):
    part = collect_part(
      key[None],
      experiment.world,
      act,
      params,
      size,
      config.max_requests,
      config.exploration,
    )
    if rows is None:
      rows = empty_rows(part, config.rounds * config.collect_parts)
    first = number * part.terminal.shape[1]
    rows = put_rows(rows, part, jnp.asarray(first, jnp.int32))
  return rows


def collect_log(bench: Bench, data: str) -> Rows:
  """The log "gaussian" or "box", as large as all rounds, `[1, N, ...]`."""
  action = jnp.asarray(bench.actions["baseline"])[None]
  return collect(
    bench.experiment,
    EXPLORE[data],
    action,
    bench.keys[data],
    bench.config.sizes.rounds,
  )


def judge(bench: Bench, act: Any, params: Any) -> EvalResult:
  """A policy on the sessions that all are judged on.

  Args:
    bench: of `prepare`.
    act: `act(params, observation, rng_key) -> Decision`, static.
    params: without the axis `R`.
  """
  params = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], params)
  return tree_index(evaluate_policy(bench.experiment, act, params), 0)


def true_figures(bench: Bench, result: EvalResult) -> dict[str, Any]:
  """Gains over the baseline policy and over converged global weights."""
  base, best = (bench.results[n] for n in ("baseline", "global_weights"))
  slate_size = bench.experiment.world.slate_size
  found = figures(result, base, slate_size)
  over = paired_comparison(result.reward, best.reward, base.user)
  return {
    **found,
    "reward_per_session": float(np.mean(result.reward)),
    "over_global_pct": over.gain,
    "over_global_ci95": list(over.ci95),
    "over_global_p_value": over.p_value,
  }


def prepare(
  config: CompareConfig,
  world: World,
  seed: int,
  known: Mapping[str, Any] | None,
  say: Callable[[str], None],
  *,
  baseline_only: bool = False,
) -> tuple[Bench, dict[str, Any]]:
  """Finds the baseline policy and all other global weights, and judges them.

  Args:
    config: sizes.
    world: with its leaving model; its population is cut.
    seed: decides everything random.
    known: what an earlier call gave as its second result, so that nothing is
      searched again.
    say: told of what happens.
    baseline_only: whether to search for the baseline policy alone, the same one
      in a small part of the time.

  Returns:
    The bench, and what to keep of it, ready for JSON.
  """
  # No learner yet: `cells` puts one in its place.
  experiment = assemble(config.sizes, [world], [seed], None)
  experiment = experiment._replace(
    table=jax.vmap(returns_lib.expected_rewards)(experiment.evaluation_world)
  )
  root = experiment.keys["search"][0]
  keys = dict(zip(_KEYS, jax.random.split(root, len(_KEYS)), strict=True))
  if known is None:
    known = _search(config, experiment, keys, say, baseline_only)
  actions = {
    name: np.asarray(action, np.float32)
    for name, action in known["actions"].items()
  }
  baseline = jnp.asarray(actions["baseline"])[None]
  begin = linear_policy(experiment.world, baseline, 1.0)
  # The hidden state comes after what a policy observes.
  num_features = experiment.normalization.mean.shape[1]
  experiment = experiment._replace(
    baseline_action=baseline,
    normalization=Normalization(
      begin.mean[:, :num_features], begin.scale[:, :num_features]
    ),
  )
  bench = Bench(config, experiment, actions, {}, known["converged"], keys)
  for name, action in actions.items():
    bench.results[name] = jax.device_get(judge(bench, fixed_action, action))
  return bench, known


def _search(
  config: CompareConfig,
  experiment: Experiment,
  keys: Mapping[str, chex.PRNGKey],
  say: Callable[[str], None],
  baseline_only: bool,
) -> dict[str, Any]:
  """All global weights, or the baseline policy alone, ready for JSON."""
  sizes = config.sizes
  world = tree_index(experiment.world, 0)
  table = rewards_of(tree_index(experiment.table, 0), world)
  uniform = jnp.zeros((world.num_actions,), jnp.float32)
  pair = 2 * sizes.es_search.sessions
  budget = sizes.rounds * sizes.sessions_per_round
  more = sizes.es_search._replace(iterations=max(2, budget // pair))
  found: dict[str, jax.Array] = {}
  seconds = {}

  def timed(name, function, *args):
    started = time.monotonic()
    result = jax.block_until_ready(function(*args, sizes.max_requests))
    seconds[name] = time.monotonic() - started
    return result

  def as_json(converged, sessions):
    return {
      "actions": {
        name: np.asarray(action, np.float64).tolist()
        for name, action in found.items()
      },
      "converged": converged,
      "sessions": sessions,
      "seconds": seconds,
    }

  evolution, place = global_weights.evolution, (world, table)
  searched = "ES" if baseline_only else "ES, CEM, and a privileged search"
  say(f"Searching global weights: {searched}.")
  found["baseline"] = timed(
    "baseline", evolution, keys["es"], *place, uniform, sizes.es_search
  )
  sessions = {"baseline": sizes.es_search.iterations * pair}
  if baseline_only:
    return as_json({}, sessions)
  found["es"] = timed(
    "es", evolution, keys["more_es"], *place, found["baseline"], more
  )
  found["cem"] = timed(
    "cem",
    global_weights.cross_entropy,
    keys["cem"],
    *place,
    uniform,
    config.cem,
  )
  converged = timed(
    "global_weights",
    global_weights.converge,
    keys["converged"],
    *place,
    jnp.stack([uniform, found["es"]]),
    config.converged(),
  )
  found["global_weights"] = converged.action
  cem_sessions = config.cem.iterations * config.cem.population
  return as_json(
    converged.to_json(),
    {
      **sessions,
      "es": more.iterations * pair,
      "cem": cem_sessions * config.cem.sessions,
      "global_weights": converged.sessions,
    },
  )
