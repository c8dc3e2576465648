"""The audit in Markdown and pictures. Needs matplotlib (the `plots` extra)."""

import pathlib
from collections.abc import Mapping
from typing import Any

import matplotlib.figure
import numpy as np

from mtf_jax.io import replacing
from mtf_jax.kernels.exploration import HALF_WIDTH

_COLOURS = ("#1f5aa6", "#d9822b", "#3a8f5c")
_GAINS = (
  ("global_gain_pct", "best global weights over uniform"),
  ("in_box_gain_pct", "best policy in the box over best global"),
  ("personal_headroom_pct", "best policy over best global"),
  ("privileged_headroom_pct", "same, seeing hidden state"),
  ("linear_probe_gain_pct", "linear probe over best global"),
)


def _figure(width: float, height: float) -> matplotlib.figure.Figure:
  return matplotlib.figure.Figure((width, height), layout="constrained")


def _marginals(result: Mapping[str, Any]) -> matplotlib.figure.Figure:
  """Rates, play-time deciles, rates by duration and by play time."""
  figure = _figure(10, 7)
  axes = figure.subplots(2, 2)
  sides = (
    ("log", result["reference"]),
    ("simulated", result["found"]),
    ("default slates", result["slates"]),
  )
  names = list(result["reference"]["rates"])
  for n, (label, facts) in enumerate(sides):
    place = np.arange(len(names)) + 0.27 * (n - 1)
    axes[0, 0].bar(
      place,
      [facts["rates"][name] for name in names],
      0.25,
      color=_COLOURS[n],
      label=label,
    )
    axes[0, 1].plot(
      np.arange(10, 100, 10),
      np.maximum(facts["play_deciles"], 0.1),
      marker="o",
      markersize=4,
      color=_COLOURS[n],
      label=label,
    )
    for axis, key in ((axes[1, 0], "by_duration"), (axes[1, 1], "by_play")):
      name = "finish" if key == "by_duration" else "like"
      values = [row[name] if row else np.nan for row in facts[key]]
      axis.plot(values, marker="o", markersize=4, color=_COLOURS[n])
  axes[0, 0].set_xticks(range(len(names)), names, rotation=45, ha="right")
  axes[0, 0].set(yscale="log", ylabel="rate", title="behaviours")
  axes[0, 0].legend(frameon=False)
  axes[0, 1].set(
    yscale="log", xlabel="percentile", ylabel="s", title="play time"
  )
  axes[1, 0].set_xticks(
    range(6), ["<15", "15-30", "30-60", "60-120", "120-240", ">240"]
  )
  axes[1, 0].set(xlabel="duration, s", ylabel="finish rate")
  axes[1, 1].set_xticks(range(6), ["<1", "1-3", "3-7", "7-18", "18-60", ">60"])
  axes[1, 1].set(xlabel="play time, s", ylabel="like rate")
  return figure


def _lengths(result: Mapping[str, Any]) -> matplotlib.figure.Figure:
  """Session lengths under each leaving model."""
  figure = _figure(7, 3.2)
  axis = figure.subplots()
  for n, (name, facts) in enumerate(result["leaving"].items()):
    counts = np.asarray(facts["session_length_histogram"], float)
    axis.plot(
      counts / counts.sum(),
      color=_COLOURS[n],
      label=f"{name}, mean {facts['mean_session_length']:.1f}",
    )
  axis.set(
    xlabel="requests in a session",
    ylabel="share of sessions",
    title="session length under the default weights (60: longer ones too)",
  )
  axis.legend(frameon=False)
  return figure


