"""Independent float64 NumPy references of the kernels, written as loops.

Each returns `(value, scale)`. The scale bounds the size of the terms that were
added up to the value: rounding is relative to it, and to the value itself only
where nothing cancels. Tests allow an error of 1e-5 times the scale.
"""

import math

import numpy as np

FLOOR = 1e-12
LINEAR_FROM = 30.0


def weights_from_action(action, power_base, power_rate, bias_base, bias_rate):
  num_tasks = len(action) // 2
  power = [
    power_base[k] * math.exp(power_rate[k] * action[k])
    for k in range(num_tasks)
  ]
  bias = [
    bias_base[k] * math.exp(bias_rate[k] * action[num_tasks + k])
    for k in range(num_tasks)
  ]
  return (np.array(power), np.array(bias)), (np.abs(power), np.abs(bias))


def fused_log_score(scores, power, bias):
  value = np.zeros(len(scores))
  scale = np.zeros(len(scores))
  for c, row in enumerate(scores):
    for k, score in enumerate(row):
      logarithm = math.log(max(score + bias[k], FLOOR))
      value[c] += power[k] * logarithm
      # An input rounded by a relative eps moves its logarithm by eps.
      scale[c] += abs(power[k]) * (abs(logarithm) + 1)
  return value, scale


def itemwise_log_score(scores, power, bias, mask):
  count = max(mask.sum(), 1)
  value = np.zeros(len(scores))
  scale = np.zeros(len(scores))
  for k in range(scores.shape[1]):
    mean = sum(row[k] for row, valid in zip(scores, mask, strict=True) if valid)
    mean = mean / count
    for c, row in enumerate(scores):
      own = math.log(max(row[k] + bias[c, k], FLOOR))
      reference = math.log(max(mean + bias[c, k], FLOOR))
      value[c] += power[c, k] * (own - reference)
      # As in `fused_log_score`.
      scale[c] += abs(power[c, k]) * (abs(own) + abs(reference) + 2)
  return value, scale


def cells_from_weights(power, bias, knots):
  logarithm = np.zeros(knots.shape)
  for k, row in enumerate(knots):
    for j, knot in enumerate(row):
      logarithm[k, j] = math.log(max(knot + bias[k], FLOOR))
  value = power[:, None] * logarithm
  # As in `fused_log_score`.
  scale = np.abs(power[:, None]) * (np.abs(logarithm) + 1)
  increments = (np.diff(value, axis=1), scale[:, 1:] + scale[:, :-1])
  return (value[:, 0], scale[:, 0]), increments


def monotone_fused_score(scores, knots, start, increments, action):
  value = np.zeros(len(scores))
  scale = np.zeros(len(scores))
  for k in range(scores.shape[1]):
    values = start[k] + np.concatenate([[0], np.cumsum(increments[k])])
    reach = max(abs(values[0]), abs(values[-1]))
    a = min(max(action[k], -1), 1) / (2 * reach) if reach else 0.0
    for c, row in enumerate(scores):
      q = np.interp(row[k], knots[k], values)
      value[c] += q * (1 + a * q)
      scale[c] += 4 * (abs(start[k]) + increments[k].sum())
  return value, scale


def ranking_transfer_loss(inner, outer):
  losses, sizes = [], []
  for i in range(len(inner)):
    for j in range(len(inner)):
      if outer[i] < outer[j]:
        gap = inner[j] - inner[i]
        losses.append(max(-gap, 0) + math.log1p(math.exp(-abs(gap))))
        sizes.append(abs(inner[i]) + abs(inner[j]) + 1)
  count = max(len(losses), 1)
  return sum(losses) / count, sum(sizes) / count


def rank_slate(log_scores, slate_size, mask):
  order = [c for c in range(len(log_scores)) if mask[c]]

  def descending(c):
    score = log_scores[c]
    # The most negative finite number and anything below it are one class.
    if math.isnan(score) or score < np.finfo(np.float32).min:
      score = float(np.finfo(np.float32).min)
    return (-score, c)

  order.sort(key=descending)
  order += [-1] * len(log_scores)
  return np.array(order[:slate_size])


def list_reward(feedback, group_weights):
  value = np.zeros(len(group_weights))
  scale = np.zeros(len(group_weights))
  for g, weights in enumerate(group_weights):
    for item in feedback:
      for weight, behaviour in zip(weights, item, strict=True):
        value[g] += weight * behaviour
        scale[g] += abs(weight * behaviour)
  return value, scale


