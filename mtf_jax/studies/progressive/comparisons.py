"""Policies to be judged and what each is held against: one list, one entry each.

A new rival is a policy judged under a name of its own and an entry here;
results, summary and tables loop over the list.

Letters: `R` seeds, `B` sessions.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from mtf_jax.evaluation.ab_test import EvalResult
from mtf_jax.evaluation.statistics import Comparison, paired_comparison

BASELINE = "baseline_policy"
LAST_ROUND = "last_round"


class Contest(NamedTuple):
  """A policy held against another, by the reward of the session.

  name: in results and in the summary, where `_pct` and `_ci95` follow it.
  policy, base: names of judged policies.
  label: row of a table.
  """

  name: str
  policy: str
  base: str
  label: str


CONTESTS = (
  Contest(
    "single_batch_gain",
    "single_batch",
    BASELINE,
    "single batch of as much data",
  ),
  Contest(
    "over_single_batch",
    LAST_ROUND,
    "single_batch",
    "last round over the single batch",
  ),
  Contest(
    "es_matched_budget_gain",
    "es_matched_budget",
    BASELINE,
    "ES, matched budget",
  ),
  Contest(
    "over_es_matched_budget",
    LAST_ROUND,
    "es_matched_budget",
    "last round over ES, matched budget",
  ),
  Contest(
    "reward_gain_uncut",
    "last_round_uncut",
    "baseline_policy_uncut",
    "last round, sessions not cut",
  ),
  Contest("headroom", "oracle", BASELINE, "privileged search"),
)


def compare_rewards(policy: EvalResult, base: EvalResult) -> list[Comparison]:
  """Paired comparisons of the session reward, by seed."""
  policy, base = jax.device_get((policy, base))
  return [
    paired_comparison(policy.reward[n], base.reward[n], base.user[n])
    for n in range(base.user.shape[0])
  ]


def contest_results(
  results: Mapping[str, EvalResult],
) -> list[dict[str, dict[str, Any]]]:
  """All contests by seed, ready for JSON.

  Args:
    results: by name, all policies of `CONTESTS`, each `[R, B]`.

  Returns:
    By seed and contest `pct` and `ci95`.
  """
  found = {
    contest.name: compare_rewards(
      results[contest.policy], results[contest.base]
    )
    for contest in CONTESTS
  }
  (count,) = {len(gains) for gains in found.values()}
  return [
    {
      name: {"pct": gains[n].gain, "ci95": list(gains[n].ci95)}
      for name, gains in found.items()
    }
    for n in range(count)
  ]
