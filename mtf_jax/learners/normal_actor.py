"""The normal around a mean with which learners clone by weight.

Unsquashed, its mean in [-1, 1], its deviation the same in every state. Logged
actions have a density under it wherever they lie.

Letters: `B` transitions of a batch, `A` action components.
"""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp

from mtf_jax.data.transitions import Transition
from mtf_jax.learners import box_units
from mtf_jax.networks import Actor

LOG_STD_LIMITS = (-5.0, 2.0)


def init(
  rng_key: chex.PRNGKey, actor: Actor, example: Transition
) -> dict[str, Any]:
  """Parameters `{"mean": as the network's init makes them, "log_std": [A]}`.

  Args:
    rng_key: of the network's start.
    actor: its answer is the mean.
    example: one transition without a batch axis.
  """
  observation = jnp.asarray(example.observation_tm1)
  log_std = jnp.zeros_like(example.action_tm1)
  return {"mean": actor.init(rng_key, observation), "log_std": log_std}


def apply(
  actor: Actor, params: Any, observation: chex.Array
) -> tuple[jax.Array, jax.Array]:
  """Mean `[B, A]` and the deviation's logarithm `[A]`, within its limits."""
  mean = actor.apply(params["mean"], observation)
  return mean, jnp.clip(params["log_std"], *LOG_STD_LIMITS)


def log_prob(
  action: chex.Array, mean: chex.Array, log_std: chex.Array
) -> jax.Array:
  """`sum_a log N(action_a; mean_a, exp(log_std_a)^2)`, `[B, A]` -> `[B]`.

  Args:
    action, mean: `[B, A]`.
    log_std: `[A]`.
  """
  standard = (action - mean) * jnp.exp(-log_std)[None, :]
  density = -0.5 * jnp.square(standard) - log_std[None, :]
  return jnp.sum(density - 0.5 * math.log(2 * math.pi), axis=1)


def weight_metrics(weight: chex.Array) -> dict[str, jax.Array]:
  """Mean of a batch's weights `[B]`, and the effective share of its rows.

  The share is `(sum w)^2 / (B sum w^2)`, in (0, 1].
  """
  mean = jnp.mean(weight)
  share = jnp.square(mean) / jnp.mean(jnp.square(weight))
  return {"weight": mean, "weight_share": share}


def policy_of(state: Any) -> box_units.Policy:
  """The part of a state that acts: the normal's mean."""
  return box_units.policy(
    state._replace(actor_params=state.actor_params["mean"])
  )