def discounted_returns(r_t, discount_t):
  value = np.zeros_like(r_t)
  scale = np.zeros_like(r_t)
  for start in range(len(r_t)):
    factor = 1.0
    for t in range(start, len(r_t)):
      value[start] += factor * r_t[t]
      scale[start] += factor * np.abs(r_t[t])
      factor *= discount_t[t]
      if factor == 0:
        break
  return value, scale


def action_box(baseline, lower_offset, upper_offset, low, high):
  lower = [min(max(b + lower_offset, low), high) for b in baseline]
  upper = [min(max(b + upper_offset, low), high) for b in baseline]
  scale = np.abs(baseline) + abs(lower_offset) + abs(upper_offset)
  return (np.array(lower), np.array(upper)), (scale, scale)


def box_log_prob(action, lower, upper):
  value, scale = 0.0, 0.0
  for a, low, high in zip(action, lower, upper, strict=True):
    if not low <= a <= high:
      return -math.inf, 0.0
    if high > low:
      value -= math.log(high - low)
      scale += abs(math.log(high - low)) + 1
  return value, scale


def gaussian_log_prob(action, mean, stddev):
  value, scale = 0.0, 0.0
  for a, m, sigma in zip(action, mean, stddev, strict=True):
    if sigma == 0:
      if a != m:
        return -math.inf, 0.0
      continue
    terms = (
      -0.5 * ((a - m) / sigma) ** 2,
      -math.log(sigma),
      -0.5 * math.log(2 * math.pi),
    )
    value += sum(terms)
    scale += sum(map(abs, terms)) + 1
  return value, scale


def exceedance(action, lower, upper):
  value = 0.0
  for a, low, high in zip(action, lower, upper, strict=True):
    value += max(a - high, low - a, 0.0)
  return value, value


def relaxation_penalty(distance, sharpness):
  exponent = sharpness * distance
  if exponent <= LINEAR_FROM:
    value = math.expm1(exponent)
  else:
    slope = math.exp(LINEAR_FROM)
    value = slope - 1 + slope * (exponent - LINEAR_FROM)
  return value, value


def bootstrap_weight(distance, sharpness):
  value = math.exp(-sharpness * distance)
  return value, value


def ensemble_mean_std(q):
  mean = np.array([sum(row) / len(row) for row in q])
  std = np.array(
    [
      math.sqrt(sum((x - m) ** 2 for x in row) / len(row))
      for row, m in zip(q, mean, strict=True)
    ]
  )
  size = np.abs(q).max(axis=1)
  return (mean, std), (size, size)


def td_targets(r_t, discount_t, bootstrap_weight_t, q_t):
  value = np.zeros_like(q_t)
  scale = np.zeros_like(q_t)
  for g in range(q_t.shape[0]):
    for m in range(q_t.shape[1]):
      tail = 0.0
      if discount_t != 0:
        tail = discount_t * bootstrap_weight_t * q_t[g, m]
      value[g, m] = r_t[g] + tail
      scale[g, m] = abs(r_t[g]) + abs(tail)
  return value, scale


def list_td_targets(r_t, discount_t, bootstrap_weight_t, q_t):
  value = np.zeros(q_t.shape[1:])
  scale = np.zeros(q_t.shape[1:])
  for g, m in np.ndindex(value.shape):
    value[g, m], scale[g, m] = r_t[g], abs(r_t[g])
    for weight, q in zip(bootstrap_weight_t, q_t[:, g, m], strict=True):
      if discount_t != 0:
        value[g, m] += discount_t * weight * q
        scale[g, m] += abs(discount_t * weight * q)
  return value, scale


def critic_loss(q_tm1, targets):
  errors = [(a - b) ** 2 for a, b in zip(q_tm1.flat, targets.flat, strict=True)]
  value = sum(errors) / len(errors)
  return value, value


def actor_loss(q, group_weights, penalty, penalty_scale, uncertainty_scale):
  (mean, std), _ = ensemble_mean_std(q)
  value = penalty_scale * penalty
  scale = abs(value)
  for g, weight in enumerate(group_weights):
    value += weight * (uncertainty_scale * std[g] - mean[g])
    size = np.abs(q[g]).max()
    scale += abs(weight) * (1 + uncertainty_scale) * size
  return value, scale
