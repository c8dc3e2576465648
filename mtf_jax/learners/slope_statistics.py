"""Sums over transitions from which slopes follow, and the slopes.

The partially linear model of a return in a deviation that was drawn independently
of the observation [1, 2]: remove what the observation alone predicts, multiply by
the deviation, average. Coefficients are drawn in towards 0 by how much of their
spread is error, group by group (empirical Bayes, [3]).

Letters: `B` transitions of a batch, `S` state features, `A` action components,
`G` reward groups, `F = 1 + S` features of a slope, `Q` of a value.

References:
  [1] Robinson, "Root-N-Consistent Semiparametric Regression", Econometrica 1988.
  [2] Nie and Wager, "Quasi-Oracle Estimation of Heterogeneous Treatment
  Effects", arXiv 1712.04912.
  [3] Efron and Morris, "Stein's Estimation Rule and Its Competitors - An
  Empirical Bayes Approach", JASA 1973.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.transitions import Transition
from mtf_jax.learners import base
from mtf_jax.learners.base import Normalization

_CUT = 3.0  # deviations beyond which an observation counts no further
_RIDGE = 1e-4  # of the value's regression, relative to the rows
_CONSTANT = 1e-3  # variance below which a feature is none


class Frame(NamedTuple):
  """What deviations and observations are measured in.

  centre, half_width: `[A]`, the first policy's action and the unit of distances
    from it.
  normalization: of the observations.
  """

  centre: chex.Array
  half_width: chex.Array
  normalization: Normalization


class Statistics(NamedTuple):
  """Sums over transitions; the sums of two logs are their sum.

  Of a transition: features of the value `q [Q]` and of a slope `phi [F]`, the
  deviation `u [A]`, the policy's own distance from the first `d [A]`, both in
  half-widths, and the return `r [G]`; `x_k = u_k [phi, -d_k]`.

  rows: scalar, how many. returns: `[G, G]`, `r r'`.
  value_gram, value_moment: `[Q, Q]` and `[Q, G]`, `q q'` and `q r'`.
  gram, cross, moment: `[A, F + 1, F + 1]`, `[A, F + 1, Q]` and `[A, F + 1, G]`,
    `x x'`, `x q'` and `x r'`.
  """

  rows: jax.Array
  returns: jax.Array
  value_gram: jax.Array
  value_moment: jax.Array
  gram: jax.Array
  cross: jax.Array
  moment: jax.Array


class Slopes(NamedTuple):
  """What the statistics say.

  mean: `[A, F]` posterior mean per half-width, all groups by their weights.
  of_groups: `[G, A, F]` the same of each group, in the return's unit.
  error: `[A, F]` standard error of the least-squares coefficients.
  prior: `[A, F]` standard deviation of the prior, by groups of coefficients.
  value: `[Q, G]` coefficients of the value.
  mean_return: `[G]`.
  noise: scalar, variance of the weighted return about the value.
  variance: scalar, of the weighted return.
  """

  mean: jax.Array
  of_groups: jax.Array
  error: jax.Array
  prior: jax.Array
  value: jax.Array
  mean_return: jax.Array
  noise: jax.Array
  variance: jax.Array


def slope_features(
  normalization: Normalization, observation: chex.Array
) -> jax.Array:
  """`phi = [1, x]`, `[F]`, of an observation `[S]`, cut at 3 deviations."""
  seen = base.normalize_one(normalization, observation)
  return jnp.append(jnp.ones_like(seen[:1]), jnp.clip(seen, -_CUT, _CUT))


def value_features(phi: chex.Array) -> jax.Array:
  """`q`: all products of two of `phi`, `[F (F + 1) / 2]`."""
  row, column = np.triu_indices(phi.shape[0])
  return phi[row] * phi[column]


def statistics_of(
  frame: Frame, batch: Transition, weight: chex.Array
) -> Statistics:
  """Sums over a batch.

  Args:
    frame: of the log's first policy.
    batch: `[B, ...]`, with boxes as logged.
    weight: `[B]`, 0 for a transition that does not count.
  """
  phi = jax.vmap(slope_features, in_axes=(None, 0))(
    frame.normalization, batch.observation_tm1
  )
  q = jax.vmap(value_features)(phi)
  middle = (batch.box_tm1.lower + batch.box_tm1.upper) / 2
  unit = frame.half_width[None, :]
  u = (batch.action_tm1 - middle) / unit
  d = (middle - frame.centre[None, :]) / unit
  x = jnp.concatenate(
    [jnp.broadcast_to(phi[:, None], (*d.shape, phi.shape[1])), -d[..., None]],
    axis=2,
  )
  # Weights are 0 or 1, and so their own squares.
  x = x * (u * weight[:, None])[..., None]
  r = batch.r_t
  wq = weight[:, None] * q
  return Statistics(
    rows=jnp.sum(weight),
    returns=jnp.einsum("b,bg,bh->gh", weight, r, r),
    value_gram=jnp.einsum("bp,bq->pq", wq, q),
    value_moment=jnp.einsum("bq,bg->qg", wq, r),
    gram=jnp.einsum("bki,bkj->kij", x, x),
    cross=jnp.einsum("bki,bq->kiq", x, q),
    moment=jnp.einsum("bki,bg->kig", x, r),
  )


# One system after the other: on a CPU, JAX hands several to the threads that run
# programs and waits for them on such a thread, so that two solves of one program,
# or of two devices, can wait for each other for ever.
@jax.custom_batching.sequential_vmap
def _solve(matrix: chex.Array, right: chex.Array) -> jax.Array:
  """`[N, M]` that solves `matrix [N, N] @ it = right [N, M]`."""
  return jnp.linalg.solve(matrix, right)


def _informative(gram: chex.Array) -> jax.Array:
  """`[F]`, features that vary where a deviation was drawn; the first is 1."""
  total = jnp.sum(gram, axis=0)
  rows = jnp.maximum(total[0, 0], 1e-9)
  variance = jnp.diagonal(total) / rows - jnp.square(total[0] / rows)
  return (variance > _CONSTANT).at[0].set(True)


def _groups(num_actions: int, num_features: int) -> np.ndarray:
  """`[4, A, F]`, coefficients that share a prior: main effects and personal
  ones, of powers and of biases."""
  is_bias = np.arange(num_actions)[:, None] >= num_actions // 2
  is_main = np.arange(num_features)[None, :] == 0
  return np.stack(
    [
      (is_bias == b) & (is_main == m)
      for b in (False, True)
      for m in (True, False)
    ]
  )


def solve(
  statistics: Statistics,
  group_weights: chex.Array,
  curvature: chex.Numeric,
) -> Slopes:
  """Slopes with their errors.

  The value is a ridge regression; its predictions leave the moments through
  `cross`, exactly. A group's prior variance is the mean of `coefficient^2 -
  error^2`, at least a millionth of a coefficient's own.

  Args:
    statistics: of at least one transition, or all 0: then the slopes are 0.
    group_weights: `[G]`.
    curvature: share of the mean return that a deviation of one half-width costs,
      times two.
  """
  count = jnp.maximum(statistics.rows, 1)
  num_values = statistics.value_gram.shape[0]
  ridge = _RIDGE * count * jnp.eye(num_values, dtype=count.dtype)
  value = _solve(statistics.value_gram + ridge, statistics.value_moment)
  # `q` begins with the product of two ones.
  mean_return = statistics.value_moment[0] / count
  mean = jnp.sum(group_weights * mean_return)
  second = group_weights @ statistics.returns @ group_weights / count
  explained = (group_weights @ statistics.value_moment.T) @ (
    value @ group_weights
  )
  noise = jnp.maximum(second - explained / count, 1e-9)

  residual = statistics.moment - jnp.einsum(
    "kiq,qg->kig", statistics.cross, value
  )
  num_features = residual.shape[1] - 1
  gram = statistics.gram[:, :num_features, :num_features]
  # The curvature that is assumed moves to the other side of the equations.
  bent = statistics.gram[:, :num_features, num_features]
  bend = curvature * mean_return
  moment = residual[:, :num_features] - bent[..., None] * bend[None, None]
  keep = _informative(gram)
  both = keep[:, None] & keep[None, :]
  gram = jnp.where(both[None], gram, 0)
  moment = jnp.where(keep[None, :, None], moment, 0)
  identity = jnp.eye(num_features, dtype=count.dtype)[None]
  # Rows without information: a coefficient of 0, whatever the prior.
  known = gram + jnp.where(keep[None, :, None], 1e-6 * count, 1) * identity
  inverse = jax.vmap(_solve)(known, jnp.broadcast_to(identity, known.shape))
  total = moment @ group_weights
  ordinary = jnp.einsum("kij,kj->ki", inverse, total)
  variance = jnp.where(
    keep[None], noise * jnp.diagonal(inverse, axis1=1, axis2=2), 0
  )
  groups = jnp.asarray(_groups(*ordinary.shape)) & keep[None, None]
  members = jnp.maximum(jnp.sum(groups, axis=(1, 2), dtype=count.dtype), 1)
  excess = jnp.sum(
    jnp.where(groups, (jnp.square(ordinary) - variance)[None], 0), axis=(1, 2)
  )
  floor = jnp.sum(jnp.where(groups, variance[None], 0), axis=(1, 2)) * 1e-6
  spread = jnp.maximum(excess, floor + 1e-12) / members
  prior = jnp.sum(jnp.where(groups, spread[:, None, None], 0), axis=0)
  # Posterior mean `(gram / noise + 1 / prior)^-1 moment / noise`, scaled so that
  # nothing is divided by a prior of 0.
  scale = jnp.sqrt(prior / noise)
  inner = identity + scale[:, :, None] * gram * scale[:, None, :]
  of_groups = scale[..., None] * jax.vmap(_solve)(
    inner, scale[..., None] * moment
  )
  return Slopes(
    mean=of_groups @ group_weights,
    of_groups=jnp.moveaxis(of_groups, 2, 0),
    error=jnp.sqrt(variance),
    prior=jnp.sqrt(prior),
    value=value,
    mean_return=mean_return,
    noise=noise,
    variance=jnp.maximum(second - jnp.square(mean), 1e-9),
  )
