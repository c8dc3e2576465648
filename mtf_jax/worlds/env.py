"""A session of a world, request by request: `reset`, `observe`, `step`.

Pure functions of one session over a `World`; the caller vmaps.

Common random numbers: the key of a session decides its user, its hour, the
candidates of its every request and the user's noise towards each candidate,
whatever the policy does. Two policies run with one key differ only by what
they chose.

Letters: `C` candidates, `L` slate positions, `K` tasks, `A` action components,
`S` observation, `E` behaviours, `G` groups, `J` knots of a cell.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from mtf_jax.data.behaviours import INDEX, POSITIVE_INTERACTIONS
from mtf_jax.kernels import fusion
from mtf_jax.kernels.monotone import MonotoneCells, monotone_fused_score
from mtf_jax.kernels.rewards import list_reward
from mtf_jax.worlds import noise
from mtf_jax.worlds import response as response_lib
from mtf_jax.worlds import satisfaction as satisfaction_lib
from mtf_jax.worlds.scores import lookup_scores
from mtf_jax.worlds.world import SESSION_FEATURES, World

# Column of the counter-based noise that decides leaving; above any candidate.
_LEAVE_COUNTER = noise.COUNTERS_PER_REQUEST - 1


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
    feedback[:, jnp.asarray([INDEX[name] for name in POSITIVE_INTERACTIONS])],
    axis=1,
  )
  columns = [
    feedback[:, INDEX["click"]],
    feedback[:, INDEX["valid"]],
    feedback[:, INDEX["long_view"]],
    feedback[:, INDEX["finish"]],
    interaction,
    jnp.log1p(feedback[:, INDEX["play_seconds"]]) / 4.0,
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


def _log_scores(
  world: World, scores: jax.Array, action: jax.Array
) -> jax.Array:
  """`[C]` by Eq. 1, of scores `[C, K]` and an action of all or of each."""
  of_all, of_each = (
    (world.num_actions,),
    (world.num_candidates, world.num_actions),
  )
  if jnp.shape(action) not in (of_all, of_each):
    raise ValueError(
      f"action: expected shape {of_all}, or {of_each} for each candidate, found"
      f" {jnp.shape(action)}."
    )
  weigh, fuse = fusion.weights_from_action, fusion.fused_log_score
  if jnp.ndim(action) == 2:
    weigh, fuse = jax.vmap(weigh, (0, None)), fusion.itemwise_log_score
  return fuse(scores, weigh(action, world.fusion_spec))


def serve(
  world: World,
  state: SessionState,
  action: jax.Array,
  cells: MonotoneCells | None = None,
) -> tuple[jax.Array, SessionState, StepResult]:
  """Ranks, shows, lets the user react; nobody leaves, see `leave`.

  Args:
    world: the world.
    state: the session, which is taken to be going on.
    action: `[A]` normalised action, see `fusion.weights_from_action`; or
      `[C, A]`, one for each candidate, see `fusion.itemwise_log_score`; or with
      cells `[K]`, see `monotone.monotone_fused_score`.
    cells: `[K, J]`, `[K]` and `[K, J-1]` to rank by in place of Eq. 1.

  Returns:
    Places `[L]` of the shown items in the user's pool, the state after the
    request and what it brought.

  Raises:
    ValueError: the shape or dtype of the action or the cells is wrong.
  """
  slots = candidate_slots(world, state)
  scores = lookup_scores(world.scores, state.user, slots)
  if cells is None:
    fused = _log_scores(world, scores, action)
  else:
    fused = monotone_fused_score(scores, cells, action)
  slate = fusion.rank_slate(fused, world.slate_size)
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


def stays(state: SessionState, leave_prob: jax.Array) -> jax.Array:
  """Whether the user's noise lets them stay after the request of `state`."""
  chance = noise.counter_uniforms(
    state.noise_key, state.step, jnp.asarray(_LEAVE_COUNTER, jnp.int32)
  )
  return chance >= leave_prob


def leave(
  state: SessionState, following: SessionState, result: StepResult
) -> tuple[SessionState, StepResult]:
  """Lets the user leave, or not, after a request that was served.

  Args:
    state: the session before the request.
    following, result: of `serve`.

  Returns:
    Both as the session goes. One that had ended stays as it was, with zeros.
  """
  still_there = stays(state, result.leave_prob)
  following = following._replace(active=still_there)
  result = result._replace(terminal=~still_there)
  keep = functools.partial(jnp.where, state.active)
  return (
    jax.tree.map(keep, following, state),
    jax.tree.map(lambda x: keep(x, jnp.zeros_like(x)), result),
  )


def step(
  world: World, state: SessionState, action: chex.Array
) -> tuple[SessionState, StepResult]:
  """Serves one request with an action of Eq. 1.

  Args:
    world: the world.
    state: the session.
    action: as in `serve`.

  Returns:
    The state after the request and what it brought. A session that has ended
    stays as it is and brings zeros.

  Raises:
    ValueError: the action's shape or dtype is wrong.
  """
  _, following, result = serve(world, state, action)
  return leave(state, following, result)


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
