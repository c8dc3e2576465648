"""Sessions of a policy: the loop over requests, rows as logged, shown items.

Letters: `B` sessions, `T` requests, `L` slate positions, `A` action components,
`S` observation, `E` behaviours, `G` groups.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mtf_jax.data.session_log import SessionLog
from mtf_jax.data.shown_items import ShownItems
from mtf_jax.over_mesh import over_data
from mtf_jax.policies import Act, Decision, is_held, request_key
from mtf_jax.worlds import cells as cells_lib
from mtf_jax.worlds.candidates import as_logged
from mtf_jax.worlds.env import (
  SessionState,
  StepResult,
  leave,
  observe,
  reset,
  serve,
)
from mtf_jax.worlds.world import World


def session_keys(
  rng_key: chex.PRNGKey, num_sessions: int
) -> tuple[jax.Array, jax.Array]:
  """World keys and policy keys: a policy's draws never move the world's.

  Args:
    rng_key: random number generator key, consumed.
    num_sessions: `B`, static.

  Returns:
    Keys of the sessions, and keys of the policy's own draws, both `[B]`.
  """
  world_key, policy_key = jax.random.split(rng_key)
  return (
    jax.random.split(world_key, num_sessions),
    jax.random.split(policy_key, num_sessions),
  )


# `observe_fn(world, state) -> observation`, whatever the policy takes.
ObserveFn = Callable[[World, SessionState], Any]


class Request(NamedTuple):
  """One request as the loop over a session sees it.

  state: the session before it.
  key: the policy's key.
  observation: what the policy saw.
  decision: what it answered.
  slots: int32 `[L]` places of the shown items in the user's pool.
  result: what it brought.
  """

  state: SessionState
  key: jax.Array
  observation: Any
  decision: Decision
  slots: jax.Array
  result: StepResult


def scan_requests(
  world: World,
  act: Act,
  params: Any,
  start: SessionState,
  policy_key: chex.PRNGKey,
  emit: Callable[[Any, Request], tuple[Any, Any]],
  *,
  max_requests: int,
  carry: Any = None,
  held: chex.Numeric = False,
  leaving: bool = True,
  observe_fn: ObserveFn = observe,
) -> tuple[SessionState, Any, Any]:
  """The loop over the requests of one session; the caller vmaps.

  What is not used of a `Request` costs nothing once compiled.

  Args:
    world: the world.
    act: `act(params, observation, rng_key) -> Decision`.
    params: the policy's parameters, any pytree.
    start: the session before the first request.
    policy_key: of the policy's own draws, see `policies.request_key`.
    emit: `(carry, request) -> (carry, out)`, called for each request, those
      after the end of a session included: `request.state.active` tells.
    max_requests: `T`, static.
    carry: what `emit` gets first.
    held: whether exploration is held over the session; may be traced.
    leaving: whether the user may leave, static. If not, the session goes on to
      the last request; `result.leave_prob` is there to account with.
    observe_fn: what the policy sees.

  Returns:
    The session after the last request, the last carry, and what was emitted,
    leading axis `T`.
  """

  def request(carry, _):
    state, own = carry
    key = request_key(policy_key, state.step, held)
    observation = observe_fn(world, state)
    decision = act(params, observation, key)
    slots, following, result = serve(
      world, state, decision.action, decision.cells
    )
    if leaving:
      following, result = leave(state, following, result)
    own, out = emit(
      own, Request(state, key, observation, decision, slots, result)
    )
    return (following, own), out

  (last, carry), out = jax.lax.scan(
    request, (start, carry), length=max_requests
  )
  return last, carry, out


class Rollout(NamedTuple):
  """Sessions side by side, before they are packed into a `SessionLog`.

  log: fields of `SessionLog` with leading axes `[B, T + 1]`. Row `T` of a
    session that was still going on after `T` requests is its `bootstrap_only`
    row.
  valid: bool `[B, T + 1]`, which rows exist; the others are zeros.
  """

  log: SessionLog
  valid: jax.Array


def rollout(
  rng_key: chex.PRNGKey,
  world: World,
  act: Act,
  params: Any,
  num_sessions: int,
  max_requests: int,
  exploration: str = "request",
  mesh: Mesh | None = None,
  observe_fn: ObserveFn = observe,
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
    exploration: "request" draws the noise at each request, "session" once for
      all requests of a session, static. A row's log density is that of its own
      action in either case, see `SessionLog.exploration_held`.
    mesh: the sessions are divided over its axis `data`, static; one device if
      omitted.
    observe_fn: what the policy sees, static; `candidates.observe_candidates`
      for one that answers each candidate by itself, whose shown items are then
      logged. Scores of candidates are where the policy ranks by cells.

  Returns:
    The rows; `pack` makes them a `SessionLog`.

  Raises:
    ValueError: `exploration` is neither.
  """
  return rollout_of(
    session_keys(rng_key, num_sessions),
    world,
    act,
    params,
    max_requests,
    exploration,
    mesh,
    observe_fn,
  )


