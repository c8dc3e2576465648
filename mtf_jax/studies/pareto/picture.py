"""The front as a picture; needs matplotlib (the `plots` extra)."""

import os
from typing import Any

import numpy as np

from mtf_jax.io import replacing
from mtf_jax.studies.pages import BLUE, GREY, ORANGE, figure
from mtf_jax.studies.pareto.front import EQUAL


def _dominated(axes: Any, better: np.ndarray) -> None:
  """Shades the area between the baseline and the points `[N, 2]` beyond it."""
  if not len(better):
    return
  first, second = better[np.argsort(better[:, 0])].T
  # Each point's rectangle down to the baseline, joined to one outline.
  axes.fill_between(
    np.append(0.0, first),
    np.append(second, second[-1]),
    step="post",
    color=BLUE,
    alpha=0.12,
    linewidth=0,
  )


def _points(axes: Any, rows: Any, title: str) -> np.ndarray:
  """Draws points with intervals, those on the front in another colour."""
  x, y = (
    np.array([row[f"{n}_{title}_pct"] for row in rows])
    for n in ("watch", "valid")
  )
  errors = [
    np.abs(np.array([row[f"{n}_{title}_ci95"] for row in rows]).T - values)
    for n, values in (("watch", x), ("valid", y))
  ]
  kept = np.array([row["on_front"] for row in rows])
  equal = np.array([row["share"] == EQUAL for row in rows])
  for colour, chosen, fmt in (
    (GREY, ~kept & ~equal, "o"),
    (BLUE, kept & ~equal, "o"),
    (ORANGE, equal, "D"),
  ):
    axes.errorbar(
      x[chosen],
      y[chosen],
      xerr=errors[0][:, chosen],
      yerr=errors[1][:, chosen],
      fmt=fmt,
      color=colour,
      elinewidth=0.7,
      markersize=4,
    )
  return np.stack([x, y], axis=1)


def save(result: dict[str, Any], path: str | os.PathLike[str]) -> None:
  """Draws the front twice: beyond the baseline, and around equal weights.

  Args:
    result: of `front.measure`.
    path: PNG file, replaced whole.
  """
  rows = result["rows"]
  drawn = figure(10, 4.6)
  left, right = drawn.subplots(1, 2)
  points = _points(left, rows, "gain")
  kept = np.array([row["on_front"] for row in rows])
  _dominated(left, points[kept & (points > 0).all(axis=1)])
  left.plot(0, 0, "+", color="black", markersize=10)
  left.annotate("baseline", (0, 0), (6, 6), textcoords="offset points")
  left.set(
    title="over the baseline policy; shaded: dominated",
    xlabel="seconds watched, %",
    ylabel="valid consumptions, %",
  )
  places = _points(right, rows, "over_equal")
  for row, place in zip(rows, places, strict=True):
    right.annotate(
      f"{row['share']:g}",
      place,
      (4, 4),
      textcoords="offset points",
      fontsize=8,
      color=BLUE if row["on_front"] else GREY,
    )
  right.set(
    title="over equal weights; numbers: weight of watching, out of 1",
    xlabel="seconds watched, %",
    ylabel="valid consumptions, %",
  )
  for axes in (left, right):
    axes.title.set_fontsize(10)
    axes.spines[["top", "right"]].set_visible(False)
  with replacing(path) as file:
    drawn.savefig(file, format="png", dpi=120)
