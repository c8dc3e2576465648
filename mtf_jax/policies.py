"""Policies as functions: what they answer, and two that need no training.

Letters: `S` state features, `A` action components, `C` candidates, `F` item
features, `K` tasks, `J` knots of a cell.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from mtf_jax.data.shown_items import pair_observation
from mtf_jax.kernels.exploration import (
  ActionBox,
  action_box,
  box_log_prob,
  corners_log_prob,
  sample_box,
  sample_corners,
  sample_gaussian,
)
from mtf_jax.kernels.monotone import MonotoneCells


class Decision(NamedTuple):
  """What a policy answers to an observation.

  A policy that answers each candidate by itself has a leading axis `C`.

  action: `[A]` normalised action to use.
  box: `[A]` bounds that the exploration could draw from.
  log_prob: scalar log density of the action.
  cells: `[K, J]`, `[K]` and `[K, J-1]` that candidates are ranked by, `action` `[K]`
    then being that of the curve on top; None to rank by Eq. 1.
  """

  action: chex.Array
  box: ActionBox
  log_prob: chex.Array
  cells: MonotoneCells | None = None


# `act(params, observation, rng_key) -> Decision`; the observation is `[S]`, or
# whatever else the caller shows the policy.
Act = Callable[[Any, Any, jax.Array], Decision]


# Where in the box the exploration draws.
DRAWS = ("uniform", "corners")

# Half-width of the box that the curve on cells is explored in: all of its range.
CURVE_HALF_WIDTH = 1.0

# How long a draw of the exploration lasts: a session or one request.
EXPLORATIONS = ("session", "request")


def is_held(exploration: str) -> bool:
  """Whether exploration is held over a session, by name.

  Raises:
    ValueError: the name is none of `EXPLORATIONS`.
  """
  if exploration not in EXPLORATIONS:
    raise ValueError(
      f"exploration: expected one of {', '.join(EXPLORATIONS)}, found"
      f" {exploration!r}."
    )
  return exploration == "session"


def request_key(
  session_key: chex.PRNGKey, step: chex.Array, held: chex.Numeric
) -> jax.Array:
  """The key that a policy explores with at a request.

  Held exploration is one key for all requests of a session, so that a sampler
  such as `sample_box` deviates alike in each of their boxes: `act` itself need
  not know. Logging and judging both ask here, and one session key explores the
  same way in either.

  Args:
    session_key: of the policy in this session.
    step: int32 scalar, requests of the session so far.
    held: whether exploration is held over the session; may be traced.

  Returns:
    The key.
  """
  # Used again on purpose: the same draw is what holding it means.
  return jnp.where(held, session_key, jax.random.fold_in(session_key, step))


def fixed_action(
  params: jax.Array, observation: jax.Array, rng_key: jax.Array
) -> Decision:
  """A policy that always answers `params`, an action `[A]`, without exploring."""
  del observation, rng_key
  return Decision(
    params, ActionBox(params, params), jnp.zeros((), params.dtype)
  )


def global_action(
  params: jax.Array, observation: jax.Array, rng_key: jax.Array
) -> jax.Array:
  """`act` of a learner's form that answers `params [A]` to everything."""
  del observation, rng_key
  return params


def explore_in_box(
  params: jax.Array, observation: jax.Array, rng_key: jax.Array
) -> Decision:
  """The paper's exploration around one global action `params [A]`, +-0.15."""
  del observation
  box = action_box(params)
  action = sample_box(rng_key, box)
  return Decision(action, box, box_log_prob(action, box))


class PolicyParams(NamedTuple):
  """A learnt policy in service, with the exploration around it.

  params: of the policy, what `act` of a learner takes.
  half_width: scalar, of the box; 0 does not explore.
  stddev: scalar, of Gaussian noise on top; 0 for none.
  corners: scalar, 1 to draw a corner of the box, 0 any point of it.
  """

  params: Any
  half_width: chex.Numeric
  stddev: chex.Numeric
  corners: chex.Numeric = 0.0


