"""Implicit Q-learning: values of logged actions only, and two ways to a policy.

Where published code differs, this follows the authors' of [1]: an unsquashed
normal around a mean in [-1, 1], with a spread that no state changes; V and the
advantage see the target critics; the critics and the actor see the new V. Three
details are not theirs. The critics' loss is the mean over critics, not the sum:
Adam steps the same. V has the shape of the critics, or that of `value`, and is
the mean of what its members say. Several reward groups share one advantage, see
`actor_critic.chosen`; with one group this is [1].

On a box the weights leave the policy inside: for an advantage `g . u` linear in
a uniform `u` the mean moves to `coth(x) - 1 / x` with `x = beta g`, which for a
small advantage is nearly nothing. `scale_advantage` divides the advantage by
its deviation over the batch, so that beta means the same for every reward.

Letters: `B` transitions of a batch, `S` state features, `A` action components,
`G` reward groups, `M` critics of a group (two as published).

References:
  [1] Kostrikov, Nair and Levine, "Offline Reinforcement Learning with Implicit
  Q-Learning", ICLR 2022.
  [2] Park et al., "Is Value Learning Really the Main Bottleneck in Offline RL?",
  NeurIPS 2024: the second extraction, with the numbers of OGBench.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtf_jax.data.transitions import Transition
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.learners import actor_critic, base, box_units, normal_actor
from mtf_jax.learners.base import Learner, Normalization
from mtf_jax.networks import Actor, Critic

_FLOOR = 1e-6


class Hyperparams(NamedTuple):
  """Numbers of the algorithm: leaves of the state, so none of them recompiles.

  The discount is that of `integrated_rl`; the other values are those of [1],
  whose policy climbs no value (advantage-weighted regression). `DDPG_BC` has
  those of [2].

  discount: gamma, in [0, 1].
  expectile: tau of V, in [0, 1]; 0.5 is the mean.
  inverse_temperature: beta, weight `exp(beta A)` of a logged action.
  scale_advantage: 1 divides A by its deviation over the batch, 0 does not.
  max_weight: limit of that weight.
  cloning_scale: weight of the logged actions' log density.
  value_scale: weight of the policy's own value, divided by mean |Q|.
  learn_spread: 1 learns the normal's deviation, 0 leaves it at 1; in units of
    the action that the network answers.
  group_weights: w, scalar or `[G]`, weight of each group's value.
  told_box: 1 for a policy inside its box, 0 for one in [-1, 1]^A.
  target_step_size: tau of the soft updates, in [0, 1].
  actor_learning_rate: Adam's step size for the actor, at the start.
  actor_decay: updates over which it falls to 0 along a cosine, the length of
    the training in [1]; `inf` never.
  critic_learning_rate: Adam's step size for the critics and V.
  max_gradient_norm: global norm to which each gradient is clipped; `inf` never.
  """

  discount: chex.Numeric = 0.9
  expectile: chex.Numeric = 0.7
  inverse_temperature: chex.Numeric = 3.0
  scale_advantage: chex.Numeric = 0.0
  max_weight: chex.Numeric = 100.0
  cloning_scale: chex.Numeric = 1.0
  value_scale: chex.Numeric = 0.0
  learn_spread: chex.Numeric = 1.0
  group_weights: chex.Numeric = 1.0
  told_box: chex.Numeric = 0.0
  target_step_size: chex.Numeric = 0.005
  actor_learning_rate: chex.Numeric = 3e-4
  actor_decay: chex.Numeric = np.inf
  critic_learning_rate: chex.Numeric = 3e-4
  max_gradient_norm: chex.Numeric = np.inf


DDPG_BC = Hyperparams(
  expectile=0.9,
  inverse_temperature=0.0,
  cloning_scale=0.3,
  value_scale=1.0,
  learn_spread=0.0,
)


class State(NamedTuple):
  """Everything that an update reads and writes; a pytree of arrays.

  actor_params: of `normal_actor`.
  value_params, critic_params: as the networks' `init` made them.
  target_critic_params: the critics' slow copy.
  actor_optimizer, value_optimizer, critic_optimizer: Adam's moments.
  hyperparams: the numbers of the algorithm, each a leaf.
  normalization: of the observations.
  frame: of the actions.
  """

  actor_params: Any
  value_params: Any
  critic_params: Any
  target_critic_params: Any
  actor_optimizer: Any
  value_optimizer: Any
  critic_optimizer: Any
  hyperparams: Hyperparams
  normalization: Normalization
  frame: box_units.Frame


class Metrics(NamedTuple):
  """What one update saw; means over its critic updates where it has several.

  critic_loss, value_loss, actor_loss: scalars.
  q_mean, q_min, q_max: `[G]` over batch and critics, at the logged actions.
  advantage_std: scalar, deviation of the weighted advantage over the batch.
  weight: scalar, mean weight of a logged action.
  weight_share: scalar in (0, 1], effective share of the batch's rows.
  spread: scalar, mean deviation of the policy's normal.
  critic_gradient_norm, value_gradient_norm, actor_gradient_norm: scalars,
    before clipping.
  """

  critic_loss: jax.Array
  value_loss: jax.Array
  actor_loss: jax.Array
  q_mean: jax.Array
  q_min: jax.Array
  q_max: jax.Array
  advantage_std: jax.Array
  weight: jax.Array
  weight_share: jax.Array
  spread: jax.Array
  critic_gradient_norm: jax.Array
  value_gradient_norm: jax.Array
  actor_gradient_norm: jax.Array


_BOUNDS = {
  "discount": (0.0, 1.0),
  "expectile": (0.0, 1.0),
  "inverse_temperature": (0.0, np.inf),
  "scale_advantage": (0.0, 1.0),
  "max_weight": (0.0, np.inf),
  "cloning_scale": (0.0, np.inf),
  "value_scale": (0.0, np.inf),
  "learn_spread": (0.0, 1.0),
  "told_box": (0.0, 1.0),
  "target_step_size": (0.0, 1.0),
  "actor_learning_rate": (0.0, np.inf),
  "actor_decay": (1.0, np.inf),
  "critic_learning_rate": (0.0, np.inf),
  "max_gradient_norm": (0.0, np.inf),
}


def advantage_weights(
  advantage: chex.Array, numbers: Hyperparams
) -> tuple[jax.Array, jax.Array]:
  """Weights `min(exp(beta A), max_weight)` of a batch, and A's deviation.

  Args:
    advantage: `[B]`.
    numbers: `inverse_temperature`, `scale_advantage` and `max_weight`.
  """
  deviation = jnp.std(advantage)
  scales = numbers.scale_advantage > 0
  advantage = advantage / jnp.where(scales, deviation + _FLOOR, 1)
  # Limited before `exp`, which would overflow.
  limit = jnp.log(numbers.max_weight)
  exponent = jnp.minimum(numbers.inverse_temperature * advantage, limit)
  return jnp.exp(exponent), deviation


def iql(
  actor: Actor,
  critic: Critic,
  *,
  value: Critic | None = None,
  critic_updates: int = 1,
) -> Learner:
  """Builds implicit Q-learning of [1] from its networks.

  One update, with `Q'_g` of the critic whose `sum_g w_g Q'_g` is least and
  `A = sum_g w_g (Q'_g(s, a) - V_g(s))`:

    V: Adam on the mean of `|tau - 1(A < 0)| (Q'_g(s, a) - V_g(s))^2`;
    critics: Adam on the mean of `(Q_gm(s, a) - r_g - gamma V_g(s'))^2`;
    actor: Adam on `-cloning_scale mean(weight log pi(a | s)) -
    value_scale mean Q(s, mu(s)) / mean |Q|`, weight from the new V, the second
    Q the least of the new critics; then the soft update of Q'.

  Args:
    actor: the policy's mean, in [-1, 1].
    critic: the critics' network, two critics of a group in [1].
    value: V's network, a critic that is always shown action 0; that of the
      critics if None. [1] has one member, such as `mlp_critic(G, 1)`.
    critic_updates: number of updates of V and the critics before the one actor
      update, static (1 in [1]). A batch is split into that many parts, and the
      actor's part is the last one.

  Returns:
    The learner; its `value` is that of the least critic.

  Raises:
    ValueError: at `init`, a hyperparameter out of range or of a wrong shape; at
      `update`, a batch that `critic_updates` does not divide.
  """
  value_network = critic if value is None else value

  def init(
    rng_key: chex.PRNGKey,
    example: Transition,
    hyperparams: Hyperparams | None = None,
    normalization: Normalization | None = None,
  ) -> State:
    hyperparams = Hyperparams() if hyperparams is None else hyperparams
    base.check_ranges(hyperparams, _BOUNDS)
    observation = jnp.asarray(example.observation_tm1)
    actor_key, value_key, critic_key = jax.random.split(rng_key, 3)
    given = (observation, example.action_tm1, example.box_tm1)
    actor_params = normal_actor.init(actor_key, actor, example)
    value_params = value_network.init(value_key, *given)
    critic_params = critic.init(critic_key, *given)
    numbers = actor_critic.own_hyperparams(
      hyperparams, example, by_group=("group_weights",)
    )
    return State(
      actor_params=actor_params,
      value_params=value_params,
      critic_params=critic_params,
      # A copy: a donated state must not hold one buffer twice.
      target_critic_params=jax.tree.map(jnp.copy, critic_params),
      actor_optimizer=base.start_optimizer(actor_params),
      value_optimizer=base.start_optimizer(value_params),
      critic_optimizer=base.start_optimizer(critic_params),
      hyperparams=numbers,
      normalization=base.own_normalization(normalization, observation),
      frame=box_units.frame_of(numbers.told_box, example.box_tm1),
    )

  def state_value(
    params: Any, observation: chex.Array, action: chex.Array
  ) -> jax.Array:
    """V `[B, G, M]`; of the action only the shape counts."""
    one = jnp.ones_like(action)
    # Action 0 in the middle of a box: where a box-aware critic is its own V.
    box = ActionBox(-one, one)
    return value_network.apply(params, observation, 0 * one, box)

  def target_value(state: State, batch: Transition) -> jax.Array:
    q = critic.apply(
      state.target_critic_params,
      batch.observation_tm1,
      batch.action_tm1,
      batch.box_tm1,
    )
    return actor_critic.chosen(q, state.hyperparams.group_weights)

  def update_critic(
    state: State, batch: Transition
  ) -> tuple[State, dict[str, jax.Array]]:
    numbers = state.hyperparams
    q_tm1 = target_value(state, batch)

    def value_loss(params):
      v = state_value(params, batch.observation_tm1, batch.action_tm1)
      error = q_tm1[:, :, None] - v
      below = actor_critic.weigh(error, numbers.group_weights) < 0
      weight = jnp.abs(numbers.expectile - below.astype(error.dtype))
      return jnp.mean(weight[:, None, :] * jnp.square(error)), None

    state, _, value_metrics = actor_critic.step_part(
      "value", value_loss, state, numbers.critic_learning_rate
    )
    v_t = state_value(state.value_params, batch.observation_t, batch.action_tm1)
    targets = actor_critic.targets_of(
      batch, numbers.discount, jnp.mean(v_t, axis=2)
    )
    state, metrics = actor_critic.regress_critics(critic, state, batch, targets)
    return state, metrics | value_metrics

  def update_actor(
    state: State, batch: Transition
  ) -> tuple[State, dict[str, jax.Array]]:
    numbers = state.hyperparams
    v = state_value(state.value_params, batch.observation_tm1, batch.action_tm1)
    advantage = target_value(state, batch) - jnp.mean(v, axis=2)
    weight, deviation = advantage_weights(
      actor_critic.weigh(advantage, numbers.group_weights), numbers
    )

    def loss_fn(params):
      mean, log_std = normal_actor.apply(actor, params, batch.observation_tm1)
      log_std = numbers.learn_spread * log_std
      log_prob = normal_actor.log_prob(batch.action_tm1, mean, log_std)
      q = critic.apply(
        state.critic_params, batch.observation_tm1, mean, batch.box_tm1
      )
      climbed = actor_critic.weigh(
        actor_critic.chosen(q, numbers.group_weights), numbers.group_weights
      )
      size = jax.lax.stop_gradient(jnp.mean(jnp.abs(climbed))) + _FLOOR
      loss = -numbers.cloning_scale * jnp.mean(weight * log_prob)
      loss -= numbers.value_scale * jnp.mean(climbed) / size
      return loss, jnp.mean(jnp.exp(log_std))

    count = state.actor_optimizer.count.astype(weight.dtype)
    done = jnp.minimum(count / numbers.actor_decay, 1)
    learning_rate = (
      numbers.actor_learning_rate * (1 + jnp.cos(np.pi * done)) / 2
    )
    state, spread, metrics = actor_critic.step_part(
      "actor", loss_fn, state, learning_rate
    )
    state = state._replace(
      target_critic_params=optax.incremental_update(
        state.critic_params,
        state.target_critic_params,
        numbers.target_step_size,
      )
    )
    metrics |= normal_actor.weight_metrics(weight) | {
      "advantage_std": deviation,
      "spread": spread,
    }
    return state, metrics

  return Learner(
    init=init,
    update=actor_critic.delayed(
      update_critic,
      update_actor,
      Metrics,
      critic_updates,
      prepare=box_units.prepare,
    ),
    policy=normal_actor.policy_of,
    act=box_units.deterministic_act(actor),
    value=box_units.least_value(critic),
  )
