"""Sessions of a world: `reset`, `step`, `rollout`, `session_returns`.

Pure functions of one session over a `World`; `rollout` and `session_returns`
batch them over sessions and compile once per size.

Common random numbers: the key of a session decides its user, its hour, the
candidates of its every request and the user's noise towards each candidate,
whatever the policy does. Two policies run with one key differ only by what
they chose.

Letters: `B` sessions, `T` requests, `C` candidates, `L` slate positions, `K`
tasks, `A` action components, `S` observation, `E` behaviours, `G` groups.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.session_log import SessionLog
from mtf_jax.kernels import fusion
from mtf_jax.kernels.exploration import (
  ActionBox,
  action_box,
  box_log_prob,
  sample_box,
)
from mtf_jax.kernels.rewards import list_reward
from mtf_jax.worlds import noise
from mtf_jax.worlds import response as response_lib
from mtf_jax.worlds import satisfaction as satisfaction_lib
from mtf_jax.worlds.scores import lookup_scores
from mtf_jax.worlds.world import SESSION_FEATURES, World

_B = {name: n for n, name in enumerate(response_lib.BEHAVIOURS)}
# Column of the counter-based noise that decides leaving; above any candidate.
_LEAVE_COUNTER = noise.COUNTERS_PER_REQUEST - 1


class Decision(NamedTuple):
  """What a policy answers to an observation.

  action: `[A]` normalised action to use.
  box: `[A]` bounds that the exploration could draw from.
  log_prob: scalar log density of the action.
  """

  action: chex.Array
  box: ActionBox
  log_prob: chex.Array


# `act(params, observation [S], rng_key) -> Decision`.
Act = Callable[[Any, jax.Array, jax.Array], Decision]


class SessionState(NamedTuple):
  """A session between two requests.

  user: int32, index of the user.
  ring_start, ring_stride: uint32, where and how the pool is walked.
  noise_key: uint32 `[2]`, seeds the user's noise.
  hour: float32 in [0, 1), time of day.
  step: int32, requests so far.
  totals: float32 `[6]`, session statistics summed over shown items.
  last: float32 `[6]`, those of the last slate, means.
  leaving: state of the leaving model.
  active: bool, whether the user is still there.
  """

  user: jax.Array
  ring_start: jax.Array
  ring_stride: jax.Array
  noise_key: jax.Array
  hour: jax.Array
  step: jax.Array
  totals: jax.Array
  last: jax.Array
  leaving: Any
  active: jax.Array


class StepResult(NamedTuple):
  """What one request brought; all zero for a session that has ended.

  items: int32 `[L]` shown items.
  feedback: float32 `[L, E]` the user's behaviours.
  reward: float32 `[G]` reward per group.
  satisfaction: float32 `[L]` hidden, for the audit.
  leave_prob: float32, probability that the user left after this request.
  terminal: bool, whether the user left.
  """

  items: jax.Array
  feedback: jax.Array
  reward: jax.Array
  satisfaction: jax.Array
  leave_prob: jax.Array
  terminal: jax.Array


def reset(rng_key: chex.PRNGKey, world: World) -> SessionState:
  """Opens a session: draws the user, the hour and all that noise hangs on.

  Args:
    rng_key: random number generator key, consumed.
    world: the world.

  Returns:
    The state before the first request.
  """
  bits = jax.random.bits(rng_key, (6,), jnp.uint32)
  population = world.population.shape[0]
  slot = (bits[0] % jnp.uint32(population)).astype(jnp.int32)
  num_statistics = (len(SESSION_FEATURES) - 1) // 2
  return SessionState(
    user=world.population[slot].astype(jnp.int32),
    ring_start=bits[1],
    # An odd stride walks a ring of a power of two without repeating.
    ring_stride=bits[2] | jnp.uint32(1),
    noise_key=bits[3:5],
    hour=(bits[5] >> jnp.uint32(8)).astype(jnp.float32) * 2.0**-24,
    step=jnp.zeros((), jnp.int32),
    totals=jnp.zeros((num_statistics,), jnp.float32),
    last=jnp.zeros((num_statistics,), jnp.float32),
    leaving=world.leaving.reset(),
    active=jnp.ones((), jnp.bool_),
  )


def redraw(rng_key: chex.PRNGKey, state: SessionState) -> SessionState:
  """Draws anew what a session has yet to meet; its past stays.

  Candidates to come may then be items that were candidates before.

  Args:
    rng_key: random number generator key, consumed.
    state: a session.

  Returns:
    The session before other candidates and another noise of the user.
  """
  bits = jax.random.bits(rng_key, (4,), jnp.uint32)
  return state._replace(
    ring_start=bits[0],
    ring_stride=bits[1] | jnp.uint32(1),
    noise_key=bits[2:4],
  )


def _context(hour: jax.Array) -> jax.Array:
  """`[2]`: 1 at the peak of the evening (21 h), and of the morning (15 h off)."""
  angle = 2.0 * jnp.pi * (hour - 21.0 / 24.0)
  return jnp.stack([jnp.cos(angle), jnp.sin(angle)])


def observe(world: World, state: SessionState) -> jax.Array:
  """What the policy sees before a request.

  Args:
    world: the world.
    state: the session.

  Returns:
    float32 `[S]`, named by `world.observation_names`: user features,
    statistics of the session so far (0 before the first request), context.
  """
  requests = state.step.astype(jnp.float32)
  shown = jnp.maximum(requests * world.slate_size, 1.0)
  return jnp.concatenate(
    [
      world.user_features[state.user],
      jnp.log1p(requests)[None],
      state.totals / shown,
      state.last,
      _context(state.hour),
    ]
  )


def candidate_slots(world: World, state: SessionState) -> jax.Array:
  """Places in the user's pool offered to the fusion at this request, `[C]`.

  A stretch of the pool, walked from a start and with a stride of the session:
  no random numbers, no item twice until the pool is used up.
  """
  first = state.step.astype(jnp.uint32) * jnp.uint32(world.num_candidates)
  place = first + jnp.arange(world.num_candidates, dtype=jnp.uint32)
  size = jnp.uint32(world.pool.shape[1])
  slot = (state.ring_start + state.ring_stride * place) & (size - jnp.uint32(1))
  return slot.astype(jnp.int32)


def _statistics(feedback: jax.Array) -> jax.Array:
  """Sums of a slate's feedback that the session statistics keep, `[6]`."""
  interaction = jnp.max(
    feedback[
      :, jnp.asarray([_B["like"], _B["comment"], _B["follow"], _B["forward"]])
    ],
    axis=1,
  )
  columns = [
    feedback[:, _B["click"]],
    feedback[:, _B["valid"]],
    feedback[:, _B["long_view"]],
    feedback[:, _B["finish"]],
    interaction,
    jnp.log1p(feedback[:, _B["play_seconds"]]) / 4.0,
  ]
  return jnp.stack([jnp.sum(column) for column in columns])