@functools.cache
def explore_around(act: Callable[..., jax.Array]) -> Act:
  """The policy of `act(params, observation, rng_key) -> action`, exploring.

  One function for one `act`: it is a static argument, and another object would
  compile everything again.

  Args:
    act: of a learner's interface.

  Returns:
    `act` for `PolicyParams`. The decision's box is the one of the bounded
    exploration; a log must not be taken with Gaussian noise on top. Its
    `log_prob` is a log mass where corners are drawn, else a log density.
  """

  def explore(
    policy: PolicyParams, observation: jax.Array, rng_key: jax.Array
  ) -> Decision:
    box_key, noise_key, own_key = jax.random.split(rng_key, 3)
    own = act(policy.params, observation, own_key)
    box = action_box(own, -policy.half_width, policy.half_width)
    # One key: only one of the two draws is used.
    inside, corner = sample_box(box_key, box), sample_corners(box_key, box)
    at_corner = jnp.asarray(policy.corners) > 0
    action = jnp.where(at_corner, corner, inside)
    log_prob = jnp.where(
      at_corner, corners_log_prob(corner, box), box_log_prob(inside, box)
    )
    action = sample_gaussian(noise_key, action, policy.stddev)
    return Decision(action, box, log_prob)

  return explore


class CandidateObservation(NamedTuple):
  """What a policy sees that answers each candidate by itself.

  observation: `[S]` of the request.
  features: `[C, F]` of its candidates.
  """

  observation: chex.Array
  features: chex.Array


# Whether all candidates of a request deviate alike, or each by itself.
SHARINGS = ("list", "item")


@functools.cache
def explore_each(act: Callable[..., jax.Array], shared: str = "list") -> Act:
  """The policy of `act` for each user-item pair, exploring around its answers.

  One function for one `act`, as `explore_around`.

  Args:
    act: `(params, pair [S + F], rng_key) -> action [A]`, of a learner's
      interface.
    shared: "list" moves all candidates of a request by the same relative
      deviation, each in its own box; "item" draws one for each.

  Returns:
    `act(params, observation, rng_key)` for `PolicyParams` and a
    `CandidateObservation`. With "item" `log_prob` is the density of each draw,
    not of an item that is shown: draws decide who is shown.

  Raises:
    ValueError: `shared` is none of `SHARINGS`.
  """
  if shared not in SHARINGS:
    raise ValueError(
      f"shared: expected one of {', '.join(SHARINGS)}, found {shared!r}."
    )
  explore = explore_around(act)

  def explore_candidates(
    policy: PolicyParams,
    observation: CandidateObservation,
    rng_key: jax.Array,
  ) -> Decision:
    pairs = pair_observation(*observation)
    if shared == "list":
      # One key for all on purpose: samplers deviate alike in each box.
      return jax.vmap(explore, (None, 0, None))(policy, pairs, rng_key)
    keys = jax.random.split(rng_key, pairs.shape[0])
    return jax.vmap(explore, (None, 0, 0))(policy, pairs, keys)

  return explore_candidates


def same_cells(params: MonotoneCells, observation: jax.Array) -> MonotoneCells:
  """`cells` of a learner's form that answers `params` to everything."""
  del observation
  return params


@functools.cache
def explore_cells(cells: Callable[[Any, jax.Array], MonotoneCells]) -> Act:
  """The policy that ranks by cells, exploring by the curve on top of them.

  The box is around action 0, at which candidates are ranked by the cells alone.
  One function for one `cells`, as `explore_around`.

  Args:
    cells: `(params, observation [S]) -> MonotoneCells`, of a learner's interface.

  Returns:
    `act` for `PolicyParams`; decisions have the action `[K]` and the cells.
  """
  explore = explore_around(global_action)

  def explore_curve(
    policy: PolicyParams, observation: jax.Array, rng_key: jax.Array
  ) -> Decision:
    own = cells(policy.params, observation)
    at_rest = policy._replace(params=jnp.zeros_like(own.start))
    return explore(at_rest, observation, rng_key)._replace(cells=own)

  return explore_curve
