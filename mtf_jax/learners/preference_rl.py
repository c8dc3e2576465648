"""IntegratedRL-MTF for every weighting of its reward groups at once.

What a platform wants more of, it says by the weights of the groups. Here they are an
input of the actor and of the critics, the *preference*, drawn anew for every
transition of a batch. So one training gives the policy of any weights: it is served
with those that the hyperparameters name, and other ones are another policy of the
same state, without training ([1]; the scalarised part, not its angle between values
and preference, nor its replay of a transition under several preferences).

The critics' values are of each group, as in `integrated_rl`; they hang on the
preference because the policy that follows does. Targets and actor's loss are those of
`integrated_rl` on the observation with the preference beside it, the actor's weighted
by it. Scalarisation finds the convex part of the front.

Letters: `B` transitions of a batch, `S` state features, `A` action components,
`G` reward groups.

References:
  [1] Basaklar et al., "PD-MORL: Preference-Driven Multi-Objective Reinforcement
  Learning Algorithm", ICLR 2023, arXiv 2208.07914.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from mtf_jax.data.transitions import Transition
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.kernels.losses import ensemble_mean_std
from mtf_jax.learners import (
  actor_critic,
  base,
  integrated_rl,
  integrated_steps,
)
from mtf_jax.learners.base import Learner, Normalization
from mtf_jax.learners.integrated_rl import Metrics
from mtf_jax.networks import Actor, Critic

_DEFAULT = integrated_rl.Hyperparams()


class Hyperparams(NamedTuple):
  """Numbers of the algorithm: leaves of the state, so none of them recompiles.

  All but the last are those of `integrated_rl.Hyperparams`.

  group_weights: scalar or `[G]`, non-negative, the preference that is served; their
    sum does not matter. Training does not read it.
  concentration: of the symmetric Dirichlet distribution of preferences, positive; 1
    draws all alike, less draws more of those that want one group alone.
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
  concentration: chex.Numeric = 1.0


class State(NamedTuple):
  """Everything that an update reads and writes; a pytree of arrays.

  Fields as in `integrated_rl.State`, the networks on `[S + G]`, the normalisation of
  `[S]`; and `rng_key`, which draws preferences.
  """

  actor_params: Any
  critic_params: Any
  target_actor_params: Any
  target_critic_params: Any
  actor_optimizer: Any
  critic_optimizer: Any
  hyperparams: Hyperparams
  normalization: Normalization
  rng_key: jax.Array


class Policy(NamedTuple):
  """What is served.

  actor_params: of the network.
  normalization: of the observations.
  preference: `[G]`, non-negative, its sum `G`.
  """

  actor_params: Any
  normalization: Normalization
  preference: jax.Array


# Below, a draw's largest share is 1 in float32.
_BOUNDS = {"group_weights": (0.0, 1e30), "concentration": (1e-3, 1e3)}


def as_preference(group_weights: chex.Array) -> jax.Array:
  """Weights `[G]` whose sum is `G`, as that of equal ones.

  Negative ones count as 0, as no such preference was ever trained; if all are 0 they
  are equal.
  """
  weights = jnp.maximum(group_weights, 0)
  largest = jnp.max(weights)
  # By the largest first: sums of large numbers overflow.
  shares = jnp.where(largest > 0, weights, 1) / jnp.where(
    largest > 0, largest, 1
  )
  return shares * (weights.shape[0] / jnp.sum(shares))


def _beside(observation: chex.Array, preference: chex.Array) -> jax.Array:
  """What the networks see: `[..., S + G]`, 0 for equal weights."""
  return jnp.concatenate([observation, preference - 1], axis=-1)


