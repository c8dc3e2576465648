"""Parts that learners with an actor, most of them with critics, share.

Letters: `B` transitions of a batch, `S` state features, `A` action components,
`G` reward groups, `M` critics of a group.

References:
  [1] Fujimoto et al., "Addressing Function Approximation Error in Actor-Critic
  Methods", ICML 2018: the delayed update of the actor.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from mtf_jax.data.transitions import Transition
from mtf_jax.io import InputError
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.kernels.losses import critic_loss, td_targets
from mtf_jax.learners import base
from mtf_jax.learners.base import Policy
from mtf_jax.networks import Actor, Critic

# `(state, batch) -> (state, metrics by name)`.
PartialUpdate = Callable[[Any, Transition], tuple[Any, dict[str, jax.Array]]]


def own_hyperparams(
  hyperparams: Any,
  example: Transition,
  by_group: Sequence[str] = (),
) -> Any:
  """Copies of the numbers for a new state, as arrays of the observations' dtype.

  Args:
    hyperparams: a NamedTuple of numbers. The caller may use them again: a state
      is donated.
    example: one transition without a batch axis.
    by_group: names of the fields with a number for each group, which one number
      stands for as well.

  Raises:
    InputError: one of these has another shape.
  """
  groups = jnp.shape(example.r_t)
  for name in by_group:
    shape = jnp.shape(getattr(hyperparams, name))
    if shape not in ((), (1,), groups):
      raise InputError(
        f"{name}: expected one number, or one for each of {groups[0]} reward"
        f" groups, found shape {shape}."
      )
  dtype = jnp.asarray(example.observation_tm1).dtype
  hyperparams = jax.tree.map(lambda value: jnp.array(value, dtype), hyperparams)
  return hyperparams._replace(
    **{
      name: jnp.broadcast_to(getattr(hyperparams, name), groups)
      for name in by_group
    }
  )


def policy(state: Any) -> Policy:
  """The part of a state that acts."""
  return Policy(state.actor_params, state.normalization)


@functools.cache
def deterministic_act(
  actor: Actor,
) -> Callable[[Policy, chex.Array, chex.PRNGKey], jax.Array]:
  """`act` of a learner whose policy is what its actor answers.

  One function for one actor, whatever the learner: it is a static argument, and
  another object would compile everything again.
  """

  def act(
    params: Policy, observation: chex.Array, rng_key: chex.PRNGKey
  ) -> jax.Array:
    del rng_key  # The policy is deterministic.
    observation = base.normalize_one(params.normalization, observation)
    return actor.apply(params.actor_params, observation[None, :])[0]

  return act


def values_of(
  critic: Critic,
  state: Any,
  observation: chex.Array,
  action: chex.Array,
  box: ActionBox,
) -> jax.Array:
  """Values of one action, by a state's own critics.

  Args:
    critic: the critics' network.
    state: with `critic_params` and `normalization`.
    observation: `[S]` as logged; it is normalised here.
    action: `[A]`.
    box: bounds `[A]`.

  Returns:
    `[G, M]` values in units of the return.
  """
  observation = base.normalize_one(state.normalization, observation)
  one = jax.tree.map(lambda leaf: leaf[None], (observation, action, box))
  return critic.apply(state.critic_params, *one)[0]


def value_metrics(q: chex.Array) -> dict[str, jax.Array]:
  """`[G]` mean, smallest and largest value of a batch's `[B, G, M]`."""
  return {
    "q_mean": jnp.mean(q, axis=(0, 2)),
    "q_min": jnp.min(q, axis=(0, 2)),
    "q_max": jnp.max(q, axis=(0, 2)),
  }


