"""Guardrails: IntegratedRL-MTF with bounds on what a reward group may lose.

The weighted groups are maximised while every group keeps its reward, but for a
share that it may lose, against the policy in service. A multiplier rises while
its group loses more than it may, else it falls, and stops at 0; it adds to the
group's weight, and so does, at once, what is too much (damping rho):

  shortfall_g = mean[P_g(s, centre) - P_g(s, mu(s))] - allowed_loss_g |mean r_g|
  multiplier_g <- clip(multiplier_g + Adam(shortfall_g), 0, cap_g)
  weight_g = w_g + clip(multiplier_g + rho_g mean_10(shortfall_g), 0, cap_g)

the steps of a constrained decision process [1, 2], after each update of the
networks, with the weights of an augmented Lagrangian [3]: where the return is
linear in the action, weights that settle favour no direction, and without rho the
policy would swing about the bound. Its mean is Adam's, over about ten updates.
`P = Qbar - uncertainty_scale std` is what the actor climbs.

Why so. Weights are leaves of IntegratedRL-MTF already, so a bound needs no new
loss: this learner moves them between its updates, and while all multipliers are
0 it is that learner, bit for bit. Weights are scaled so that their sum stays:
the price of leaving the box must not lose against a multiplier. Both values of a
group come from the same critics at the same states, so that what they overstate
everywhere cancels; the policy in service is the centre of the logged box (not
where the box was cut at the range of actions, nor in a log without boxes). The
bound is a share of the logged reward, which is known before the critics know
anything. With transitions of one request the losses of a session's states add up
to the session's (performance difference lemma [4]), as its rewards do; with
transitions of whole sessions both are of what is left of one.

Letters: `B` transitions of a batch, `G` reward groups.

References:
  [1] Altman, "Constrained Markov Decision Processes", 1999.
  [2] Tessler et al., "Reward Constrained Policy Optimization", ICLR 2019.
  [3] Hestenes, "Multiplier and Gradient Methods", Journal of Optimization Theory
  and Applications 1969.
  [4] Kakade and Langford, "Approximately Optimal Approximate Reinforcement
  Learning", ICML 2002.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.transitions import Transition
from mtf_jax.kernels.losses import ensemble_mean_std
from mtf_jax.learners import actor_critic, base, integrated_rl
from mtf_jax.learners.base import Learner, Normalization
from mtf_jax.networks import Actor, Critic

_DEFAULT = integrated_rl.Hyperparams()


class Hyperparams(NamedTuple):
  """Numbers of the algorithm: leaves of the state, so none of them recompiles.

  The first ten are those of `integrated_rl.Hyperparams`; a group that is only
  to be kept has the weight 0.

  allowed_loss: scalar or `[G]`, share of a group's logged reward that the policy
    may lose against the one in service, from -1: negative where the group must
    gain, `inf` for no bound.
  multiplier_learning_rate: Adam's step size for the multipliers, in the unit of
    `group_weights`. The actor has to follow them: at ten times the default they
    swing about where they should settle.
  multiplier_cap: scalar or `[G]`, largest multiplier, in that unit.
  multiplier_damping: rho, scalar or `[G]`, what a shortfall of 1, in units of the
    return, adds to the weight at once. A group of small rewards takes more.
  """

  discount: chex.Numeric = _DEFAULT.discount
  sharpness: chex.Numeric = _DEFAULT.sharpness
  penalty_scale: chex.Numeric = _DEFAULT.penalty_scale
  uncertainty_scale: chex.Numeric = _DEFAULT.uncertainty_scale
  group_weights: chex.Numeric = _DEFAULT.group_weights
  reward_shift: chex.Numeric = _DEFAULT.reward_shift
  target_step_size: chex.Numeric = _DEFAULT.target_step_size
  actor_learning_rate: chex.Numeric = _DEFAULT.actor_learning_rate
  critic_learning_rate: chex.Numeric = _DEFAULT.critic_learning_rate
  max_gradient_norm: chex.Numeric = _DEFAULT.max_gradient_norm
  allowed_loss: chex.Numeric = 0.0
  multiplier_learning_rate: chex.Numeric = 1e-3
  multiplier_cap: chex.Numeric = 10.0
  multiplier_damping: chex.Numeric = 3.0


class State(NamedTuple):
  """Everything that an update reads and writes; a pytree of arrays.

  multiplier: `[G]`, from 0 to the cap.
  multiplier_optimizer: Adam's moments; the first is a running mean of the
    shortfall, negative.
  hyperparams: the numbers of the algorithm, each a float32 leaf.

  The others are those of `integrated_rl.State`.
  """

  actor_params: Any
  critic_params: Any
  target_actor_params: Any
  target_critic_params: Any
  actor_optimizer: Any
  critic_optimizer: Any
  multiplier: jax.Array
  multiplier_optimizer: Any
  hyperparams: Hyperparams
  normalization: Normalization


class Metrics(NamedTuple):
  """What one update saw.

  multiplier: `[G]` after the update.
  multiplier_at_cap: `[G]`, 1 where it can rise no further, else 0.
  value_lost: `[G]` mean `P_g(s, centre) - P_g(s, mu(s))`, in units of the return.
  shortfall: `[G]` how much more that is than what may be lost, 0 for no bound.

  The others are those of `integrated_rl.Metrics`.
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
  multiplier: jax.Array
  multiplier_at_cap: jax.Array
  value_lost: jax.Array
  shortfall: jax.Array


