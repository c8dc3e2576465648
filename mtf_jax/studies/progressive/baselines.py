"""What policies are held against: ES, ES with more sessions, a privileged search.

Letters: `R` seeds, `B` sessions, `T` requests, `N` rows, `S` state features, `A`
action components, `G` reward groups, `O` outcomes, `H` bins.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.evaluation import oracle
from mtf_jax.evaluation.ab_test import Judged, judge
from mtf_jax.learners.base import Normalization
from mtf_jax.learners.integrated_rl import State
from mtf_jax.studies.progressive.config import ProgressiveConfig
from mtf_jax.studies.progressive.run import (
  ES_LIMIT,
  Algorithm,
  Run,
  assemble,
  compare_rewards,
  judge_params,
  linear_policy,
  reward_gains,
  search_linear,
  with_algorithm,
)
from mtf_jax.studies.progressive.service import Service, service, start_at
from mtf_jax.worlds import env
from mtf_jax.worlds import returns as returns_lib
from mtf_jax.worlds.world import World


def prepare(
  config: ProgressiveConfig,
  worlds: Sequence[World],
  seeds: Sequence[int],
  algorithm: Algorithm,
) -> Run:
  """Finds ES, judges it, and sets the learner up around it.

  Args:
    config: size of the run.
    worlds: one for each seed, of one size; their populations are cut to
      `config.num_users`.
    seeds: each decides the users kept, ES, the networks, all sessions and
      batches of its tree_index.
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
  return run._replace(base=judge_params(run, es_service(run)))


def es_service(run: Run) -> Service:
  """ES itself: the actor before training, without its networks' small answer."""
  params = run.start.actor_params
  network = jax.tree.map(jnp.zeros_like, params["network"])
  return service(
    run.start._replace(actor_params={**params, "network": network})
  )


def es_figures(run: Run) -> list[dict[str, Any]]:
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


class LongerEs(NamedTuple):
  """ES that went on with the data budget of the rounds.

  sessions: run for it, beyond those of ES.
  action: `[R, A]`.
  judged: on the sessions that ES was judged on.
  """

  sessions: int
  action: jax.Array
  judged: Judged


def longer_es(run: Run) -> LongerEs:
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
  moved = run._replace(start=start_at(run.start, action))
  return LongerEs(steps * pair, action, judge_params(run, es_service(moved)))


def headroom_figures(run: Run) -> list[dict[str, Any]]:
  """The privileged optimum of the audit: what no policy that can be served has.

  A linear policy of the observation and the hidden state, free to go anywhere,
  ascends the true return from ES.
  """
  policy = linear_policy(run.world, run.es, 2.0)
  best = search_linear(
    run, run.keys["headroom"], policy, run.config.headroom_search
  )

  def one(rng_key, world, table, policy):
    return judge(
      rng_key,
      world,
      table,
      oracle.linear_act,
      policy,
      run.config.evaluation_sessions,
      run.config.max_requests,
      env.privileged_observation,
    )

  judged = jax.vmap(one)(run.keys["evaluation"], run.judging, run.table, best)
  gains = compare_rewards(judged, run.base)
  return [
    {"headroom_pct": gain.gain, "headroom_ci95": list(gain.ci95)}
    for gain in gains
  ]


def uncut_figures(run: Run, state: State) -> list[dict[str, Any]]:
  """The reward gain by seed where sessions may go on beyond `max_requests`."""
  policy, base = (
    judge_params(run, params, run.config.uncut_requests)
    for params in (service(state), es_service(run))
  )
  return [
    {"max_requests": run.config.uncut_requests, **gain}
    for gain in reward_gains(policy, base)
  ]
