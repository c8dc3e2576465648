"""Policies as functions: what they answer, and two that need no training.

Letters: `S` state features, `A` action components.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from mtf_jax.kernels.exploration import (
  ActionBox,
  action_box,
  box_log_prob,
  sample_box,
)


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


def explore_in_box(
  params: jax.Array, observation: jax.Array, rng_key: jax.Array
) -> Decision:
  """The paper's exploration around one global action `params [A]`, +-0.15."""
  del observation
  box = action_box(params)
  action = sample_box(rng_key, box)
  return Decision(action, box, box_log_prob(action, box))
