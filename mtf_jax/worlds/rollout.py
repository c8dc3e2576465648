"""Sessions of a policy as logged: rows, and shown items one by one.

Letters: `B` sessions, `T` requests, `L` slate positions, `A` action components,
`S` observation, `E` behaviours, `G` groups.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.session_log import SessionLog
from mtf_jax.policies import Act
from mtf_jax.worlds.env import observe, reset, step
from mtf_jax.worlds.world import World


def session_keys(
  rng_key: chex.PRNGKey, num_sessions: int
) -> tuple[jax.Array, jax.Array]:
  """World keys and policy keys: a policy's draws never move the world's."""
  world_key, policy_key = jax.random.split(rng_key)
  return (
    jax.random.split(world_key, num_sessions),
    jax.random.split(policy_key, num_sessions),
  )


class Rollout(NamedTuple):
  """Sessions side by side, before they are packed into a `SessionLog`.

  log: fields of `SessionLog` with leading axes `[B, T + 1]`. Row `T` of a
    session that was still going on after `T` requests is its `bootstrap_only`
    row.
  valid: bool `[B, T + 1]`, which rows exist; the others are zeros.
  """

  log: SessionLog
  valid: jax.Array


@functools.partial(
  jax.jit, static_argnames=("act", "num_sessions", "max_requests", "held")
)
def rollout(
  rng_key: chex.PRNGKey,
  world: World,
  act: Act,
  params: Any,
  num_sessions: int,
  max_requests: int,
  held: bool = False,
) -> Rollout:
  """Logs sessions of a policy.

  Args:
    rng_key: random number generator key, consumed. Equal keys give equal users,
      hours, candidates and user noise to every policy.
    world: the world.
    act: `act(params, observation, rng_key) -> Decision` for one request,
      static: pass the same function object to reuse the compiled program.
    params: the policy's parameters, any pytree.
    num_sessions: `B`, static.
    max_requests: `T`, static; longer sessions are cut (not ended).
    held: whether a session's exploration noise is drawn once and held, static.
      `act` then gets one key for all requests of a session, so that a sampler
      such as `sample_box` deviates alike in each of their boxes. A row's log
      density is still that of its own action, see
      `SessionLog.exploration_held`.

  Returns:
    The rows; `pack` makes them a `SessionLog`.
  """
  world_keys, policy_keys = session_keys(rng_key, num_sessions)

  def one(world_key, policy_key):
    def noise_key(state):
      # Used again on purpose: the same draw is what holding it means.
      return policy_key if held else jax.random.fold_in(policy_key, state.step)

    def request(state, _):
      observation = observe(world, state)
      key = noise_key(state)
      decision = act(params, observation, key)
      following, result = step(world, state, decision.action)
      return following, (observation, decision, result, state.active)

    last, (observations, decisions, results, active) = jax.lax.scan(
      request, reset(world_key, world), length=max_requests
    )
    # The observation and the box after a cut, of a request never served.
    final = observe(world, last)
    box = act(params, final, noise_key(last)).box

    def with_row(rows, row):
      keep = active.reshape((-1,) + (1,) * (rows.ndim - 1))
      rows = jnp.where(keep, rows, jnp.zeros_like(rows))
      row = jnp.where(last.active, row, jnp.zeros_like(row))
      return jnp.concatenate([rows, row[None].astype(rows.dtype)])

    def no_row(rows):
      return with_row(rows, jnp.zeros(rows.shape[1:], rows.dtype))

    step_number = jnp.arange(max_requests + 1, dtype=jnp.int32)
    valid = jnp.append(active, last.active)
    log = SessionLog(
      observation=with_row(observations, final),
      action=no_row(decisions.action),
      box=jax.tree.map(with_row, decisions.box, box),
      log_prob=no_row(decisions.log_prob),
      exploration_held=no_row(jnp.full_like(active, held)),
      reward=no_row(results.reward),
      feedback=no_row(jnp.sum(results.feedback, axis=1)),
      terminal=no_row(results.terminal),
      bootstrap_only=valid & (step_number == max_requests),
      session_id=jnp.zeros_like(step_number),
      step=jnp.where(valid, step_number, 0),
    )
    return Rollout(log=log, valid=valid)

  rows = jax.vmap(one)(world_keys, policy_keys)
  number = jnp.arange(num_sessions, dtype=jnp.int32)[:, None]
  session_id = jnp.where(rows.valid, number, 0)
  return rows._replace(log=rows.log._replace(session_id=session_id))


def pack(rows: Rollout) -> SessionLog:
  """Drops the rows that do not exist; NumPy arrays, sessions one after another."""
  valid = np.asarray(rows.valid)
  return jax.tree.map(lambda array: np.asarray(array)[valid], rows.log)


class Impressions(NamedTuple):
  """Shown items of sessions, one row per item.

  user: int32 `[B]`.
  items: int32 `[B, T, L]`.
  feedback: float32 `[B, T, L, E]`.
  satisfaction: float32 `[B, T, L]`, hidden.
  active: bool `[B, T]`, whether the request took place.
  """

  user: jax.Array
  items: jax.Array
  feedback: jax.Array
  satisfaction: jax.Array
  active: jax.Array


@functools.partial(
  jax.jit, static_argnames=("act", "num_sessions", "max_requests")
)
def impressions(
  rng_key: chex.PRNGKey,
  world: World,
  act: Act,
  params: Any,
  num_sessions: int,
  max_requests: int,
) -> Impressions:
  """Shown items one by one, hidden parts included, for audit and calibration.

  Args:
    rng_key: random number generator key, consumed; as in `rollout`.
    world: the world.
    act: as in `rollout`.
    params: the policy's parameters.
    num_sessions: `B`, static.
    max_requests: `T`, static.

  Returns:
    The impressions; rows of requests that did not take place are zeros.
  """

  def one(world_key, policy_key):
    def request(state, _):
      key = jax.random.fold_in(policy_key, state.step)
      decision = act(params, observe(world, state), key)
      following, result = step(world, state, decision.action)
      return following, (result, state.active)

    start = reset(world_key, world)
    results, active = jax.lax.scan(request, start, length=max_requests)[1]
    return Impressions(
      start.user, results.items, results.feedback, results.satisfaction, active
    )

  return jax.vmap(one)(*session_keys(rng_key, num_sessions))
