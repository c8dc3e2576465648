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

from mtf_jax.kernels import _checks

_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


HALF_WIDTH = 0.15  # Of the box, b_u = -b_l in [1].


class ActionBox(NamedTuple):
  """The closed box of actions that the exploration policy can log.

  lower: `[A]` lower bound of each component, normalised action units.
  upper: `[A]` upper bound, not below `lower`.
  """

  lower: chex.Array
  upper: chex.Array


def box_arrays(
  box: ActionBox, **like: chex.Array
) -> tuple[list[jax.Array], jnp.dtype]:
  """Checks a box together with the `[A]` arguments it meets.

  Args:
    box: bounds `[A]`.
    **like: further `[A]` arguments, by name.

  Returns:
    `([*like, lower, upper], dtype)`, each `[A]` in the dtype to compute in, and
    the dtype of the result.

  Raises:
    ValueError: shapes or dtypes differ, or concrete `lower > upper`.
  """
  checked = _checks.floats(
    {
      **{name: (value, "A") for name, value in like.items()},
      "box.lower": (box.lower, "A"),
      "box.upper": (box.upper, "A"),
    }
  )
  _checks.ordered("box.lower", box.lower, "box.upper", box.upper)
  return checked


def action_box(
  baseline_action: chex.Array,
  lower_offset: chex.Numeric = -HALF_WIDTH,
  upper_offset: chex.Numeric = HALF_WIDTH,
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
  (action,), dtype = _checks.floats({"baseline_action": (baseline_action, "A")})
  limits = {
    "lower_offset": lower_offset,
    "upper_offset": upper_offset,
    "low": low,
    "high": high,
  }
  below, above, smallest, largest = (
    _checks.coefficient(name, value, action, per_element=True)
    for name, value in limits.items()
  )
  _checks.ordered("lower_offset", lower_offset, "upper_offset", upper_offset)
  _checks.ordered("low", low, "high", high)
  return ActionBox(
    lower=jnp.clip(action + below, smallest, largest).astype(dtype),
    upper=jnp.clip(action + above, smallest, largest).astype(dtype),
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
  (lower, upper), dtype = box_arrays(box)
  unit = jax.random.uniform(rng_key, lower.shape, lower.dtype)
  # `lower + (upper - lower)` may exceed `upper` by one rounding, and a logged
  # action outside its own box would have density 0. The bounds are exact in the
  # final dtype, so rounding to it afterwards cannot leave the box.
  action = jnp.clip(lower + unit * (upper - lower), lower, upper)
  return action.astype(dtype)


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
  (action, lower, upper), dtype = box_arrays(box, action=action)
  width = upper - lower
  explores = width > 0
  log_width = jnp.where(explores, jnp.log(jnp.where(explores, width, 1)), 0)
  inside = jnp.all((action >= lower) & (action <= upper))
  return jnp.where(inside, -jnp.sum(log_width), -jnp.inf).astype(dtype)


def sample_corners(rng_key: chex.PRNGKey, box: ActionBox) -> jax.Array:
  """Draws a corner of the box: each component at its lower or upper bound.

  Two-level exploration in the box of [1], which draws uniformly. A slope inside the box is known three times as well from
  corners as from `sample_box`, at the same bound; nothing is learnt of what lies
  between, and the mean cost of exploring is three times as high.

  Args:
    rng_key: random number generator key, consumed.
    box: bounds `[A]`.

  Returns:
    `[A]` action.

  Raises:
    ValueError: bounds of different shapes, not floats, or concretely inverted.
  """
  (lower, upper), dtype = box_arrays(box)
  upwards = jax.random.bernoulli(rng_key, 0.5, lower.shape)
  return jnp.where(upwards, upper, lower).astype(dtype)


def corners_log_prob(action: chex.Array, box: ActionBox) -> jax.Array:
  """Log probability of `sample_corners` at an action: its log propensity.

  `-log 2` for each component with `lower < upper`, `-inf` where a component is at
  neither bound. A mass, not a density as `box_log_prob` is, the propensity in [1].

  Args:
    action: `[A]` logged action.
    box: bounds `[A]`.

  Returns:
    Scalar; `-inf` also if the action is NaN.

  Raises:
    ValueError: wrong shapes, not floats, or concretely inverted bounds.
  """
  (action, lower, upper), dtype = box_arrays(box, action=action)
  at_corner = (action == lower) | (action == upper)
  # One sum, not one and an `all`: a CPU does each component by component.
  log_prob = jnp.where(upper > lower, -math.log(2.0), 0.0)
  log_prob = jnp.where(at_corner, log_prob, -jnp.inf)
  return jnp.sum(log_prob, dtype=lower.dtype).astype(dtype)


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
  (mean,), dtype = _checks.floats({"baseline_action": (baseline_action, "A")})
  limits = {"stddev": stddev, "low": low, "high": high}
  scale, smallest, largest = (
    _checks.coefficient(name, value, mean, per_element=True)
    for name, value in limits.items()
  )
  _checks.nonnegative("stddev", stddev)
  _checks.ordered("low", low, "high", high)
  explored = mean + scale * jax.random.normal(rng_key, mean.shape, mean.dtype)
  return jnp.clip(explored, smallest, largest).astype(dtype)


def gaussian_log_prob(
  action: chex.Array,
  baseline_action: chex.Array,
  stddev: chex.Numeric = 0.2,
) -> jax.Array:
  """Log density of the *unclipped* normal that `sample_gaussian` starts from.

  `sum_a log N(action_a; mu_bp(s)_a, stddev_a^2)`. This is the density of the
  sampled action only strictly inside its limits; on a limit the sampler has a
  point mass that this density does not know, so ratios of clipped samples are
  biased. Evaluations of this field use it all the same, such as the public code
  of TSCAC (arXiv 2302.01680); `box_log_prob` is exact.

  Args:
    action: `[A]` action.
    baseline_action: `[A]` mean, mu_bp(s) in [1].
    stddev: standard deviation sigma, scalar or `[A]`, non-negative. A component
      with 0 is a point mass: it contributes 0 at the mean and `-inf` elsewhere
      (a NaN action included). A negative one that is not concrete gives NaN.

  Returns:
    Scalar log density per unit of volume.

  Raises:
    ValueError: wrong shapes, not floats, or a concrete negative `stddev`.
  """
  (action, mean), dtype = _checks.floats(
    {
      "action": (action, "A"),
      "baseline_action": (baseline_action, "A"),
    }
  )
  sigma = _checks.coefficient("stddev", stddev, action, per_element=True)
  _checks.nonnegative("stddev", stddev)
  # Asked for 0, not for more than 0: a NaN or negative sigma must not pass for
  # a point mass and its density of 1.
  is_point = sigma == 0
  scale = jnp.where(is_point, 1, sigma)
  standard = (action - mean) / scale
  log_prob = -0.5 * jnp.square(standard) - jnp.log(scale) - _HALF_LOG_2PI
  point_mass = jnp.where(action == mean, 0, -jnp.inf)
  return jnp.sum(jnp.where(is_point, point_mass, log_prob)).astype(dtype)
