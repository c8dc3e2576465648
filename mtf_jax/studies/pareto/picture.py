"""The front as a picture; needs matplotlib (the `plots` extra)."""

import os
from typing import Any

import numpy as np

from mtf_jax.io import replacing
from mtf_jax.studies.pages import BLUE, GREY, ORANGE, figure


def save(result: dict[str, Any], path: str | os.PathLike[str]) -> None:
  """Draws gains with intervals, the area they dominate, and the run's weights.

  Args:
    result: of `front.measure`.
    path: PNG file, replaced whole.
  """
  drawn = figure(6.4, 4.8)
  axes = drawn.subplots()
  rows = result["rows"]
  points = np.array([[r["watch_gain_pct"], r["valid_gain_pct"]] for r in rows])
  ends = np.array([[r["watch_gain_ci95"], r["valid_gain_ci95"]] for r in rows])
  kept = np.array([r["on_front"] for r in rows])
  better = points[kept & (points > 0).all(axis=1)]
  if len(better):
    first, second = better[np.argsort(better[:, 0])].T
    # Each point's rectangle down to the baseline, joined to one outline.
    heights = np.append(second, 0.0)
    axes.fill_between(
      np.append(0.0, first), heights, step="post", color=BLUE, alpha=0.12, lw=0
    )
    axes.text(
      first[0] * 0.5,
      second[0] * 0.5,
      "dominated",
      color=BLUE,
      ha="center",
      va="center",
    )
  for colour, chosen in ((BLUE, kept), (GREY, ~kept)):
    if chosen.any():
      axes.errorbar(
        *points[chosen].T,
        xerr=np.abs(ends[chosen, 0].T - points[chosen, 0]),
        yerr=np.abs(ends[chosen, 1].T - points[chosen, 1]),
        fmt="o",
        color=colour,
        elinewidth=0.7,
        markersize=4,
      )
  for row, point in zip(rows, points, strict=True):
    if row["share"] in (0.0, 0.5, 1.0):
      text = "as trained" if row["share"] == 0.5 else f"{row['share']:.0f}"
      axes.annotate(text, point, (7, 7), textcoords="offset points", fontsize=9)
    if row["share"] == 0.5:
      axes.plot(*point, "D", color=ORANGE, markersize=7, zorder=3)
  axes.plot(0, 0, "+", color="black", markersize=10)
  axes.annotate("baseline", (0, 0), (7, -12), textcoords="offset points")
  axes.set(
    title="numbers: share of watching time in the reward",
    xlabel="seconds watched, % over the baseline policy",
    ylabel="valid consumptions, %",
  )
  axes.title.set_fontsize(10)
  axes.spines[["top", "right"]].set_visible(False)
  with replacing(path) as file:
    drawn.savefig(file, format="png", dpi=120)
