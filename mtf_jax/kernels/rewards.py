"""Rewards of a shown list and returns of a session.

Letters: `L` slate positions, `E` behaviours, `G` reward groups, `T` requests of
a session.

References:
  [1] Liu et al., "UnifiedRL: A Reinforcement Learning Algorithm Tailored for
  Multi-Task Fusion in Large-Scale Recommender Systems", arXiv 2404.17589.
"""

import chex
import jax
import jax.numpy as jnp
from jax import lax

from mtf_jax.kernels import _checks


def list_reward(feedback: chex.Array, group_weights: chex.Array) -> jax.Array:
  """Reward of each group for one shown list, Eq. 2 of [1].

  `r_g = sum_l sum_e w_{g,e} * feedback_{l,e}`: behaviours weighted and summed
  over the list. Eq. 2 has one row of weights; [1] trains one set of critics for
  each of its groups of rewards, hence `G` rows.

  Args:
    feedback: `[L, E]` behaviours of the user on each shown item, in the
      behaviours' own units (0/1, seconds). An empty slate position has zeros.
    group_weights: `[G, E]` reward per unit of behaviour.

  Returns:
    `[G]` rewards, in the unit that the weights define.

  Raises:
    ValueError: wrong rank, different `E`, or a dtype that is not a float.
  """
  (feedback, group_weights), dtype = _checks.floats(
    {
      "feedback": (feedback, "L E"),
      "group_weights": (group_weights, "G E"),
    }
  )
  # Position by position, which a CPU does ten times faster than a reduction;
  # in full precision, because accelerators round matrix products by default.
  total = sum(feedback[position] for position in range(feedback.shape[0]))
  reward = jnp.dot(group_weights, total, precision=lax.Precision.HIGHEST)
  return reward.astype(dtype)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
  try:
    return jnp.broadcast_shapes(shape, to) == to
  except ValueError:
    return False


def discounted_returns(r_t: chex.Array, discount_t: chex.Array) -> jax.Array:
  """Discounted return from each request to the end of the session, Eq. 3 of [1].

  `G_t = r_t + discount_t * G_{t+1}`, with 0 after the last row. A discount of 0
  ends a session: what follows it in the array, even a NaN, does not count, so
  padded and concatenated sessions need no other mask. For a session cut by the
  end of the log, add `discount * value` of its final observation to the last
  reward.

  Sessions that lie side by side behind `T` need no `vmap`, which would bring
  them to the front and back: rewards `[T, G, B]` with discounts `[T, 1, B]`.

  Args:
    r_t: `[T, ...]` rewards of consecutive requests, in any unit.
    discount_t: `[T]`, or `[T, ...]` with further axes that broadcast to those
      of `r_t`: discount factor gamma, or 0 where the session ends, in [0, 1].

  Returns:
    `[T, ...]` returns, in the unit of `r_t`.

  Raises:
    ValueError: wrong rank, different `T`, further axes that do not broadcast,
      or a dtype that is not a float.
  """
  (r_t, discount_t), dtype = _checks.floats(
    {
      "r_t": (r_t, "T ..."),
      "discount_t": (discount_t, "T ..."),
    }
  )
  if not _broadcasts(discount_t.shape[1:], r_t.shape[1:]):
    raise ValueError(
      "discount_t: expected shape [T] or one that broadcasts to that of r_t"
      f" {r_t.shape}, found {discount_t.shape}."
    )

  def accumulate(return_t, step):
    reward, discount = step
    # Blank what follows an end first: 0 * NaN of other rows would be NaN.
    return_t = jnp.where(discount == 0, 0, return_t)
    return_tm1 = reward + discount * return_t
    return return_tm1, return_tm1

  # Like both: under `shard_map` a scan's carry must vary over the mesh from its
  # start.
  start = jnp.zeros_like(discount_t[-1] * r_t[-1])
  _, returns = lax.scan(accumulate, start, (r_t, discount_t), reverse=True)
  return returns.astype(dtype)
