"""What policies are held against, beside one another.

Letters: `R` seeds, `B` sessions, `A` action components.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.evaluation import oracle
from mtf_jax.evaluation.ab_test import Judged
from mtf_jax.learners.base import Normalization
from mtf_jax.policies import fixed_action
from mtf_jax.studies.progressive.algorithm import Algorithm
from mtf_jax.studies.progressive.config import ProgressiveConfig
from mtf_jax.studies.progressive.run import (
  ES_LIMIT,
  Run,
  assemble,
  judge_policy,
  linear_policy,
  search_linear,
  with_algorithm,
)
from mtf_jax.worlds import env
from mtf_jax.worlds import returns as returns_lib
from mtf_jax.worlds.world import World


def prepare(
  config: ProgressiveConfig,
  worlds: Sequence[World],
  seeds: Sequence[int],
  algorithm: Algorithm,
) -> Run:
  """Finds the baseline policy, judges it, and sets the learner up around it.

  The baseline policy is one global set of fusion weights, found by an evolution
  strategy (ES).

  Args:
    config: size of the run.
    worlds: one for each seed, of one size; their populations are cut to
      `config.num_users`.
    seeds: each decides the users kept, ES, the networks, all sessions and
      batches that are its own.
    algorithm: of `make_algorithm`.

  Returns:
    The run before its first round.
  """
  run = assemble(config, worlds, seeds, algorithm)
  begin = linear_policy(run.world, run.es, ES_LIMIT)
  # The hidden state comes after what a policy observes.
  num_features = run.normalization.mean.shape[1]
  run = run._replace(
    table=jax.vmap(returns_lib.expected_rewards)(run.judging),
    normalization=Normalization(
      begin.mean[:, :num_features], begin.scale[:, :num_features]
    ),
  )
  # Blind, yet of the privileged policy's shape: one program finds both.
  blind = oracle.blinded(begin)
  found = search_linear(run, run.keys["search"], blind, config.es_search)
  run = run._replace(es=found.weights[:, :, 0])
  run = with_algorithm(run, config, algorithm)
  return run._replace(base=judge_action(run, run.es))


def judge_action(
  run: Run, action: chex.Array, max_requests: int | None = None
) -> Judged:
  """Global weights `[R, A]` on the sessions that every policy is judged on."""
  return judge_policy(run, fixed_action, action, max_requests=max_requests)


def baseline_figures(run: Run) -> list[dict[str, Any]]:
  """The baseline by seed: its action, what it brings, what finding it cost."""
  search = run.config.es_search
  return [
    {
      "action": np.asarray(run.es[n], np.float64).tolist(),
      "reward_per_session": float(np.mean(run.base.reward[n])),
      "requests_per_session": float(np.mean(run.base.requests[n])),
      # Each session of a step is run forwards and backwards.
      "search_sessions": 2 * search.iterations * search.sessions,
    }
    for n in range(len(run.seeds))
  ]


class MatchedEs(NamedTuple):
  """ES that went on with the data budget of the rounds.

  sessions: run for it, beyond those of the baseline policy.
  action: `[R, A]`.
  judged: on the sessions that the baseline policy was judged on.
  """

  sessions: int
  action: jax.Array
  judged: Judged


def es_matched_budget(run: Run) -> MatchedEs:
  """What as many sessions bring without reinforcement learning.

  ES goes on from where it was put into service, for as many sessions as all
  rounds log. Its sessions are pairs under common random numbers with
  expected-value accounting, so each tells more than a logged one.
  """
  config = run.config
  pair = 2 * config.es_search.sessions
  steps = max(1, config.rounds * config.sessions_per_round // pair)
  policy = linear_policy(run.world, run.es, ES_LIMIT)
  limit = jnp.full_like(policy.upper, ES_LIMIT)
  blind = oracle.blinded(policy)._replace(lower=-limit, upper=limit)
  # Rounds fold in their own numbers, which end below this one.
  keys = jax.vmap(lambda key: jax.random.fold_in(key, config.rounds))(
    run.keys["round"]
  )
  search = config.es_search._replace(iterations=steps)
  action = search_linear(run, keys, blind, search).weights[:, :, 0]
  return MatchedEs(steps * pair, action, judge_action(run, action))


def judge_oracle(run: Run) -> Judged:
  """The privileged optimum of the audit: what no policy that can be served has.

  A linear policy of the observation and the hidden state, free to go anywhere,
  ascends the true return from the baseline policy.
  """
  policy = linear_policy(run.world, run.es, 2.0)
  best = search_linear(
    run, run.keys["oracle"], policy, run.config.oracle_search
  )
  return judge_policy(
    run, oracle.linear_act, best, observe_fn=env.privileged_observation
  )
