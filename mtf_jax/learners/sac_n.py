"""SAC-N: soft actor-critic that trusts the least of N critics; and EDAC.

EDAC also has the critics disagree on where a logged action should move, so that
fewer of them do: its loss has the mean cosine between the gradients of two
critics in the action. That takes a gradient inside a gradient, which only EDAC
pays for.

As in the authors' code of [1]: first the temperature, then the actor, then the
critics. Two details are not theirs. The critics' loss is the mean over critics,
not the sum: Adam steps the same. The policy's deviation has no layers in common
with its mean, see `networks.tanh_gaussian`. Several reward groups share one
choice of a critic, see `actor_critic.chosen`; with one group this is [1].

The published target entropy, -1 for each component, is more than a box of
half-width 0.15 has (-1.2): a policy that is not told the box is asked to be
wider than the log. In units of the box it is a deviation of about a third.

Where an action explains little of the return, the critics' gradients are mostly
noise, and what EDAC takes away is what they agree on.

Letters: `B` transitions of a batch, `S` state features, `A` action components,
`G` reward groups, `M` critics of a group (N in [1], 10 as published).

References:
  [1] An et al., "Uncertainty-Based Offline Reinforcement Learning with
  Diversified Q-Ensemble", NeurIPS 2021.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.transitions import Transition
from mtf_jax.io import InputError
from mtf_jax.learners import actor_critic, base, box_units, soft_actor
from mtf_jax.learners.base import Learner, Normalization
from mtf_jax.networks import Actor, Critic, tanh_gaussian

# Norm of a gradient below which it has no direction, as in the code of [1].
_FLOOR = 1e-10


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


class EDACHyperparams(NamedTuple):
  """Numbers of EDAC: those of `Hyperparams`, and one more.

  diversity_scale: eta, weight of the critics' agreement on a direction, in
    squared units of the return; with 0 it is SAC-N. 1 in [1], up to 1,000 on
    some of its logs.
  """

  discount: chex.Numeric = 0.9
  diversity_scale: chex.Numeric = 1.0
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
  hyperparams: the numbers of the algorithm, each a leaf; of either class.
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
  hyperparams: Any
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


class EDACMetrics(NamedTuple):
  """What one update of EDAC saw: `Metrics`, and one number more.

  The critics' loss has the price of their agreement in it.

  mean_cosine: `[G]`, of `mean_cosine`, mean over the batch.
  """

  critic_loss: jax.Array
  actor_loss: jax.Array
  temperature_loss: jax.Array
  q_mean: jax.Array
  q_min: jax.Array
  q_max: jax.Array
  mean_cosine: jax.Array
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
_EDAC_BOUNDS = {**_BOUNDS, "diversity_scale": (0.0, np.inf)}


def mean_cosine(gradients: chex.Array) -> jax.Array:
  """Mean cosine between the gradients of two critics of a group.

  `1 / (M (M - 1)) sum_{i != j} <n_i, n_j>`, `n` a gradient of length 1. One that
  is 0 has no direction: its `n` is 0 and lets no derivative through.

  Args:
    gradients: `[G, M, B, A]`, of each critic in each row.

  Returns:
    `[G, B]` in [-1, 1], 0 for a group of one critic.
  """
  num_critics = gradients.shape[1]
  square = jnp.sum(jnp.square(gradients), axis=3, keepdims=True)
  directed = square > _FLOOR**2
  # The root of 0 has an infinite slope: the argument must be kept off 0.
  length = jnp.sqrt(jnp.where(directed, square, 1))
  unit = jnp.where(directed, gradients / length, 0)
  # The sum over all pairs is the square of the sum: M vectors, not M^2 pairs.
  total = jnp.sum(jnp.square(jnp.sum(unit, axis=1)), axis=2)
  pairs = total - jnp.sum(jnp.square(unit), axis=(1, 3))
  return pairs / max(num_critics * (num_critics - 1), 1)


def _agreement(
  apply_one: Callable[..., jax.Array],
  batch: Transition,
  scale: chex.Numeric,
  params: Any,
) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Price of the critics' agreement at logged actions, and the metric."""

  def total(one, action):
    return jnp.sum(apply_one(one, batch.observation_tm1, action, batch.box_tm1))

  of_group = jax.vmap(jax.grad(total, argnums=1), (0, None))
  gradients = jax.vmap(of_group, (0, None))(params, batch.action_tm1)
  cosine = jnp.mean(mean_cosine(gradients), axis=1)
  return scale * jnp.mean(cosine), {"mean_cosine": cosine}


def sac_n(
  actor: Actor,
  critic: Critic,
  *,
  critic_updates: int = 1,
  diversified: bool = False,
) -> Learner:
  """Builds SAC-N or EDAC of [1] from its networks.

  One update: temperature and actor of `soft_actor.update_actor`, then with
  `a'` drawn from the new policy

    `y_g = r_g + gamma (Q'_g(s', a') - temperature log pi(a' | s'))`, Q' of the
    critic where `sum_g w_g Q'_g` is least, the second term shared out over the
    groups;
    critics: Adam on the mean of `(Q_gm(s, a) - y_g)^2`, with EDAC plus
    `diversity_scale` times the mean over batch and groups of
    `1 / (M (M - 1)) sum_{i != j} cos(dQ_gi/da, dQ_gj/da)` at the logged action;
    soft update of Q'.

  [1] has the sum over the critics of the first and `eta / (M - 1)` before the
  second's sum, which is M times this, so that eta is the same number. Gradients
  are in the units of the action that the network answers.

  The policy served is the mode, `tanh` of the mean.

  Args:
    actor: the policy's mode, in [-1, 1].
    critic: the critics' network.
    critic_updates: number of critic updates after the one of the actor, static
      (1 in [1]). A batch is split into that many parts, and the actor's part is
      the first one.
    diversified: whether it is EDAC, static. Its numbers are `EDACHyperparams`,
      and its critic needs `apply_one`.

  Returns:
    The learner; its `value` is that of the least critic.

  Raises:
    InputError: EDAC's critic has no `apply_one`.
    ValueError: at `init`, a hyperparameter out of range or of a wrong shape; at
      `update`, a batch that `critic_updates` does not divide.
  """
  policy = tanh_gaussian(actor)
  apply_one = critic.apply_one if diversified else None
  if diversified and apply_one is None:
    raise InputError("critic: expected a network with apply_one, found None.")

  def init(
    rng_key: chex.PRNGKey,
    example: Transition,
    hyperparams: Hyperparams | EDACHyperparams | None = None,
    normalization: Normalization | None = None,
  ) -> State:
    if hyperparams is None:
      hyperparams = EDACHyperparams() if diversified else Hyperparams()
    base.check_ranges(hyperparams, _EDAC_BOUNDS if diversified else _BOUNDS)
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
    penalty = None
    if apply_one is not None:
      penalty = functools.partial(
        _agreement, apply_one, batch, numbers.diversity_scale
      )
    state, metrics = actor_critic.regress_critics(
      critic, state, batch, targets, penalty
    )
    return soft_actor.soften_critics(state), metrics

  return Learner(
    init=init,
    update=actor_critic.delayed(
      update_critic,
      update_actor,
      EDACMetrics if diversified else Metrics,
      critic_updates,
      prepare=box_units.prepare,
      actor_first=True,
    ),
    policy=soft_actor.policy_of,
    act=box_units.deterministic_act(actor),
    value=box_units.least_value(critic),
  )
