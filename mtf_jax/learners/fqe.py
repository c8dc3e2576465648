"""Fitted Q evaluation: critics of a policy that stays as it is.

A learner of values without a policy of its own; `evaluation.fqe` has what it
says a policy is worth.

Letters: `B` transitions of a batch, `S` state features, `A` action components,
`G` reward groups, `M` critics of a group, `N` sampled actions.

References:
  [1] Le, Voloshin and Yue, "Batch Policy Learning under Constraints", ICML 2019.
  [2] Kumar et al., "Conservative Q-Learning for Offline Reinforcement Learning",
  NeurIPS 2020, its evaluation of a policy.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.transitions import Transition
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.kernels.losses import critic_loss, td_targets
from mtf_jax.learners import actor_critic, base, cql, soft_actor
from mtf_jax.learners.base import Learner, Normalization
from mtf_jax.networks import Critic


class Hyperparams(NamedTuple):
  """Numbers of the evaluation: leaves of the state, so none of them recompiles.

  discount: gamma, in [0, 1].
  conservative_scale: alpha, weight of the penalty of [2]; 0 is FQE. In a box
    around a value that is linear in the action it multiplies slopes by about
    `2 / (2 + alpha)`: the bound is one of the gain over the log, not of the
    value.
  target_step_size: tau of the target critics' soft updates, in [0, 1].
  critic_learning_rate: Adam's step size.
  max_gradient_norm: global norm to which a gradient is clipped; `inf` never.
  """

  discount: chex.Numeric = 0.9
  conservative_scale: chex.Numeric = 0.0
  target_step_size: chex.Numeric = 0.01
  critic_learning_rate: chex.Numeric = 3e-4
  max_gradient_norm: chex.Numeric = np.inf


class State(NamedTuple):
  """Everything that an update reads and writes; a pytree of arrays.

  critic_params, target_critic_params: as the network's `init` made them, and
    their slow copy.
  critic_optimizer: Adam's moments.
  hyperparams: the numbers of the evaluation, each a leaf.
  normalization: of the observations that the critics see.
  policy_params: of the policy that is evaluated; no update changes them.
  rng_key: from which the policy and the penalty draw.
  """

  critic_params: Any
  target_critic_params: Any
  critic_optimizer: Any
  hyperparams: Hyperparams
  normalization: Normalization
  policy_params: Any
  rng_key: chex.PRNGKey


class Metrics(NamedTuple):
  """What one update saw.

  critic_loss: scalar, both terms.
  td_loss: scalar, its first term.
  gap: scalar, mean of `cql.gap_of`, 0 where `conservative_scale` is.
  q_mean, q_min, q_max: `[G]` over batch and critics, at the logged actions.
  critic_gradient_norm: scalar, before clipping.
  """

  critic_loss: jax.Array
  td_loss: jax.Array
  gap: jax.Array
  q_mean: jax.Array
  q_min: jax.Array
  q_max: jax.Array
  critic_gradient_norm: jax.Array


_BOUNDS = {
  "discount": (0.0, 1.0),
  "conservative_scale": (0.0, np.inf),
  "target_step_size": (0.0, 1.0),
  "critic_learning_rate": (0.0, np.inf),
  "max_gradient_norm": (0.0, np.inf),
}

# `act(params, observation [S], rng_key) -> action [A]`, of a learner.
Act = Callable[[Any, chex.Array, chex.PRNGKey], jax.Array]


def fqe(act: Act, critic: Critic, *, num_samples: int = 0) -> Learner:
  """Builds fitted Q evaluation of a policy; `training.loop` fits it.

  One update, `pi` the policy: `y_gm = r_g + gamma Q'_gm(s', pi(s'))`; Adam on the
  mean of `(Q_gm(s, a) - y_gm)^2` plus `conservative_scale` times the mean of
  `log mean_i exp Q_gm(s, a_i) - Q_gm(s, a)` over N uniform actions of the logged
  box; soft update of Q'. Each critic has its own target: no minimum is taken,
  which would judge the policy and not value it. [1] fits to convergence between
  two targets, a slow copy follows instead.

  Args:
    act: the policy, static; what it answers is not checked.
    critic: the critics' network.
    num_samples: N, static, as many passes of the critics more; 0 leaves the
      penalty out of the program, and then `conservative_scale` has to be 0.

  Returns:
    The learner. Its `init` has one argument more, `policy_params`, by name. It
    has no policy of its own: `policy` and `act` are those of the one it judges.

  Raises:
    ValueError: at `init`, a hyperparameter out of range, or a penalty without
      samples.
  """

  def init(
    rng_key: chex.PRNGKey,
    example: Transition,
    hyperparams: Hyperparams | None = None,
    normalization: Normalization | None = None,
    *,
    policy_params: Any,
  ) -> State:
    hyperparams = Hyperparams() if hyperparams is None else hyperparams
    bounds = dict(_BOUNDS)
    if not num_samples:
      bounds["conservative_scale"] = (0.0, 0.0)
    base.check_ranges(hyperparams, bounds)
    critic_key, own_key = jax.random.split(rng_key)
    params = critic.init(
      critic_key, example.observation_tm1, example.action_tm1, example.box_tm1
    )
    return State(
      critic_params=params,
      target_critic_params=jax.tree.map(jnp.array, params),
      critic_optimizer=base.start_optimizer(params),
      hyperparams=actor_critic.own_hyperparams(hyperparams, example),
      normalization=base.own_normalization(
        normalization, example.observation_tm1
      ),
      policy_params=jax.tree.map(jnp.array, policy_params),
      rng_key=own_key,
    )

  def update(state: State, batch: Transition) -> tuple[State, Metrics]:
    numbers = state.hyperparams
    rng_key, policy_key, sample_key = jax.random.split(state.rng_key, 3)
    rows, components = batch.action_tm1.shape
    # After an exit there is no next state: the state itself stands in.
    continues = batch.discount_t > 0
    following = jnp.where(
      continues[:, None], batch.observation_t, batch.observation_tm1
    )
    box_t = jax.tree.map(
      lambda later, now: jnp.where(continues[:, None], later, now),
      batch.box_t,
      batch.box_tm1,
    )
    action_t = jax.vmap(act, in_axes=(None, 0, 0))(
      state.policy_params, following, jax.random.split(policy_key, rows)
    )
    batch = base.normalize_batch(
      state.normalization, batch._replace(observation_t=following, box_t=box_t)
    )
    q_t = critic.apply(
      state.target_critic_params, batch.observation_t, action_t, batch.box_t
    )
    targets = jax.vmap(td_targets)(
      batch.r_t,
      numbers.discount * batch.discount_t,
      jnp.ones_like(batch.discount_t),
      q_t,
    )
    lower, upper = batch.box_tm1.lower, batch.box_tm1.upper
    unit = jax.random.uniform(
      sample_key, (num_samples, rows, components), lower.dtype
    )
    sampled = lower[None] + unit * (upper - lower)[None]
    actions = jnp.concatenate([batch.action_tm1[None], sampled])
    observation, box = jax.tree.map(
      lambda leaf: jnp.broadcast_to(
        leaf[None], (num_samples + 1, *leaf.shape)
      ).reshape(-1, leaf.shape[1]),
      (batch.observation_tm1, batch.box_tm1),
    )

    def loss_fn(params):
      q = critic.apply(
        params, observation, actions.reshape(-1, components), box
      )
      q = q.reshape(num_samples + 1, rows, -1)
      q_tm1 = q[0].reshape(targets.shape)
      td_loss = jnp.mean(jax.vmap(critic_loss)(q_tm1, targets))
      gap = jnp.zeros((), td_loss.dtype)
      if num_samples:
        # Their density as a mean: what a box's volume is plays no part.
        evenly = jnp.full((num_samples, rows), math.log(num_samples), q.dtype)
        gap = jnp.mean(cql.gap_of(q[1:], evenly, q[0]))
      return td_loss + numbers.conservative_scale * gap, (q_tm1, td_loss, gap)

    state, (q_tm1, td_loss, gap), metrics = actor_critic.step_part(
      "critic", loss_fn, state, numbers.critic_learning_rate
    )
    state = soft_actor.soften_critics(state._replace(rng_key=rng_key))
    metrics |= actor_critic.value_metrics(q_tm1)
    return state, Metrics(td_loss=td_loss, gap=gap, **metrics)

  def value(
    state: State, observation: chex.Array, action: chex.Array, box: ActionBox
  ) -> jax.Array:
    q = actor_critic.values_of(critic, state, observation, action, box)
    return jnp.mean(q, axis=1)

  return Learner(
    init=init,
    update=update,
    policy=lambda state: state.policy_params,
    act=act,
    value=value,
  )