def _sensitivity(
  facts: Mapping[str, Any], tasks: list[str], name: str
) -> matplotlib.figure.Figure:
  """Return against each action component."""
  figure = _figure(11, 5)
  axes = figure.subplots(2, len(tasks), sharex=True, sharey=True)
  curves = facts["sensitivity"]
  grid = np.asarray(curves["grid"])
  for n, axis in enumerate(axes.flat):
    centre = facts["best_global_action"][n]
    axis.axhline(0, color="0.8", linewidth=0.8)
    axis.axvspan(centre - HALF_WIDTH, centre + HALF_WIDTH, color="0.9")
    axis.fill_between(
      grid, curves["low"][n], curves["high"][n], color=_COLOURS[0], alpha=0.3
    )
    axis.plot(grid, curves["gain"][n], color=_COLOURS[0])
    kind = "power" if n < len(tasks) else "bias"
    axis.set_title(f"{kind}: {tasks[n % len(tasks)]}", fontsize=9)
  for axis in axes[:, 0]:
    axis.set_ylabel("return, % of best global")
  for axis in axes[1]:
    axis.set_xlabel("action component")
  figure.suptitle(f"{name}: one component moved, box of {HALF_WIDTH} shaded")
  return figure


def _headroom(result: Mapping[str, Any]) -> matplotlib.figure.Figure:
  """Gains over the best global weights."""
  figure = _figure(8, 3.4)
  axis = figure.subplots()
  shown = _GAINS[1:]
  for n, (name, facts) in enumerate(result["leaving"].items()):
    value = np.array([facts[key] for key, _ in shown])
    interval = np.array([facts[f"{key}_ci95"] for key, _ in shown])
    axis.bar(
      np.arange(len(shown)) + 0.27 * (n - 1),
      value,
      0.25,
      yerr=np.abs(interval.T - value),
      color=_COLOURS[n],
      label=name,
    )
  axis.axhline(0, color="0.4", linewidth=0.8)
  axis.set_xticks(
    range(len(shown)), ["in the box", "personal", "privileged", "linear probe"]
  )
  axis.set_ylabel("true return, % over best global")
  axis.legend(frameon=False)
  return figure


def draw(result: Mapping[str, Any], out_dir: pathlib.Path) -> None:
  """Writes the figures of an audit as PNG files.

  Args:
    result: what `audit.audit` returned.
    out_dir: an existing folder.
  """
  figures = {
    "marginals": _marginals(result),
    "session_lengths": _lengths(result),
    "headroom": _headroom(result),
  }
  for name, facts in result["leaving"].items():
    figures[f"sensitivity_{name}"] = _sensitivity(facts, result["tasks"], name)
  for name, figure in figures.items():
    with replacing(out_dir / f"{name}.png") as file:
      figure.savefig(file, format="png", dpi=110)


def _interval(facts: Mapping[str, Any], key: str) -> str:
  low, high = facts[f"{key}_ci95"]
  return f"{facts[key]:+.2f} ({low:+.2f} to {high:+.2f})"


def _days_left_out(days: Mapping[str, Any]) -> list[str]:
  """A table of the rates of each day, held out in its turn."""

  def cells_of(facts):
    log = facts["log"]
    # A behaviour that the day does not have has no relative error.
    if log == 0:
      return ["none", "none"]
    held_out = 100 * (facts["held_out"] / log - 1)
    in_sample = 100 * (facts["in_sample"] / log - 1)
    error = 100 * facts["standard_error"] / log
    return [f"{held_out:+.1f} ({error:.1f})", f"{in_sample:+.1f}"]

  names = ("click", "valid", "long_view", "finish", "like")
  lines = [
    "",
    "Relative error of the rates, percent. Held out: each day's impressions"
    " answered by fits without it and the day held out with it, in brackets the"
    " standard error of that difference, users as units. All: by fits to all"
    " days. None: the log has no such event on that day.",
    "",
    f"| day | rows | {' | '.join(f'{n}, held out | all' for n in names)} |",
    f"| --- | --- |{' --- | --- |' * len(names)}",
  ]
  for day in (*days["days"], {"date": "all", **days["all"]}):
    cells = []
    for name in names:
      cells += cells_of(day[name])
    lines.append(f"| {day['date']} | {day['rows']} | {' | '.join(cells)} |")
  return lines


