"""Metrics of a ranking model's head: AUC, per-user GAUC, log loss, calibration.

All on the host in numpy; `n` impressions.
"""

import numpy as np


def _ranks(values: np.ndarray, groups: np.ndarray) -> np.ndarray:
  """Mid-ranks from 1 within each group."""
  order = np.lexsort([values, groups])
  g, v = groups[order], values[order]
  new_group = np.r_[True, g[1:] != g[:-1]]
  new_value = new_group | np.r_[True, v[1:] != v[:-1]]
  start_of_group = np.maximum.accumulate(
    np.where(new_group, np.arange(len(g)), 0)
  )
  tie = np.cumsum(new_value) - 1
  counts = np.bincount(tie)
  first = np.flatnonzero(new_value)
  middle = first[tie] + 0.5 * (counts[tie] - 1) - start_of_group + 1.0
  ranks = np.empty(len(g))
  ranks[order] = middle
  return ranks


def auc(score: np.ndarray, label: np.ndarray) -> float:
  """Area under the ROC curve, ties count half; NaN with a single class.

  Args:
    score: `[n]` predictions, any monotone scale.
    label: `[n]` 0 or 1.
  """
  value, _ = _group_auc(score, label, np.zeros(len(score), np.int64))
  return float(value[0])


def gauc(score: np.ndarray, label: np.ndarray, user: np.ndarray) -> float:
  """Mean AUC of the users weighted by impressions; users of one class left out.

  Args:
    score: `[n]` predictions, any monotone scale.
    label: `[n]` 0 or 1.
    user: `[n]` integer user of each impression.
  """
  _, dense = np.unique(user, return_inverse=True)
  value, counts = _group_auc(score, label, dense)
  both = np.isfinite(value)
  if not both.any():
    return float("nan")
  return float(np.average(value[both], weights=counts[both]))


def _group_auc(score, label, groups):
  label = np.asarray(label, np.float64)
  counts = np.bincount(groups)
  positive = np.bincount(groups, label)
  negative = counts - positive
  rank_sum = np.bincount(groups, _ranks(score, groups) * label)
  with np.errstate(divide="ignore", invalid="ignore"):
    value = (rank_sum - positive * (positive + 1) / 2) / (positive * negative)
  return np.where((positive > 0) & (negative > 0), value, np.nan), counts


def log_loss(probability: np.ndarray, label: np.ndarray) -> float:
  """Mean negative log likelihood in nats of `[n]` probabilities."""
  p = np.clip(np.asarray(probability, np.float64), 1e-7, 1 - 1e-7)
  return float(-np.mean(label * np.log(p) + (1 - label) * np.log1p(-p)))


def calibration_error(
  prediction: np.ndarray, label: np.ndarray, bins: int = 10
) -> float:
  """Mean |mean prediction - mean label| over bins of equal size.

  Args:
    prediction: `[n]` in the unit of the label.
    label: `[n]`.
    bins: quantile bins of the prediction.

  Returns:
    Relative to the mean label, so that rare and frequent ones compare.
  """
  order = np.argsort(prediction, kind="stable")
  gaps = [
    abs(prediction[part].mean() - label[part].mean()) * len(part)
    for part in np.array_split(order, bins)
  ]
  return float(np.sum(gaps) / len(order) / np.mean(label))
