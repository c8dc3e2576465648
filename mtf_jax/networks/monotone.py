"""Networks that answer monotone cells: fusion functions free in the state.

Letters: `B` requests of a batch, `S` state features, `K` tasks, `J` knots of a
cell.

References:
  [1] Cao et al., "xMTF: A Formula-Free Model for Reinforcement-Learning-Based
  Multi-Task Fusion in Recommender Systems", arXiv 2504.05669.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from mtf_jax.kernels.monotone import MonotoneCells
from mtf_jax.networks.actors import MLP, SMALL_SCALE


class CellNetwork(NamedTuple):
  """Inner functions of a request as a function of its state.

  init: `(rng_key, observation [S]) -> params`.
  apply: `(params, observation [B, S]) -> cells`, `[B, K, J]`, `[B, K]` and
    `[B, K, J-1]`, for `jax.vmap(monotone_fused_score)`.
  """

  init: Callable[..., Any]
  apply: Callable[..., MonotoneCells]


class _Stretch(nn.Module):
  shape: tuple[int, int]
  hidden_sizes: Sequence[int]
  dtype: Any

  @nn.compact
  def __call__(self, observation):
    sizes = (*self.hidden_sizes, math.prod(self.shape))
    # Small last weights: new cells are those they were made from.
    output = MLP(sizes, self.dtype, last_scale=SMALL_SCALE)(observation)
    stretch = jax.nn.softplus(output.astype(observation.dtype)) / math.log(2)
    return stretch.reshape(*observation.shape[:-1], *self.shape)


def mlp_cells(
  base: MonotoneCells,
  hidden_sizes: Sequence[int] = (64, 64),
  dtype: Any = jnp.float32,
) -> CellNetwork:
  """The inner stage of [1], its cells monotone whatever the parameters.

  `increments_kj(s) = base_kj softplus(f_kj(s)) / log 2`, `f` an MLP near 0 at the
  start: a new network answers `base` in every state, so that training begins
  from the formula in service (`cells_from_weights`). Knots and starts are those
  of `base`. [1] learns a free function and punishes where it falls.

  Args:
    base: `[K, J]`, `[K]` and `[K, J-1]`, of one request. An increment of 0 stays
      0.
    hidden_sizes: widths of the hidden layers.
    dtype: dtype of the computation; parameters are float32.
  """
  num_tasks, num_knots = jnp.shape(base.knots)
  module = _Stretch((num_tasks, num_knots - 1), tuple(hidden_sizes), dtype)
  # flax returns a tuple only where a collection is mutable.
  stretch_of = cast(Callable[..., jax.Array], module.apply)

  def apply(params: Any, observation: chex.Array) -> MonotoneCells:
    stretch = stretch_of(params, observation)
    size = stretch.shape[0]
    same = jax.tree.map(
      lambda leaf: jnp.broadcast_to(
        jnp.asarray(leaf, stretch.dtype), (size, *jnp.shape(leaf))
      ),
      base,
    )
    return same._replace(increments=same.increments * stretch)

  return CellNetwork(module.init, apply)
