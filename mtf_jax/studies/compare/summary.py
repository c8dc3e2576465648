"""How well offline metrics order policies whose true value is known.

Within one seed and leaving model every policy has its true gain and its offline
metrics from one test log. The rank correlation of the two says whether a metric
orders policies; its regret is what one loses by serving the policy that it likes
best instead of the best one. Groups are independent worlds, so that intervals are
over them.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtf_jax.evaluation.statistics import interval, mean_interval
from mtf_jax.studies.compare.offline import metrics_of

_REPLICATES = 2000


def ranks(values: Sequence[float]) -> np.ndarray:
  """Ranks from 0, ties sharing their mean."""
  values = np.asarray(values, np.float64)
  below = (values[None, :] < values[:, None]).sum(axis=1)
  equal = (values[None, :] == values[:, None]).sum(axis=1)
  return below + (equal - 1) / 2


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float | None:
  """Spearman's; None where one of them has a single value."""
  first, second = (ranks(values) for values in (a, b))
  if len(first) < 2 or not first.std() or not second.std():
    return None
  return float(np.corrcoef(first, second)[0, 1])


def _groups(
  rows: Sequence[Mapping[str, Any]], metric: str
) -> list[list[Mapping[str, Any]]]:
  """Rows that have both the metric and the truth, by seed and leaving model."""
  found: dict[tuple[Any, Any], list[Mapping[str, Any]]] = {}
  for row in rows:
    known = row.get(metric) is not None
    if known and row.get("reward_gain_pct") is not None:
      found.setdefault((row["seed"], row["leaving"]), []).append(row)
  return list(found.values())


def _within(group: Sequence[Mapping[str, Any]], metric: str) -> list[Any]:
  """Interval of the correlation in one group, its policies drawn again."""
  rng = np.random.default_rng(0)
  columns = np.array([[row[metric], row["reward_gain_pct"]] for row in group])
  drawn = []
  for _ in range(_REPLICATES):
    sample = columns[rng.integers(len(group), size=len(group))]
    found = rank_correlation(sample[:, 0], sample[:, 1])
    if found is not None:
      drawn.append(found)
  return interval(np.array(drawn))


def offline_against_truth(
  rows: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
  """One entry a metric, ready for JSON.

  Args:
    rows: of all policies, global weights included; those that failed or have no
      such metric are left out, and `policies` counts the others.

  Returns:
    `metric, rank_correlation, ci95, regret_pct, regret_ci95, policies, groups`.
    The intervals are over groups; with a single one, that of the correlation is
    over its policies, and the regret has none. None where undefined.
  """
  entries = []
  for metric in metrics_of(rows):
    groups = _groups(rows, metric)
    found, regrets = [], []
    for group in groups:
      truth = [row["reward_gain_pct"] for row in group]
      values = [row[metric] for row in group]
      correlation = rank_correlation(values, truth)
      if correlation is not None:
        found.append(correlation)
      regrets.append(max(truth) - truth[int(np.argmax(values))])
    ci95: list[Any] = [None, None]
    if len(found) > 1:
      ci95 = list(mean_interval(found))
    elif found and len(groups) == 1:
      ci95 = _within(groups[0], metric)
    several = len(regrets) > 1
    entries.append(
      {
        "metric": metric,
        "rank_correlation": statistics.fmean(found) if found else None,
        "ci95": ci95,
        "regret_pct": statistics.fmean(regrets) if regrets else None,
        "regret_ci95": (
          list(mean_interval(regrets)) if several else [None, None]
        ),
        "policies": sum(map(len, groups)),
        "groups": len(groups),
      }
    )
  return entries
