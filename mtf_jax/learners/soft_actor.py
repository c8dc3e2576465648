"""The actor of soft actor-critic and its temperature, which learners share.

Letters: `B` transitions of a batch, `S` state features, `A` action components,
`G` reward groups.

References:
  [1] Haarnoja et al., "Soft Actor-Critic Algorithms and Applications", arXiv
  1812.05905: the actor's loss, and the temperature that holds the entropy.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtf_jax.data.transitions import Transition
from mtf_jax.learners import actor_critic, base, box_units
from mtf_jax.learners.base import Normalization
from mtf_jax.networks import Critic, GaussianActor, sample_tanh_normal

# Bounds of the numbers that `update_actor` and `init_fields` read.
BOUNDS = {
  "initial_temperature": (1e-30, np.inf),
  "temperature_learning_rate": (0.0, np.inf),
  "told_box": (0.0, 1.0),
  "target_step_size": (0.0, 1.0),
  "actor_learning_rate": (0.0, np.inf),
  "critic_learning_rate": (0.0, np.inf),
  "max_gradient_norm": (0.0, np.inf),
}


def init_fields(
  rng_key: chex.PRNGKey,
  policy: GaussianActor,
  critic: Critic,
  example: Transition,
  hyperparams: Any,
  normalization: Normalization | None,
) -> dict[str, Any]:
  """Fields of a new state, by name.

  Args:
    rng_key: of the networks' start and of all draws to come.
    policy, critic: the networks.
    example: one transition without a batch axis.
    hyperparams: numbers whose ranges were checked, with `group_weights` and
      those of `BOUNDS`.
    normalization: of the observations.
  """
  observation = jnp.asarray(example.observation_tm1)
  actor_key, critic_key, noise_key = jax.random.split(rng_key, 3)
  actor_params = policy.init(actor_key, observation)
  critic_params = critic.init(
    critic_key, observation, example.action_tm1, example.box_tm1
  )
  numbers = actor_critic.own_hyperparams(
    hyperparams, example, by_group=("group_weights",)
  )
  temperature_params = jnp.log(numbers.initial_temperature)
  return {
    "actor_params": actor_params,
    "critic_params": critic_params,
    # A copy: a donated state must not hold one buffer twice.
    "target_critic_params": jax.tree.map(jnp.copy, critic_params),
    "temperature_params": temperature_params,
    "actor_optimizer": base.start_optimizer(actor_params),
    "critic_optimizer": base.start_optimizer(critic_params),
    "temperature_optimizer": base.start_optimizer(temperature_params),
    "hyperparams": numbers,
    "normalization": base.own_normalization(normalization, observation),
    "frame": box_units.frame_of(numbers.told_box, example.box_tm1),
    "rng_key": noise_key,
  }


def split_key(state: Any) -> tuple[Any, jax.Array]:
  """The state with a new key, and a key to draw with now."""
  rng_key, now = jax.random.split(state.rng_key)
  return state._replace(rng_key=rng_key), now


def sample(
  policy: GaussianActor,
  params: Any,
  rng_key: chex.PRNGKey,
  observation: chex.Array,
) -> tuple[jax.Array, jax.Array]:
  """One action `[B, A]` for each observation `[B, S]`, and log densities."""
  mean, log_std = policy.apply(params, observation)
  noise = jax.random.normal(rng_key, mean.shape, mean.dtype)
  return sample_tanh_normal(noise, mean, log_std)


def next_value(
  critic: Critic,
  state: Any,
  batch: Transition,
  action: chex.Array,
  log_prob: chex.Array,
) -> tuple[jax.Array, jax.Array]:
  """Value of a drawn action at the next state, and what its entropy adds.

  Args:
    critic: the network.
    state: with the fields of `init_fields`.
    batch: `[B, ...]`, prepared.
    action, log_prob: `[B, A]` and `[B]`, drawn at the next states.

  Returns:
    `[B, G]` values of the target critic where the weighted sum is least, and
    `[B, G]` `-temperature log pi`, shared out over the groups.
  """
  q = critic.apply(
    state.target_critic_params, batch.observation_t, action, batch.box_t
  )
  weights = state.hyperparams.group_weights
  bonus = -jnp.exp(state.temperature_params) * log_prob
  return (
    actor_critic.chosen(q, weights),
    actor_critic.share_out(bonus, weights),
  )


def update_actor(
  policy: GaussianActor, critic: Critic, state: Any, batch: Transition
) -> tuple[Any, dict[str, jax.Array]]:
  """One step of the temperature, then one of the actor, from [1].

    temperature: Adam on `-log_temperature mean(log pi + target)`, target
    `target_entropy` for each action component;
    actor: Adam on `temperature log pi(a | s) - sum_g w_g Q_g(s, a)` with `a`
    drawn, and Q of the critic where the sum is least.

  Args:
    policy, critic: the networks.
    state: with the fields of `init_fields`.
    batch: `[B, ...]`, prepared.
  """
  numbers = state.hyperparams
  state, noise_key = split_key(state)

  def draw(params):
    return sample(policy, params, noise_key, batch.observation_tm1)

  action, log_prob = draw(state.actor_params)
  target = numbers.target_entropy * action.shape[1]
  state, _, temperature_metrics = actor_critic.step_part(
    "temperature",
    lambda log_temperature: (
      -log_temperature * jnp.mean(log_prob + target),
      (),
    ),
    state,
    numbers.temperature_learning_rate,
  )

  def loss_fn(params):
    action, log_prob = draw(params)
    q = critic.apply(
      state.critic_params, batch.observation_tm1, action, batch.box_tm1
    )
    lowest = actor_critic.chosen(q, numbers.group_weights)
    value = actor_critic.weigh(lowest, numbers.group_weights)
    loss = jnp.exp(state.temperature_params) * log_prob - value
    return jnp.mean(loss), ()

  state, _, metrics = actor_critic.climb(loss_fn, state)
  metrics |= temperature_metrics | {
    "temperature": jnp.exp(state.temperature_params),
    "entropy": -jnp.mean(log_prob),
  }
  return state, metrics


def soften_critics(state: Any) -> Any:
  """The soft update of the target critics."""
  return state._replace(
    target_critic_params=optax.incremental_update(
      state.critic_params,
      state.target_critic_params,
      state.hyperparams.target_step_size,
    )
  )


def policy_of(state: Any) -> box_units.Policy:
  """The part of a state that acts: the mode of its policy."""
  return box_units.policy(
    state._replace(actor_params=state.actor_params["mode"])
  )
