"""The report of a progressive run as one page of HTML with figures.

Needs matplotlib (the `plots` extra).
"""

import html as html_lib
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np

from mtf_jax.data.behaviours import TASKS
from mtf_jax.evaluation.tables import Table
from mtf_jax.kernels.exploration import HALF_WIDTH
from mtf_jax.studies.pages import (
  BLUE,
  GREEN,
  GREY,
  ORANGE,
  html_page,
  html_table,
  image,
)
from mtf_jax.studies.pages import figure as new_figure
from mtf_jax.studies.progressive.comparisons import BASELINE, CONTESTS
from mtf_jax.studies.progressive.drift import DRIFT_BIN
from mtf_jax.studies.progressive.report import (
  Columns,
  Page,
  column_names,
  overview_table,
)

_ACTIONS = [f"{kind} {task}" for kind in ("power", "bias") for task in TASKS]


# What the policy of the last round is drawn beside: all that was held against
# the baseline policy on the same sessions.
_RIVALS = [contest for contest in CONTESTS if contest.base == BASELINE]
_MARKERS = "x+1234"
_LINES = ("--", ":", "-.")
_RIVAL_COLORS = (ORANGE, GREEN, GREY)


def _overview_picture(columns: Columns) -> str:
  """Gains with intervals of every seed, leaving models side by side."""
  count = max(len(by_seed) for by_seed in columns.values())
  figure = new_figure(10, 1.4 + 0.22 * count)
  grid = figure.subplots(1, len(columns), sharex=True, squeeze=False)
  for axes, name, by_seed in zip(
    grid.flat, column_names(columns), columns.values(), strict=True
  ):
    place = np.arange(len(by_seed))
    figures = list(by_seed.values())
    gain = np.array([row["reward_gain_pct"] for row in figures], float)
    interval = np.array([row["reward_gain_ci95"] for row in figures], float)
    axes.errorbar(
      gain,
      place,
      xerr=np.abs(interval.T - gain),
      fmt="o",
      color=BLUE,
      capsize=2,
      label="progressive",
    )
    for contest, marker, color in zip(
      _RIVALS, cycle(_MARKERS), cycle(_RIVAL_COLORS), strict=False
    ):
      rival = np.array([row[f"{contest.name}_pct"] for row in figures], float)
      axes.plot(rival, place, marker, color=color, label=contest.label)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(place, [str(seed) for seed in by_seed])
    axes.invert_yaxis()
    axes.set_title(name, fontsize=10)
  handles, labels = grid[0, 0].get_legend_handles_labels()
  figure.legend(
    handles, labels, loc="outside upper right", ncols=4, frameon=False
  )
  figure.supxlabel("reward over the baseline policy, %", fontsize=10)
  figure.supylabel("seed", fontsize=10)
  return image(figure, "gain by seed")


def _gains_picture(result: Mapping[str, Any]) -> str:
  """Gains by round: the reward with intervals, and the other outcomes."""
  figure = new_figure(10, 3.6)
  gains, others = figure.subplots(1, 2)
  rounds = result["rounds"]
  number = [row["round"] for row in rounds]
  gain = np.array([row["reward_gain_pct"] for row in rounds], float)
  interval = np.array([row["reward_gain_ci95"] for row in rounds], float)
  error = np.abs(interval.T - gain)
  gains.errorbar(
    number, gain, error, color=BLUE, marker="o", capsize=3, label="progressive"
  )
  for contest, style, color in zip(
    _RIVALS, cycle(_LINES), cycle(_RIVAL_COLORS), strict=False
  ):
    gain = result["contests"][contest.name]["pct"]
    gains.axhline(
      np.nan if gain is None else gain,
      color=color,
      linestyle=style,
      label=contest.label,
    )
  for name, label, color in (
    ("uvc", "valid consumption", BLUE),
    ("udt", "duration", ORANGE),
    ("session_length", "session length", GREEN),
  ):
    values = np.array([row[f"{name}_gain_pct"] for row in rounds], float)
    others.plot(number, values, marker="o", color=color, label=label)
  for axes, what in ((gains, "reward"), (others, "outcome")):
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(number)
    axes.set(xlabel="round", ylabel=f"{what} over the baseline, %")
    # Room for the legend above the lines.
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.3 * (high - low))
    axes.legend(frameon=False, fontsize=9, loc="upper left", ncols=2)
  return image(figure, "gain by round")


