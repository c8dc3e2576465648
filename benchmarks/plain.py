"""Kernels as one would write them by hand: for the batch, with no guards.

What a kernel should not be slower than. They take what a workload of
`benchmarks.kernels` is given, and are wrong for much that the kernels take: a NaN, a
score of 0, a box of no width, critics that agree.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import mtf_jax


def _weights_from_action(action):
  half = action.shape[1] // 2
  spec = mtf_jax.FusionSpec()
  power = spec.power_base * jnp.exp(spec.power_rate * action[:, :half])
  bias = spec.bias_base * jnp.exp(spec.bias_rate * action[:, half:])
  return mtf_jax.FusionWeights(power, bias)


def _fused_log_score(scores, weights):
  power, bias = weights.power[:, None], weights.bias[:, None]
  return jnp.sum(power * jnp.log(scores + bias), axis=-1)


def _itemwise_log_score(scores, weights):
  mean = jnp.mean(scores, axis=1, keepdims=True)
  own = jnp.log(scores + weights.bias) - jnp.log(mean + weights.bias)
  return jnp.sum(weights.power * own, axis=-1)


def _list_reward(feedback, group_weights):
  return jnp.einsum("ble,bge->bg", feedback, group_weights)


def _discounted_returns(r_t, discount_t):
  """Time first: `r_t [T, G, B]`, `discount_t [T, 1, B]`."""

  def accumulate(return_t, step):
    reward, discount = step
    return_tm1 = reward + discount * return_t
    return return_tm1, return_tm1

  start = jnp.zeros_like(r_t[0])
  return jax.lax.scan(accumulate, start, (r_t, discount_t), reverse=True)[1]


def _returns_of_sessions(r_t, discount_t):
  time_first = _discounted_returns(
    jnp.moveaxis(r_t, 1, 0), discount_t.T[:, :, None]
  )
  return jnp.moveaxis(time_first, 0, 1)


def _action_box(action):
  below, above = (jnp.clip(action + x, -1, 1) for x in (-0.15, 0.15))
  return mtf_jax.ActionBox(below, above)


def _box_log_prob(action, box):
  inside = jnp.all((action >= box.lower) & (action <= box.upper), axis=-1)
  log_width = jnp.sum(jnp.log(box.upper - box.lower), axis=-1)
  return jnp.where(inside, -log_width, -jnp.inf)


def _corners_log_prob(action, box):
  at_corner = (action == box.lower) | (action == box.upper)
  log_prob = -action.shape[-1] * math.log(2.0)
  return jnp.where(jnp.all(at_corner, axis=-1), log_prob, -jnp.inf)


def _gaussian_log_prob(action, mean):
  standard = (action - mean) / 0.2
  density = -0.5 * standard**2 - math.log(0.2) - 0.5 * math.log(2 * math.pi)
  return jnp.sum(density, axis=-1)


def _exceedance(action, box):
  beyond = jnp.maximum(action - box.upper, box.lower - action)
  return jnp.sum(jnp.maximum(beyond, 0), axis=-1)


def _ensemble_mean_std(q):
  return jnp.mean(q, axis=-1), jnp.std(q, axis=-1)


def _actor_loss(q, penalty):
  mean, std = _ensemble_mean_std(q)
  return penalty - jnp.sum(mean - std, axis=-1)


PLAIN: dict[str, Callable[..., Any]] = {
  "weights_from_action": _weights_from_action,
  "fused_log_score": _fused_log_score,
  "itemwise_log_score": _itemwise_log_score,
  "rank_slate": lambda log_scores: jax.lax.top_k(log_scores, 6)[1],
  "fused_log_score+rank_slate": lambda scores, weights: jax.lax.top_k(
    _fused_log_score(scores, weights), 6
  )[1],
  "list_reward": _list_reward,
  "discounted_returns": _returns_of_sessions,
  "discounted_returns with sessions last": _discounted_returns,
  "action_box": _action_box,
  "box_log_prob": _box_log_prob,
  "corners_log_prob": _corners_log_prob,
  "gaussian_log_prob": _gaussian_log_prob,
  "exceedance": _exceedance,
  "relaxation_penalty": lambda exceedance: jnp.expm1(10.0 * exceedance),
  "bootstrap_weight": lambda exceedance: jnp.exp(-10.0 * exceedance),
  "ensemble_mean_std": _ensemble_mean_std,
  "ensemble_mean_std gradient": jax.grad(
    lambda q: sum(jnp.sum(part) for part in _ensemble_mean_std(q))
  ),
  "td_targets": lambda r_t, q_t: r_t[:, :, None] + 0.9 * q_t,
  "list_value": lambda q: jnp.sum(q, axis=1),
  "list_td_targets": lambda r_t, q_t: (
    r_t[:, :, None] + 0.9 * jnp.sum(q_t, axis=1)
  ),
  "critic_loss": lambda q_tm1, targets: jnp.mean(
    (q_tm1 - targets) ** 2, axis=(1, 2)
  ),
  "actor_loss": _actor_loss,
  "actor_loss gradient": jax.grad(
    lambda q, penalty: jnp.sum(_actor_loss(q, penalty))
  ),
}
