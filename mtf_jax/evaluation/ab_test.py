"""Policies judged on the same sessions, and what one gained over another.

Letters: `B` sessions, `T` requests, `G` reward groups, `O` outcomes.
"""

import functools
import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mtf_jax import policies
from mtf_jax.arrays import as_columns
from mtf_jax.data.behaviours import BEHAVIOURS
from mtf_jax.evaluation.statistics import paired_comparison
from mtf_jax.io import InputError
from mtf_jax.over_mesh import over_data
from mtf_jax.worlds import env
from mtf_jax.worlds import returns as returns_lib
from mtf_jax.worlds.returns import ExpectedRewards
from mtf_jax.worlds.rollout import ObserveFn, session_keys
from mtf_jax.worlds.world import World

OUTCOMES = ("valid", "play_seconds", "hate")


class EvalResult(NamedTuple):
  """What a policy's sessions brought, `[B, ...]`, in an order of sessions that
  is the same for every policy judged with one key.

  user: int32 `[B]`.
  reward: float32 `[B]`, sum over the groups.
  outcome: float32 `[B, O]`: valid consumptions, seconds played, hates.
  requests: float32 `[B]`.
  """

  user: jax.Array
  reward: jax.Array
  outcome: jax.Array
  requests: jax.Array


def evaluation_world(world: World) -> World:
  """The world with a reward group more for each outcome to be judged.

  Expected-value accounting then covers them. The reward groups are no part of
  what happens in a session.

  Args:
    world: of one seed, `G` reward groups.

  Returns:
    The world with `G + O` groups, those of `OUTCOMES` last.
  """
  more = np.zeros((len(OUTCOMES), len(BEHAVIOURS)), np.float32)
  for row, name in enumerate(OUTCOMES):
    more[row, BEHAVIOURS.index(name)] = 1.0
  weights = jnp.concatenate([world.group_weights, jnp.asarray(more)])
  return world.replace(group_weights=weights)


def rewards_of(table: ExpectedRewards, world: World) -> ExpectedRewards:
  """The part of an evaluation world's table that is the world's own.

  Args:
    table: `returns.expected_rewards(evaluation_world(world))`.
    world: the world, `G` reward groups. Both may have leading axes.

  Returns:
    The table with the first `G` groups alone.
  """
  num_groups = world.group_weights.shape[-2]
  return table._replace(reward=table.reward[..., :num_groups])


@functools.partial(
  jax.jit,
  static_argnames=("act", "num_sessions", "max_requests", "observe_fn", "mesh"),
)
def evaluate(
  rng_key: chex.PRNGKey,
  world: World,
  table: ExpectedRewards,
  act: policies.Act,
  params: Any,
  num_sessions: int,
  max_requests: int,
  observe_fn: ObserveFn = env.observe,
  held: chex.Numeric = False,
  mesh: Mesh | None = None,
) -> EvalResult:
  """Runs a policy; one key gives every policy the same users and noise.

  Args:
    rng_key: random number generator key, consumed.
    world: of `evaluation_world`.
    table: `returns.expected_rewards(world)`.
    act: the policy, static.
    params: its parameters.
    num_sessions: `B`, static.
    max_requests: `T`, static.
    observe_fn: what the policy sees, static.
    held: whether exploration is held over a session; not static, so that both
      kinds are judged by one program.
    mesh: the sessions are divided over its axis `data`, static; one device if
      omitted.

  Returns:
    Expected outcomes by session.
  """

  def one(world_key, policy_key):
    returns = returns_lib.session_return(
      world,
      table,
      act,
      params,
      max_requests,
      observe_fn,
      world_key,
      policy_key,
      held,
    )
    return env.reset(world_key, world).user, returns

  keys = session_keys(rng_key, num_sessions)
  user, returns = over_data(one, *keys, mesh=mesh)
  groups = returns.expected.shape[1] - len(OUTCOMES)
  return EvalResult(
    user=user,
    reward=jnp.sum(returns.expected[:, :groups], axis=1),
    outcome=returns.expected[:, groups:],
    requests=returns.requests,
  )


def check_paired(policy: EvalResult, base: EvalResult) -> None:
  """Refuses results of different sessions, which no comparison may pair.

  Args:
    policy, base: judged policies.

  Raises:
    InputError: the sessions' users differ.
  """
  if not np.array_equal(policy.user, base.user):
    raise InputError(
      "policy, base: expected the same users' sessions in the same order, found"
      " different users."
    )


def figures(
  policy: EvalResult, base: EvalResult, slate_size: int
) -> dict[str, Any]:
  """Gains of a policy over a base, ready for JSON.

  Args:
    policy, base: judged with the same key.
    slate_size: items of a list.

  Returns:
    For reward, valid consumption, duration (both per session and, the sessions
    being the same, per user) and session length: `*_gain_pct`, `*_gain_ci95`,
    `*_p_value`. Hate rates per shown item, NaN if none was shown.

  Raises:
    InputError: the two were judged on different sessions, or hold values that
      are masked or not finite.
  """
  check_paired(policy, base)
  column = {name: n for n, name in enumerate(OUTCOMES)}
  values = {
    "reward": (policy.reward, base.reward),
    "uvc": [x.outcome[:, column["valid"]] for x in (policy, base)],
    "udt": [x.outcome[:, column["play_seconds"]] for x in (policy, base)],
    "session_length": (policy.requests, base.requests),
  }
  result: dict[str, Any] = {}
  for name, (ours, theirs) in values.items():
    gain = paired_comparison(ours, theirs, base.user)
    result[f"{name}_gain_pct"] = gain.gain
    result[f"{name}_gain_ci95"] = list(gain.ci95)
    result[f"{name}_p_value"] = gain.p_value
  for name, results in (("hate_rate", policy), ("hate_rate_base", base)):
    hates, requests = (
      values.sum(dtype=np.float64)
      for values in as_columns(
        {
          "outcome": results.outcome[:, column["hate"]],
          "requests": results.requests,
        }
      )
    )
    shown = requests * slate_size
    result[name] = float(hates / shown) if shown else math.nan
  return result