def respond(
  world: World, state: SessionState, items: jax.Array, feedback: jax.Array
) -> tuple[SessionState, StepResult]:
  """Lets the session digest a shown slate; the user has not left yet.

  Args:
    world: the world.
    state: the session, which is taken to be going on.
    items: int32 `[L]` shown items.
    feedback: float32 `[L, E]` the user's behaviours.

  Returns:
    The state after the request and what it brought, `terminal` False.
  """
  satisfied = satisfaction_lib.item_satisfaction(
    world.satisfaction, state.user, items, feedback, _context(state.hour)[0]
  )
  leaving, leave_prob = world.leaving.update(
    state.leaving, satisfied, world.item_tag[items]
  )
  statistics = _statistics(feedback)
  following = state._replace(
    step=state.step + 1,
    totals=state.totals + statistics,
    last=statistics / world.slate_size,
    leaving=leaving,
  )
  return following, StepResult(
    items=items,
    feedback=feedback,
    reward=list_reward(feedback, world.group_weights),
    satisfaction=satisfied,
    leave_prob=leave_prob,
    terminal=jnp.zeros((), jnp.bool_),
  )


def _serve(
  world: World, state: SessionState, action: jax.Array
) -> tuple[jax.Array, SessionState, StepResult]:
  """Ranks, shows, lets the user react: `(slots [L], state, result)`."""
  slots = candidate_slots(world, state)
  weights = fusion.weights_from_action(action, world.fusion_spec)
  log_scores = fusion.fused_log_score(
    lookup_scores(world.scores, state.user, slots), weights
  )
  slate = fusion.rank_slate(log_scores, world.slate_size)
  shown_slots = slots[slate]
  items = world.pool[state.user, shown_slots].astype(jnp.int32)
  num_uniforms = response_lib.NUM_UNIFORMS
  column = jnp.arange(num_uniforms, dtype=jnp.int32)
  counter = slate[:, None] * num_uniforms + column[None, :]
  uniforms = noise.counter_uniforms(state.noise_key, state.step, counter)
  feedback = response_lib.sample_responses(
    uniforms, world.response, state.user, items
  )
  return shown_slots, *respond(world, state, items, feedback)


def _stays(state: SessionState, leave_prob: jax.Array) -> jax.Array:
  """Whether the user's noise lets them stay after the request of `state`."""
  chance = noise.counter_uniforms(
    state.noise_key, state.step, jnp.asarray(_LEAVE_COUNTER, jnp.int32)
  )
  return chance >= leave_prob


def step(
  world: World, state: SessionState, action: chex.Array
) -> tuple[SessionState, StepResult]:
  """Serves one request with an action.

  Args:
    world: the world.
    state: the session.
    action: `[A]` normalised action, see `fusion.weights_from_action`.

  Returns:
    The state after the request and what it brought. A session that has ended
    stays as it is and brings zeros.

  Raises:
    ValueError: the action's shape or dtype is wrong.
  """
  if jnp.shape(action) != (world.num_actions,):
    raise ValueError(
      f"action: expected shape ({world.num_actions},), found"
      f" {jnp.shape(action)}."
    )
  _, following, result = _serve(world, state, action)
  stays = _stays(state, result.leave_prob)
  following = following._replace(active=stays)
  result = result._replace(terminal=~stays)
  keep = functools.partial(jnp.where, state.active)
  return (
    jax.tree.map(keep, following, state),
    jax.tree.map(lambda x: keep(x, jnp.zeros_like(x)), result),
  )


