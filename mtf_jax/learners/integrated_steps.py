"""The steps of IntegratedRL-MTF, which learners around it share.

States are those of `integrated_rl`, or have their fields and more.

Letters: `B` transitions of a batch, `S` state features, `A` action components,
`G` reward groups, `M` critics of a group.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from mtf_jax.data.transitions import Transition
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.kernels.losses import (
  actor_loss,
  ensemble_mean_std,
  td_targets,
)
from mtf_jax.kernels.relaxation import (
  bootstrap_weight,
  exceedance,
  relaxation_penalty,
)
from mtf_jax.learners import actor_critic
from mtf_jax.networks import Actor, Critic


def answers_at(
  actor: Actor,
  critic: Critic,
  state: Any,
  observation_t: chex.Array,
  box_t: ActionBox,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """What the targets know of the states that follow.

  Args:
    actor, critic: the networks.
    state: of the learner.
    observation_t: `[B, S]`, normalised.
    box_t: bounds `[B, A]`.

  Returns:
    Of the target actor's answers there: exceedance `[B]`, phi `[B]`, and the
    target critics' values `[B, G, M]`.
  """
  action_t = actor.apply(state.target_actor_params, observation_t)
  exceedance_t = jax.vmap(exceedance)(action_t, box_t)
  weight_t = jax.vmap(bootstrap_weight, in_axes=(0, None))(
    exceedance_t, state.hyperparams.sharpness
  )
  q_t = critic.apply(state.target_critic_params, observation_t, action_t, box_t)
  return exceedance_t, weight_t, q_t


def continuing_mean(batch: Transition, values: jax.Array) -> jax.Array:
  """Mean of `[B]` values over the transitions that bootstrap; 0 if none does."""
  continues = batch.discount_t > 0
  bootstraps = jnp.maximum(jnp.sum(continues), 1).astype(values.dtype)
  return jnp.sum(jnp.where(continues, values, 0)) / bootstraps


def follow_targets(
  critic: Critic,
  state: Any,
  batch: Transition,
  targets: jax.Array,
  exceedance_t: jax.Array,
  weight_t: jax.Array,
) -> tuple[Any, dict[str, jax.Array]]:
  """One step of the critics towards their targets, and of their slow copies.

  Args:
    critic: the critics' network.
    state: of the learner.
    batch: `[B, ...]` as the critics see it.
    targets: `[B, G, M]`.
    exceedance_t, weight_t: `[B]`, of `answers_at`, for the metrics.

  Returns:
    The state after the step, and metrics by name.
  """
  state, metrics = actor_critic.regress_critics(critic, state, batch, targets)
  state = state._replace(
    target_critic_params=optax.incremental_update(
      state.critic_params,
      state.target_critic_params,
      state.hyperparams.target_step_size,
    )
  )
  negative = jnp.mean(targets < 0, axis=(1, 2), dtype=targets.dtype)
  metrics |= {
    "target_exceedance": continuing_mean(batch, exceedance_t),
    "bootstrap_weight": continuing_mean(batch, weight_t),
    "negative_target_share": continuing_mean(batch, negative),
  }
  return state, metrics


def regress_on(
  actor: Actor, critic: Critic, state: Any, batch: Transition
) -> tuple[Any, dict[str, jax.Array]]:
  """One step of the critics on a batch, and of their slow copies.

  Args:
    actor, critic: the networks.
    state: of the learner.
    batch: `[B, ...]` as the networks see it.

  Returns:
    The state after the step, and metrics by name.
  """
  numbers = state.hyperparams
  exceedance_t, weight_t, q_t = answers_at(
    actor, critic, state, batch.observation_t, batch.box_t
  )
  targets = jax.vmap(td_targets)(
    batch.r_t + numbers.reward_shift[None, :],
    numbers.discount * batch.discount_t,
    weight_t,
    q_t,
  )
  return follow_targets(critic, state, batch, targets, exceedance_t, weight_t)


def climb_at(
  actor: Actor,
  critic: Critic,
  state: Any,
  observation: chex.Array,
  box: ActionBox,
  group_weights: chex.Array | None = None,
) -> tuple[Any, dict[str, jax.Array]]:
  """One step of the actor at some states, and of its slow copy.

  Args:
    actor, critic: the networks.
    state: of the learner.
    observation: `[B, S]`, normalised.
    box: bounds `[B, A]` there.
    group_weights: w at each of them, `[B, G]`; those of the state if omitted.

  Returns:
    The state after the step, and metrics by name.
  """
  numbers = state.hyperparams
  own = group_weights is None
  weights = numbers.group_weights if own else group_weights

  def loss_fn(params):
    action = actor.apply(params, observation)
    exceeded = jax.vmap(exceedance)(action, box)
    penalty = jax.vmap(relaxation_penalty, in_axes=(0, None))(
      exceeded, numbers.sharpness
    )
    q = critic.apply(state.critic_params, observation, action, box)
    loss = jax.vmap(actor_loss, in_axes=(0, None if own else 0, 0, None, None))(
      q,
      weights,
      penalty,
      numbers.penalty_scale,
      numbers.uncertainty_scale,
    )
    return jnp.mean(loss), (q, exceeded)

  state, (q, exceeded), metrics = actor_critic.climb(loss_fn, state)
  state = state._replace(
    target_actor_params=optax.incremental_update(
      state.actor_params, state.target_actor_params, numbers.target_step_size
    )
  )
  metrics |= {
    "q_std": jnp.mean(jax.vmap(ensemble_mean_std)(q)[1], axis=0),
    "exceedance": jnp.mean(exceeded),
    "outside_share": jnp.mean(exceeded > 0, dtype=q.dtype),
  }
  return state, metrics
