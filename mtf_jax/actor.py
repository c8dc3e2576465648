"""Actor objective for one state.

Letters: `G` reward groups (q in [1]), `M` critics of a group (m in [1]).

References:
  [1] Liu et al., "UnifiedRL: A Reinforcement Learning Algorithm Tailored for
  Multi-Task Fusion in Large-Scale Recommender Systems", arXiv 2404.17589,
  actor loss.
"""

import chex
import jax
import jax.numpy as jnp

from mtf_jax import _checks
from mtf_jax.critic import ensemble_mean_std


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
