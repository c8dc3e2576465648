"""CQL(H) on soft actor-critic: values of actions that were not logged go down.

Of published code JaxCQL is followed, with a temperature of 1 in the log-sum-exp
and samples at the next state scored at this one, as the authors' code does too.
Three details are not theirs. The actor moves before the critics and not beside
them. The critics' loss is the mean over critics, not the sum: Adam steps the
same. The policy's deviation has no layers in common with its mean, see
`networks.tanh_gaussian`. Several reward groups share one scalar value, the
weighted sum, wherever a critic is chosen or pushed down.

Told the box, all samples lie in it, and the penalty shrinks the slope of a
value `V + g . u` to about `2 / (2 + conservative_scale)` of the true one and
leaves its sign. Told nothing, hardly any uniform sample lies in a box of
half-width 0.15, and what is pushed down is the value outside.

Letters: `B` transitions of a batch, `S` state features, `A` action components,
`G` reward groups, `M` critics of a group (two as published), `N` samples of
each kind.

References:
  [1] Kumar et al., "Conservative Q-Learning for Offline Reinforcement
  Learning", NeurIPS 2020, variant CQL(H) of appendix F.
"""

import math
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.transitions import Transition
from mtf_jax.io import InputError
from mtf_jax.kernels.losses import critic_loss
from mtf_jax.learners import actor_critic, base, box_units, soft_actor
from mtf_jax.learners.base import Learner, Normalization
from mtf_jax.networks import (
  Actor,
  Critic,
  sample_tanh_normal,
  tanh_gaussian,
)

_LARGEST_MULTIPLIER = 1e6


class Hyperparams(NamedTuple):
  """Numbers of the algorithm: leaves of the state, so none of them recompiles.

  The discount is that of `integrated_rl`; the other values are those of [1] for
  continuous control.

  discount: gamma, in [0, 1].
  conservative_scale: weight of the penalty on values of other actions.
  lagrange_threshold: tau, the gap that a multiplier of the penalty aims at,
    `conservative_scale` included; `inf` keeps the multiplier at 1.
  entropy_backup: 1 adds the entropy to the targets, 0 does not.
  target_entropy: entropy that the temperature aims at, in nats for each action
    component, in the units of the action that the network answers.
  initial_temperature: of the entropy, positive.
  temperature_learning_rate: Adam's step size for its logarithm; 0 keeps it.
  group_weights: w, scalar or `[G]`, weight of each group's value, not all 0.
  told_box: 1 for a policy inside its box, 0 for one in [-1, 1]^A.
  target_step_size: tau of the soft updates, in [0, 1].
  actor_learning_rate: Adam's step size for the actor.
  critic_learning_rate: Adam's step size for the critics and the multiplier.
  max_gradient_norm: global norm to which each gradient is clipped; `inf` never.
  """

  discount: chex.Numeric = 0.9
  conservative_scale: chex.Numeric = 5.0
  lagrange_threshold: chex.Numeric = np.inf
  entropy_backup: chex.Numeric = 0.0
  target_entropy: chex.Numeric = -1.0
  initial_temperature: chex.Numeric = 1.0
  temperature_learning_rate: chex.Numeric = 1e-4
  group_weights: chex.Numeric = 1.0
  told_box: chex.Numeric = 0.0
  target_step_size: chex.Numeric = 0.005
  actor_learning_rate: chex.Numeric = 1e-4
  critic_learning_rate: chex.Numeric = 3e-4
  max_gradient_norm: chex.Numeric = np.inf


class State(NamedTuple):
  """Everything that an update reads and writes; a pytree of arrays.

  actor_params: of `networks.tanh_gaussian`.
  critic_params, target_critic_params: as the network's `init` made them, and
    their slow copy.
  temperature_params: scalar, the temperature's logarithm.
  multiplier_params: scalar, the logarithm of the penalty's multiplier.
  actor_optimizer, critic_optimizer, temperature_optimizer,
    multiplier_optimizer: Adam's moments.
  hyperparams: the numbers of the algorithm, each a leaf.
  normalization: of the observations.
  frame: of the actions.
  rng_key: from which actions are drawn.
  """

  actor_params: Any
  critic_params: Any
  target_critic_params: Any
  temperature_params: jax.Array
  multiplier_params: jax.Array
  actor_optimizer: Any
  critic_optimizer: Any
  temperature_optimizer: Any
  multiplier_optimizer: Any
  hyperparams: Hyperparams
  normalization: Normalization
  frame: box_units.Frame
  rng_key: chex.PRNGKey


