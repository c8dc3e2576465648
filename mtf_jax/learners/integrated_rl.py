"""IntegratedRL-MTF: an ensemble actor-critic that is aware of its boxes.

Letters: `B` transitions of a batch, `S` state features, `A` action components,
`G` reward groups (q in [1]), `M` critics of a group (m in [1]).

References:
  [1] Liu et al., "UnifiedRL: A Reinforcement Learning Algorithm Tailored for
  Multi-Task Fusion in Large-Scale Recommender Systems", arXiv 2404.17589,
  actor and critic losses. Named IntegratedRL-MTF up to its version 5.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.transitions import Transition
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.kernels.losses import (
  ensemble_mean_std,
)
from mtf_jax.learners import actor_critic, base, integrated_steps
from mtf_jax.learners.base import Learner, Normalization
from mtf_jax.networks import Actor, Critic


class Hyperparams(NamedTuple):
  """Numbers of the algorithm: leaves of the state, so none of them recompiles.

  [1] gives the discount; the other values are ours.

  discount: gamma, in [0, 1].
  sharpness: kappa of d and phi, per unit of the action, non-negative.
  penalty_scale: eta, price of d, in units of the return.
  uncertainty_scale: lambda, price of the critics' disagreement.
  group_weights: w, scalar or `[G]`, weight of each group's value.
  reward_shift: scalar or `[G]`, added to every reward. `phi` discourages
    leaving the box only while targets are non-negative; a shift makes them so,
    and adds the same amount to the value of every further request.
  target_step_size: tau of the soft updates, in (0, 1].
  actor_learning_rate: Adam's step size for the actor.
  critic_learning_rate: Adam's step size for the critics.
  max_gradient_norm: global norm to which each gradient is clipped; `inf` never.
    A finite one brings a policy back from far outside its box in fewer updates,
    because the huge gradients there do not stay in Adam's second moment.
  """

  discount: chex.Numeric = 0.9
  sharpness: chex.Numeric = 10.0
  penalty_scale: chex.Numeric = 1.0
  uncertainty_scale: chex.Numeric = 0.1
  group_weights: chex.Numeric = 1.0
  reward_shift: chex.Numeric = 0.0
  target_step_size: chex.Numeric = 0.005
  actor_learning_rate: chex.Numeric = 3e-4
  critic_learning_rate: chex.Numeric = 3e-4
  max_gradient_norm: chex.Numeric = np.inf


class State(NamedTuple):
  """Everything that an update reads and writes; a pytree of arrays.

  actor_params, critic_params: as the networks' `init` made them.
  target_actor_params, target_critic_params: their slow copies.
  actor_optimizer, critic_optimizer: Adam's moments.
  hyperparams: the numbers of the algorithm, each a float32 leaf.
  normalization: of the observations.
  """

  actor_params: Any
  critic_params: Any
  target_actor_params: Any
  target_critic_params: Any
  actor_optimizer: Any
  critic_optimizer: Any
  hyperparams: Hyperparams
  normalization: Normalization


class Metrics(NamedTuple):
  """What one update saw; means over its critic updates where it has several.

  critic_loss, actor_loss: scalars.
  q_mean, q_min, q_max: `[G]` over batch and critics, at the logged actions.
  q_std: `[G]` disagreement of the critics at the actor's actions.
  exceedance: scalar, mean e of the actor at the logged states.
  outside_share: scalar, share of those states where the actor leaves the box.
  target_exceedance: scalar, mean e of the target actor at the next states.
  bootstrap_weight: scalar, mean phi there.
  negative_target_share: scalar, share of targets below 0 among those that
    bootstrap; there phi rewards leaving the box.
  critic_gradient_norm, actor_gradient_norm: scalars, before clipping.
  """

  critic_loss: jax.Array
  actor_loss: jax.Array
  q_mean: jax.Array
  q_min: jax.Array
  q_max: jax.Array
  q_std: jax.Array
  exceedance: jax.Array
  outside_share: jax.Array
  target_exceedance: jax.Array
  bootstrap_weight: jax.Array
  negative_target_share: jax.Array
  critic_gradient_norm: jax.Array
  actor_gradient_norm: jax.Array


_BOUNDS = {
  "discount": (0.0, 1.0),
  "sharpness": (0.0, np.inf),
  "penalty_scale": (0.0, np.inf),
  "uncertainty_scale": (0.0, np.inf),
  "target_step_size": (0.0, 1.0),
  "actor_learning_rate": (0.0, np.inf),
  "critic_learning_rate": (0.0, np.inf),
  "max_gradient_norm": (0.0, np.inf),
}


def integrated_rl(
  actor: Actor, critic: Critic, *, critic_updates: int = 1
) -> Learner:
  """Builds the learner of [1] from its networks.

  One update, critics first:

    `y_gm = r_g + gamma phi(mu'(s')) Q'_gm(s', mu'(s'))`, box of the next row;
    critics: Adam on the mean of `(Q_gm(s, a) - y_gm)^2`; soft update of Q';
    actor: Adam on `-sum w Qbar(s, mu(s)) + eta d + lambda sum w std`, box of
    the row; soft update of mu'.

  Args:
    actor: the policy's network.
    critic: the critics' network.
    critic_updates: number of critic updates before the one actor update, static
      (the delayed policy update). A batch is split into that many parts, and
      the actor's part is the last one.

  Returns:
    The learner.

  Raises:
    ValueError: at `init`, a hyperparameter out of range or of a wrong shape; at
      `update`, a batch that `critic_updates` does not divide.
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
    actor_key, critic_key = jax.random.split(rng_key)
    actor_params = actor.init(actor_key, observation)
    critic_params = critic.init(
      critic_key, observation, example.action_tm1, example.box_tm1
    )
    return State(
      actor_params=actor_params,
      critic_params=critic_params,
      # Copies: a donated state must not hold one buffer twice.
      target_actor_params=jax.tree.map(jnp.copy, actor_params),
      target_critic_params=jax.tree.map(jnp.copy, critic_params),
      actor_optimizer=base.start_optimizer(actor_params),
      critic_optimizer=base.start_optimizer(critic_params),
      hyperparams=actor_critic.own_hyperparams(
        hyperparams, example, by_group=("group_weights", "reward_shift")
      ),
      normalization=base.own_normalization(normalization, observation),
    )

  def update_critic(
    state: State, batch: Transition
  ) -> tuple[State, dict[str, jax.Array]]:
    return integrated_steps.regress_on(actor, critic, state, batch)

  def update_actor(
    state: State, batch: Transition
  ) -> tuple[State, dict[str, jax.Array]]:
    return integrated_steps.climb_at(
      actor, critic, state, batch.observation_tm1, batch.box_tm1
    )

  def value(
    state: State, observation: chex.Array, action: chex.Array, box: ActionBox
  ) -> jax.Array:
    q = actor_critic.values_of(critic, state, observation, action, box)
    return ensemble_mean_std(q)[0]

  return Learner(
    init=init,
    update=actor_critic.delayed(
      update_critic, update_actor, Metrics, critic_updates
    ),
    policy=actor_critic.policy,
    act=actor_critic.deterministic_act(actor),
    value=value,
  )
