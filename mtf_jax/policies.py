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
