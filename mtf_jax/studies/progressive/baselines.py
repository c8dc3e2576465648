"""What policies are held against, beside one another.

Letters: `R` seeds, `B` sessions, `A` action components.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mtf_jax.evaluation import global_weights, known_weights, oracle
from mtf_jax.evaluation.ab_test import EvalResult, rewards_of
from mtf_jax.kernels.exploration import HALF_WIDTH
from mtf_jax.learners.base import Normalization
from mtf_jax.policies import fixed_action
from mtf_jax.studies.progressive.config import ProgressiveConfig
from mtf_jax.studies.progressive.experiment import (
  Experiment,
  assemble,
  evaluate_policy,
  linear_policy,
  on_one_device,
  over_seeds,
  search_linear,
  tree_index,
  with_study_learner,
)
from mtf_jax.studies.progressive.study_learner import StudyLearner
from mtf_jax.worlds import env
from mtf_jax.worlds import returns as returns_lib
from mtf_jax.worlds.world import World


def prepare(
  config: ProgressiveConfig,
  worlds: Sequence[World],
  seeds: Sequence[int],
  study_learner: StudyLearner,
  mesh: Mesh | None = None,
) -> Experiment:
  """Finds the baseline policy, evaluates it, and sets the learner up around it.

  The baseline policy is the best global set of fusion weights that a privileged
  search finds: what it gains cannot be had without personal weights.

  Args:
    config: size of the run.
    worlds: one for each seed, of one size; their populations are cut to
      `config.num_users`.
    seeds: each decides the users kept, the networks, all sessions and batches
      that are its own.
    study_learner: of `make_study_learner`.
    mesh: devices of the run; one if omitted.

  Returns:
    The run before its first round.
  """
  experiment = assemble(config, worlds, seeds, study_learner, mesh)
  begin = linear_policy(experiment.world, experiment.baseline_action, 2.0)
  # The hidden state comes after what a policy observes.
  num_features = experiment.normalization.mean.shape[1]
  experiment = experiment._replace(
    table=jax.vmap(returns_lib.expected_rewards)(experiment.evaluation_world),
    normalization=Normalization(
      begin.mean[:, :num_features], begin.scale[:, :num_features]
    ),
  )
  found = [_converged(experiment, n) for n in range(len(experiment.seeds))]
  experiment = experiment._replace(
    baseline_action=jnp.stack([jnp.asarray(one["action"]) for one in found]),
    search=found,
  )
  experiment = with_study_learner(experiment, config, study_learner)
  return experiment._replace(
    base=evaluate_action(experiment, experiment.baseline_action)
  )


def _converged(experiment: Experiment, number: int) -> dict[str, Any]:
  """Converged global weights of one seed: those on record, or searched for.

  The search is one device's: rounds that were played around what it found go on
  with the same, whatever devices they go on with.
  """
  config = experiment.config
  world, table, key = (
    on_one_device(experiment, tree_index(x, number))
    for x in (experiment.world, experiment.table, experiment.keys["search"])
  )
  known = known_weights.find(world, config.max_requests, config.global_search)
  if known is not None:
    return known
  found = global_weights.converge(
    key,
    world,
    rewards_of(table, world),
    experiment.baseline_action[number][None],
    config.global_search,
    config.max_requests,
  )
  return found.to_json()


def evaluate_action(
  experiment: Experiment, action: chex.Array, max_requests: int | None = None
) -> EvalResult:
  """Global weights `[R, A]` on the sessions that every policy is judged on."""
  return evaluate_policy(
    experiment, fixed_action, action, max_requests=max_requests
  )


def baseline_figures(experiment: Experiment) -> list[dict[str, Any]]:
  """The baseline by seed: its search, and what it brings."""
  return [
    {
      **experiment.search[n],
      "action": np.asarray(experiment.baseline_action[n], np.float64).tolist(),
      "reward_per_session": float(np.mean(experiment.base.reward[n])),
      "requests_per_session": float(np.mean(experiment.base.requests[n])),
    }
    for n in range(len(experiment.seeds))
  ]


class Evaluated(NamedTuple):
  """A policy that the learners' policies are compared with.

  results: on the sessions that every policy is evaluated on, leading axis `R`.
  figures: by seed, what else is worth keeping, ready for JSON.
  """

  results: EvalResult
  figures: list[dict[str, Any]]


def uncut_baseline(experiment: Experiment) -> Evaluated:
  """The baseline policy where sessions may last longer."""
  results = evaluate_action(
    experiment, experiment.baseline_action, experiment.config.uncut_requests
  )
  return Evaluated(results, [{} for _ in experiment.seeds])


def platform_es(experiment: Experiment) -> Evaluated:
  """What as many sessions bring without reinforcement learning.

  ES as a platform could run it: from uniform weights, by sampled rewards of
  sessions that are all different, as many as all rounds log.

  Args:
    experiment: of `prepare`.

  Returns:
    The policy evaluated; by seed its `action` and the `sessions` run for it.
  """
  config = experiment.config
  pair = 2 * config.es_search.sessions
  steps = max(2, config.rounds * config.sessions_per_round // pair)
  search = config.es_search._replace(iterations=steps)
  table = rewards_of(experiment.table, experiment.world)

  def one(key, world, table):
    uniform = jnp.zeros((world.num_actions,), jnp.float32)
    return global_weights.evolution(
      key,
      world,
      table,
      uniform,
      search,
      config.max_requests,
      mesh=experiment.mesh,
    )

  # Rounds fold in their own numbers, which end below this one.
  keys = jax.vmap(lambda key: jax.random.fold_in(key, config.rounds))(
    experiment.keys["round"]
  )
  action = over_seeds(one, experiment.mesh)(keys, experiment.world, table)
  figures = [
    {"sessions": steps * pair, "action": of_seed.tolist()}
    for of_seed in np.asarray(action, np.float64)
  ]
  return Evaluated(evaluate_action(experiment, action), figures)


def _privileged(experiment: Experiment, half_width: float) -> Evaluated:
  """A linear policy of observation and hidden state, climbing the true return."""
  policy = linear_policy(
    experiment.world, experiment.baseline_action, half_width
  )
  best = search_linear(
    experiment,
    experiment.keys["oracle"],
    policy,
    experiment.config.oracle_search,
  )
  results = evaluate_policy(
    experiment, oracle.linear_act, best, observe_fn=env.privileged_observation
  )
  return Evaluated(results, [{} for _ in experiment.seeds])


def privileged_optimum(experiment: Experiment) -> Evaluated:
  """The privileged optimum of the audit, free to go anywhere."""
  return _privileged(experiment, 2.0)


def in_box_optimum(experiment: Experiment) -> Evaluated:
  """The same, no further from the baseline than the rounds' boxes reach."""
  return _privileged(experiment, experiment.config.rounds * HALF_WIDTH)


# Beside the baseline policy itself; `comparisons.CONTESTS` says by what each is
# compared.
RIVALS: dict[str, Callable[[Experiment], Evaluated]] = {
  "baseline_policy_uncut": uncut_baseline,
  "platform_es": platform_es,
  "in_box_optimum": in_box_optimum,
  "oracle": privileged_optimum,
}