def regress_critics(
  critic: Critic,
  state: Any,
  batch: Transition,
  targets: jax.Array,
  penalty: Callable[[Any], tuple[chex.Numeric, dict[str, jax.Array]]]
  | None = None,
) -> tuple[Any, dict[str, jax.Array]]:
  """One step of Adam on the mean of `(Q_gm(s, a) - y_gm)^2`.

  Args:
    critic: the critics' network.
    state: with `critic_params`, `critic_optimizer` and `hyperparams`.
    batch: observations normalised.
    targets: y, `[B, G, M]`, or `[B, G, 1]` for all critics of a group.
    penalty: critic parameters -> a scalar that is added to the loss, and
      metrics by name; none if omitted.

  Returns:
    The state after the step, and metrics: the loss, the penalty within, `[G]`
    mean, smallest and largest value of the logged actions, the gradient's norm,
    and those of the penalty.
  """

  def loss_fn(params):
    q_tm1 = critic.apply(
      params, batch.observation_tm1, batch.action_tm1, batch.box_tm1
    )
    y = jnp.broadcast_to(targets, q_tm1.shape)
    loss = jnp.mean(jax.vmap(critic_loss)(q_tm1, y))
    price, found = (0.0, {}) if penalty is None else penalty(params)
    return loss + price, (q_tm1, found)

  state, (q_tm1, found), metrics = step_part(
    "critic", loss_fn, state, state.hyperparams.critic_learning_rate
  )
  return state, metrics | value_metrics(q_tm1) | found


def step_part(
  part: str,
  loss_fn: Callable[[Any], tuple[jax.Array, Any]],
  state: Any,
  learning_rate: chex.Numeric,
) -> tuple[Any, Any, dict[str, jax.Array]]:
  """One step of Adam of one network of a state.

  Args:
    part: the network's name, "actor" for `actor_params` and `actor_optimizer`.
    loss_fn: its parameters -> `(loss, auxiliary)`.
    state: with these fields and `hyperparams`.
    learning_rate: scalar step size.

  Returns:
    The state after the step, the auxiliary, and metrics: the loss and the
    gradient's norm.
  """
  params = getattr(state, f"{part}_params")
  (loss, auxiliary), gradient = jax.value_and_grad(loss_fn, has_aux=True)(
    params
  )
  params, optimizer, norm = base.descend(
    gradient,
    params,
    getattr(state, f"{part}_optimizer"),
    learning_rate,
    state.hyperparams.max_gradient_norm,
  )
  state = state._replace(
    **{f"{part}_params": params, f"{part}_optimizer": optimizer}
  )
  return state, auxiliary, {f"{part}_loss": loss, f"{part}_gradient_norm": norm}


def climb(
  loss_fn: Callable[[Any], tuple[jax.Array, Any]], state: Any
) -> tuple[Any, Any, dict[str, jax.Array]]:
  """One step of Adam of the actor, see `step_part`.

  Args:
    loss_fn: actor parameters -> `(loss, auxiliary)`.
    state: with `actor_params`, `actor_optimizer` and `hyperparams`.
  """
  learning_rate = state.hyperparams.actor_learning_rate
  return step_part("actor", loss_fn, state, learning_rate)


def weigh(q: chex.Array, group_weights: chex.Array) -> jax.Array:
  """`sum_g w_g Q_g`, `[B, G, ...]` and `[G]` -> `[B, ...]`."""
  return jnp.einsum("bg...,g->b...", q, group_weights)


def share_out(amount: chex.Array, group_weights: chex.Array) -> jax.Array:
  """An amount `[B]` as parts `[B, G]` whose weighted sum it is.

  In proportion to the weights; 0 if they all are.
  """
  square = jnp.sum(jnp.square(group_weights))
  share = group_weights / jnp.where(square > 0, square, 1)
  return share[None, :] * amount[:, None]


