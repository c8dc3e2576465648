"""AWAC: values of the policy's own actions, logged ones cloned by advantage.

Where published code differs: logged actions are weighted by a softmax over the
batch, times its size, so that weights are 1 on average whatever the level of
the values. Other code has `exp(A / lambda)` and a limit of 100; that is
`normalize_weights=0` and `max_weight=100`. The deviation of the policy's normal
is of no state, as in [1], and its samples are clipped to [-1, 1]. Three details
are ours. The critics' loss is the mean over critics, not the sum: Adam steps the
same. The actor has no weight decay. Several reward groups share one choice of a
critic, see `actor_critic.chosen`; with one group this is [1].

Like IQL it cannot leave a box that logs are uniform in, and moves hardly at all
where lambda is far above the advantages: for `A = g . u` linear in a uniform `u`
the mean goes to `coth(x) - 1 / x` with `x = g / lambda`. What differs is the
value of a state, which here may come from actions that no log has.

Letters: `B` transitions of a batch, `S` state features, `A` action components,
`G` reward groups, `M` critics of a group (two as published).

References:
  [1] Nair et al., "AWAC: Accelerating Online Reinforcement Learning with Offline
  Datasets", arXiv 2006.09359.
"""

import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.transitions import Transition
from mtf_jax.learners import (
  actor_critic,
  base,
  box_units,
  normal_actor,
  soft_actor,
)
from mtf_jax.learners.base import Learner, Normalization
from mtf_jax.networks import Actor, Critic


class Hyperparams(NamedTuple):
  """Numbers of the algorithm: leaves of the state, so none of them recompiles.

  The discount is that of `integrated_rl`; the other values are those of [1].

  discount: gamma, in [0, 1].
  temperature: lambda, positive, in units of the return: an action whose
    advantage is larger by so much counts e times as much.
  normalize_weights: 1 divides weights by their mean over the batch, 0 does not.
  max_weight: limit of a weight; `inf` none.
  group_weights: w, scalar or `[G]`, weight of each group's value.
  told_box: 1 for a policy inside its box, 0 for one in [-1, 1]^A.
  target_step_size: tau of the soft updates, in [0, 1].
  actor_learning_rate: Adam's step size for the actor.
  critic_learning_rate: Adam's step size for the critics.
  max_gradient_norm: global norm to which each gradient is clipped; `inf` never.
  """

  discount: chex.Numeric = 0.9
  temperature: chex.Numeric = 1.0
  normalize_weights: chex.Numeric = 1.0
  max_weight: chex.Numeric = np.inf
  group_weights: chex.Numeric = 1.0
  told_box: chex.Numeric = 0.0
  target_step_size: chex.Numeric = 0.005
  actor_learning_rate: chex.Numeric = 3e-4
  critic_learning_rate: chex.Numeric = 3e-4
  max_gradient_norm: chex.Numeric = np.inf


