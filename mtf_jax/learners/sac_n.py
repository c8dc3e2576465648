"""SAC-N: soft actor-critic that trusts the least of N critics.

As in the authors' code of [1]: first the temperature, then the actor, then the
critics. Two details are not theirs. The critics' loss is the mean over critics,
not the sum: Adam steps the same. The policy's deviation has no layers in common
with its mean, see `networks.tanh_gaussian`. Several reward groups share one
choice of a critic, see `actor_critic.chosen`; with one group this is [1].

The published target entropy, -1 for each component, is more than a box of
half-width 0.15 has (-1.2): a policy that is not told the box is asked to be
wider than the log. In units of the box it is a deviation of about a third.

Letters: `B` transitions of a batch, `S` state features, `A` action components,
`G` reward groups, `M` critics of a group (N in [1], 10 as published).

References:
  [1] An et al., "Uncertainty-Based Offline Reinforcement Learning with
  Diversified Q-Ensemble", NeurIPS 2021.
"""

from typing import Any, NamedTuple

import chex
import jax
import numpy as np

from mtf_jax.data.transitions import Transition
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.learners import actor_critic, base, box_units, soft_actor
from mtf_jax.learners.base import Learner, Normalization
from mtf_jax.networks import Actor, Critic, tanh_gaussian


class Hyperparams(NamedTuple):
  """Numbers of the algorithm: leaves of the state, so none of them recompiles.

  The discount is that of `integrated_rl`; the other values are those of [1].

  discount: gamma, in [0, 1].
  target_entropy: entropy that the temperature aims at, in nats for each action
    component, in the units of the action that the network answers.
  initial_temperature: of the entropy, positive.
  temperature_learning_rate: Adam's step size for its logarithm; 0 keeps it.
  group_weights: w, scalar or `[G]`, weight of each group's value, not all 0.
  told_box: 1 for a policy inside its box, 0 for one in [-1, 1]^A.
  target_step_size: tau of the soft updates, in [0, 1].
  actor_learning_rate: Adam's step size for the actor.
  critic_learning_rate: Adam's step size for the critics.
  max_gradient_norm: global norm to which each gradient is clipped; `inf` never.
  """

  discount: chex.Numeric = 0.9
  target_entropy: chex.Numeric = -1.0
  initial_temperature: chex.Numeric = 1.0
  temperature_learning_rate: chex.Numeric = 3e-4
  group_weights: chex.Numeric = 1.0
  told_box: chex.Numeric = 0.0
  target_step_size: chex.Numeric = 0.005
  actor_learning_rate: chex.Numeric = 3e-4
  critic_learning_rate: chex.Numeric = 3e-4
  max_gradient_norm: chex.Numeric = np.inf


class State(NamedTuple):
  """Everything that an update reads and writes; a pytree of arrays.

  actor_params: of `networks.tanh_gaussian`.
  critic_params, target_critic_params: as the network's `init` made them, and
    their slow copy.
  temperature_params: scalar, the temperature's logarithm.
  actor_optimizer, critic_optimizer, temperature_optimizer: Adam's moments.
  hyperparams: the numbers of the algorithm, each a leaf.
  normalization: of the observations.
  frame: of the actions.
  rng_key: from which actions are drawn.
  """

  actor_params: Any
  critic_params: Any
  target_critic_params: Any
  temperature_params: jax.Array
  actor_optimizer: Any
  critic_optimizer: Any
  temperature_optimizer: Any
  hyperparams: Hyperparams
  normalization: Normalization
  frame: box_units.Frame
  rng_key: chex.PRNGKey


class Metrics(NamedTuple):
  """What one update saw; means over its critic updates where it has several.

  critic_loss, actor_loss, temperature_loss: scalars.
  q_mean, q_min, q_max: `[G]` over batch and critics, at the logged actions.
  temperature: scalar.
  entropy: scalar, mean of `-log pi` at drawn actions.
  critic_gradient_norm, actor_gradient_norm, temperature_gradient_norm: scalars,
    before clipping.
  """

  critic_loss: jax.Array
  actor_loss: jax.Array
  temperature_loss: jax.Array
  q_mean: jax.Array
  q_min: jax.Array
  q_max: jax.Array
  temperature: jax.Array
  entropy: jax.Array
  critic_gradient_norm: jax.Array
  actor_gradient_norm: jax.Array
  temperature_gradient_norm: jax.Array


_BOUNDS = {
  "discount": (0.0, 1.0),
  "target_entropy": (-np.inf, np.inf),
  **soft_actor.BOUNDS,
}


def sac_n(actor: Actor, critic: Critic, *, critic_updates: int = 1) -> Learner:
  """Builds SAC-N of [1] from its networks.

  One update: temperature and actor of `soft_actor.update_actor`, then with
  `a'` drawn from the new policy

    `y_g = r_g + gamma (Q'_g(s', a') - temperature log pi(a' | s'))`, Q' of the
    critic where `sum_g w_g Q'_g` is least, the second term shared out over the
    groups;
    critics: Adam on the mean of `(Q_gm(s, a) - y_g)^2`; soft update of Q'.

  The policy served is the mode, `tanh` of the mean.

  Args:
    actor: the policy's mode, in [-1, 1].
    critic: the critics' network.
    critic_updates: number of critic updates after the one of the actor, static
      (1 in [1]). A batch is split into that many parts, and the actor's part is
      the first one.

  Returns:
    The learner; its `value` is that of the least critic.

  Raises:
    ValueError: at `init`, a hyperparameter out of range or of a wrong shape; at
      `update`, a batch that `critic_updates` does not divide.
  """
  policy = tanh_gaussian(actor)

  def init(
    rng_key: chex.PRNGKey,
    example: Transition,
    hyperparams: Hyperparams | None = None,
    normalization: Normalization | None = None,
  ) -> State:
    hyperparams = Hyperparams() if hyperparams is None else hyperparams
    base.check_ranges(hyperparams, _BOUNDS)
    return State(
      **soft_actor.init_fields(
        rng_key, policy, critic, example, hyperparams, normalization
      )
    )

  def update_actor(
    state: State, batch: Transition
  ) -> tuple[State, dict[str, jax.Array]]:
    return soft_actor.update_actor(policy, critic, state, batch)

  def update_critic(
    state: State, batch: Transition
  ) -> tuple[State, dict[str, jax.Array]]:
    numbers = state.hyperparams
    state, noise_key = soft_actor.split_key(state)
    drawn = soft_actor.sample(
      policy, state.actor_params, noise_key, batch.observation_t
    )
    value_t, bonus_t = soft_actor.next_value(critic, state, batch, *drawn)
    targets = actor_critic.targets_of(
      batch, numbers.discount, value_t + bonus_t
    )
    state, metrics = actor_critic.regress_critics(critic, state, batch, targets)
    return soft_actor.soften_critics(state), metrics

  def value(
    state: State, observation: chex.Array, action: chex.Array, box: ActionBox
  ) -> jax.Array:
    q = box_units.values_of(critic, state, observation, action, box)
    return actor_critic.chosen(q[None], state.hyperparams.group_weights)[0]

  return Learner(
    init=init,
    update=actor_critic.delayed(
      update_critic,
      update_actor,
      Metrics,
      critic_updates,
      prepare=box_units.prepare,
      actor_first=True,
    ),
    policy=soft_actor.policy_of,
    act=box_units.deterministic_act(actor),
    value=value,
  )