def _training_picture(page: Page) -> str:
  """Every metric of training by update over all rounds, if there are any."""
  if not page.metrics:
    return ""
  step = [row["step"] for row in page.metrics]
  names = [
    name for name in page.metrics[0] if name not in ("seed", "step", "time")
  ]
  columns = 4
  figure = new_figure(10, 1.9 * -(-len(names) // columns) + 0.4)
  grid = figure.subplots(
    -(-len(names) // columns), columns, sharex=True, squeeze=False
  )
  ends = np.linspace(0, step[-1], len(page.result["rounds"]) + 1)[1:-1]
  for axes, name in zip(grid.flat, names, strict=False):
    values = np.array([row[name] for row in page.metrics])
    for column, color in zip(
      values.reshape(len(step), -1).T, (BLUE, ORANGE, GREEN), strict=False
    ):
      axes.plot(step, column, color=color, linewidth=1.2)
    for end in ends:
      axes.axvline(end, color=GREY, linestyle=":", linewidth=0.8)
    axes.set_title(name.replace("_", " "), fontsize=9)
    axes.ticklabel_format(useOffset=False)
  for axes in grid.flat[len(names) :]:
    axes.set_visible(False)
  figure.supxlabel("update; dotted: a new round", fontsize=10)
  return image(figure, "training by update")


def _drift_picture(result: Mapping[str, Any]) -> str:
  """How far each component moved in each round (Fig. 2 of the paper)."""
  figure = new_figure(10, 4.6)
  rounds = result["rounds"]
  histograms = np.array([row["drift_histogram"] for row in rounds], float)
  edges = DRIFT_BIN * np.arange(histograms.shape[2] + 1)
  grid = figure.subplots(2, len(_ACTIONS) // 2, sharex=True, sharey=True)
  for n, (axes, name) in enumerate(zip(grid.flat, _ACTIONS, strict=True)):
    for row, shade in zip(
      histograms[:, n], np.linspace(0.3, 1, len(rounds)), strict=True
    ):
      axes.stairs(row, edges, color=BLUE, alpha=shade)
    axes.axvline(HALF_WIDTH, color=ORANGE, linestyle="--", linewidth=1)
    axes.set_title(name, fontsize=9)
  figure.supxlabel(
    "|new - old action|; later rounds darker; dashed: the box", fontsize=10
  )
  figure.supylabel("share of requests", fontsize=10)
  return image(figure, "drift by action component")


def html(
  columns: Columns,
  pages: Sequence[Page],
  seconds: Table,
  configuration: str,
) -> str:
  """One self-contained page.

  Args:
    columns: as of `overview_table`.
    pages: what is told of each learner, seed and leaving model.
    seconds: of `seconds_table`.
    configuration: JSON shown at the end.

  Returns:
    The page; with several of `pages` each is folded away.
  """
  overview = overview_table(columns)
  parts = [f"<h2>{overview.title}</h2>", html_table(overview)]
  opened = " open"
  if len(pages) > 1:
    opened = ""
    parts.append(_overview_picture(columns))
  for page in pages:
    rounds, *others = page.tables()
    headed = "".join(
      f"<h3>{html_lib.escape(other.title)}</h3>{html_table(other)}"
      for other in others
    )
    parts.append(
      f"<details{opened}><summary>{html_lib.escape(page.title)}</summary>"
      f"{html_table(rounds)}{_gains_picture(page.result)}"
      f"{_drift_picture(page.result)}{_training_picture(page)}"
      f"{headed}</details>"
    )
  parts.append(f"<h2>{seconds.title}</h2>{html_table(seconds)}")
  return html_page("Progressive training", parts, configuration)