class State(NamedTuple):
  """Everything that an update reads and writes; a pytree of arrays.

  actor_params: of `normal_actor`.
  critic_params, target_critic_params: as the network's `init` made them, and
    their slow copy.
  actor_optimizer, critic_optimizer: Adam's moments.
  hyperparams: the numbers of the algorithm, each a leaf.
  normalization: of the observations.
  frame: of the actions.
  rng_key: from which actions are drawn.
  """

  actor_params: Any
  critic_params: Any
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
  advantage_std: scalar, deviation of the weighted advantage over the batch.
  weight: scalar, mean weight of a logged action.
  weight_share: scalar in (0, 1], effective share of the batch's rows.
  spread: scalar, mean deviation of the policy's normal.
  critic_gradient_norm, actor_gradient_norm: scalars, before clipping.
  """

  critic_loss: jax.Array
  actor_loss: jax.Array
  q_mean: jax.Array
  q_min: jax.Array
  q_max: jax.Array
  advantage_std: jax.Array
  weight: jax.Array
  weight_share: jax.Array
  spread: jax.Array
  critic_gradient_norm: jax.Array
  actor_gradient_norm: jax.Array


_BOUNDS = {
  "discount": (0.0, 1.0),
  "temperature": (1e-30, np.inf),
  "normalize_weights": (0.0, 1.0),
  "max_weight": (0.0, np.inf),
  "told_box": (0.0, 1.0),
  "target_step_size": (0.0, 1.0),
  "actor_learning_rate": (0.0, np.inf),
  "critic_learning_rate": (0.0, np.inf),
  "max_gradient_norm": (0.0, np.inf),
}


def advantage_weights(advantage: chex.Array, numbers: Hyperparams) -> jax.Array:
  """Weights `min(exp(A / lambda), max_weight)` of a batch, `[B]`.

  With `normalize_weights` the exponentials are divided by their mean first.

  Args:
    advantage: `[B]`.
    numbers: `temperature`, `normalize_weights` and `max_weight`.
  """
  exponent = advantage / numbers.temperature
  relative = jax.nn.log_softmax(exponent) + math.log(advantage.shape[0])
  exponent = jnp.where(numbers.normalize_weights > 0, relative, exponent)
  # Limited before `exp`, which would overflow.
  return jnp.exp(jnp.minimum(exponent, jnp.log(numbers.max_weight)))


def awac(actor: Actor, critic: Critic, *, critic_updates: int = 1) -> Learner:
  """Builds AWAC of [1] from its networks.

  One update, with `Q_g` of the critic whose `sum_g w_g Q_g` is least, and
  actions drawn from the policy, `clip(mean + deviation noise, -1, 1)`:

    critics: Adam on the mean of `(Q_gm(s, a) - r_g - gamma Q'_g(s', a'))^2`
    with a' drawn; soft update of Q';
    actor: Adam on `-mean(weight log pi(a | s))`, weight from
    `A = sum_g w_g (Q_g(s, a) - Q_g(s, b))` of the new critics with b drawn.

  The policy served is the mean.

  Args:
    actor: the policy's mean, in [-1, 1].
    critic: the critics' network, two critics of a group in [1].
    critic_updates: number of critic updates before the one actor update, static
      (1 in [1]). A batch is split into that many parts, and the actor's part is
      the last one.

  Returns:
    The learner; its `value` is that of the least critic.

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
    actor_key, critic_key, noise_key = jax.random.split(rng_key, 3)
    actor_params = normal_actor.init(actor_key, actor, example)
    critic_params = critic.init(
      critic_key, observation, example.action_tm1, example.box_tm1
    )
    numbers = actor_critic.own_hyperparams(
      hyperparams, example, by_group=("group_weights",)
    )
    return State(
      actor_params=actor_params,
      critic_params=critic_params,
      # A copy: a donated state must not hold one buffer twice.
      target_critic_params=jax.tree.map(jnp.copy, critic_params),
      actor_optimizer=base.start_optimizer(actor_params),
      critic_optimizer=base.start_optimizer(critic_params),
      hyperparams=numbers,
      normalization=base.own_normalization(normalization, observation),
      frame=box_units.frame_of(numbers.told_box, example.box_tm1),
      rng_key=noise_key,
    )

  def draw(state: State, observation: chex.Array) -> tuple[State, jax.Array]:
    """The state with a new key, and an action `[B, A]` of the policy."""
    state, noise_key = soft_actor.split_key(state)
    mean, log_std = normal_actor.apply(actor, state.actor_params, observation)
    noise = jax.random.normal(noise_key, mean.shape, mean.dtype)
    return state, jnp.clip(mean + jnp.exp(log_std)[None, :] * noise, -1, 1)

  def update_critic(
    state: State, batch: Transition
  ) -> tuple[State, dict[str, jax.Array]]:
    numbers = state.hyperparams
    state, action_t = draw(state, batch.observation_t)
    q_t = critic.apply(
      state.target_critic_params, batch.observation_t, action_t, batch.box_t
    )
    value_t = actor_critic.chosen(q_t, numbers.group_weights)
    targets = actor_critic.targets_of(batch, numbers.discount, value_t)
    state, metrics = actor_critic.regress_critics(critic, state, batch, targets)
    return soft_actor.soften_critics(state), metrics

  def update_actor(
    state: State, batch: Transition
  ) -> tuple[State, dict[str, jax.Array]]:
    numbers = state.hyperparams
    state, drawn = draw(state, batch.observation_tm1)

    def least(action):
      q = critic.apply(
        state.critic_params, batch.observation_tm1, action, batch.box_tm1
      )
      lowest = actor_critic.chosen(q, numbers.group_weights)
      return actor_critic.weigh(lowest, numbers.group_weights)

    advantage = least(batch.action_tm1) - least(drawn)
    weight = advantage_weights(advantage, numbers)

    def loss_fn(params):
      mean, log_std = normal_actor.apply(actor, params, batch.observation_tm1)
      log_prob = normal_actor.log_prob(batch.action_tm1, mean, log_std)
      return -jnp.mean(weight * log_prob), jnp.mean(jnp.exp(log_std))

    state, spread, metrics = actor_critic.climb(loss_fn, state)
    metrics |= normal_actor.weight_metrics(weight) | {
      "advantage_std": jnp.std(advantage),
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
