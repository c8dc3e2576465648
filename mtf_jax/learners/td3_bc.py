"""TD3+BC, with TD3, DDPG and ReBRAC as settings of it.

The nearest rival of IntegratedRL-MTF: a deterministic actor as well, but held
to the logged actions instead of to the boxes that they were drawn from. ReBRAC
has the critics pay for that distance too, at the next request.

Where published code differs, this follows the authors' of [1]: each critic
update has transitions of its own, the targets move with the actor only, and the
actor climbs the first critic. Two details are not theirs. The critics' loss is
the mean over critics, not the sum: Adam steps the same, and a finite
`max_gradient_norm` means what it means for other learners. `mean |Q|` has 1e-7
added to it, because critics that start at 0 would divide by it.

[4] adds squared distances up over the components of an action; here they are
means over them, as in [1], so that a beta of [4] is to be multiplied by A. Layer
normalisation in the critics, its batches of 1,024 and its wider networks are no
part of this file; the networks of this package have no such layer. Uniform
exploration has a variance that no policy avoids: told the box, the critics of
ReBRAC pay a third of `next_cloning_scale` or more for each further request.

Told the box, policy, noise and distance are in half-widths of it, so that the
published numbers keep their meaning; told nothing, the noise of 0.2 is wider than
a box of half-width 0.15.

Letters: `B` transitions of a batch, `S` state features, `A` action components,
`G` reward groups, `M` critics of a group (two as published).

References:
  [1] Fujimoto and Gu, "A Minimalist Approach to Offline Reinforcement
  Learning", NeurIPS 2021.
  [2] Fujimoto et al., "Addressing Function Approximation Error in Actor-Critic
  Methods", ICML 2018.
  [3] Lillicrap et al., "Continuous Control with Deep Reinforcement Learning",
  ICLR 2016.
  [4] Tarasov et al., "Revisiting the Minimalist Approach to Offline
  Reinforcement Learning", NeurIPS 2023.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtf_jax.data.transitions import Transition
from mtf_jax.io import InputError
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.learners import actor_critic, base, box_units
from mtf_jax.learners.base import Learner, Normalization
from mtf_jax.networks import Actor, Critic

_VALUE_FLOOR = 1e-7


class Hyperparams(NamedTuple):
  """Numbers of the algorithm: leaves of the state, so none of them recompiles.

  The discount is that of `integrated_rl`; the other values are those of [1].

  discount: gamma, in [0, 1].
  value_scale: alpha, weight of the value in the actor's loss.
  normalize_value: 1 divides that weight by mean |Q|, 0 does not.
  cloning_scale: beta, weight of the squared distance to the logged action.
  next_cloning_scale: what the critics' target pays for that distance at the
    next request, in units of the return; 0 in [1] to [3].
  climb_least: 1 has the actor climb the least critic, 0 the first one.
  target_noise: standard deviation of the noise on the target action, in units
    of the action that the network answers.
  target_noise_clip: limit of that noise, same units.
  group_weights: w, scalar or `[G]`, weight of each group's value.
  told_box: 1 for a policy inside its box, 0 for one in [-1, 1]^A.
  target_step_size: tau of the soft updates, in [0, 1].
  actor_learning_rate: Adam's step size for the actor.
  critic_learning_rate: Adam's step size for the critics.
  max_gradient_norm: global norm to which each gradient is clipped; `inf` never.
  """

  discount: chex.Numeric = 0.9
  value_scale: chex.Numeric = 2.5
  normalize_value: chex.Numeric = 1.0
  cloning_scale: chex.Numeric = 1.0
  next_cloning_scale: chex.Numeric = 0.0
  climb_least: chex.Numeric = 0.0
  target_noise: chex.Numeric = 0.2
  target_noise_clip: chex.Numeric = 0.5
  group_weights: chex.Numeric = 1.0
  told_box: chex.Numeric = 0.0
  target_step_size: chex.Numeric = 0.005
  actor_learning_rate: chex.Numeric = 3e-4
  critic_learning_rate: chex.Numeric = 3e-4
  max_gradient_norm: chex.Numeric = np.inf


# Numbers of [2] and [3]; [3] has besides one critic and `critic_updates=1`.
TD3 = Hyperparams(value_scale=1.0, normalize_value=0.0, cloning_scale=0.0)
DDPG = TD3._replace(target_noise=0.0)
# [4] chooses its two betas log by log. These are .01 and .01, which it has for a
# common one, times the ten components of five powers and five biases.
REBRAC = Hyperparams(
  value_scale=1.0,
  cloning_scale=0.1,
  next_cloning_scale=0.1,
  climb_least=1.0,
  actor_learning_rate=1e-3,
  critic_learning_rate=1e-3,
)


class State(NamedTuple):
  """Everything that an update reads and writes; a pytree of arrays.

  actor_params, critic_params: as the networks' `init` made them.
  target_actor_params, target_critic_params: their slow copies.
  actor_optimizer, critic_optimizer: Adam's moments.
  hyperparams: the numbers of the algorithm, each a leaf.
  normalization: of the observations.
  frame: of the actions.
  rng_key: from which the noise of the target actions is drawn.
  """

  actor_params: Any
  critic_params: Any
  target_actor_params: Any
  target_critic_params: Any
  actor_optimizer: Any
  critic_optimizer: Any
  hyperparams: Hyperparams
  normalization: Normalization
  frame: box_units.Frame
  rng_key: chex.PRNGKey


class Metrics(NamedTuple):
  """What one update saw; means over its critic updates where it has several.

  critic_loss, actor_loss: scalars.
  q_mean, q_min, q_max: `[G]` over batch and critics, at the logged actions.
  value_weight: scalar lambda.
  cloning_error: scalar, mean squared distance of the actor to the logged
    action's components, in the units that the network answers.
  next_cloning_error: scalar, that of the target action to the next logged one,
    0 where there is none.
  critic_gradient_norm, actor_gradient_norm: scalars, before clipping.
  """

  critic_loss: jax.Array
  actor_loss: jax.Array
  q_mean: jax.Array
  q_min: jax.Array
  q_max: jax.Array
  value_weight: jax.Array
  cloning_error: jax.Array
  next_cloning_error: jax.Array
  critic_gradient_norm: jax.Array
  actor_gradient_norm: jax.Array


_BOUNDS = {
  "discount": (0.0, 1.0),
  "value_scale": (0.0, np.inf),
  "normalize_value": (0.0, 1.0),
  "cloning_scale": (0.0, np.inf),
  "next_cloning_scale": (0.0, np.inf),
  "climb_least": (0.0, 1.0),
  "target_noise": (0.0, np.inf),
  "target_noise_clip": (0.0, np.inf),
  "told_box": (0.0, 1.0),
  "target_step_size": (0.0, 1.0),
  "actor_learning_rate": (0.0, np.inf),
  "critic_learning_rate": (0.0, np.inf),
  "max_gradient_norm": (0.0, np.inf),
}


def td3_bc(actor: Actor, critic: Critic, *, critic_updates: int = 2) -> Learner:
  """Builds TD3+BC of [1] from its networks, or ReBRAC of [4].

  One update, critics first:

    `a' = clip(mu'(s') + clip(noise, -c, c), -1, 1)`;
    `y_g = r_g + gamma (min_m Q'_gm(s', a') - beta_2 share_g mean (a' - b')^2)`,
    b' the action logged at the next request, without the second term where
    there is none, `sum_g w_g share_g = 1`;
    critics: Adam on the mean of `(Q_gm(s, a) - y_g)^2`;
    actor: Adam on `-lambda mean Q(s, mu(s)) + beta mean (mu(s) - a)^2`, means
    over the batch, and over components in the second, with
    `Q = sum_g w_g Q_g1` of the first critics or `sum_g w_g min_m Q_gm`,
    `lambda = alpha / mean |Q|` without a gradient, and beta 1 in [1]; then the
    soft updates of Q' and mu'.

  With the numbers of `TD3` this is [2], with those of `REBRAC` it is [4], and
  with those of `DDPG`, one critic and `critic_updates=1` it is [3]. They know
  one reward; weighing the groups is ours, as is the minimum within each.

  Args:
    actor: the policy's network.
    critic: the critics' network, two critics of a group in [1] and [2].
    critic_updates: number of critic updates before the one actor update, static
      (2 in [1] and [2]). A batch is split into that many parts, and the actor's
      part is the last one; for parts of 256 as in [1] draw 512.

  Returns:
    The learner; its `value` is the minimum over a group's critics.

  Raises:
    ValueError: at `init`, a hyperparameter out of range or of a wrong shape; at
      `update`, a batch that `critic_updates` does not divide.
    InputError: at `update`, a batch without `action_t` and `action_logged_t`.
  """

  def init(
    rng_key: chex.PRNGKey,
    example: Transition,
    hyperparams: Hyperparams | None = None,
    normalization: Normalization | None = None,
  ) -> State:
    hyperparams = Hyperparams() if hyperparams is None else hyperparams
    base.check_ranges(hyperparams, _BOUNDS)
    observation = jnp.asarray(example.observation_tm1)
    actor_key, critic_key, noise_key = jax.random.split(rng_key, 3)
    actor_params = actor.init(actor_key, observation)
    critic_params = critic.init(
      critic_key, observation, example.action_tm1, example.box_tm1
    )
    numbers = actor_critic.own_hyperparams(
      hyperparams, example, by_group=("group_weights",)
    )
    return State(
      actor_params=actor_params,
      critic_params=critic_params,
      # Copies: a donated state must not hold one buffer twice.
      target_actor_params=jax.tree.map(jnp.copy, actor_params),
      target_critic_params=jax.tree.map(jnp.copy, critic_params),
      actor_optimizer=base.start_optimizer(actor_params),
      critic_optimizer=base.start_optimizer(critic_params),
      hyperparams=numbers,
      normalization=base.own_normalization(normalization, observation),
      frame=box_units.frame_of(numbers.told_box, example.box_tm1),
      rng_key=noise_key,
    )

  def update_critic(
    state: State, batch: Transition
  ) -> tuple[State, dict[str, jax.Array]]:
    if batch.action_t is None or batch.action_logged_t is None:
      raise InputError(
        "batch: expected action_t and action_logged_t, found None."
      )
    numbers = state.hyperparams
    rng_key, noise_key = jax.random.split(state.rng_key)
    action_t = actor.apply(state.target_actor_params, batch.observation_t)
    noise = numbers.target_noise * jax.random.normal(
      noise_key, action_t.shape, action_t.dtype
    )
    limit = numbers.target_noise_clip
    action_t = jnp.clip(action_t + jnp.clip(noise, -limit, limit), -1, 1)
    q_t = critic.apply(
      state.target_critic_params, batch.observation_t, action_t, batch.box_t
    )
    distance = jnp.mean(jnp.square(action_t - batch.action_t), axis=1)
    distance = jnp.where(batch.action_logged_t, distance, 0)
    price = actor_critic.share_out(
      numbers.next_cloning_scale * distance, numbers.group_weights
    )
    targets = actor_critic.targets_of(
      batch, numbers.discount, jnp.min(q_t, axis=2) - price
    )

    state = state._replace(rng_key=rng_key)
    state, metrics = actor_critic.regress_critics(critic, state, batch, targets)
    return state, metrics | {"next_cloning_error": jnp.mean(distance)}

  def update_actor(
    state: State, batch: Transition
  ) -> tuple[State, dict[str, jax.Array]]:
    numbers = state.hyperparams

    def loss_fn(params):
      action = actor.apply(params, batch.observation_tm1)
      q = critic.apply(
        state.critic_params, batch.observation_tm1, action, batch.box_tm1
      )
      least = numbers.climb_least > 0
      climbed = jnp.where(least, jnp.min(q, axis=2), q[:, :, 0])
      value = actor_critic.weigh(climbed, numbers.group_weights)
      size = jax.lax.stop_gradient(jnp.mean(jnp.abs(value))) + _VALUE_FLOOR
      normalizes = numbers.normalize_value > 0
      weight = numbers.value_scale / jnp.where(normalizes, size, 1)
      error = jnp.mean(jnp.square(action - batch.action_tm1))
      loss = numbers.cloning_scale * error - weight * jnp.mean(value)
      return loss, (weight, error)

    state, (weight, error), metrics = actor_critic.climb(loss_fn, state)
    # As in [1] and [2] all targets move here, not with each critic update.
    target_actor_params, target_critic_params = optax.incremental_update(
      (state.actor_params, state.critic_params),
      (state.target_actor_params, state.target_critic_params),
      numbers.target_step_size,
    )
    state = state._replace(
      target_actor_params=target_actor_params,
      target_critic_params=target_critic_params,
    )
    metrics |= {"value_weight": weight, "cloning_error": error}
    return state, metrics

  def value(
    state: State, observation: chex.Array, action: chex.Array, box: ActionBox
  ) -> jax.Array:
    q = box_units.values_of(critic, state, observation, action, box)
    return jnp.min(q, axis=1)

  return Learner(
    init=init,
    update=actor_critic.delayed(
      update_critic,
      update_actor,
      Metrics,
      critic_updates,
      prepare=box_units.prepare,
    ),
    policy=box_units.policy,
    act=box_units.deterministic_act(actor),
    value=value,
  )