@functools.partial(
  jax.jit,
  static_argnames=("act", "max_requests", "exploration", "mesh", "observe_fn"),
)
def rollout_of(
  keys: tuple[jax.Array, jax.Array],
  world: World,
  act: Act,
  params: Any,
  max_requests: int,
  exploration: str = "request",
  mesh: Mesh | None = None,
  observe_fn: ObserveFn = observe,
) -> Rollout:
  """Logs the sessions of some keys; otherwise as `rollout`.

  Args:
    keys: of `session_keys`, or some of them, `[B]` each.
    world, act, params, max_requests, exploration, mesh, observe_fn: as in
      `rollout`.

  Returns:
    The rows; sessions are numbered from 0.

  Raises:
    ValueError: `exploration` is neither of `rollout`'s.
  """
  held = is_held(exploration)

  def logged(state, observation, decision, slots):
    if decision.cells is not None:
      candidates = cells_lib.as_logged(world, state, decision.cells)
      return observation, decision, None, candidates
    if jnp.ndim(decision.action) == 1:
      return observation, decision, None, None
    return *as_logged(world, state, observation, decision, slots), None

  def emit(_, request):
    row = logged(
      request.state, request.observation, request.decision, request.slots
    )
    return None, (*row, request.result, request.state.active)

  def one(world_key, policy_key):
    last, _, emitted = scan_requests(
      world,
      act,
      params,
      reset(world_key, world),
      policy_key,
      emit,
      max_requests=max_requests,
      held=held,
      observe_fn=observe_fn,
    )
    observations, decisions, items, candidates, results, active = emitted
    # The observation and the box after a cut, of a request never served; and the
    # list that it would have shown, or its candidates.
    seen = observe_fn(world, last)
    answer = act(params, seen, request_key(policy_key, last.step, held))
    slots, _, _ = serve(world, last, answer.action, answer.cells)
    final, answer, final_items, final_candidates = logged(
      last, seen, answer, slots
    )

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
      box=jax.tree.map(with_row, decisions.box, answer.box),
      log_prob=no_row(decisions.log_prob),
      exploration_held=no_row(jnp.full_like(active, held)),
      reward=no_row(results.reward),
      feedback=no_row(jnp.sum(results.feedback, axis=1)),
      terminal=no_row(results.terminal),
      bootstrap_only=valid & (step_number == max_requests),
      session_id=jnp.zeros_like(step_number),
      step=jnp.where(valid, step_number, 0),
      items=None
      if items is None
      else ShownItems(
        features=with_row(items.features, final_items.features),
        action=no_row(items.action),
        box=jax.tree.map(with_row, items.box, final_items.box),
      ),
      candidates=jax.tree.map(with_row, candidates, final_candidates),
    )
    return Rollout(log=log, valid=valid)

  rows = over_data(one, *keys, mesh=mesh)
  number = jnp.arange(keys[0].shape[0], dtype=jnp.int32)[:, None]
  session_id = jnp.where(rows.valid, number, 0)
  return rows._replace(log=rows.log._replace(session_id=session_id))


def pack(rows: Rollout) -> SessionLog:
  """Drops the rows that do not exist.

  Args:
    rows: of `rollout`, `[B, T + 1]`.

  Returns:
    The log, `[N]` rows as NumPy arrays, sessions one after another.
  """
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

  def emit(_, request):
    return None, (request.result, request.state.active)

  def one(world_key, policy_key):
    start = reset(world_key, world)
    _, _, (results, active) = scan_requests(
      world, act, params, start, policy_key, emit, max_requests=max_requests
    )
    return Impressions(
      start.user, results.items, results.feedback, results.satisfaction, active
    )

  return jax.vmap(one)(*session_keys(rng_key, num_sessions))
