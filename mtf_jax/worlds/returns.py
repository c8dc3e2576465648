"""What a policy's sessions bring, with little noise: expected-value accounting.

Letters: `B` sessions, `T` requests, `W` users of the population table, `P` pool,
`A` action components, `G` groups.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from mtf_jax.policies import Act
from mtf_jax.worlds import response as response_lib
from mtf_jax.worlds.env import SessionState, observe, reset, stays
from mtf_jax.worlds.rollout import ObserveFn, scan_requests, session_keys
from mtf_jax.worlds.world import World


class ExpectedRewards(NamedTuple):
  """Expected reward of every pair that a world's population can be shown.

  row: int32 `[U]`, row of a user; users outside the population have row 0.
  reward: float32 `[R, P, G]`, by row and place in the pool.
  """

  row: jax.Array
  reward: jax.Array


@jax.jit
def expected_rewards(world: World) -> ExpectedRewards:
  """Tabulates the expected reward over the population's pools.

  Expected responses cost a thousand logistic functions an item; an evaluation
  shows the same pairs again and again. Build it once for a world (its leaving
  model does not matter), with a population of some thousands of users.

  Args:
    world: the world.

  Returns:
    The table, `W x P x G` float32.
  """
  users = world.population

  def rewards(user):
    feedback = response_lib.expected_responses(
      world.response, user, world.pool[user].astype(jnp.int32)
    )
    return jnp.sum(
      feedback[:, None, :] * world.group_weights[None, :, :], axis=-1
    )

  row = jnp.zeros((world.pool.shape[0],), jnp.int32)
  row = row.at[users].set(jnp.arange(users.shape[0], dtype=jnp.int32))
  return ExpectedRewards(row, jax.lax.map(rewards, users))


class SessionReturns(NamedTuple):
  """Per-session sums for comparing policies, `[B, ...]`.

  expected: float32 `[B, G]` reward of the session, each shown list at its
    expectation and each request at the probability that it is reached.
  sampled: float32 `[B, G]` reward that a log would show.
  requests: float32 `[B]` expected number of requests.
  """

  expected: jax.Array
  sampled: jax.Array
  requests: jax.Array


@functools.partial(
  jax.jit, static_argnames=("act", "num_sessions", "max_requests", "observe_fn")
)
def session_returns(
  rng_key: chex.PRNGKey,
  world: World,
  table: ExpectedRewards,
  act: Act,
  params: Any,
  num_sessions: int,
  max_requests: int,
  observe_fn: ObserveFn = observe,
) -> SessionReturns:
  """Undiscounted returns of a policy's sessions, with little noise.

  The path of a session (feedback, statistics, satisfaction) is sampled. Along
  it each shown list counts with its expected feedback, and a request counts
  with the probability that the user is still there, so that neither the noise
  of rare behaviours nor that of leaving remains. Both have the expectation of
  the sampled return. Rewards after `max_requests` do not count.

  Args:
    rng_key: random number generator key, consumed; as in `rollout`.
    world: the world.
    table: `expected_rewards(world)`.
    act: as in `rollout`.
    params: the policy's parameters.
    num_sessions: `B`, static.
    max_requests: `T`, static.
    observe_fn: what the policy sees, static; `env.privileged_observation` for
      bounds that no policy can reach.

  Returns:
    The sums per session.
  """
  world_keys, policy_keys = session_keys(rng_key, num_sessions)

  def one(world_key, policy_key):
    return session_return(
      world, table, act, params, max_requests, observe_fn, world_key, policy_key
    )

  return jax.vmap(one)(world_keys, policy_keys)


def session_return(
  world: World,
  table: ExpectedRewards,
  act: Act,
  params: Any,
  max_requests: int,
  observe_fn: ObserveFn,
  world_key: chex.PRNGKey,
  policy_key: chex.PRNGKey,
  held: chex.Numeric = False,
) -> SessionReturns:
  """One session of `session_returns`; the caller vmaps.

  A policy takes the actions that `rollout` logs with the same keys.

  Args:
    world: the world.
    table: `expected_rewards(world)`.
    act: as in `rollout`.
    params: the policy's parameters.
    max_requests: `T`, static.
    observe_fn: what the policy sees, static.
    world_key: of the session: its user, candidates and noise.
    policy_key: of the policy's own draws in it.
    held: whether exploration is held over the session; may be traced.

  Returns:
    The sums of one session: `[G]` both rewards, scalar requests.
  """

  def emit(carry, request):
    reached, present, sums = carry
    user, leave_prob = request.state.user, request.result.leave_prob
    expected = table.reward[table.row[user], request.slots]
    sums = SessionReturns(
      expected=sums.expected + reached * jnp.sum(expected, axis=0),
      sampled=sums.sampled + present * request.result.reward,
      requests=sums.requests + reached,
    )
    reached = reached * (1.0 - leave_prob)
    present = jnp.where(stays(request.state, leave_prob), present, 0.0)
    return (reached, present, sums), None

  one = jnp.ones((), jnp.float32)
  zeros = jnp.zeros((world.group_weights.shape[0],), jnp.float32)
  start = SessionReturns(zeros, zeros, jnp.zeros((), jnp.float32))
  _, (_, _, sums), _ = scan_requests(
    world,
    act,
    params,
    reset(world_key, world),
    policy_key,
    emit,
    max_requests=max_requests,
    carry=(one, one, start),
    held=held,
    leaving=False,
    observe_fn=observe_fn,
  )
  return sums


class ActionValue(NamedTuple):
  """What an action brings from a state on; see `action_value`.

  reward: float32 `[G]`, expected discounted reward.
  requests: float32, expected discounted number of requests.
  """

  reward: jax.Array
  requests: jax.Array


def action_value(
  world: World,
  table: ExpectedRewards,
  act: Act,
  params: Any,
  state: SessionState,
  action: chex.Array,
  discount: chex.Numeric,
  max_requests: int,
  policy_key: chex.PRNGKey,
) -> ActionValue:
  """Discounted value of an action at a state, the policy answering afterwards.

  Along one sampled path, lists at their expectation and requests at the
  probability that they are reached, as in `session_returns`. The mean over
  several `redraw` of one state is the value of what is known before a request.

  Args:
    world: the world.
    table: `expected_rewards(world)`.
    act: the policy of the later requests.
    params: its parameters.
    state: a session that is going on.
    action: `[A]`, used at the first request.
    discount: factor of each further request, in [0, 1].
    max_requests: `T` of the session, static. It is cut there, as in `rollout`:
      a state at step `t` has `T - t` requests left.
    policy_key: of the policy's own draws.

  Returns:
    The value.
  """

  # The policy is told which request is the first: one copy of a request in the
  # program, not two.
  def observe_fn(world, later):
    return observe(world, later), later.step == state.step

  def decide(params, seen, rng_key):
    observation, is_first = seen
    own = act(params, observation, rng_key)
    return own._replace(action=jnp.where(is_first, action, own.action))

  def emit(carry, request):
    reached, value = carry
    reached = jnp.where(request.state.step < max_requests, reached, 0.0)
    expected = table.reward[table.row[request.state.user], request.slots]
    value = ActionValue(
      reward=value.reward + reached * jnp.sum(expected, axis=0),
      requests=value.requests + reached,
    )
    reached = reached * discount * (1.0 - request.result.leave_prob)
    return (reached, value), None

  nothing = ActionValue(
    jnp.zeros((table.reward.shape[-1],), jnp.float32),
    jnp.zeros((), jnp.float32),
  )
  _, (_, value), _ = scan_requests(
    world,
    decide,
    params,
    state,
    policy_key,
    emit,
    max_requests=max_requests,
    carry=(jnp.ones((), jnp.float32), nothing),
    leaving=False,
    observe_fn=observe_fn,
  )
  return value
