"""How far a new policy went from the one that its rows were logged around.

Letters: `A` action components, `H` bins.

References:
  [1] Liu et al., "UnifiedRL: A Reinforcement Learning Algorithm Tailored for
  Multi-Task Fusion in Large-Scale Recommender Systems", arXiv 2404.17589.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mtf_jax.data.transitions import TransitionDataset
from mtf_jax.kernels.relaxation import exceedance
from mtf_jax.learners.base import Learner

# Rows looked at for the share outside the box and the drift.
_DRIFT_ROWS = 65_536
DRIFT_BIN = 0.025  # Six of them in half a box.
_DRIFT_BINS = 14


class Drift(NamedTuple):
  """How far a new policy went, on rows logged around the old one.

  outside: share of the requests whose new action is outside the box.
  change: `[A]` mean of |new - old| of each component.
  histogram: `[A, H]` share of the requests by |new - old|, in `H` bins of
    `DRIFT_BIN`, the last one open (Fig. 2 of [1]).
  """

  outside: jax.Array
  change: jax.Array
  histogram: jax.Array


@functools.partial(jax.jit, static_argnames="learner")
def drift(
  learner: Learner, new: Any, old: Any, dataset: TransitionDataset
) -> Drift:
  """Compares a new policy with the one that its rows were logged around.

  Args:
    learner: the algorithm, static.
    new: trained on the dataset.
    old: in service when it was logged.
    dataset: rows with the boxes around the old policy.

  Returns:
    The drift.
  """
  num_rows = min(_DRIFT_ROWS, dataset.start_row.shape[0])
  row = dataset.start_row[:num_rows]
  place = jnp.arange(num_rows, dtype=jnp.int32)
  weight = (place < dataset.num_transitions).astype(jnp.float32)
  weight = weight / jnp.sum(weight)

  # One key for both policies: what differs is not their luck.
  rng_key = jax.random.key(0)

  def one(row):
    observation = dataset.observation[row]
    box = jax.tree.map(lambda bound: bound[row], dataset.box)
    action = learner.act(learner.policy(new), observation, rng_key)
    before = learner.act(learner.policy(old), observation, rng_key)
    change = jnp.abs(action - before)
    return exceedance(action, box) > 0, change

  outside, change = jax.vmap(one)(row)
  place = jnp.minimum(jnp.floor(change / DRIFT_BIN), _DRIFT_BINS - 1)

  def share(n):
    inside = (place == n.astype(place.dtype)).astype(jnp.float32)
    return jnp.sum(weight[:, None] * inside, axis=0)

  bins = jnp.arange(_DRIFT_BINS, dtype=jnp.int32)
  return Drift(
    outside=jnp.sum(weight * outside.astype(jnp.float32)),
    change=jnp.sum(weight[:, None] * change, axis=0),
    histogram=jax.lax.map(share, bins).T,
  )
