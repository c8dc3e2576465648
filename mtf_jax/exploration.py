"""Exploration around a policy in service: action boxes, samplers, densities.

Letter: `A` action components.

References:
  [1] Liu et al., "UnifiedRL: A Reinforcement Learning Algorithm Tailored for
  Multi-Task Fusion in Large-Scale Recommender Systems", arXiv 2404.17589,
  section on the exploration policy.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from mtf_jax import _checks

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


class ActionBox(NamedTuple):
  """The closed box of actions that the exploration policy can log.

  lower: `[A]` lower bound of each component, normalised action units.
  upper: `[A]` upper bound, not below `lower`.
  """

  lower: chex.Array
  upper: chex.Array


def box_arrays(box: ActionBox, **like: chex.Array) -> list[jax.Array]:
  """Checks a box together with the `[A]` arguments it meets.

  Args:
    box: bounds `[A]`.
    **like: further `[A]` arguments, by name.

  Returns:
    `[*like, lower, upper]`, each `[A]` and of one dtype.

  Raises:
    ValueError: shapes or dtypes differ, or concrete `lower > upper`.
  """
  arrays = _checks.floats(
    {
      **{name: (value, "A") for name, value in like.items()},
      "box.lower": (box.lower, "A"),
      "box.upper": (box.upper, "A"),
    }
  )
  _checks.ordered("box.lower", arrays[-2], "box.upper", arrays[-1])
  return arrays


def action_box(
  baseline_action: chex.Array,
  lower_offset: chex.Numeric = -0.15,
  upper_offset: chex.Numeric = 0.15,
  low: chex.Numeric = -1.0,
  high: chex.Numeric = 1.0,
) -> ActionBox:
  """Box around the action of the policy in service, from [1].

  `[baseline + b_l, baseline + b_u]`, clipped to the range of valid actions.

  Args:
    baseline_action: `[A]` action of the policy in service, mu_bp(s) in [1].
    lower_offset: b_l, scalar or `[A]`, at most `upper_offset`.
    upper_offset: b_u, scalar or `[A]`.
    low: smallest valid action, scalar or `[A]`, at most `high`.
    high: largest valid action, scalar or `[A]`.

  Returns:
    The box, `[A]` bounds inside [low, high]. Where the whole interval lies
    beyond a limit, both bounds are that limit.

  Raises:
    ValueError: wrong shape or dtype, or a concrete pair of limits inverted.
  """
  (action,) = _checks.floats({"baseline_action": (baseline_action, "A")})
  lower_offset, upper_offset, low, high = (
    _checks.coefficient(name, value, action, per_element=True)
    for name, value in (
      ("lower_offset", lower_offset),
      ("upper_offset", upper_offset),
      ("low", low),
      ("high", high),
    )
  )
  _checks.ordered("lower_offset", lower_offset, "upper_offset", upper_offset)
  _checks.ordered("low", low, "high", high)
  return ActionBox(
    lower=jnp.clip(action + lower_offset, low, high),
    upper=jnp.clip(action + upper_offset, low, high),
  )


def sample_box(rng_key: chex.PRNGKey, box: ActionBox) -> jax.Array:
  """Draws an exploration action uniformly from the box, from [1].

  Args:
    rng_key: random number generator key, consumed.
    box: bounds `[A]`.

  Returns:
    `[A]` action, never outside the box by rounding.

  Raises:
    ValueError: bounds of different shapes, not floats, or concretely inverted.
  """
  lower, upper = box_arrays(box)
  # Draw in float32 or wider and round once: bfloat16 random bits would leave
  # visible gaps in the box.
  low, high = _checks.at_least_float32(lower), _checks.at_least_float32(upper)
  unit = jax.random.uniform(rng_key, low.shape, low.dtype)
  action = low + unit * (high - low)
  # `low + (high - low)` may exceed `high` by one rounding, and a logged action
  # outside its own box would have density 0.
  return jnp.clip(action.astype(lower.dtype), lower, upper)


def box_log_prob(action: chex.Array, box: ActionBox) -> jax.Array:
  """Exact log density of `sample_box` at an action: the log propensity in [1].

  `-sum_a log(upper_a - lower_a)` inside the closed box, `-inf` outside. A
  component with `lower == upper` does not explore: it contributes 0, a
  probability mass of 1 at its only value. The gradient with respect to the
  action is 0 everywhere.

  Args:
    action: `[A]` logged action.
    box: bounds `[A]`.

  Returns:
    Scalar log density per unit of volume of the components that explore;
    `-inf` also if the action is NaN.

  Raises:
    ValueError: wrong shapes, not floats, or concretely inverted bounds.
  """
  action, lower, upper = box_arrays(box, action=action)
  width = upper - lower
  explores = width > 0
  log_width = jnp.where(explores, jnp.log(jnp.where(explores, width, 1)), 0)
  inside = jnp.all((action >= lower) & (action <= upper))
  return jnp.where(inside, -jnp.sum(log_width), -jnp.inf)


def sample_gaussian(
  rng_key: chex.PRNGKey,
  baseline_action: chex.Array,
  stddev: chex.Numeric = 0.2,
  low: chex.Numeric = -1.0,
  high: chex.Numeric = 1.0,
) -> jax.Array:
  """Draws the Gaussian exploration action that [1] compares with.

  `clip(mu_bp(s) + xi, low, high)` with `xi ~ N(0, stddev^2)`. The clipping
  moves mass onto the limits; see `gaussian_log_prob`.

  Args:
    rng_key: random number generator key, consumed.
    baseline_action: `[A]` action of the policy in service, mu_bp(s) in [1].
    stddev: standard deviation sigma, scalar or `[A]`, non-negative.
    low: smallest valid action, scalar or `[A]`, at most `high`.
    high: largest valid action, scalar or `[A]`.

  Returns:
    `[A]` action inside [low, high].

  Raises:
    ValueError: wrong shape or dtype, a concrete negative `stddev`, or concrete
      `low > high`.
  """
  (action,) = _checks.floats({"baseline_action": (baseline_action, "A")})
  stddev, low, high = (
    _checks.coefficient(name, value, action, per_element=True)
    for name, value in (("stddev", stddev), ("low", low), ("high", high))
  )
  _checks.nonnegative("stddev", stddev)
  _checks.ordered("low", low, "high", high)
  mean, scale = map(_checks.at_least_float32, (action, stddev))
  explored = mean + scale * jax.random.normal(rng_key, mean.shape, mean.dtype)
  return jnp.clip(explored.astype(action.dtype), low, high)


def gaussian_log_prob(
  action: chex.Array,
  baseline_action: chex.Array,
  stddev: chex.Numeric = 0.2,
) -> jax.Array:
  """Log density of the *unclipped* normal that `sample_gaussian` starts from.

  `sum_a log N(action_a; mu_bp(s)_a, stddev_a^2)`. This is the density of the
  sampled action only strictly inside its limits; on a limit the sampler has a
  point mass that this density does not know, so ratios of clipped samples are
  biased. That is the convention of the published evaluations; `box_log_prob`
  is exact.

  Args:
    action: `[A]` action.
    baseline_action: `[A]` mean, mu_bp(s) in [1].
    stddev: standard deviation sigma, scalar or `[A]`, non-negative. A component
      with 0 is a point mass: it contributes 0 at the mean and `-inf` elsewhere.

  Returns:
    Scalar log density per unit of volume.

  Raises:
    ValueError: wrong shapes, not floats, or a concrete negative `stddev`.
  """
  action, mean = _checks.floats(
    {
      "action": (action, "A"),
      "baseline_action": (baseline_action, "A"),
    }
  )
  stddev = _checks.coefficient("stddev", stddev, action, per_element=True)
  _checks.nonnegative("stddev", stddev)
  explores = stddev > 0
  scale = jnp.where(explores, stddev, 1)
  standard = (action - mean) / scale
  log_prob = -0.5 * jnp.square(standard) - jnp.log(scale) - _HALF_LOG_2PI
  point_mass = jnp.where(action == mean, 0, -jnp.inf)
  return jnp.sum(jnp.where(explores, log_prob, point_mass))