class Metrics(NamedTuple):
  """What one update saw; means over its critic updates where it has several.

  critic_loss: scalar, both terms.
  td_loss: scalar, its first term.
  gap: scalar, mean of `log sum exp - Q(s, a)` over batch and critics.
  policy_share: scalar, what the policy's samples at s have of the sum.
  multiplier: scalar, of the penalty.
  actor_loss, temperature_loss: scalars.
  q_mean, q_min, q_max: `[G]` over batch and critics, at the logged actions.
  temperature: scalar.
  entropy: scalar, mean of `-log pi` at drawn actions.
  critic_gradient_norm, actor_gradient_norm, temperature_gradient_norm: scalars,
    before clipping.
  """

  critic_loss: jax.Array
  td_loss: jax.Array
  gap: jax.Array
  policy_share: jax.Array
  multiplier: jax.Array
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
  "conservative_scale": (0.0, np.inf),
  "lagrange_threshold": (0.0, np.inf),
  "entropy_backup": (0.0, 1.0),
  "target_entropy": (-np.inf, np.inf),
  **soft_actor.BOUNDS,
}


def gap_of(
  q_sampled: chex.Array, log_prob: chex.Array, q_logged: chex.Array
) -> jax.Array:
  """`log sum_i exp(Q(s, a_i) - log p_i) - Q(s, a)`, equation of CQL(H) in [1].

  Args:
    q_sampled: `[3N, B, M]` values of sampled actions.
    log_prob: `[3N, B]` log densities that they were drawn with.
    q_logged: `[B, M]`.

  Returns:
    `[B, M]`.
  """
  exponent = q_sampled - log_prob[:, :, None]
  return jax.nn.logsumexp(exponent, axis=0) - q_logged


