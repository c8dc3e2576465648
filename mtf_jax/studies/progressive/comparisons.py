"""Which policies are compared, by what: one list, one entry each.

A new rival is an entry of `baselines.RIVALS`, which evaluates it, and one here;
results, summary, tables and pictures loop over the two.

Letters: `R` seeds, `B` sessions.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from mtf_jax.evaluation.ab_test import EvalResult
from mtf_jax.evaluation.statistics import Comparison, paired_comparison

BASELINE = "baseline_policy"
LAST_ROUND = "last_round"
IN_BOX = "in_box_optimum"  # What the rounds could reach.
HEADROOM = "headroom"  # The contest that says how much there is to gain.


class Contest(NamedTuple):
  """A policy compared with another on the same sessions.

  name: in results and in the summary, where `_pct` and `_ci95` follow it.
  policy, base: names of evaluated policies.
  label: row of a table.
  metric: field of `EvalResult` that is compared, a number for each session.
  """

  name: str
  policy: str
  base: str
  label: str
  metric: str = "reward"


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
  Contest("es_gain", "platform_es", BASELINE, "ES, as many sessions"),
  Contest("over_es", LAST_ROUND, "platform_es", "last round over that ES"),
  Contest(
    IN_BOX, "in_box_optimum", BASELINE, "privileged search, rounds' boxes"
  ),
  Contest(
    "reward_gain_uncut",
    "last_round_uncut",
    "baseline_policy_uncut",
    "last round, sessions not cut",
  ),
  Contest(HEADROOM, "oracle", BASELINE, "privileged search, anywhere"),
)


def compare_sessions(
  policy: EvalResult, base: EvalResult, metric: str
) -> list[Comparison]:
  """Paired comparisons of one metric of the sessions, by seed."""
  policy, base = jax.device_get((policy, base))
  ours, theirs = getattr(policy, metric), getattr(base, metric)
  return [
    paired_comparison(ours[n], theirs[n], base.user[n])
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
    contest.name: compare_sessions(
      results[contest.policy], results[contest.base], contest.metric
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
