"""Metrics of a ranking model's head: AUC, per-user GAUC, log loss, calibration.

All on the host in numpy; `n` impressions.
"""

import numpy as np


def weighted_auc(
  score: np.ndarray,
  label: np.ndarray,
  weight: np.ndarray,
  group: np.ndarray,
) -> np.ndarray:
  """AUC of each group, a pair counting the product of its two weights.

  `sum_{i in +, j in -} w_i w_j ([s_i > s_j] + [s_i = s_j] / 2)` over
  `sum_{i in +, j in -} w_i w_j`.

  Args:
    score: `[n]` predictions, any monotone scale within a group.
    label: `[n]` 0 or 1.
    weight: `[n]` non-negative weights.
    group: `[n]` integers from 0.

  Returns:
    float64 `[max(group) + 1]`, NaN where a class is missing or weighs nothing.
  """
  weight = np.asarray(weight, np.float64)
  positive, negative = weight * (label == 1), weight * (label == 0)
  order = np.lexsort([score, group])
  g, v = group[order], score[order]
  new = np.r_[True, (g[1:] != g[:-1]) | (v[1:] != v[:-1])]
  tie = np.cumsum(new) - 1
  tie_positive = np.bincount(tie, positive[order])
  tie_negative = np.bincount(tie, negative[order])
  tie_group = g[new]
  below = np.cumsum(tie_negative) - tie_negative
  first = np.r_[True, tie_group[1:] != tie_group[:-1]]
  # Of the groups before: what lies below must be of the tie's own group.
  below -= below[first][np.cumsum(first) - 1]
  area = np.bincount(tie_group, tie_positive * (below + 0.5 * tie_negative))
  pairs = np.bincount(group, positive) * np.bincount(group, negative)
  with np.errstate(divide="ignore", invalid="ignore"):
    return np.where(pairs > 0, area / pairs, np.nan)


def auc(score: np.ndarray, label: np.ndarray) -> float:
  """Area under the ROC curve, ties count half; NaN with a single class.

  Args:
    score: `[n]` predictions, any monotone scale.
    label: `[n]` 0 or 1.
  """
  ones = np.ones(len(score))
  value = weighted_auc(score, label, ones, np.zeros(len(score), np.int64))
  return float(value[0])


def gauc(score: np.ndarray, label: np.ndarray, user: np.ndarray) -> float:
  """Mean AUC of the users weighted by impressions; users of one class left out.

  Args:
    score: `[n]` predictions, any monotone scale.
    label: `[n]` 0 or 1.
    user: `[n]` integer user of each impression.
  """
  _, dense = np.unique(user, return_inverse=True)
  value = weighted_auc(score, label, np.ones(len(score)), dense)
  both = np.isfinite(value)
  if not both.any():
    return float("nan")
  return float(np.average(value[both], weights=np.bincount(dense)[both]))


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