_BOUNDS = {
  "allowed_loss": (-1.0, np.inf),
  "multiplier_learning_rate": (0.0, np.inf),
  "multiplier_cap": (0.0, np.inf),
  "multiplier_damping": (0.0, np.inf),
}
_BY_GROUP = (
  "group_weights",
  "reward_shift",
  "allowed_loss",
  "multiplier_cap",
  "multiplier_damping",
)


def _objective(hyperparams: Hyperparams) -> integrated_rl.Hyperparams:
  """The numbers of the learner within."""
  fields = integrated_rl.Hyperparams._fields
  return integrated_rl.Hyperparams(*(getattr(hyperparams, n) for n in fields))


def _weights(group_weights: chex.Array, multiplier: chex.Array) -> jax.Array:
  """`w + multiplier`, `[G]`, scaled to the sum of w."""
  total = group_weights + multiplier
  before, after = jnp.sum(jnp.abs(group_weights)), jnp.sum(jnp.abs(total))
  # Exactly 1 while there is nothing to add.
  return total * jnp.where(before > 0, before / jnp.maximum(after, 1e-9), 1)


def _unconstrained(state: State) -> integrated_rl.State:
  """The state of the learner within, its weights those in force."""
  numbers = _objective(state.hyperparams)
  shortfall = -state.multiplier_optimizer.mu
  multiplier = jnp.clip(
    state.multiplier + state.hyperparams.multiplier_damping * shortfall,
    0,
    state.hyperparams.multiplier_cap,
  )
  numbers = numbers._replace(
    group_weights=_weights(numbers.group_weights, multiplier)
  )
  fields = {name: getattr(state, name) for name in integrated_rl.State._fields}
  return integrated_rl.State(**{**fields, "hyperparams": numbers})


def _with(state: State, inner: integrated_rl.State) -> State:
  """The state whose learner within is in the state `inner`."""
  return state._replace(**{**inner._asdict(), "hyperparams": state.hyperparams})


def constrained_rl(
  actor: Actor, critic: Critic, *, critic_updates: int = 1
) -> Learner:
  """Builds the learner from its networks.

  One update: that of `integrated_rl` with the weights in force, then the
  multipliers by the new critics' values of the batch.

  Args:
    actor: the policy's network.
    critic: the critics' network.
    critic_updates: of `integrated_rl`, static.

  Returns:
    The learner.

  Raises:
    ValueError: at `init`, a hyperparameter out of range or of a wrong shape; at
      `update`, a batch that `critic_updates` does not divide.
  """
  unconstrained = integrated_rl.integrated_rl(
    actor, critic, critic_updates=critic_updates
  )

  def init(
    rng_key: chex.PRNGKey,
    example: Transition,
    hyperparams: Hyperparams | None = None,
    normalization: Normalization | None = None,
  ) -> State:
    hyperparams = Hyperparams() if hyperparams is None else hyperparams
    base.check_ranges(hyperparams, _BOUNDS)
    inner = unconstrained.init(
      rng_key, example, _objective(hyperparams), normalization
    )
    multiplier = jnp.zeros_like(inner.hyperparams.group_weights)
    fields = {
      **inner._asdict(),
      "multiplier": multiplier,
      "multiplier_optimizer": base.start_optimizer(multiplier),
      "hyperparams": actor_critic.own_hyperparams(
        hyperparams, example, by_group=_BY_GROUP
      ),
    }
    return State(**fields)

  def value_lost(state: State, batch: Transition) -> jax.Array:
    """Of each group, `[G]`."""
    batch = base.normalize_batch(state.normalization, batch)
    observation, box = batch.observation_tm1, batch.box_tm1

    def value_of(action):
      q = critic.apply(state.critic_params, observation, action, box)
      mean, std = jax.vmap(ensemble_mean_std)(q)
      return mean - state.hyperparams.uncertainty_scale * std

    centre = value_of((box.lower + box.upper) / 2)
    return jnp.mean(
      centre - value_of(actor.apply(state.actor_params, observation)), axis=0
    )

  def update(state: State, batch: Transition) -> tuple[State, Metrics]:
    inner, metrics = unconstrained.update(_unconstrained(state), batch)
    state, numbers = _with(state, inner), state.hyperparams
    lost = value_lost(state, batch)
    bounded = jnp.isfinite(numbers.allowed_loss)
    # Of a group without a bound 0 times infinity would be NaN.
    allowed = jnp.where(bounded, numbers.allowed_loss, 0) * jnp.abs(
      jnp.mean(batch.r_t, axis=0)
    )
    shortfall = jnp.where(bounded, lost - allowed, 0)
    # A gradient, which `shard_map` adds up over devices as it does the others.
    descent = jax.grad(lambda multiplier: -jnp.sum(multiplier * shortfall))
    multiplier, optimizer, _ = base.descend(
      descent(state.multiplier),
      state.multiplier,
      state.multiplier_optimizer,
      numbers.multiplier_learning_rate,
      np.inf,
    )
    multiplier = jnp.clip(multiplier, 0, numbers.multiplier_cap)
    state = state._replace(
      multiplier=multiplier, multiplier_optimizer=optimizer
    )
    at_cap = (multiplier >= numbers.multiplier_cap).astype(multiplier.dtype)
    return state, Metrics(
      **metrics._asdict(),
      multiplier=multiplier,
      multiplier_at_cap=at_cap,
      value_lost=lost,
      shortfall=shortfall,
    )

  return Learner(
    init=init,
    update=update,
    # What these read is in both states.
    policy=unconstrained.policy,
    act=unconstrained.act,
    value=unconstrained.value,
  )