def markdown(result: Mapping[str, Any]) -> str:
  """The audit as a Markdown page, figures beside it.

  Args:
    result: what `audit.audit` returned.

  Returns:
    The page.
  """
  lines = [
    f"# Audit of the world {result['world']} ({result['fingerprint']})",
    "",
    "| marginals against the log | worst relative error | wanted |",
    "| --- | --- | --- |",
  ]
  for key, label, wanted in (
    ("marginals_max_rel_error", "rates of frequent behaviours", 0.05),
    ("slates_max_rel_error", "the same, default slates", 0.05),
    ("play_time_deciles_max_rel_error", "play-time deciles", 0.10),
    ("lift_max_rel_error", "lifts above 2, 100 joint events or more", 0.30),
  ):
    lines.append(f"| {label} | {result[key]:.3f} | {wanted:.2f} |")
  lines += [
    "",
    "| behaviour | log | standard error | simulated | default slates |",
    "| --- | --- | --- | --- | --- |",
  ]
  for name, rate in result["reference"]["rates"].items():
    error = result["reference"]["standard_errors"][name]
    lines.append(
      f"| {name} | {rate:.5f} | {error:.5f} |"
      f" {result['found']['rates'][name]:.5f} |"
      f" {result['slates']['rates'][name]:.5f} |"
    )
  if "days_left_out" in result:
    lines += _days_left_out(result["days_left_out"])
  lines += [
    "",
    "| heterogeneity (ICC) | log | simulated |",
    "| --- | --- | --- |",
  ]
  for name, value in result["reference"]["icc"].items():
    found = result["found"]["icc"][name]
    lines.append(f"| {name} | {value:.3f} | {found:.3f} |")
  lines += [
    "",
    "| lift | log (joint events) | simulated |",
    "| --- | --- | --- |",
  ]
  for name, entry in result["reference"]["lifts"].items():
    found = result["found"]["lifts"].get(name, {"lift": 0.0})
    lines.append(
      f"| {name} | {entry['lift']:.2f} ({entry['count']:.0f}) |"
      f" {found['lift']:.2f} |"
    )
  lines += [
    "",
    "Default slates over random exposure: clicks times"
    f" {result['ranking_gain_click']:.2f} (log 2.56), interactions times"
    f" {result['ranking_gain_interaction']:.2f} (log 3.8).",
    "",
    "![marginals](marginals.png) ![lengths](session_lengths.png)"
    " ![headroom](headroom.png)",
    "",
    "Gains of true return, percent with 95% intervals:",
    "",
    f"| | {' | '.join(result['leaving'])} |",
    f"| --- |{' --- |' * len(result['leaving'])}",
  ]
  by_model = result["leaving"].values()
  plain = (
    ("mean_session_length", "requests a session, uniform weights", "{:.2f}"),
    ("session_return_cv", "return's std over its mean, sampled", "{:.2f}"),
    ("expected_return_cv", "same, expected-value accounting", "{:.2f}"),
  )
  for key, label, form in plain:
    cells = " | ".join(form.format(facts[key]) for facts in by_model)
    lines.append(f"| {label} | {cells} |")
  for key, label in _GAINS:
    cells = " | ".join(_interval(facts, key) for facts in by_model)
    lines.append(f"| {label} | {cells} |")
  cells = " | ".join(
    f"{f['linear_probe']['rows']} rows, {f['linear_probe']['beyond_3_sigma']}"
    f" of {f['linear_probe']['coefficients']} beyond 3 sigma"
    for f in by_model
  )
  lines.append(f"| linear probe | {cells} |")
  cells = " | ".join(
    f"{f['explained_share_pct']['percent']:.2f} +-"
    f" {f['explained_share_pct']['standard_error']:.2f}"
    for f in by_model
  )
  lines.append(f"| variance explained by the action in the box, % | {cells} |")
  lines.append("")
  lines += [f"![{name}](sensitivity_{name}.png)" for name in result["leaving"]]
  return "\n".join(lines) + "\n"