def cql(
  actor: Actor,
  critic: Critic,
  *,
  critic_updates: int = 1,
  num_samples: int = 10,
) -> Learner:
  """Builds CQL(H) of [1] from its networks.

  One update: temperature and actor of `soft_actor.update_actor`, then with
  N uniform actions in [-1, 1]^A, N of the policy at s and N of it at s', all
  valued at s, and `Q_m = sum_g w_g Q_gm`

    `y_g = r_g + gamma Q'_g(s', a')`, a' drawn, Q' of the critic where the
    weighted sum is least; `entropy_backup` adds the entropy;
    critics: Adam on the mean of `(Q_gm(s, a) - y_g)^2` plus `multiplier
    conservative_scale` times the mean of `gap_of` over batch and critics;
    multiplier: Adam on `-multiplier (conservative_scale gap - tau)`, for its
    logarithm; soft update of Q'.

  All `3N + 1` values of a state are one pass of the critics: contractions over a
  batch as many times as long, but for those that see no action. The policy served is the mode, `tanh` of the mean.

  Args:
    actor: the policy's mode, in [-1, 1].
    critic: the critics' network, with `apply_many`.
    critic_updates: number of critic updates after the one of the actor, static
      (1 in [1]). A batch is split into that many parts, and the actor's part is
      the first one.
    num_samples: N, static.

  Returns:
    The learner; its `value` is that of the least critic.

  Raises:
    InputError: the critic has no `apply_many`.
    ValueError: at `init`, a hyperparameter out of range or of a wrong shape; at
      `update`, a batch that `critic_updates` does not divide.
  """
  apply_many = critic.apply_many
  if apply_many is None:
    raise InputError("critic: expected a network with apply_many, found None.")
  policy = tanh_gaussian(actor)

  def init(
    rng_key: chex.PRNGKey,
    example: Transition,
    hyperparams: Hyperparams | None = None,
    normalization: Normalization | None = None,
  ) -> State:
    hyperparams = Hyperparams() if hyperparams is None else hyperparams
    base.check_ranges(hyperparams, _BOUNDS)
    fields = soft_actor.init_fields(
      rng_key, policy, critic, example, hyperparams, normalization
    )
    multiplier = jnp.zeros_like(fields["temperature_params"])
    return State(
      **fields,
      multiplier_params=multiplier,
      multiplier_optimizer=base.start_optimizer(multiplier),
    )

  def update_actor(
    state: State, batch: Transition
  ) -> tuple[State, dict[str, jax.Array]]:
    return soft_actor.update_actor(policy, critic, state, batch)

  def sample_actions(
    state: State, batch: Transition, rng_key: chex.PRNGKey
  ) -> tuple[jax.Array, jax.Array]:
    """Actions `[3N + 1, B, A]` and log densities `[3N + 1, B]`.

    N of the policy at s, N of it at s', N uniform ones, and the policy's at s'
    that the target is for.
    """
    rows, components = batch.action_tm1.shape
    dtype = batch.action_tm1.dtype
    noise_key, uniform_key = jax.random.split(rng_key)
    # After an exit there is no next state: the state itself stands in.
    continues = batch.discount_t[:, None] > 0
    following = jnp.where(continues, batch.observation_t, batch.observation_tm1)
    mean, log_std = policy.apply(
      state.actor_params, jnp.concatenate([batch.observation_tm1, following])
    )
    noise = jax.random.normal(
      noise_key, (2 * num_samples + 1, rows, components), dtype
    )
    now, now_log_prob = sample_tanh_normal(
      noise[:num_samples], mean[None, :rows], log_std[None, :rows]
    )
    later, later_log_prob = sample_tanh_normal(
      noise[num_samples:], mean[None, rows:], log_std[None, rows:]
    )
    uniform = jax.random.uniform(
      uniform_key, (num_samples, rows, components), dtype, -1, 1
    )
    density = jnp.full((num_samples, rows), -components * math.log(2), dtype)
    actions = (now, later[:-1], uniform, later[-1:])
    log_probs = (
      now_log_prob,
      later_log_prob[:-1],
      density,
      later_log_prob[-1:],
    )
    return jnp.concatenate(actions), jnp.concatenate(log_probs)

  def update_critic(
    state: State, batch: Transition
  ) -> tuple[State, dict[str, jax.Array]]:
    numbers = state.hyperparams
    state, rng_key = soft_actor.split_key(state)
    sampled, log_prob = sample_actions(state, batch, rng_key)
    value_t, bonus_t = soft_actor.next_value(
      critic, state, batch, sampled[-1], log_prob[-1]
    )
    sampled, log_prob = sampled[:-1], log_prob[:-1]
    targets = actor_critic.targets_of(
      batch, numbers.discount, value_t + numbers.entropy_backup * bonus_t
    )
    actions = jnp.concatenate([batch.action_tm1[None], sampled])
    multiplier = jnp.clip(
      jnp.exp(state.multiplier_params), 0, _LARGEST_MULTIPLIER
    )

    def loss_fn(params):
      q = apply_many(params, batch.observation_tm1, actions, batch.box_tm1)
      total = jax.vmap(actor_critic.weigh, (0, None))(q, numbers.group_weights)
      q_tm1 = q[0]
      y = jnp.broadcast_to(targets, q_tm1.shape)
      td_loss = jnp.mean(jax.vmap(critic_loss)(q_tm1, y))
      gap = jnp.mean(gap_of(total[1:], log_prob, total[0]))
      share = jax.nn.softmax(total[1:] - log_prob[:, :, None], axis=0)
      policy_share = jnp.mean(jnp.sum(share[:num_samples], axis=0))
      loss = td_loss + multiplier * numbers.conservative_scale * gap
      return loss, (q_tm1, td_loss, gap, policy_share)

    state, (q_tm1, td_loss, gap, policy_share), metrics = (
      actor_critic.step_part(
        "critic", loss_fn, state, numbers.critic_learning_rate
      )
    )
    threshold = numbers.lagrange_threshold
    aims = jnp.isfinite(threshold)
    excess = numbers.conservative_scale * gap - jnp.where(aims, threshold, 0)
    state, _, _ = actor_critic.step_part(
      "multiplier",
      lambda log_multiplier: (
        -jnp.clip(jnp.exp(log_multiplier), 0, _LARGEST_MULTIPLIER)
        * jnp.where(aims, excess, 0),
        (),
      ),
      state,
      numbers.critic_learning_rate,
    )
    metrics |= actor_critic.value_metrics(q_tm1) | {
      "td_loss": td_loss,
      "gap": gap,
      "policy_share": policy_share,
      "multiplier": multiplier,
    }
    return soft_actor.soften_critics(state), metrics

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
    value=box_units.least_value(critic),
  )
