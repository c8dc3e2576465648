"""What policies are held against, beside one another.

Letters: `R` seeds, `B` sessions, `A` action components.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.evaluation import oracle
from mtf_jax.evaluation.ab_test import EvalResult
from mtf_jax.learners.base import Normalization
from mtf_jax.policies import fixed_action
from mtf_jax.studies.progressive.config import ProgressiveConfig
from mtf_jax.studies.progressive.experiment import (
  ES_LIMIT,
  Experiment,
  assemble,
  evaluate_policy,
  linear_policy,
  search_linear,
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
) -> Experiment:
  """Finds the baseline policy, evaluates it, and sets the learner up around it.

  The baseline policy is one global set of fusion weights, found by an evolution
  strategy (ES).

  Args:
    config: size of the run.
    worlds: one for each seed, of one size; their populations are cut to
      `config.num_users`.
    seeds: each decides the users kept, ES, the networks, all sessions and
      batches that are its own.
    study_learner: of `make_study_learner`.

  Returns:
    The run before its first round.
  """
  experiment = assemble(config, worlds, seeds, study_learner)
  begin = linear_policy(experiment.world, experiment.baseline_action, ES_LIMIT)
  # The hidden state comes after what a policy observes.
  num_features = experiment.normalization.mean.shape[1]
  experiment = experiment._replace(
    table=jax.vmap(returns_lib.expected_rewards)(experiment.evaluation_world),
    normalization=Normalization(
      begin.mean[:, :num_features], begin.scale[:, :num_features]
    ),
  )
  # Blind, yet of the privileged policy's shape: one program finds both.
  blind = oracle.blinded(begin)
  found = search_linear(
    experiment, experiment.keys["search"], blind, config.es_search
  )
  experiment = experiment._replace(baseline_action=found.weights[:, :, 0])
  experiment = with_study_learner(experiment, config, study_learner)
  return experiment._replace(
    base=evaluate_action(experiment, experiment.baseline_action)
  )


def evaluate_action(
  experiment: Experiment, action: chex.Array, max_requests: int | None = None
) -> EvalResult:
  """Global weights `[R, A]` on the sessions that every policy is judged on."""
  return evaluate_policy(
    experiment, fixed_action, action, max_requests=max_requests
  )


def baseline_figures(experiment: Experiment) -> list[dict[str, Any]]:
  """The baseline by seed: its action, what it brings, what finding it cost."""
  search = experiment.config.es_search
  return [
    {
      "action": np.asarray(experiment.baseline_action[n], np.float64).tolist(),
      "reward_per_session": float(np.mean(experiment.base.reward[n])),
      "requests_per_session": float(np.mean(experiment.base.requests[n])),
      # Each session of a step is run forwards and backwards.
      "search_sessions": 2 * search.iterations * search.sessions,
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


def es_matched_budget(experiment: Experiment) -> Evaluated:
  """What as many sessions bring without reinforcement learning.

  ES goes on from where it was put into service, for as many sessions as all
  rounds log. Its sessions are pairs under common random numbers with
  expected-value accounting, so each tells more than a logged one.

  Args:
    experiment: of `prepare`.

  Returns:
    The policy evaluated; by seed its `action` and the `sessions` run for it,
    beyond those of the baseline policy.
  """
  config = experiment.config
  pair = 2 * config.es_search.sessions
  steps = max(1, config.rounds * config.sessions_per_round // pair)
  policy = linear_policy(experiment.world, experiment.baseline_action, ES_LIMIT)
  limit = jnp.full_like(policy.upper, ES_LIMIT)
  blind = oracle.blinded(policy)._replace(lower=-limit, upper=limit)
  # Rounds fold in their own numbers, which end below this one.
  keys = jax.vmap(lambda key: jax.random.fold_in(key, config.rounds))(
    experiment.keys["round"]
  )
  search = config.es_search._replace(iterations=steps)
  action = search_linear(experiment, keys, blind, search).weights[:, :, 0]
  figures = [
    {"sessions": steps * pair, "action": of_seed.tolist()}
    for of_seed in np.asarray(action, np.float64)
  ]
  return Evaluated(evaluate_action(experiment, action), figures)


def privileged_optimum(experiment: Experiment) -> Evaluated:
  """The privileged optimum of the audit: what no policy that can be served has.

  A linear policy of the observation and the hidden state, free to go anywhere,
  ascends the true return from the baseline policy.
  """
  policy = linear_policy(experiment.world, experiment.baseline_action, 2.0)
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


# Beside the baseline policy itself; `comparisons.CONTESTS` says by what each is
# compared.
RIVALS: dict[str, Callable[[Experiment], Evaluated]] = {
  "baseline_policy_uncut": uncut_baseline,
  "es_matched_budget": es_matched_budget,
  "oracle": privileged_optimum,
}
