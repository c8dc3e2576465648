"""What critics and actors minimise: targets and losses of one transition.

Letters: `G` reward groups (q in [1]), `M` critics of a group (m in [1]), `L` items
of a shown list.

References:
  [1] Liu et al., "UnifiedRL: A Reinforcement Learning Algorithm Tailored for
  Multi-Task Fusion in Large-Scale Recommender Systems", arXiv 2404.17589,
  actor and critic losses.
  [2] Liu et al., "An Enhanced-State Reinforcement Learning Algorithm for
  Multi-Task Fusion in Large-Scale Recommender Systems", arXiv 2409.11678.
"""

import chex
import jax
import jax.numpy as jnp
from jax import lax

from mtf_jax.kernels import _checks


# The derivative is given: that of a product is slow, and that of a square root
# infinite where the critics agree.
@jax.custom_jvp
def _mean_std(q: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Of the last axis of `[G, M]`."""
  # As a product: XLA sums a short last axis one number at a time on a CPU. An
  # accelerator would round it unless told not to. Squares are summed where they
  # are made, since a product would have them written to memory first.
  ones = jnp.ones((q.shape[1],), q.dtype)
  total = jnp.dot(q, ones, precision=lax.Precision.HIGHEST)
  mean = total / q.shape[1]
  return mean, jnp.sqrt(jnp.mean(jnp.square(q - mean[:, None]), axis=1))


@_mean_std.defjvp
def _mean_std_jvp(primals, tangents):
  (q,), (q_dot,) = primals, tangents
  mean, std = _mean_std(q)
  # The mean of equal values may be some roundings beside them, all of them then
  # on one side. Asked this way round because NaN is not more than that either.
  rounding = q.shape[1] * jnp.finfo(q.dtype).eps
  agree = std <= rounding * jnp.abs(mean)
  inverse = jnp.where(agree, 0, 1 / jnp.where(agree, 1, std))
  scaled = (q - mean[:, None]) * inverse[:, None]
  return (mean, std), (
    jnp.mean(q_dot, axis=1),
    jnp.mean(scaled * q_dot, axis=1),
  )


def ensemble_mean_std(q: chex.Array) -> tuple[jax.Array, jax.Array]:
  """Mean and spread of each group's critics, in the actor loss of [1].

  `Qbar_g = 1/M sum_m Q_gm` and the population standard deviation
  `sqrt(1/M sum_m (Q_gm - Qbar_g)^2)`. Where the critics agree, up to the
  rounding of their mean, the gradient of the deviation is 0, so a group of one
  critic is allowed. Values that are not finite give a deviation of NaN, never
  one of 0.

  Args:
    q: `[G, M]` action values, in units of the return.

  Returns:
    `(mean [G], std [G])`, in units of the return, `std` non-negative.

  Raises:
    ValueError: wrong rank, an empty axis, or a dtype that is not a float.
  """
  (q,), dtype = _checks.floats({"q": (q, "G M")})
  mean, std = _mean_std(q)
  return mean.astype(dtype), std.astype(dtype)


def td_targets(
  r_t: chex.Array,
  discount_t: chex.Numeric,
  bootstrap_weight_t: chex.Numeric,
  q_t: chex.Array,
) -> jax.Array:
  """Regression targets of the critics for one transition, critic loss of [1].

  `y_gm = r_g + discount * phi * Q'_gm(s', mu'(s'))`: each critic bootstraps
  from its own target critic, no minimum is taken, and no gradient flows.

  Args:
    r_t: `[G]` rewards of the transition, in any unit.
    discount_t: scalar discount factor gamma, 0 if the session ended, in [0, 1].
      At 0 the target is the reward, whatever the state that follows says: a NaN
      in `bootstrap_weight_t` or `q_t` does not count.
    bootstrap_weight_t: scalar phi at the next state, in [0, 1].
    q_t: `[G, M]` target critics' values at the next state, unit of `r_t`.

  Returns:
    `[G, M]` targets, in the unit of `r_t`.

  Raises:
    ValueError: wrong rank, different `G`, or a dtype that is not a float.
  """
  (r_t, discount_t, bootstrap_weight_t, q_t), dtype = _checks.floats(
    {
      "r_t": (r_t, "G"),
      "discount_t": (discount_t, ""),
      "bootstrap_weight_t": (bootstrap_weight_t, ""),
      "q_t": (q_t, "G M"),
    }
  )
  # Not a plain product: 0 * NaN of a state that does not exist would be NaN.
  bootstrap = jnp.where(
    discount_t == 0, 0, discount_t * bootstrap_weight_t * q_t
  )
  return lax.stop_gradient((r_t[:, None] + bootstrap).astype(dtype))


def list_value(q: chex.Array) -> jax.Array:
  """Value of a shown list by the values of its items, critic loss of [2].

  `Q_gm = sum_l Q_gm(s, x_l, a_l)`, each item with a state and an action of its
  own where [1] has one of the request: what follows is known of the list alone.

  Args:
    q: `[L, G, M]` critics' values of the shown items, in units of the return.

  Returns:
    `[G, M]`, same unit; the values themselves for a list of one item.

  Raises:
    ValueError: wrong rank, an empty axis, or a dtype that is not a float.
  """
  (q,), dtype = _checks.floats({"q": (q, "L G M")})
  return jnp.sum(q, axis=0).astype(dtype)


def list_td_targets(
  r_t: chex.Array,
  discount_t: chex.Numeric,
  bootstrap_weight_t: chex.Array,
  q_t: chex.Array,
) -> jax.Array:
  """Regression targets of a shown list's value, critic loss of [2].

  `y_gm = r_g + discount * sum_l phi_l Q'_gm(s', x'_l, mu'(s', x'_l))`, the
  reward that of the list. For a list of one item it is `td_targets` of [1]. That
  each item has a phi of its own is ours; [2] does not say.

  Args:
    r_t: `[G]` rewards of the list, in any unit.
    discount_t: scalar discount factor gamma, 0 if the session ended, in [0, 1];
      at 0 nothing else is read, as in `td_targets`.
    bootstrap_weight_t: `[L]` phi of each item of the next list, in [0, 1].
    q_t: `[L, G, M]` target critics' values of these items, unit of `r_t`.

  Returns:
    `[G, M]` targets, in the unit of `r_t`; no gradient flows.

  Raises:
    ValueError: wrong rank, different `G` or `L`, or a dtype that is not a float.
  """
  (r_t, discount_t, bootstrap_weight_t, q_t), dtype = _checks.floats(
    {
      "r_t": (r_t, "G"),
      "discount_t": (discount_t, ""),
      "bootstrap_weight_t": (bootstrap_weight_t, "L"),
      "q_t": (q_t, "L G M"),
    }
  )
  weight = (discount_t * bootstrap_weight_t)[:, None, None]
  bootstrap = jnp.sum(jnp.where(discount_t == 0, 0, weight * q_t), axis=0)
  return lax.stop_gradient((r_t[:, None] + bootstrap).astype(dtype))


def critic_loss(q_tm1: chex.Array, targets: chex.Array) -> jax.Array:
  """Mean squared temporal-difference error of one transition's critics, of [1].

  `1/(G M) sum_gm (Q_gm(s, a) - y_gm)^2`.

  Args:
    q_tm1: `[G, M]` values of the logged action, in units of the return.
    targets: `[G, M]` regression targets, same unit; see `td_targets`.

  Returns:
    Scalar, in squared units of the return.

  Raises:
    ValueError: wrong rank, different shapes, or a dtype that is not a float.
  """
  (q_tm1, targets), dtype = _checks.floats(
    {
      "q_tm1": (q_tm1, "G M"),
      "targets": (targets, "G M"),
    }
  )
  return jnp.mean(jnp.square(q_tm1 - targets)).astype(dtype)


def actor_loss(
  q: chex.Array,
  group_weights: chex.Array,
  penalty: chex.Numeric,
  penalty_scale: chex.Numeric,
  uncertainty_scale: chex.Numeric,
) -> jax.Array:
  """Loss of the actor in one state, actor loss of [1].

  `-sum_g w_g Qbar_g + eta * d + lambda * sum_g w_g std_g`: the weighted value
  of the policy's action, its price for leaving the box, and the critics'
  disagreement about it.

  Args:
    q: `[G, M]` critics' values of the policy's action, in units of the return.
    group_weights: `[G]` weights w of the reward groups.
    penalty: scalar d of `relaxation_penalty`, unit-free.
    penalty_scale: scalar eta, in units of the return.
    uncertainty_scale: scalar lambda, unit-free.

  Returns:
    Scalar, in units of the return.

  Raises:
    ValueError: wrong rank, different `G`, or a dtype that is not a float.
  """
  (q, group_weights, penalty), dtype = _checks.floats(
    {
      "q": (q, "G M"),
      "group_weights": (group_weights, "G"),
      "penalty": (penalty, ""),
    }
  )
  penalty_scale = _checks.coefficient("penalty_scale", penalty_scale, penalty)
  uncertainty_scale = _checks.coefficient(
    "uncertainty_scale", uncertainty_scale, penalty
  )
  mean, std = ensemble_mean_std(q)
  pessimistic = mean - uncertainty_scale * std
  loss = penalty_scale * penalty - jnp.sum(group_weights * pessimistic)
  return loss.astype(dtype)
