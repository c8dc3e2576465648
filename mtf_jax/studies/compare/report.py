"""Tables of a comparison, and the report as Markdown."""

import importlib.util
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mtf_jax.evaluation.statistics import mean_interval
from mtf_jax.evaluation.tables import Table
from mtf_jax.io import json_text
from mtf_jax.studies import pages
from mtf_jax.studies.compare.bench import GLOBAL
from mtf_jax.studies.compare.methods import METHODS
from mtf_jax.studies.compare.offline import LOG_GAUC, metrics_of
from mtf_jax.studies.compare.plan import CompareDir, Plan

Row = Mapping[str, Any]

_LABELS = {
  "baseline": "ES in service",
  **GLOBAL,
  **{name: method.label for name, method in METHODS.items()},
}
_DATA = {"search": "", "gaussian": "Gaussian", "box": "box"}


def label(row: Row) -> str:
  """The policy of a row, in words."""
  version = row["version"].replace("_", " ")
  return _LABELS[row["learner"]] + (
    "" if version == "global" else f", {version}"
  )


def data_label(row: Row) -> str:
  """Its log, in words."""
  return _DATA.get(row["data"], row["data"])


def by_policy(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
  """Rows of all seeds and leaving models, by policy and log, in order."""
  found: dict[tuple[str, str], list[Row]] = {}
  for row in rows:
    found.setdefault((label(row), data_label(row)), []).append(row)
  return found


def shown(value: float | None, form: str) -> str:
  """A figure; a dash where it is not defined."""
  return "-" if value is None else format(value, form)


def over_groups(
  rows: Sequence[Row], name: str, form: str, ci95: str | None = None
) -> str:
  """The mean of a figure over rows, with its interval.

  Args:
    rows: of one policy.
    name: of the figure.
    form: format of a number.
    ci95: name of its interval in a single row; None for a figure without one.
  """
  values = [row[name] for row in rows if row.get(name) is not None]
  if not values:
    return "-"
  mean, ends = statistics.fmean(values), (None, None)
  if len(values) > 1:
    ends = mean_interval(values)
  elif ci95 is not None:
    ends = next(row[ci95] for row in rows if row.get(name) is not None)
  if None in ends:
    return format(mean, form)
  low, high = (format(end, form) for end in ends)
  return f"{format(mean, form)} [{low}, {high}]"


def _table(
  title: str,
  note: str,
  rows: Sequence[Row],
  columns: Mapping[str, Callable[[Sequence[Row]], str]],
) -> Table:
  return Table(
    title,
    note,
    ("policy", "log", *columns),
    [
      (*names, *(cell(group) for cell in columns.values()))
      for names, group in by_policy(rows).items()
    ],
  )


def _mean(name: str, form: str, ci95: str | None = None):
  return lambda group: over_groups(group, name, form, ci95)


def _failures(group: Sequence[Row]) -> str:
  failed = sum("failed" in row for row in group)
  return f"{failed} of {len(group)}" if failed else ""


_SPREAD = (
  " Means over seeds and leaving models with 95% intervals over them; of a single"
  " one, the interval is over its users or sessions."
)


def tables(
  rows: Sequence[Row], metrics: Sequence[Mapping[str, Any]]
) -> list[Table]:
  """Tables 1 to 3 of the paper with the truth beside them, and ours.

  Args:
    rows: of `compare.json`.
    metrics: of `summary.offline_against_truth`.
  """
  estimates = _table(
    "Table 1: value estimated offline",
    "NCIS is reward a request, the doubly robust value reward a session,"
    " FQE the discounted one, all from one test log of uniform boxes around the"
    " ES policy; the truth is reward a session. `outside` is the share of the"
    " policy's actions that no logged box holds: there, estimates extrapolate."
    + _SPREAD,
    rows,
    {
      "NCIS, wide": _mean("ncis", ".4f"),
      "NCIS, narrow": _mean("ncis_narrow", ".4f"),
      "doubly robust": _mean("dr", ".2f", "dr_ci95"),
      "FQE": _mean("fqe", ".2f"),
      "truth": _mean("reward_per_session", ".2f"),
      "outside": _mean("outside_share", ".0%"),
    },
  )
  known = [name for name in ("mtf_gauc", LOG_GAUC) if name in metrics_of(rows)]
  of_log = ""
  if LOG_GAUC in known:
    of_log = (
      " On the log's held-out days the same of what each user was shown in a day;"
      " unless the world was fitted to the days before, it has seen these."
    )
  gauc = _table(
    "Table 2: MTF-GAUC",
    "Of the lists shown in the test log: within a list, valid consumption against"
    " the fused score, items weighted by their reward." + of_log + _SPREAD,
    rows,
    {metrics_of(rows)[name]: _mean(name, ".4f") for name in known},
  )
  truth = _table(
    "Table 3: true gains",
    "Percent, over ES in service on the same users and sessions, and of the reward"
    " over converged global weights, which no method without personal weights can"
    " beat." + _SPREAD,
    rows,
    {
      "reward": _mean("reward_gain_pct", "+.2f", "reward_gain_ci95"),
      "over global": _mean("over_global_pct", "+.2f", "over_global_ci95"),
      "UVC": _mean("uvc_gain_pct", "+.2f", "uvc_gain_ci95"),
      "UDT": _mean("udt_gain_pct", "+.2f", "udt_gain_ci95"),
      "length": _mean(
        "session_length_gain_pct", "+.2f", "session_length_gain_ci95"
      ),
      "p": lambda group: (
        shown(group[0].get("reward_p_value"), ".1g") if len(group) == 1 else ""
      ),
      "hate rate": _mean("hate_rate", ".5f"),
      "failed": _failures,
    },
  )
  cost = _table(
    "Cost",
    "Updates a second without the first chunk, which holds the compiler; seconds"
    " of training, of logging in rounds, and megabytes of the learner's state.",
    [row for row in rows if row["version"] != "global"],
    {
      "updates/s": _mean("updates_per_s", ".0f"),
      "train s": _mean("train_s", ".1f"),
      "logging s": _mean("collect_s", ".1f"),
      "state MB": _mean("state_mb", ".2f"),
    },
  )
  return [estimates, gauc, truth, _ordering(metrics, metrics_of(rows)), cost]


def _ordering(
  metrics: Sequence[Mapping[str, Any]], names: Mapping[str, str]
) -> Table:
  """How well each offline metric, by its name in words, orders policies."""

  def with_ends(value, ends, form):
    low, high = (shown(end, form) for end in ends)
    return f"{shown(value, form)} [{low}, {high}]"

  return Table(
    "Table 4: offline metrics against the truth",
    "Spearman's correlation with the true gain over the policies of a seed and"
    " leaving model, and what is lost by serving the one with the largest metric"
    " instead of the best, percent of reward. Means with 95% intervals over seeds"
    " and leaving models; of a single one, over its policies.",
    ("metric", "rank correlation", "regret %", "policies"),
    [
      (
        names[found["metric"]],
        with_ends(found["rank_correlation"], found["ci95"], "+.2f"),
        with_ends(found["regret_pct"], found["regret_ci95"], ".2f"),
        str(found["policies"]),
      )
      for found in metrics
    ],
  )


def write(
  folder: CompareDir,
  found: Sequence[Table],
  rows: Sequence[Row],
  plan: Plan,
  say: Callable[[str], None],
) -> None:
  """Writes `report.md`, and `report.html` where matplotlib is installed."""
  configuration = json_text(plan.to_json(), indent=1)
  folder.write_text(
    "report.md", pages.markdown("Comparison", found, configuration)
  )
  if importlib.util.find_spec("matplotlib") is None:
    say("No report.html: matplotlib (the `plots` extra) is not installed.")
    return
  from mtf_jax.studies.compare import report_html  # Needs matplotlib.

  folder.write_text("report.html", report_html.html(found, rows, configuration))
