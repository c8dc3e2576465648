"""Multi-task fusion: from an action to weights, fused scores and a slate.

Letters: `C` candidates of a request, `K` tasks, `L` slate positions.

References:
  [1] Liu et al., "UnifiedRL: A Reinforcement Learning Algorithm Tailored for
  Multi-Task Fusion in Large-Scale Recommender Systems", arXiv 2404.17589.
  [2] Liu et al., "An Enhanced-State Reinforcement Learning Algorithm for
  Multi-Task Fusion in Large-Scale Recommender Systems", arXiv 2409.11678.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import export, lax

from mtf_jax.kernels import _checks

# `score + bias` is raised to this floor before the logarithm, so that a score
# of 0 with a bias of 0 costs `power * log(1e-12)`, about -27.6 a task, instead
# of minus infinity. Far below any score a model can mean, far above the
# smallest bfloat16, float32 and float64; below it the gradient is 0.
SCORE_FLOOR = 1e-12

# Up to this many candidates `rank_slate` walks down the order (`L` passes over
# `C` scores), beyond it calls `lax.top_k`. docs/results/kernels.md has the measurement.
_WALK_UP_TO = 256


class FusionWeights(NamedTuple):
  """Weights of one request's fusion formula, Eq. 1 of [1].

  power: `[K]` exponent of each task's score, unit-free, any sign.
  bias: `[K]` added to each task's score before the power, in the score's unit,
    non-negative.
  """

  power: chex.Array
  bias: chex.Array


class FusionSpec(NamedTuple):
  """How a normalised action becomes fusion weights.

  Every field is a scalar or `[K]`, and a dynamic leaf: changing a number
  compiles nothing.

  power_base: power at action 0; a task that should count against a candidate
    has a negative base.
  power_rate: log-change of a power per unit of action.
  bias_base: bias at action 0, in the unit of the scores, non-negative.
  bias_rate: log-change of a bias per unit of action.
  """

  power_base: chex.Numeric = 1.0
  power_rate: chex.Numeric = 1.5
  bias_base: chex.Numeric = 0.1
  bias_rate: chex.Numeric = 1.5


def weights_from_action(action: chex.Array, spec: FusionSpec) -> FusionWeights:
  """Maps a normalised action to the powers and biases of Eq. 1 of [1].

  `power_k = power_base_k * exp(power_rate_k * action_k)` and
  `bias_k = bias_base_k * exp(bias_rate_k * action_{K + k})`: elementwise
  monotone, and a step of the action is a relative change of the weight, the
  same at any size of the weight. The paper gives the weights, not the map; this
  one is ours.

  Args:
    action: `[2K]` normalised action, powers first, in [-1, 1] (not clipped).
    spec: the map's coefficients, scalars or `[K]`.

  Returns:
    Weights of the action's dtype, `power [K]` of the sign of `power_base` and
    `bias [K]` non-negative.

  Raises:
    ValueError: `action` is not a float vector of even length, a field of `spec`
      is neither a scalar nor `[K]`, or a concrete `bias_base` is negative.
  """
  (action,), dtype = _checks.floats({"action": (action, "2K")})
  if action.shape[0] % 2:
    raise ValueError(
      "action: expected shape [2K], K powers and then K biases, found"
      f" {action.shape}."
    )
  power_action, bias_action = jnp.split(action, 2)
  power_base, power_rate, bias_base, bias_rate = (
    _checks.coefficient(f"spec.{name}", value, power_action, per_element=True)
    for name, value in spec._asdict().items()
  )
  _checks.nonnegative("spec.bias_base", spec.bias_base)
  power = power_base * jnp.exp(power_rate * power_action)
  bias = bias_base * jnp.exp(bias_rate * bias_action)
  return FusionWeights(power.astype(dtype), bias.astype(dtype))


def fused_log_score(scores: chex.Array, weights: FusionWeights) -> jax.Array:
  """Logarithm of the fused score of each candidate, Eq. 1 of [1].

  `log prod_k (score_k + bias_k)^power_k = sum_k power_k log(score_k + bias_k)`;
  the logarithm orders candidates as the product does and does not underflow.
  `score_k + bias_k` up to `SCORE_FLOOR` counts as `SCORE_FLOOR`, with gradient
  0: a score of 0 with a bias of 0 is finite.

  Args:
    scores: `[C, K]` predicted scores of one request's candidates, non-negative,
      in the tasks' own units (probabilities, seconds).
    weights: powers and biases, `[K]` each.

  Returns:
    `[C]` fused log scores, unit-free, NaN where a score is NaN.

  Raises:
    ValueError: wrong rank, different `K`, or a dtype that is not a float.
  """
  (scores, power, bias), dtype = _checks.floats(
    {
      "scores": (scores, "C K"),
      "weights.power": (weights.power, "K"),
      "weights.bias": (weights.bias, "K"),
    }
  )
  # Task by task: XLA compiles a sum over a short last axis to scalar code on a
  # CPU, logarithms included (20 times slower), and an accelerator would round
  # the operands of a float32 matrix product.
  log_score: Any = 0  # An array from the first task on.
  for k in range(scores.shape[1]):
    log_score += power[k] * _floored_log(scores[:, k] + bias[k])
  return log_score.astype(dtype)


def _floored_log(shifted: jax.Array) -> jax.Array:
  # Not `maximum`, which hands on half the gradient, 5e11, at the floor itself.
  return jnp.log(jnp.where(shifted <= SCORE_FLOOR, SCORE_FLOOR, shifted))


def itemwise_log_score(
  scores: chex.Array,
  weights: FusionWeights,
  mask: chex.Array | None = None,
) -> jax.Array:
  """Eq. 1 of [1] with weights of each candidate's own, as in [2].

  `sum_k power_ck (log(score_ck + bias_ck) - log(mean_k + bias_ck))`, `mean_k`
  the mean score of the request's valid candidates: Eq. 1 relative to a
  candidate that has these scores and the same weights. One that is like the
  mean has 0 whatever its weights, so weights say how scores count and cannot
  lift a candidate by themselves, nor does the unit of a score matter. With one
  set of weights for all candidates the order is that of `fused_log_score`. The
  reference is ours: [2] does not say how candidates are compared.

  Args:
    scores: `[C, K]` predicted scores of one request's candidates, non-negative.
    weights: powers and biases, `[C, K]` each.
    mask: `[C]` bool, False for candidates that are not there, whose scores are
      not part of the mean; all valid if omitted.

  Returns:
    `[C]` fused log scores, unit-free, NaN where a score is NaN, and everywhere
    if it is one of a valid candidate.

  Raises:
    ValueError: wrong shape or dtype.
  """
  (scores, power, bias), dtype = _checks.floats(
    {
      "scores": (scores, "C K"),
      "weights.power": (weights.power, "C K"),
      "weights.bias": (weights.bias, "C K"),
    }
  )
  valid = jnp.ones_like(scores[:, 0], jnp.bool_)
  if mask is not None:
    valid = _mask_of(mask, valid, "scores")
  count = jnp.maximum(jnp.sum(valid, dtype=scores.dtype), 1)
  log_score: Any = 0  # Task by task, see `fused_log_score`.
  for k in range(scores.shape[1]):
    mean = jnp.sum(jnp.where(valid, scores[:, k], 0)) / count
    own = _floored_log(scores[:, k] + bias[:, k])
    log_score += power[:, k] * (own - _floored_log(mean + bias[:, k]))
  return log_score.astype(dtype)


def _mask_of(mask: chex.Array, like: jax.Array, name: str) -> jax.Array:
  """The mask, or `ValueError` if it is not bool `[C]` as `like`, of `name`."""
  mask = jnp.asarray(mask)
  if mask.shape != like.shape or mask.dtype != jnp.bool_:
    raise ValueError(
      f"mask: expected bool of shape {like.shape} as {name}, found"
      f" {mask.dtype.name} of shape {mask.shape}."
    )
  return mask


def _walk_down(key: jax.Array, slate_size: int) -> tuple[jax.Array, jax.Array]:
  """Picks `slate_size` times the successor in (key descending, index) order."""
  num_candidates = key.shape[0]
  index = lax.iota(jnp.int32, num_candidates)

  def pick(last, _):
    last_key, last_index = last
    left = (key < last_key) | ((key == last_key) & (index > last_index))
    best_key = jnp.max(jnp.where(left, key, -jnp.inf))
    best_index = jnp.min(
      jnp.where(left & (key == best_key), index, num_candidates)
    )
    return (best_key, best_index), (best_key, best_index)

  # Like the scores, and so like what follows: under `shard_map` a scan's carry
  # must vary over the mesh from its start.
  start = (
    jnp.full_like(key[0], jnp.inf),
    jnp.full_like(key[0], -1, dtype=jnp.int32),
  )
  return lax.scan(pick, start, length=slate_size)[1]


def rank_slate(
  log_scores: chex.Array,
  slate_size: int,
  mask: chex.Array | None = None,
) -> jax.Array:
  """Selects the best candidates in order: the slate shown to the user.

  Args:
    log_scores: `[C]` ranking scores of one request, unit-free. A valid
      candidate whose score is `-inf` or NaN comes after all others.
    slate_size: `L`, static, from 1 to `C`.
    mask: `[C]` bool, False for candidates that must not be shown; all valid if
      omitted.

  Returns:
    int32 `[L]` candidate indices, best first, equal scores by lower index. With
    fewer than `L` valid candidates the rest is -1: test `slate >= 0` before
    using it as an index.

  Raises:
    ValueError: wrong shape or dtype, or `slate_size` outside 1 to `C`.
  """
  (log_scores,), _ = _checks.floats({"log_scores": (log_scores, "C")})
  slate_size = _checks.count(
    "slate_size",
    slate_size,
    at_most=log_scores.shape[0],
    what="the number of candidates",
  )
  # Valid candidates are lifted above -inf, which is left to the masked ones;
  # zeros get one sign, because to `top_k` 0.0 is more than -0.0.
  lowest = jnp.finfo(log_scores.dtype).min
  key = jnp.where(jnp.isnan(log_scores), lowest, log_scores)
  key = jnp.where(key == 0, 0, jnp.maximum(key, lowest))
  if mask is not None:
    key = jnp.where(_mask_of(mask, key, "log_scores"), key, -jnp.inf)
  # Exported for any number of candidates: the program that suits few.
  if export.is_symbolic_dim(key.shape[0]) or key.shape[0] <= _WALK_UP_TO:
    best_key, best_index = _walk_down(key, slate_size)
  else:
    best_key, best_index = lax.top_k(key, slate_size)
  return jnp.where(best_key > -jnp.inf, best_index.astype(jnp.int32), -1)