def chosen(
  q: chex.Array, group_weights: chex.Array, *, highest: bool = False
) -> jax.Array:
  """Values of the critic whose weighted sum over the groups is least.

  Published algorithms know one reward. With one critic chosen for all groups
  their weighted values are exactly what the algorithm has for the weighted
  reward; a least value of each group would add up to less. With one group it
  is the minimum. On a tie it is the first critic, and it has all the gradient.

  Args:
    q: `[B, G, M]` values.
    group_weights: w, `[G]`.
    highest: of the largest weighted sum instead, static.

  Returns:
    `[B, G]` values.
  """
  total = weigh(q, group_weights)
  choose = jnp.argmax if highest else jnp.argmin
  # A contraction: the gradient of a gather would be a scatter.
  mask = jax.nn.one_hot(choose(total, axis=1), q.shape[2], dtype=q.dtype)
  return jnp.einsum("bgm,bm->bg", q, mask)


def targets_of(
  batch: Transition, discount: chex.Numeric, value_t: jax.Array
) -> jax.Array:
  """`r_g + gamma V_g(s')`, one target for all critics of a group.

  Args:
    batch: `[B, ...]`.
    discount: gamma, scalar.
    value_t: `[B, G]`; not read where the session ended.

  Returns:
    `[B, G, 1]`.
  """
  return jax.vmap(td_targets)(
    batch.r_t,
    discount * batch.discount_t,
    jnp.ones_like(batch.discount_t),
    value_t[:, :, None],
  )


def _split_batch(batch: Transition, critic_updates: int) -> Transition:
  """Parts of a batch, one for each critic update.

  Every `critic_updates`-th transition is of one part. Where the batch is divided
  over devices, each then has its share of every part, and none has to move.

  Args:
    batch: leading axis `B`.
    critic_updates: number of parts, static.

  Returns:
    The batch with leading axes `[critic_updates, B / critic_updates]`.

  Raises:
    ValueError: `critic_updates` does not divide `B`.
  """
  batch_size = batch.discount_t.shape[0]
  if batch_size % critic_updates:
    raise ValueError(
      f"batch: expected a size that critic_updates = {critic_updates}"
      f" divides, found {batch_size}."
    )
  return jax.tree.map(
    lambda leaf: jnp.swapaxes(
      leaf.reshape(-1, critic_updates, *leaf.shape[1:]), 0, 1
    ),
    batch,
  )


def _normalize(state: Any, batch: Transition) -> Transition:
  return base.normalize_batch(state.normalization, batch)


def delayed(
  update_critic: PartialUpdate,
  update_actor: PartialUpdate,
  metrics_type: Callable[..., Any],
  critic_updates: int,
  *,
  prepare: Callable[[Any, Transition], Transition] = _normalize,
  actor_first: bool = False,
) -> Callable[[Any, Transition], tuple[Any, Any]]:
  """`update` of a learner: some critic updates, then one of the actor [1].

  Args:
    update_critic, update_actor: on a batch that `prepare` has seen.
    metrics_type: takes the metrics of both by name.
    critic_updates: static. A batch is split into that many parts, and the
      actor's part is the last one.
    prepare: `(state, batch) -> batch` as the networks see it; normalises the
      observations if omitted.
    actor_first: whether the actor's update comes before those of the critics,
      static; its part is then the first one.

  Raises:
    ValueError: `critic_updates` is not positive; at `update`, it does not
      divide the batch.
  """
  if critic_updates < 1:
    raise ValueError(
      f"critic_updates: expected 1 or more, found {critic_updates}."
    )

  def update(state: Any, batch: Transition) -> tuple[Any, Any]:
    parts = _split_batch(prepare(state, batch), critic_updates)
    own_part = jax.tree.map(lambda leaf: leaf[0 if actor_first else -1], parts)
    if actor_first:
      state, actor_metrics = update_actor(state, own_part)
      state, critic_metrics = jax.lax.scan(update_critic, state, parts)
    else:
      state, critic_metrics = jax.lax.scan(update_critic, state, parts)
      state, actor_metrics = update_actor(state, own_part)
    critic_metrics = jax.tree.map(
      lambda leaf: jnp.mean(leaf, axis=0), critic_metrics
    )
    return state, metrics_type(**critic_metrics, **actor_metrics)

  return update
