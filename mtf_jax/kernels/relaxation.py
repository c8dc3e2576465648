"""Constraint relaxation: nothing inside the exploration box, a price outside.

Letter: `A` action components.

References:
  [1] Liu et al., "UnifiedRL: A Reinforcement Learning Algorithm Tailored for
  Multi-Task Fusion in Large-Scale Recommender Systems", arXiv 2404.17589,
  actor and critic losses. The paper describes d and phi in words; the closed
  forms here are our reconstruction, with one sharpness for both.
"""

import chex
import jax
import jax.numpy as jnp

from mtf_jax.kernels import _checks
from mtf_jax.kernels.exploration import ActionBox, box_arrays

# The penalty is exponential up to `sharpness * exceedance` of this and linear
# beyond, with the slope it has there. exp(30) is 1.1e13: its square, summed
# over a million parameters for a gradient norm, still fits float32.
LINEAR_FROM = 30.0


def exceedance(action: chex.Array, box: ActionBox) -> jax.Array:
  """How far an action lies outside its box, the argument of d and phi in [1].

  `e = sum_a max(action_a - upper_a, lower_a - action_a, 0)`. At a bound and
  inside the box the gradient is 0.

  Args:
    action: `[A]` action of the learnt policy.
    box: bounds `[A]` of the exploration policy in the same state.

  Returns:
    Scalar, in units of the action, 0 inside the closed box, NaN if the action
    is NaN.

  Raises:
    ValueError: wrong shapes, not floats, or concretely inverted bounds.
  """
  (action, lower, upper), dtype = box_arrays(box, action=action)
  beyond = jnp.maximum(action - upper, lower - action)
  # Not `maximum(beyond, 0)`, whose gradient at the bound is one half. Written
  # so that NaN is kept: a NaN action must not pass for one inside the box.
  return jnp.sum(jnp.where(beyond <= 0, 0, beyond)).astype(dtype)


def _exponent(
  exceedance_value: chex.Numeric, sharpness: chex.Numeric
) -> tuple[jax.Array, jnp.dtype]:
  """Checks both and returns `(sharpness * e, dtype of the result)`."""
  (distance,), dtype = _checks.floats({"exceedance": (exceedance_value, "")})
  sharpness_array = _checks.coefficient("sharpness", sharpness, distance)
  _checks.nonnegative("exceedance", exceedance_value)
  _checks.nonnegative("sharpness", sharpness)
  return sharpness_array * distance, dtype


def relaxation_penalty(
  exceedance: chex.Numeric, sharpness: chex.Numeric
) -> jax.Array:
  """Actor's price for leaving the box, d in the actor loss of [1].

  `d = expm1(sharpness * e)`. Where `sharpness * e` exceeds `LINEAR_FROM` the
  penalty continues along its tangent, so loss and gradient stay finite for an
  action far away (to a product of 1e25 in float32).

  Args:
    exceedance: scalar e, units of the action, non-negative.
    sharpness: scalar kappa, per unit of the action, non-negative.

  Returns:
    Scalar, unit-free, 0 inside the box.

  Raises:
    ValueError: not scalars, not floats, or concretely negative.
  """
  exponent, dtype = _exponent(exceedance, sharpness)
  curved = jnp.expm1(jnp.minimum(exponent, LINEAR_FROM))
  # Not `exponent - clipped`: in its gradient two slopes of 1e13 would cancel,
  # and in float32 take the whole gradient of a small exponent with them.
  straight = jnp.maximum(exponent - LINEAR_FROM, 0)
  slope = jnp.exp(jnp.array(LINEAR_FROM, exponent.dtype))
  return (curved + slope * straight).astype(dtype)


def bootstrap_weight(
  exceedance: chex.Numeric, sharpness: chex.Numeric
) -> jax.Array:
  """Weight of the bootstrap outside the box, phi in the critic target of [1].

  `phi = exp(-sharpness * e)`, which is `1 / (1 + d)` as long as `d` is
  exponential. It shrinks a target towards 0, so it discourages leaving the box
  only while the values are non-negative.

  Args:
    exceedance: scalar e at the next state, units of the action, non-negative.
    sharpness: scalar kappa, per unit of the action, non-negative.

  Returns:
    Scalar in [0, 1], unit-free, 1 inside the box.

  Raises:
    ValueError: not scalars, not floats, or concretely negative.
  """
  exponent, dtype = _exponent(exceedance, sharpness)
  return jnp.exp(-exponent).astype(dtype)