def _session_keys(
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
      density is still that of its own action; those of one session are no
      longer independent, and their sum is not the density of the session.

  Returns:
    The rows; `pack` makes them a `SessionLog`.
  """
  world_keys, policy_keys = _session_keys(rng_key, num_sessions)

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
  jax.jit, static_argnames=("act", "num_sessions", "max_requests", "privileged")
)
def session_returns(
  rng_key: chex.PRNGKey,
  world: World,
  table: ExpectedRewards,
  act: Act,
  params: Any,
  num_sessions: int,
  max_requests: int,
  privileged: bool = False,
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
    privileged: whether `act` sees the hidden state too, see
      `privileged_observation`; for bounds that no policy can reach.

  Returns:
    The sums per session.
  """
  world_keys, policy_keys = _session_keys(rng_key, num_sessions)
  look = privileged_observation if privileged else observe

  def one(world_key, policy_key):
    return session_return(
      world, table, act, params, max_requests, look, world_key, policy_key
    )

  return jax.vmap(one)(world_keys, policy_keys)


def session_return(
  world: World,
  table: ExpectedRewards,
  act: Act,
  params: Any,
  max_requests: int,
  look: Callable[[World, SessionState], jax.Array],
  world_key: chex.PRNGKey,
  policy_key: chex.PRNGKey,
  held: chex.Numeric = False,
) -> SessionReturns:
  """One session of `session_returns`; `look` makes the observation.

  `held` is whether exploration is held over the session, as in `rollout`.
  """

  def request(carry, _):
    state, reached, present, sums = carry
    key = jax.random.fold_in(policy_key, jnp.where(held, 0, state.step))
    action = act(params, look(world, state), key).action
    slots, following, result = _serve(world, state, action)
    expected = table.reward[table.row[state.user], slots]
    sums = SessionReturns(
      expected=sums.expected + reached * jnp.sum(expected, axis=0),
      sampled=sums.sampled + present * result.reward,
      requests=sums.requests + reached,
    )
    reached = reached * (1.0 - result.leave_prob)
    present = jnp.where(_stays(state, result.leave_prob), present, 0.0)
    return (following, reached, present, sums), None

  one = jnp.ones((), jnp.float32)
  zeros = jnp.zeros((world.group_weights.shape[0],), jnp.float32)
  start = SessionReturns(zeros, zeros, jnp.zeros((), jnp.float32))
  carry = (reset(world_key, world), one, one, start)
  return jax.lax.scan(request, carry, length=max_requests)[0][3]


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

  def request(carry, number):
    state, reached, value = carry
    reached = jnp.where(state.step < max_requests, reached, 0.0)
    key = jax.random.fold_in(policy_key, state.step)
    own = act(params, observe(world, state), key).action
    slots, state, result = _serve(
      world, state, jnp.where(number == 0, action, own)
    )
    expected = table.reward[table.row[state.user], slots]
    value = ActionValue(
      reward=value.reward + reached * jnp.sum(expected, axis=0),
      requests=value.requests + reached,
    )
    reached = reached * discount * (1.0 - result.leave_prob)
    return (state, reached, value), None

  nothing = ActionValue(
    jnp.zeros((table.reward.shape[-1],), jnp.float32),
    jnp.zeros((), jnp.float32),
  )
  carry = (state, jnp.ones((), jnp.float32), nothing)
  number = jnp.arange(max_requests, dtype=jnp.int32)
  return jax.lax.scan(request, carry, number)[0][2]


def privileged_observation(world: World, state: SessionState) -> jax.Array:
  """The observation with the hidden state behind it, float32 `[S + ...]`.

  Adds the user's tastes, interest and interaction effects, and the scalar parts
  of the leaving model's state: what a policy that knew the user would use.
  """
  hidden = [
    jnp.ravel(leaf) for leaf in jax.tree.leaves(state.leaving) if leaf.ndim == 0
  ]
  return jnp.concatenate(
    [
      observe(world, state),
      world.satisfaction.taste[state.user],
      world.response.user_interest[state.user][None],
      world.response.user_interaction[state.user],
      *hidden,
    ]
  )


def fixed_action(
  params: jax.Array, observation: jax.Array, rng_key: jax.Array
) -> Decision:
  """A policy that always answers `params`, an action `[A]`, without exploring."""
  del observation, rng_key
  return Decision(
    params, ActionBox(params, params), jnp.zeros((), params.dtype)
  )


def explore_in_box(
  params: jax.Array, observation: jax.Array, rng_key: jax.Array
) -> Decision:
  """The paper's exploration around one global action `params [A]`, +-0.15."""
  del observation
  box = action_box(params)
  action = sample_box(rng_key, box)
  return Decision(action, box, box_log_prob(action, box))


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

  return jax.vmap(one)(*_session_keys(rng_key, num_sessions))
