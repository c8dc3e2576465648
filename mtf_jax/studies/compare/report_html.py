"""The report of a comparison as one page of HTML with figures.

Needs matplotlib (the `plots` extra).
"""

import html as html_lib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtf_jax.evaluation.statistics import mean_interval
from mtf_jax.evaluation.tables import Table
from mtf_jax.studies.compare.offline import metrics_of
from mtf_jax.studies.compare.report import by_policy
from mtf_jax.studies.pages import (
  BLUE,
  GREEN,
  GREY,
  ORANGE,
  figure,
  html_page,
  html_table,
  image,
)

_COLORS = {
  "": GREY,
  "Gaussian": ORANGE,
  "box": BLUE,
  "progressive": GREEN,
}

# Gains beyond are drawn at the edge: one policy far off would hide what the
# others differ by.
_FAR = 8.0


def _gain(rows: Sequence[Mapping[str, Any]], name: str) -> list[float] | None:
  """Mean and ends of a gain over rows; None where no row has it."""
  known = [row for row in rows if row.get(f"{name}_pct") is not None]
  if not known:
    return None
  values = [row[f"{name}_pct"] for row in known]
  ends = known[0][f"{name}_ci95"]
  if len(values) > 1:
    ends = mean_interval(values)
  return [float(np.mean(values)), *(np.nan if x is None else x for x in ends)]


def _forest(rows: Sequence[Mapping[str, Any]]) -> str:
  """Gains over ES and over converged global weights, one line a policy.

  An arrow at the edge is a policy farther off.
  """
  groups = by_policy(rows)
  drawn = figure(10, 1.2 + 0.2 * len(groups))
  panels = drawn.subplots(1, 2, sharey=True)
  for axes, name, title in zip(
    panels,
    ("reward_gain", "over_global"),
    ("over ES in service", "over converged global weights"),
    strict=True,
  ):
    for place, ((_, data), group) in enumerate(groups.items()):
      found = _gain(group, name)
      if found is not None:
        mean, low, high = np.clip(found, -_FAR, _FAR)
        axes.errorbar(
          mean,
          place,
          xerr=[[mean - low], [high - mean]],
          fmt="o" if abs(mean) < _FAR else "<>"[int(mean > 0)],
          markersize=4,
          capsize=2,
          color=_COLORS[data],
        )
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(f"reward {title}, %", fontsize=9)
    axes.set_ylim(len(groups) - 0.5, -0.5)
  names = [f"{policy} ({data})" if data else policy for policy, data in groups]
  panels[0].set_yticks(range(len(names)), names, fontsize=7)
  return image(drawn, "true gain of every policy")


def _scatter(rows: Sequence[Mapping[str, Any]]) -> str:
  """Each offline metric against the truth, a point a policy and seed."""
  metrics = metrics_of(rows)
  columns = len(metrics) // 2 + 1  # The last panel is the legend's.
  drawn = figure(10, 6)
  grid = drawn.subplots(2, columns)
  for axes in grid.flat[len(metrics) :]:
    axes.axis("off")
  for axes, (metric, title) in zip(grid.flat, metrics.items(), strict=False):
    for (_, data), group in by_policy(rows).items():
      points = [
        (row[metric], np.clip(row["reward_gain_pct"], -_FAR, _FAR))
        for row in group
        if row.get(metric) is not None
        and row.get("reward_gain_pct") is not None
      ]
      if points:
        axes.plot(*zip(*points, strict=True), ".", color=_COLORS[data])
    axes.set_xlabel(title, fontsize=9)
    axes.tick_params(labelsize=8)
  legend = grid.flat[-1]
  for data, color in _COLORS.items():
    legend.plot([], [], ".", color=color, label=data or "global weights")
  legend.legend(title="log", frameon=False, loc="center")
  drawn.supylabel("true gain over ES in service, %", fontsize=10)
  return image(drawn, "offline metrics against the truth")


def html(
  tables: Sequence[Table],
  rows: Sequence[Mapping[str, Any]],
  configuration: str,
) -> str:
  """One self-contained page, tables first.

  Args:
    tables: of `report.tables`.
    rows: of `compare.json`.
    configuration: JSON shown at the end.
  """
  parts = [
    f"<h2>{html_lib.escape(table.title)}</h2>{html_table(table)}"
    for table in tables
  ]
  parts.append(
    "<h2>True gains</h2><p>Gains beyond"
    f" {_FAR:g} % are drawn at the edge.</p>{_forest(rows)}"
  )
  parts.append(f"<h2>Offline against true</h2>{_scatter(rows)}")
  return html_page("Comparison", parts, configuration)
