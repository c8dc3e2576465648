"""Metrics of a ranking model's head: AUC, per-user GAUC, log loss, calibration.

All on the host in numpy; `n` impressions. What is not finite is refused: sorted
with the others it would have a rank like any score, and AUC an answer.
"""

import numpy as np

from mtf_jax.arrays import as_columns
from mtf_jax.io import InputError


def _check_values(name: str, good: np.ndarray, expected: str) -> None:
  if not good.all():
    raise InputError(
      f"{name}: expected {expected}, found others in {int((~good).sum())} of"
      f" {good.size} places, first at {int(np.argmin(good))}."
    )


def _check_labels(label: np.ndarray) -> None:
  _check_values("label", (label == 0) | (label == 1), "0 or 1")


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

  Raises:
    InputError: a value is masked, not finite or out of range, or the lengths
      differ or are 0.
  """
  score, label, weight, group = as_columns(
    {"score": score, "label": label, "weight": weight, "group": group}
  )
  _check_labels(label)
  _check_values("weight", weight >= 0, "0 or more")
  if group.dtype.kind not in "iu":
    raise InputError(f"group: expected integers, found {group.dtype.name}.")
  _check_values("group", group >= 0, "0 or more")
  weight = weight.astype(np.float64)
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
    found = np.where(pairs > 0, area / pairs, np.nan)
  # Running sums over all groups round: a perfect order could be above 1.
  return np.clip(found, 0, 1)


def auc(score: np.ndarray, label: np.ndarray) -> float:
  """Area under the ROC curve, ties count half; NaN with a single class.

  Args:
    score: `[n]` predictions, any monotone scale.
    label: `[n]` 0 or 1.

  Raises:
    InputError: as `weighted_auc`.
  """
  score, label = as_columns({"score": score, "label": label})
  ones = np.ones(len(score))
  value = weighted_auc(score, label, ones, np.zeros(len(score), np.int64))
  return float(value[0])


def gauc(score: np.ndarray, label: np.ndarray, user: np.ndarray) -> float:
  """Mean AUC of the users weighted by impressions; users of one class left out.

  Args:
    score: `[n]` predictions, any monotone scale.
    label: `[n]` 0 or 1.
    user: `[n]` integer user of each impression.

  Returns:
    The mean, NaN if no user has both classes.

  Raises:
    InputError: as `weighted_auc`.
  """
  score, label, user = as_columns(
    {"score": score, "label": label, "user": user}
  )
  _, dense = np.unique(user, return_inverse=True)
  value = weighted_auc(score, label, np.ones(len(score)), dense)
  both = np.isfinite(value)
  if not both.any():
    return float("nan")
  return float(np.average(value[both], weights=np.bincount(dense)[both]))


def log_loss(probability: np.ndarray, label: np.ndarray) -> float:
  """Mean negative log likelihood in nats.

  Args:
    probability: `[n]` in [0, 1]; taken for 1e-7 from either end at least.
    label: `[n]` 0 or 1.

  Raises:
    InputError: a value is masked, not finite or out of range, or the lengths
      differ or are 0.
  """
  p, label = as_columns({"probability": probability, "label": label})
  _check_values("probability", (p >= 0) & (p <= 1), "values from 0 to 1")
  _check_labels(label)
  p = np.clip(p.astype(np.float64), 1e-7, 1 - 1e-7)
  return float(-np.mean(label * np.log(p) + (1 - label) * np.log1p(-p)))


def calibration_error(
  prediction: np.ndarray, label: np.ndarray, bins: int = 10
) -> float:
  """Mean |mean prediction - mean label| over bins of equal size.

  Args:
    prediction: `[n]` in the unit of the label.
    label: `[n]`.
    bins: quantile bins of the prediction; as many as there are impressions, if
      those are fewer.

  Returns:
    Relative to the mean label, so that rare and frequent ones compare; NaN
    where that is 0.

  Raises:
    InputError: a value is masked or not finite, or the lengths differ or are 0.
  """
  prediction, label = as_columns({"prediction": prediction, "label": label})
  mean = np.mean(label)
  if not mean:
    return float("nan")
  order = np.argsort(prediction, kind="stable")
  gaps = [
    abs(prediction[part].mean() - label[part].mean()) * len(part)
    for part in np.array_split(order, min(bins, len(order)))
  ]
  return float(np.sum(gaps) / len(order) / mean)
