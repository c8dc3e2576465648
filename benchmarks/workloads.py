"""Workloads of the kernel benchmark: every kernel at the sizes of the paper.

In float32: 50 candidates, 5 tasks, a slate of 6, 12 behaviours, 10 action
components, 2 groups of 24 critics, 20 requests a session; besides, 16 knots a cell.
Operations are counted by hand, an elementary function as one; the random bits of a
sampler are counted as `_OPS_PER_UNIFORM`.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import mtf_jax

_C, _K, _L, _E, _A, _G, _M, _T, _J = 50, 5, 6, 12, 10, 2, 24, 20, 16

# Threefry-2x32 makes two 32-bit words in 20 rounds of add, rotate (3) and xor
# and six key additions: about 56 operations a word; 4 more make it a float.
_OPS_PER_UNIFORM = 60
# The inverse error function is a polynomial of degree 8 after a logarithm.
_OPS_PER_NORMAL = _OPS_PER_UNIFORM + 22


class Workload(NamedTuple):
  """One kernel at one shape.

  kernel: function of one session's arguments.
  sample: `(rng_key) -> arguments` of one session; vmapped to make the batch.
  flops: operations a session, counted by hand.
  sessions_last: whether sessions are the last axis of the batch and the kernel takes
    it as it is; else they are the first and the kernel is vmapped.
  """

  kernel: Callable[..., Any]
  sample: Callable[[jax.Array], tuple[Any, ...]]
  flops: int
  sessions_last: bool = False

  def batched(self) -> Callable[..., Any]:
    """The kernel as a function of the batch."""
    return self.kernel if self.sessions_last else jax.vmap(self.kernel)

  def batch(self, rng_keys: jax.Array) -> tuple[Any, ...]:
    """Arguments of as many sessions as there are keys."""
    axis = -1 if self.sessions_last else 0
    return jax.vmap(self.sample, out_axes=axis)(rng_keys)


def _uniform(key: jax.Array, *shape: int) -> jax.Array:
  return jax.random.uniform(key, shape)


def _box(key: jax.Array) -> mtf_jax.ActionBox:
  return mtf_jax.action_box(2 * _uniform(key, _A) - 1)


def _two(key: jax.Array, first: Callable, second: Callable) -> tuple[Any, Any]:
  key_a, key_b = jax.random.split(key)
  return first(key_a), second(key_b)


def _weights(key: jax.Array) -> mtf_jax.FusionWeights:
  return mtf_jax.weights_from_action(
    2 * _uniform(key, 2 * _K) - 1, mtf_jax.FusionSpec()
  )


def _request(key: jax.Array) -> tuple[jax.Array, mtf_jax.FusionWeights]:
  return _two(key, lambda key: _uniform(key, _C, _K), _weights)


def _knots(key: jax.Array) -> jax.Array:
  return jnp.cumsum(0.01 + _uniform(key, _K, _J), axis=1)


def _cells(key: jax.Array) -> mtf_jax.MonotoneCells:
  weights, knots = _two(key, _weights, _knots)
  return mtf_jax.cells_from_weights(weights, knots)


def _monotone_request(
  key: jax.Array,
) -> tuple[jax.Array, mtf_jax.MonotoneCells, jax.Array]:
  keys = jax.random.split(key, 3)
  scores = 10 * _uniform(keys[0], _C, _K)
  return scores, _cells(keys[1]), 2 * _uniform(keys[2], _K) - 1


def _log_scores(key: jax.Array) -> tuple[jax.Array]:
  return (_uniform(key, _C),)


def _action(key: jax.Array) -> jax.Array:
  return 2 * _uniform(key, _A) - 1


def _action_and_box(key: jax.Array) -> tuple[jax.Array, mtf_jax.ActionBox]:
  return _two(key, _action, _box)


def _ensemble(key: jax.Array) -> jax.Array:
  return jax.random.normal(key, (_G, _M))


def _fuse_and_rank(
  scores: jax.Array, weights: mtf_jax.FusionWeights
) -> jax.Array:
  return mtf_jax.rank_slate(mtf_jax.fused_log_score(scores, weights), _L)


def _actor_loss(q: jax.Array, penalty: jax.Array) -> jax.Array:
  return mtf_jax.actor_loss(q, jnp.ones(_G), penalty, 1.0, 1.0)


def _itemwise_request(
  key: jax.Array,
) -> tuple[jax.Array, mtf_jax.FusionWeights]:
  def of_each(key):
    return jax.vmap(_weights)(jax.random.split(key, _C))

  return _two(key, lambda key: _uniform(key, _C, _K), of_each)


def _list_of_values(key: jax.Array) -> jax.Array:
  return jax.random.normal(key, (_L, _G, _M))


_RANK = functools.partial(mtf_jax.rank_slate, slate_size=_L)

WORKLOADS = {
  "weights_from_action": Workload(
    lambda action: mtf_jax.weights_from_action(action, mtf_jax.FusionSpec()),
    lambda key: (_action(key),),
    3 * _A,
  ),
  "fused_log_score": Workload(mtf_jax.fused_log_score, _request, 5 * _C * _K),
  "itemwise_log_score": Workload(
    mtf_jax.itemwise_log_score, _itemwise_request, 9 * _C * _K
  ),
  "cells_from_weights": Workload(
    mtf_jax.cells_from_weights,
    lambda key: _two(key, _weights, _knots),
    5 * _K * _J,
  ),
  "monotone_fused_score": Workload(
    mtf_jax.monotone_fused_score,
    _monotone_request,
    6 * _C * _K * (_J - 1) + 8 * _C * _K,
  ),
  "ranking_transfer_loss": Workload(
    mtf_jax.ranking_transfer_loss,
    lambda key: _two(key, *2 * (lambda key: _uniform(key, _C),)),
    7 * _C * _C,
  ),
  "rank_slate": Workload(_RANK, _log_scores, 9 * _C * _L),
  "fused_log_score+rank_slate": Workload(
    _fuse_and_rank, _request, 5 * _C * _K + 9 * _C * _L
  ),
  # What `rank_slate` could have called instead, for the same result; counted
  # are the comparisons of a merge sort. `plain.PLAIN` has `lax.top_k`.
  "rank_slate by full sort": Workload(
    lambda log_scores: jnp.argsort(log_scores, descending=True)[:_L],
    _log_scores,
    round(_C * math.log2(_C)),
  ),
  "list_reward": Workload(
    mtf_jax.list_reward,
    lambda key: _two(
      key,
      lambda key: _uniform(key, _L, _E),
      lambda key: _uniform(key, _G, _E),
    ),
    _L * _E + 2 * _G * _E,
  ),
  "discounted_returns": Workload(
    mtf_jax.discounted_returns,
    lambda key: (_uniform(key, _T, _G), jnp.full(_T, 0.9)),
    4 * _T * _G,
  ),
  "discounted_returns with sessions last": Workload(
    mtf_jax.discounted_returns,
    lambda key: (_uniform(key, _T, _G), jnp.full((_T, 1), 0.9)),
    4 * _T * _G,
    sessions_last=True,
  ),
  "action_box": Workload(
    mtf_jax.action_box, lambda key: (_action(key),), 6 * _A
  ),
  "sample_box": Workload(
    mtf_jax.sample_box,
    lambda key: _two(key, lambda key: key, _box),
    (_OPS_PER_UNIFORM + 5) * _A,
  ),
  "box_log_prob": Workload(mtf_jax.box_log_prob, _action_and_box, 10 * _A),
  "sample_corners": Workload(
    mtf_jax.sample_corners,
    lambda key: _two(key, lambda key: key, _box),
    (_OPS_PER_UNIFORM + 2) * _A,
  ),
  "corners_log_prob": Workload(
    mtf_jax.corners_log_prob, _action_and_box, 7 * _A
  ),
  "sample_gaussian": Workload(
    mtf_jax.sample_gaussian,
    lambda key: _two(key, lambda key: key, _action),
    (_OPS_PER_NORMAL + 4) * _A,
  ),
  "gaussian_log_prob": Workload(
    mtf_jax.gaussian_log_prob,
    lambda key: _two(key, _action, _action),
    9 * _A,
  ),
  "exceedance": Workload(mtf_jax.exceedance, _action_and_box, 6 * _A),
  "relaxation_penalty": Workload(
    lambda exceedance: mtf_jax.relaxation_penalty(exceedance, 10.0),
    lambda key: (_uniform(key),),
    6,
  ),
  "bootstrap_weight": Workload(
    lambda exceedance: mtf_jax.bootstrap_weight(exceedance, 10.0),
    lambda key: (_uniform(key),),
    3,
  ),
  "ensemble_mean_std": Workload(
    mtf_jax.ensemble_mean_std, lambda key: (_ensemble(key),), 4 * _G * _M
  ),
  "ensemble_mean_std gradient": Workload(
    jax.grad(
      lambda q: sum(jnp.sum(part) for part in mtf_jax.ensemble_mean_std(q))
    ),
    lambda key: (_ensemble(key),),
    8 * _G * _M,
  ),
  "td_targets": Workload(
    lambda r_t, q_t: mtf_jax.td_targets(r_t, 0.9, 1.0, q_t),
    lambda key: _two(key, lambda key: _uniform(key, _G), _ensemble),
    3 * _G * _M,
  ),
  "list_value": Workload(
    mtf_jax.list_value, lambda key: (_list_of_values(key),), _L * _G * _M
  ),
  "list_td_targets": Workload(
    lambda r_t, q_t: mtf_jax.list_td_targets(r_t, 0.9, jnp.ones(_L), q_t),
    lambda key: _two(key, lambda key: _uniform(key, _G), _list_of_values),
    3 * _L * _G * _M,
  ),
  "critic_loss": Workload(
    mtf_jax.critic_loss,
    lambda key: _two(key, _ensemble, _ensemble),
    3 * _G * _M,
  ),
  "actor_loss": Workload(
    _actor_loss,
    lambda key: _two(key, _ensemble, lambda key: _uniform(key)),
    4 * _G * _M,
  ),
  "actor_loss gradient": Workload(
    jax.grad(_actor_loss),
    lambda key: _two(key, _ensemble, lambda key: _uniform(key)),
    8 * _G * _M,
  ),
}
