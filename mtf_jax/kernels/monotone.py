"""Fusion by learnt monotone functions in place of the powers of Eq. 1.

Each task has a cell, a piecewise-linear function of its score that never falls;
a curve on top bends it a little, and the cells add up. What [1] enforces by a
loss, that a higher score never counts against a candidate, holds here by
construction, in floating point too: each rounded operation keeps the order.

Letters: `C` candidates of a request, `K` tasks, `J` knots of a cell.

References:
  [1] Cao et al., "xMTF: A Formula-Free Model for Reinforcement-Learning-Based
  Multi-Task Fusion in Recommender Systems", arXiv 2504.05669.
  [2] Liu et al., "UnifiedRL: A Reinforcement Learning Algorithm Tailored for
  Multi-Task Fusion in Large-Scale Recommender Systems", arXiv 2404.17589,
  Eq. 1.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from mtf_jax.kernels import _checks
from mtf_jax.kernels.fusion import SCORE_FLOOR, FusionWeights


class MonotoneCells(NamedTuple):
  """Inner functions of one request, one for each task.

  Cell `k` is linear between its knots and constant outside of them, so that its
  range is known: from `start_k` to `start_k + sum_j increments_kj`.

  knots: `[K, J]` scores at which the cells bend, in the scores' unit, rising
    along `J`.
  start: `[K]` value at the first knot, unit-free.
  increments: `[K, J-1]` rise from each knot to the next one, unit-free,
    non-negative.
  """

  knots: chex.Array
  start: chex.Array
  increments: chex.Array


def cells_from_weights(
  weights: FusionWeights, knots: chex.Array
) -> MonotoneCells:
  """Cells that are Eq. 1 of [2] at their knots, a start for those of [1].

  `h_k(x) = power_k log(x + bias_k)` at each knot `x` of task `k`. Between two
  knots whose `x + bias_k` have the ratio `e^r` the chord lies below the
  logarithm by at most `power_k r^2 / 8`.

  Args:
    weights: powers `[K]`, non-negative, and biases `[K]`. A negative power is
      a cell over the negated score, which is not made here.
    knots: `[K, J]` scores, rising along `J`, two or more. `x + bias_k` up to
      `fusion.SCORE_FLOOR` counts as that.

  Returns:
    Cells with `knots [K, J]` as given, of the arguments' widest dtype.

  Raises:
    ValueError: wrong rank, different `K`, fewer than two knots, a dtype that
      is not a float, a concrete power that is negative, or concrete knots that
      do not rise.
  """
  (power, bias, knots_), dtype = _checks.floats(
    {
      "weights.power": (weights.power, "K"),
      "weights.bias": (weights.bias, "K"),
      "knots": (knots, "K J"),
    }
  )
  _check_knots("knots", knots_)
  _checks.nonnegative("weights.power", weights.power)
  _checks.rising("knots", knots)
  shifted = knots_ + bias[:, None]
  shifted = jnp.where(shifted <= SCORE_FLOOR, SCORE_FLOOR, shifted)
  # Not the difference of two logarithms, which cancels between close knots.
  ratio_less_1 = jnp.diff(shifted, axis=1) / shifted[:, :-1]
  start = power * jnp.log(shifted[:, 0])
  increments = power[:, None] * jnp.log1p(ratio_less_1)
  return MonotoneCells(
    knots_.astype(dtype), start.astype(dtype), increments.astype(dtype)
  )


def monotone_fused_score(
  scores: chex.Array, cells: MonotoneCells, action: chex.Array
) -> jax.Array:
  """Fused score of each candidate by monotone cells, from [1].

  `z = sum_k q_k (1 + a_k q_k)` with `q_k = h_k(score_k)` of cell `k`. The curve
  rises where `1 + 2 a_k q_k >= 0`, so `a_k = action_k / (2 R_k)`, `R_k` being
  the largest `|q_k|` in the cell's range: raising a score never lowers `z`. At
  action 0 the curve is the identity and `z` the inner score.

  Args:
    scores: `[C, K]` predicted scores of one request's candidates, in the tasks'
      own units. A task that should count against a candidate is negated.
    cells: of this request, `[K, J]`, `[K]` and `[K, J-1]`.
    action: `[K]` normalised action; beyond [-1, 1] it counts as the limit.

  Returns:
    `[C]` fused scores, unit-free, NaN where a score is NaN.

  Raises:
    ValueError: wrong rank, different `K` or `J`, a dtype that is not a float,
      concrete knots that do not rise, or a concrete increment that is negative.
  """
  (scores, knots, start, increments, action), dtype = _checks.floats(
    {
      "scores": (scores, "C K"),
      "cells.knots": (cells.knots, "K J"),
      "cells.start": (cells.start, "K"),
      "cells.increments": (cells.increments, "K J-1"),
      "action": (action, "K"),
    }
  )
  _check_knots("cells.knots", knots)
  if increments.shape[1] != knots.shape[1] - 1:
    raise ValueError(
      f"cells.increments: expected shape [K, J-1] with J = {knots.shape[1]} as"
      f" in cells.knots, found {increments.shape}."
    )
  _checks.rising("cells.knots", cells.knots)
  _checks.nonnegative("cells.increments", cells.increments)
  q = _inner(scores, knots, start, increments)
  low, high = start, start + jnp.sum(increments, axis=1)
  return jnp.sum(_outer(q, low, high, action), axis=0).astype(dtype)


def ranking_transfer_loss(
  inner_scores: chex.Array, outer_scores: chex.Array
) -> jax.Array:
  """What the inner functions minimise to rank as the outer ones do, of [1].

  `-1/P sum_{ij: outer_i < outer_j} log sigmoid(inner_j - inner_i)`, the mean
  over the `P` ordered pairs, so that a long request weighs as much as a short
  one; 0 where there is none. No gradient flows into the outer scores. The loss
  for monotony that [1] adds is 0 with cells that cannot fall.

  Args:
    inner_scores: `[C]` fused scores of one request at action 0, unit-free.
    outer_scores: `[C]` those at the actor's action, by cells as they were. A
      candidate whose outer score is NaN takes no part: padding.

  Returns:
    Scalar, in nats.

  Raises:
    ValueError: wrong rank, different `C`, or a dtype that is not a float.
  """
  (inner, outer), dtype = _checks.floats(
    {
      "inner_scores": (inner_scores, "C"),
      "outer_scores": (outer_scores, "C"),
    }
  )
  ordered = outer[:, None] < outer[None, :]
  # Kept off what is not compared: 0 times the slope at a NaN would be NaN.
  gap = jnp.where(ordered, inner[None, :] - inner[:, None], 0)
  loss = jnp.where(ordered, jax.nn.softplus(-gap), 0)
  num_pairs = jnp.sum(ordered, dtype=inner.dtype)
  return (jnp.sum(loss) / jnp.maximum(num_pairs, 1)).astype(dtype)


def _check_knots(name: str, knots: jax.Array) -> None:
  if knots.shape[1] < 2:
    raise ValueError(
      f"{name}: expected shape [K, J] with J of 2 or more, found {knots.shape}."
    )


def _inner(
  scores: jax.Array, knots: jax.Array, start: jax.Array, increments: jax.Array
) -> jax.Array:
  """`[K, C]` values of the cells at `[C, K]` scores.

  A sum of ramps, not a search for the interval: each ramp rises with the score
  and so does their rounded sum, where two formulas on both sides of a knot
  could disagree by a rounding. Candidates come last, because XLA compiles a sum
  over a short last axis to scalar code on a CPU. The division is one a ramp and
  not one a candidate.
  """
  low, high = knots[:, :-1, None], knots[:, 1:, None]
  within = jnp.clip(scores.T[:, None, :], low, high) - low
  slope = increments[:, :, None] / (high - low)
  return start[:, None] + jnp.sum(slope * within, axis=1)


def _outer(
  q: jax.Array, low: jax.Array, high: jax.Array, action: jax.Array
) -> jax.Array:
  """`q (1 + a q)`, `[K, C]`, of cells whose range is `[low, high]`, `[K]` each.

  The product itself may fall by a rounding: one factor rises, the other falls.
  Seen from the end of the range where the curve is flattest, `q = end +- d`, it
  is `end (1 + a end) +- ((1 + 2 a end) d + |a| d^2)`, whose terms all rise.
  """
  action = jnp.clip(action, -1, 1)
  reach = jnp.maximum(jnp.abs(low), jnp.abs(high))
  reach = jnp.where(reach > 0, reach, 1)
  side = jnp.where(action >= 0, 1, -1).astype(q.dtype)
  end = jnp.where(action >= 0, low, high)
  slope = action * end / reach
  value = end * (1 + slope / 2)
  # The upper end may be rounded to below the value at the last knot.
  distance = jnp.maximum(side[:, None] * (q - end[:, None]), 0)
  bend = jnp.abs(action) / (2 * reach)
  rise = (1 + slope)[:, None] + bend[:, None] * distance
  return value[:, None] + side[:, None] * distance * rise
