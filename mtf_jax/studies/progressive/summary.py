"""What a reader wants first of a run: `summary.json`."""

from collections.abc import Mapping
from typing import Any

from mtf_jax.studies.progressive.comparisons import (
  CONTESTS,
  HEADROOM,
  IN_BOX,
)

_LAST_ROUND = (
  *("reward_gain_pct", "reward_gain_ci95", "reward_p_value"),
  *("uvc_gain_pct", "udt_gain_pct", "session_length_gain_pct"),
  *("hate_rate", "hate_rate_base"),
)
_OVER_ROUNDS = ("exploration_cost_pct", "gaussian_cost_pct", "outside_share")


def _critic_figures(check: Mapping[str, Any]) -> dict[str, Any]:
  """Correlations are those without the noise of the returns."""
  figures = {}
  for part in ("value", "advantage", "advantage_held"):
    for name, source in (
      ("correlation", "correlation_without_noise"),
      ("slope", "slope"),
    ):
      for end in ("", "_ci95"):
        figures[f"critic_{part}_{name}{end}"] = check[part][f"{source}{end}"]
  return figures


def learner_figures(found: Mapping[str, Any]) -> dict[str, Any]:
  """Figures of one learner under one seed and leaving model.

  None where a figure is not defined.

  Args:
    found: its entry in the result of `play_group`.
  """
  rounds, last = found["rounds"], found["rounds"][-1]
  figures = {name: last[name] for name in _LAST_ROUND}
  for contest in CONTESTS:
    # A run of an earlier version has not all of them.
    known = found["contests"].get(contest.name, {"pct": None, "ci95": None})
    for name, value in known.items():
      figures[f"{contest.name}_{name}"] = value
  for name in _OVER_ROUNDS:
    values = [row[name] for row in rounds]
    figures[name] = None if None in values else sum(values) / len(rounds)
  gain = figures["reward_gain_pct"]
  # Such is the baseline policy, but for runs of earlier versions.
  converged = IN_BOX in found["contests"]
  figures["over_global_pct"] = gain if converged else None
  interval = figures["reward_gain_ci95"]
  figures["over_global_ci95"] = interval if converged else None
  for name, contest in (
    ("headroom_reached", HEADROOM),
    ("share_of_in_box_optimum", IN_BOX),
  ):
    bound = figures[f"{contest}_pct"]
    known = gain is not None and bound is not None and bound > 0
    figures[name] = gain / bound if known else None
  if "last_round" in found["critic_check"]:
    figures |= _critic_figures(found["critic_check"]["last_round"])
  return figures


def seed_summary(result: Mapping[str, Any]) -> dict[str, Any]:
  """One seed and leaving model: the first learner's figures, then the others'.

  Args:
    result: the seed's entry in the result of `play_group`.
  """
  first, *others = result["learners"]
  return {
    "fingerprint": result["fingerprint"],
    "learner": first,
    **learner_figures(result["learners"][first]),
    "other_learners": {
      name: learner_figures(result["learners"][name]) for name in others
    },
  }
