"""MTF-GAUC: how well a fused score orders what was really shown and consumed.

  `sum_u w(u) WeightedAUC(u) / sum_u w(u)`

Within a user the label is valid consumption, the weight of an impression is the
item's reward, and the prediction is the fused score [1]. [1] leaves the user
weight open; here it is the user's impressions, as is usual for GAUC.

A user's impressions of one day are one unit, scored under one action. Within it
the AUC only knows the order, so that no increasing normalisation of the fused
score ([1] names one, without a formula) can change it; scores under different
actions are never compared.

Letters: `n` impressions, `D` user days, `U` users.

References:
  [1] Liu et al., "UnifiedRL: A Reinforcement Learning Algorithm Tailored for
  Multi-Task Fusion in Large-Scale Recommender Systems", arXiv 2404.17589,
  offline metrics.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mtf_jax.arrays import as_numbers
from mtf_jax.evaluation import statistics as stats
from mtf_jax.io import InputError, as_array
from mtf_jax.ranking import metrics

# An impression that earned nothing weighs so little that others decide; where
# all of a label's impressions earned nothing, they count alike.
_MIN_WEIGHT = 1e-6


class Impressions(NamedTuple):
  """What was shown to users, and what they did.

  label: `[n]` 0 or 1, valid consumption.
  reward: `[n]` non-negative, the item's reward.
  day: int `[n]`, which user day an impression is of, from 0.
  user: int `[D]`, the user of each user day.
  """

  label: np.ndarray
  reward: np.ndarray
  day: np.ndarray
  user: np.ndarray


def day_auc(score: np.ndarray, impressions: Impressions) -> np.ndarray:
  """Weighted AUC of each user day, `[D]`.

  NaN where all impressions have one label.

  Args:
    score: `[n]` fused scores, on any scale that increases with them.
    impressions: what was shown.

  Raises:
    InputError: a score, label or reward is masked or not finite, a reward
      negative, a label neither 0 nor 1, or lengths or days do not fit.
  """
  reward = as_numbers(impressions.reward, "impressions.reward")
  if (reward < 0).any():
    raise InputError(
      "impressions.reward: expected 0 or more, found"
      f" {int((reward < 0).sum())} negative ones."
    )
  weight = np.maximum(reward, _MIN_WEIGHT)
  found = metrics.weighted_auc(
    score, impressions.label, weight, impressions.day
  )
  if found.shape != np.shape(impressions.user):
    raise InputError(
      "impressions.day: expected impressions of each of the"
      f" {len(impressions.user)} user days, the last included, found"
      f" {len(found)} days."
    )
  return found


def _sums(auc, impressions, users):
  """Per user: impressions of the days that count, and these times their AUC."""
  # NaN is a day of one label.
  good = np.isnan(auc) | ((auc >= 0) & (auc <= 1))
  if np.shape(auc) != np.shape(impressions.user) or not good.all():
    raise InputError(
      f"auc: expected values from 0 to 1, or NaN, of"
      f" {len(impressions.user)} user days, found shape {np.shape(auc)} and"
      f" {int((~good).sum())} other values."
    )
  counts = np.bincount(impressions.day, minlength=len(impressions.user))
  weight = np.where(np.isfinite(auc), counts, 0.0)
  total = weight * np.where(np.isfinite(auc), auc, 0.0)
  size = len(users)
  place = np.searchsorted(users, impressions.user)
  return np.bincount(place, total, size), np.bincount(place, weight, size)


def mtf_gauc(auc: np.ndarray, impressions: Impressions) -> float:
  """The mean of `day_auc` weighted by impressions; NaN if no day counts.

  Args:
    auc: `[D]` of `day_auc`.
    impressions: what was shown.

  Raises:
    InputError: `auc` is none of these impressions.
  """
  auc = as_array(auc, "auc")
  total, weight = _sums(auc, impressions, np.unique(impressions.user))
  return float(total.sum() / weight.sum()) if weight.any() else float("nan")


def compare_policies(
  auc: Mapping[str, np.ndarray],
  impressions: Impressions,
  base: str,
  *,
  replicates: int = 2000,
  seed: int = 0,
) -> dict[str, Any]:
  """MTF-GAUC of several policies with intervals over users, ready for JSON.

  Args:
    auc: `day_auc` of each policy on the same impressions; the mean of several
      runs' `day_auc` judges the runs' mean.
    impressions: what was shown.
    base: the policy that differences are taken to.
    replicates: of the bootstrap; the same for all, so that differences are
      paired.
    seed: of the bootstrap.

  Returns:
    By policy `gauc`, `ci95`, `minus_base`, `minus_base_ci95`.

  Raises:
    InputError: `base` is none of the policies, no day has both labels, or a
      policy's AUC are none of these impressions or undefined on other days than
      the base's: its mean would be over other days.
  """
  if base not in auc:
    raise InputError(f"base: expected one of {list(auc)}, found {base!r}.")
  auc = {name: as_array(value, f"auc[{name!r}]") for name, value in auc.items()}
  for name, value in auc.items():
    if not np.array_equal(np.isnan(value), np.isnan(auc[base])):
      raise InputError(
        f"auc[{name!r}]: expected NaN on the days of {base!r} and no others,"
        f" found {int(np.isnan(value).sum())} instead of"
        f" {int(np.isnan(auc[base]).sum())} such days, or others."
      )
  users = np.unique(impressions.user)
  sums = {name: _sums(value, impressions, users) for name, value in auc.items()}
  weight = sums[base][1]
  if not weight.any():
    raise InputError(
      "impressions: expected a user day with both labels, found none."
    )
  counted = weight > 0
  counts = stats.resample(int(counted.sum()), replicates, seed)
  totals = {name: total[counted] for name, (total, _) in sums.items()}
  weight = weight[counted]
  drawn = {
    name: (counts @ total) / (counts @ weight) for name, total in totals.items()
  }
  base_value = totals[base].sum() / weight.sum()
  result = {}
  for name, total in totals.items():
    value = total.sum() / weight.sum()
    result[name] = {
      "gauc": float(value),
      "ci95": stats.interval(drawn[name]),
      "minus_base": float(value - base_value),
      "minus_base_ci95": stats.interval(drawn[name] - drawn[base]),
    }
  return result
