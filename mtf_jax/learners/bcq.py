"""BCQ: the best of actions that the log could have had; BatchRL-MTF is a setting.

As in the authors' code of [1]: a VAE of the logged actions, a network that
shifts what it generates by at most `perturbation`, targets of the best of ten
such candidates. One detail is not theirs: the critics' loss is the mean over
critics, not the sum, and Adam steps the same. A policy that draws its
candidates would answer something else each time; here the latents are drawn
once, with the state, so that the policy served is deterministic. Several reward
groups share one choice of a critic and of a candidate, by their weighted sum;
with one group this is [1].

On a log explored in a box of +-0.15 the VAE collapses if actions are as they
are: what a latent component could explain of their variance, 0.0075 at most, is
not worth its divergence. All candidates are then one, and this is DDPG within
`perturbation` of the policy that logged. In units of the box a component is
worth encoding. `kl` and `candidate_spread` of the metrics tell the two apart.

Letters: `B` transitions of a batch, `S` state features, `A` action components,
`G` reward groups, `M` critics of a group (two as published), `N` candidates,
`Z` latent components.

References:
  [1] Fujimoto, Meger and Precup, "Off-Policy Deep Reinforcement Learning without
  Exploration", ICML 2019.
  [2] Zhang et al., "Multi-Task Fusion via Reinforcement Learning for Long-Term
  User Satisfaction in Recommender Systems", KDD 2022 (BatchRL-MTF).
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtf_jax.data.transitions import Transition
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.learners import actor_critic, base, box_units
from mtf_jax.learners.base import Learner, Normalization
from mtf_jax.networks import ActionVAE, Actor, Critic, mlp_vae

_LATENT_LIMIT = 0.5


class Hyperparams(NamedTuple):
  """Numbers of the algorithm: leaves of the state, so none of them recompiles.

  The discount is that of `integrated_rl`; the other values are those of [1].

  discount: gamma, in [0, 1].
  perturbation: rho, largest shift of a generated action, in the units of the
    action that the networks answer.
  min_weight: lambda, weight of the least critic in the targets; the largest has
    the rest.
  kl_scale: weight of the VAE's divergence, both terms being means.
  group_weights: w, scalar or `[G]`, weight of each group's value.
  told_box: 1 for a policy inside its box, 0 for one in [-1, 1]^A.
  target_step_size: tau of the soft updates of critics and perturbation.
  generator_target_step_size: that of the VAE which generates the targets'
    candidates; 1 for the VAE itself, as in [1].
  actor_learning_rate: Adam's step size for the perturbation.
  critic_learning_rate: Adam's step size for the critics.
  generator_learning_rate: Adam's step size for the VAE.
  max_gradient_norm: global norm to which each gradient is clipped; `inf` never.
  """

  discount: chex.Numeric = 0.9
  perturbation: chex.Numeric = 0.05
  min_weight: chex.Numeric = 0.75
  kl_scale: chex.Numeric = 0.5
  group_weights: chex.Numeric = 1.0
  told_box: chex.Numeric = 0.0
  target_step_size: chex.Numeric = 0.005
  generator_target_step_size: chex.Numeric = 1.0
  actor_learning_rate: chex.Numeric = 1e-3
  critic_learning_rate: chex.Numeric = 1e-3
  generator_learning_rate: chex.Numeric = 1e-3
  max_gradient_norm: chex.Numeric = np.inf


# Numbers of [2]; it does not give the step size of its targets.
BATCH_RL_MTF = Hyperparams(
  discount=0.95,
  perturbation=0.15,
  min_weight=1.0,
  generator_target_step_size=0.005,
  critic_learning_rate=2e-5,
)


class State(NamedTuple):
  """Everything that an update reads and writes; a pytree of arrays.

  actor_params: of the perturbation, an actor that sees `[S + A]`.
  critic_params, generator_params: as the networks' `init` made them.
  target_actor_params, target_critic_params, target_generator_params: their slow
    copies.
  actor_optimizer, critic_optimizer, generator_optimizer: Adam's moments.
  hyperparams: the numbers of the algorithm, each a leaf.
  normalization: of the observations.
  frame: of the actions.
  latents: `[N, Z]`, of the policy that is served.
  rng_key: from which latents are drawn in an update.
  """

  actor_params: Any
  critic_params: Any
  generator_params: Any
  target_actor_params: Any
  target_critic_params: Any
  target_generator_params: Any
  actor_optimizer: Any
  critic_optimizer: Any
  generator_optimizer: Any
  hyperparams: Hyperparams
  normalization: Normalization
  frame: box_units.Frame
  latents: jax.Array
  rng_key: chex.PRNGKey


class Policy(NamedTuple):
  """What acts: the best of candidates by the first critics.

  actor_params: `{"generator": , "perturbation": , "critic": }`.
  normalization: of the observations.
  frame: of the actions, see `box_units.Policy`.
  latents: `[N, Z]`, the same in every state.
  perturbation: scalar rho.
  group_weights: w, `[G]`.
  """

  actor_params: Any
  normalization: Normalization
  frame: box_units.Frame
  latents: jax.Array
  perturbation: jax.Array
  group_weights: jax.Array


class Metrics(NamedTuple):
  """What one update saw; means over its critic updates where it has several.

  critic_loss, actor_loss, generator_loss: scalars.
  reconstruction_error: scalar, mean squared error of an action component.
  kl: scalar, mean divergence of a latent component from a standard normal, in
    nats; near 0 the VAE has collapsed.
  candidate_spread: scalar, mean deviation of a component over the generated
    candidates of a next state, in the units of the action.
  q_mean, q_min, q_max: `[G]` over batch and critics, at the logged actions.
  critic_gradient_norm, actor_gradient_norm, generator_gradient_norm: scalars,
    before clipping.
  """

  critic_loss: jax.Array
  actor_loss: jax.Array
  generator_loss: jax.Array
  reconstruction_error: jax.Array
  kl: jax.Array
  candidate_spread: jax.Array
  q_mean: jax.Array
  q_min: jax.Array
  q_max: jax.Array
  critic_gradient_norm: jax.Array
  actor_gradient_norm: jax.Array
  generator_gradient_norm: jax.Array


_BOUNDS = {
  "discount": (0.0, 1.0),
  "perturbation": (0.0, np.inf),
  "min_weight": (0.0, 1.0),
  "kl_scale": (0.0, np.inf),
  "told_box": (0.0, 1.0),
  "target_step_size": (0.0, 1.0),
  "generator_target_step_size": (0.0, 1.0),
  "actor_learning_rate": (0.0, np.inf),
  "critic_learning_rate": (0.0, np.inf),
  "generator_learning_rate": (0.0, np.inf),
  "max_gradient_norm": (0.0, np.inf),
}


def latent_divergence(mean: chex.Array, log_std: chex.Array) -> jax.Array:
  """KL divergence of each latent component from a standard normal, in nats."""
  variance = jnp.exp(2 * log_std)
  return -0.5 * (1 + 2 * log_std - jnp.square(mean) - variance)


def mixed_value(
  q: chex.Array, group_weights: chex.Array, min_weight: chex.Numeric
) -> jax.Array:
  """`lambda` of the least critic and `1 - lambda` of the largest, from [1].

  Args:
    q: `[B, G, M]`.
    group_weights: `[G]`.
    min_weight: scalar lambda.

  Returns:
    `[B, G]`.
  """
  lowest = actor_critic.chosen(q, group_weights)
  highest = actor_critic.chosen(q, group_weights, highest=True)
  return min_weight * lowest + (1 - min_weight) * highest


def best_candidate(value: chex.Array, score: chex.Array) -> jax.Array:
  """`[N, B, ...]` values and `[N, B]` scores -> `[B, ...]` of the best one."""
  mask = jax.nn.one_hot(
    jnp.argmax(score, axis=0), score.shape[0], axis=0, dtype=value.dtype
  )
  return jnp.einsum("nb...,nb->b...", value, mask)


def bcq(
  actor: Actor,
  critic: Critic,
  generator: ActionVAE | None = None,
  *,
  critic_updates: int = 1,
  num_candidates: int = 10,
  num_served: int = 16,
) -> Learner:
  """Builds BCQ of [1] from its networks.

  One update, latents of candidates being standard normal draws clipped to
  +-0.5, and a candidate `clip(decode(s, z) + rho actor(s, decode(s, z)))`:

    VAE: Adam on the squared error of decoded logged actions plus `kl_scale`
    times the divergence, both means;
    `y_g = r_g + gamma V_g`, V of the candidate at s', by the target networks,
    where `sum_g w_g V_g` is largest, each of them `mixed_value`;
    critics: Adam on the mean of `(Q_gm(s, a) - y_g)^2`;
    actor: Adam on `-mean sum_g w_g Q_g1(s, a)`, a one candidate of s, the VAE
    held; then the soft updates of critics and perturbation.

  Args:
    actor: the perturbation's network; it sees the observation with the
      generated action behind it.
    critic: the critics' network.
    generator: the VAE; that of [1], 750-750, if None.
    critic_updates: number of updates of VAE and critics before the one actor
      update, static (1 in [1]). A batch is split into that many parts, and the
      actor's part is the last one.
    num_candidates: N of the targets, static.
    num_served: N of the policy that is served, static (100 in [1]).

  Returns:
    The learner; its `value` is `mixed_value`.

  Raises:
    ValueError: at `init`, a hyperparameter out of range or of a wrong shape; at
      `update`, a batch that `critic_updates` does not divide.
  """
  vae = mlp_vae() if generator is None else generator

  def init(
    rng_key: chex.PRNGKey,
    example: Transition,
    hyperparams: Hyperparams | None = None,
    normalization: Normalization | None = None,
  ) -> State:
    hyperparams = Hyperparams() if hyperparams is None else hyperparams
    base.check_ranges(hyperparams, _BOUNDS)
    observation = jnp.asarray(example.observation_tm1)
    action = jnp.asarray(example.action_tm1)
    actor_key, critic_key, vae_key, latent_key, noise_key = jax.random.split(
      rng_key, 5
    )
    actor_params = actor.init(actor_key, jnp.concatenate([observation, action]))
    critic_params = critic.init(
      critic_key, observation, action, example.box_tm1
    )
    generator_params = vae.init(vae_key, observation, action)
    latent = jax.eval_shape(
      vae.encode,
      generator_params["encoder"],
      observation[None],
      action[None],
    )[0]
    numbers = actor_critic.own_hyperparams(
      hyperparams, example, by_group=("group_weights",)
    )
    return State(
      actor_params=actor_params,
      critic_params=critic_params,
      generator_params=generator_params,
      # Copies: a donated state must not hold one buffer twice.
      target_actor_params=jax.tree.map(jnp.copy, actor_params),
      target_critic_params=jax.tree.map(jnp.copy, critic_params),
      target_generator_params=jax.tree.map(jnp.copy, generator_params),
      actor_optimizer=base.start_optimizer(actor_params),
      critic_optimizer=base.start_optimizer(critic_params),
      generator_optimizer=base.start_optimizer(generator_params),
      hyperparams=numbers,
      normalization=base.own_normalization(normalization, observation),
      frame=box_units.frame_of(numbers.told_box, example.box_tm1),
      latents=clip_latents(
        jax.random.normal(
          latent_key, (num_served, latent.shape[1]), action.dtype
        )
      ),
      rng_key=noise_key,
    )

  def clip_latents(noise: jax.Array) -> jax.Array:
    return jnp.clip(noise, -_LATENT_LIMIT, _LATENT_LIMIT)

  def perturb(params, observation, action, rho):
    seen = jnp.concatenate([observation, action], axis=1)
    return jnp.clip(action + rho * actor.apply(params, seen), -1, 1)

  def update_generator(
    state: State, batch: Transition, noise: jax.Array
  ) -> tuple[State, dict[str, jax.Array]]:
    numbers = state.hyperparams

    def loss_fn(params):
      mean, log_std = vae.encode(
        params["encoder"], batch.observation_tm1, batch.action_tm1
      )
      latent = mean + jnp.exp(log_std) * noise
      decoded = vae.decode(params["decoder"], batch.observation_tm1, latent)
      error = jnp.mean(jnp.square(decoded - batch.action_tm1))
      kl = jnp.mean(latent_divergence(mean, log_std))
      return error + numbers.kl_scale * kl, (error, kl)

    state, (error, kl), metrics = actor_critic.step_part(
      "generator", loss_fn, state, numbers.generator_learning_rate
    )
    state = state._replace(
      target_generator_params=optax.incremental_update(
        state.generator_params,
        state.target_generator_params,
        numbers.generator_target_step_size,
      )
    )
    return state, metrics | {"reconstruction_error": error, "kl": kl}

  def update_critic(
    state: State, batch: Transition
  ) -> tuple[State, dict[str, jax.Array]]:
    numbers = state.hyperparams
    rows = batch.discount_t.shape[0]
    rng_key, noise_key = jax.random.split(state.rng_key)
    noise = jax.random.normal(
      noise_key,
      ((1 + num_candidates) * rows, state.latents.shape[1]),
      batch.action_tm1.dtype,
    )
    state, vae_metrics = update_generator(
      state._replace(rng_key=rng_key), batch, noise[:rows]
    )

    def repeat(leaf):
      shape = (num_candidates, *leaf.shape)
      return jnp.broadcast_to(leaf[None], shape).reshape(-1, leaf.shape[1])

    observation = repeat(batch.observation_t)
    latent = clip_latents(noise[rows:])
    decoded = vae.decode(
      state.target_generator_params["decoder"], observation, latent
    )
    action = perturb(
      state.target_actor_params, observation, decoded, numbers.perturbation
    )
    q_t = critic.apply(
      state.target_critic_params,
      observation,
      action,
      jax.tree.map(repeat, batch.box_t),
    )
    value = mixed_value(q_t, numbers.group_weights, numbers.min_weight)
    score = actor_critic.weigh(value, numbers.group_weights)
    value_t = best_candidate(
      value.reshape(num_candidates, rows, -1),
      score.reshape(num_candidates, rows),
    )
    targets = actor_critic.targets_of(batch, numbers.discount, value_t)
    state, metrics = actor_critic.regress_critics(critic, state, batch, targets)
    spread = jnp.std(decoded.reshape(num_candidates, rows, -1), axis=0)
    metrics |= vae_metrics | {"candidate_spread": jnp.mean(spread)}
    return state, metrics

  def update_actor(
    state: State, batch: Transition
  ) -> tuple[State, dict[str, jax.Array]]:
    numbers = state.hyperparams
    rng_key, noise_key = jax.random.split(state.rng_key)
    observation = batch.observation_tm1
    noise = jax.random.normal(
      noise_key,
      (observation.shape[0], state.latents.shape[1]),
      observation.dtype,
    )
    latent = clip_latents(noise)
    decoded = vae.decode(state.generator_params["decoder"], observation, latent)

    def loss_fn(params):
      action = perturb(params, observation, decoded, numbers.perturbation)
      q = critic.apply(state.critic_params, observation, action, batch.box_tm1)
      value = actor_critic.weigh(q[:, :, 0], numbers.group_weights)
      return -jnp.mean(value), ()

    state, _, metrics = actor_critic.climb(
      loss_fn, state._replace(rng_key=rng_key)
    )
    target_actor_params, target_critic_params = optax.incremental_update(
      (state.actor_params, state.critic_params),
      (state.target_actor_params, state.target_critic_params),
      numbers.target_step_size,
    )
    state = state._replace(
      target_actor_params=target_actor_params,
      target_critic_params=target_critic_params,
    )
    return state, metrics

  def policy(state: State) -> Policy:
    return Policy(
      actor_params={
        "generator": state.generator_params["decoder"],
        "perturbation": state.actor_params,
        "critic": state.critic_params,
      },
      normalization=state.normalization,
      frame=state.frame,
      latents=state.latents,
      perturbation=state.hyperparams.perturbation,
      group_weights=state.hyperparams.group_weights,
    )

  def act(
    params: Policy, observation: chex.Array, rng_key: chex.PRNGKey
  ) -> jax.Array:
    del rng_key  # The latents were drawn with the state.
    observation = base.normalize_one(params.normalization, observation)
    observation = jnp.broadcast_to(
      observation[None, :], (params.latents.shape[0], *observation.shape)
    )
    networks = params.actor_params
    decoded = vae.decode(networks["generator"], observation, params.latents)
    action = perturb(
      networks["perturbation"], observation, decoded, params.perturbation
    )
    one = jnp.ones_like(action)
    # A critic that knows boxes sees the frame's; told nothing, that is another
    # one than at the request, which moves its values but not their order.
    q = critic.apply(
      networks["critic"], observation, action, ActionBox(-one, one)
    )
    score = actor_critic.weigh(q[:, :, 0], params.group_weights)
    best = best_candidate(action[:, None, :], score[:, None])[0]
    return box_units.in_frame(params.frame, best)

  def value_of(
    state: State, observation: chex.Array, action: chex.Array, box: ActionBox
  ) -> jax.Array:
    numbers = state.hyperparams
    q = box_units.values_of(critic, state, observation, action, box)
    return mixed_value(q[None], numbers.group_weights, numbers.min_weight)[0]

  return Learner(
    init=init,
    update=actor_critic.delayed(
      update_critic,
      update_actor,
      Metrics,
      critic_updates,
      prepare=box_units.prepare,
    ),
    policy=policy,
    act=act,
    value=value_of,
  )