def preference_rl(
  actor: Actor, critic: Critic, *, critic_updates: int = 1
) -> Learner:
  """Builds the learner from its networks.

  One update, `w ~ Dirichlet` of each transition, critics first, in the terms of
  `integrated_rl`:

    `y_gm = r_g + gamma phi Q'_gm(s', mu'(s', w), w)`;
    critics: Adam on the mean of `(Q_gm(s, a, w) - y_gm)^2`;
    actor: Adam on `-sum_g w_g Qbar_g(s, mu(s, w), w) + eta d + lambda sum w std`.

  Args:
    actor: the policy's network, on `[S + G]`.
    critic: the critics' network, likewise.
    critic_updates: as in `integrated_rl`, static.

  Returns:
    The learner; `policy` serves `group_weights`.

  Raises:
    ValueError: as `integrated_rl`; at `init`, a negative weight.
  """
  unconditional = integrated_rl.integrated_rl(actor, critic)

  def init(
    rng_key: chex.PRNGKey,
    example: Transition,
    hyperparams: Hyperparams | None = None,
    normalization: Normalization | None = None,
  ) -> State:
    hyperparams = Hyperparams() if hyperparams is None else hyperparams
    base.check_ranges(hyperparams, _BOUNDS)
    observation = jnp.asarray(example.observation_tm1)
    equal = jnp.ones(jnp.shape(example.r_t), observation.dtype)
    network_key, own_key = jax.random.split(rng_key)
    shared = integrated_rl.Hyperparams._fields
    made = unconditional.init(
      network_key,
      example._replace(observation_tm1=_beside(observation, equal)),
      integrated_rl.Hyperparams(*(getattr(hyperparams, n) for n in shared)),
    )
    own = made._replace(
      hyperparams=actor_critic.own_hyperparams(
        hyperparams, example, by_group=("group_weights", "reward_shift")
      ),
      normalization=base.own_normalization(normalization, observation),
    )
    return State(**own._asdict(), rng_key=own_key)

  def update_critic(
    state: Any, batch: Transition
  ) -> tuple[Any, dict[str, jax.Array]]:
    return integrated_steps.regress_on(actor, critic, state, batch)

  def update_actor(
    state: Any, batch: Transition
  ) -> tuple[Any, dict[str, jax.Array]]:
    groups = batch.r_t.shape[1]
    return integrated_steps.climb_at(
      actor,
      critic,
      state,
      batch.observation_tm1,
      batch.box_tm1,
      1 + batch.observation_tm1[:, -groups:],
    )

  def prepare(state: Any, batch: Transition) -> Transition:
    batch = base.normalize_batch(state.normalization, batch)
    size, groups = batch.r_t.shape
    alpha = jnp.broadcast_to(state.hyperparams.concentration, (groups,))
    preference = groups * jax.random.dirichlet(
      state.rng_key, alpha, (size,), batch.r_t.dtype
    )
    return batch._replace(
      observation_tm1=_beside(batch.observation_tm1, preference),
      observation_t=_beside(batch.observation_t, preference),
    )

  parts = actor_critic.delayed(
    update_critic, update_actor, Metrics, critic_updates, prepare=prepare
  )

  def update(state: State, batch: Transition) -> tuple[State, Metrics]:
    rng_key, draw_key = jax.random.split(state.rng_key)
    new, metrics = parts(state._replace(rng_key=draw_key), batch)
    return new._replace(rng_key=rng_key), metrics

  def policy(state: State) -> Policy:
    served = as_preference(state.hyperparams.group_weights)
    return Policy(state.actor_params, state.normalization, served)

  def act(
    params: Policy, observation: chex.Array, rng_key: chex.PRNGKey
  ) -> jax.Array:
    del rng_key  # The policy is deterministic.
    observation = base.normalize_one(params.normalization, observation)
    seen = _beside(observation, params.preference)
    return actor.apply(params.actor_params, seen[None, :])[0]

  def value(
    state: State, observation: chex.Array, action: chex.Array, box: ActionBox
  ) -> jax.Array:
    observation = base.normalize_one(state.normalization, observation)
    served = as_preference(state.hyperparams.group_weights)
    one = (_beside(observation, served), action, box)
    q = critic.apply(
      state.critic_params, *jax.tree.map(lambda leaf: leaf[None], one)
    )[0]
    return ensemble_mean_std(q)[0]

  return Learner(init=init, update=update, policy=policy, act=act, value=value)
