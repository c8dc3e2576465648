"""Tables of a progressive run in Markdown, and one page of HTML with figures.

`html` needs matplotlib (the `plots` extra); the tables do not.
"""

import base64
import html as html_lib
import io
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtf_jax.data.behaviours import TASKS
from mtf_jax.evaluation.statistics import mean_interval
from mtf_jax.evaluation.tables import Table
from mtf_jax.studies.progressive.config import HALF_WIDTH
from mtf_jax.studies.progressive.drift import DRIFT_BIN

_BLUE, _ORANGE, _GREEN, _GREY = "#1f5aa6", "#d9822b", "#3a8f5c", "#777777"


_STYLE = (
  "body{font:15px/1.5 sans-serif;max-width:64em;margin:2em auto;padding:0 1em}"
  "table{border-collapse:collapse;margin:1em 0;font-size:13px}"
  "td,th{border-bottom:1px solid #ccc;padding:.25em .7em;text-align:right;"
  "white-space:nowrap}"
  "td:first-child,th:first-child{text-align:left}"
  "div{overflow-x:auto}img{max-width:100%;display:block;margin:1em 0}"
  "summary{cursor:pointer;font-weight:bold;margin:.5em 0}"
  "pre{font-size:12px;background:#f5f5f5;padding:1em;overflow-x:auto}"
)


_ACTIONS = [f"{kind} {task}" for kind in ("power", "bias") for task in TASKS]


def _gain(figures: Mapping[str, Any], name: str) -> str:
  low, high = figures[f"{name}_gain_ci95"]
  return f"{figures[f'{name}_gain_pct']:+.2f} [{low:+.2f}, {high:+.2f}]"


def result_table(title: str, result: Mapping[str, Any]) -> Table:
  """The rounds of one seed and leaving model, and what to hold them against.

  Args:
    title: heading.
    result: `rounds` (figures of `progressive.play_round`), `one_round`,
      `over_one_round`, `longer_es`, `over_longer_es`, `uncut` and `headroom`.
  """
  header = ("policy", "reward % [95%]", "p", "valid %", "duration %")
  header += ("length %", "hate rate", "outside box", "exploring cost %")
  rows = []
  for figures in (*result["rounds"], result["one_round"]):
    number = figures.get("round")
    rows.append(
      (
        "one round, as much data" if number is None else f"round {number}",
        _gain(figures, "reward"),
        f"{figures['reward_p_value']:.1g}",
        *(f"{figures[f'{n}_gain_pct']:+.2f}" for n in ("uvc", "udt")),
        f"{figures['session_length_gain_pct']:+.2f}",
        f"{figures['hate_rate']:.5f}",
        f"{figures['outside_share']:.1%}",
        f"{figures['exploration_cost_pct']:+.2f}" if number else "",
      )
    )
  gain = _gain(result["over_one_round"], "reward")
  blank = [""] * (len(header) - 2)
  rows.append(("last round over one round", gain, *blank))
  gain = _gain(result["longer_es"], "reward")
  rows.append(("ES, as many sessions more", gain, *blank))
  gain = _gain(result["over_longer_es"], "reward")
  rows.append(("last round over that ES", gain, *blank))
  uncut = result["uncut"]
  label = f"last round, up to {uncut['max_requests']} requests"
  rows.append((label, _gain(uncut, "reward"), *blank))
  low, high = result["headroom"]["headroom_ci95"]
  bound = f"{result['headroom']['headroom_pct']:+.2f} [{low:+.2f}, {high:+.2f}]"
  rows.append(("privileged search", bound, *blank))
  note = (
    "Relative to ES in service unless said otherwise, same users and sessions;"
    " 95% interval over users."
    f" Hate rate of ES: {result['rounds'][0]['hate_rate_base']:.5f}."
  )
  return Table(title, note, header, rows)


# (leaving model, critic) -> seed -> figures as in `summary.json`.
Columns = Mapping[tuple[str, str], Mapping[int, Mapping[str, Any]]]


def overview_table(columns: Columns) -> Table:
  """Seeds by leaving models and critics, and what holds over the seeds.

  Args:
    columns: (leaving model, critic) -> seed -> figures as in `summary.json`.

  Returns:
    A row for each seed, then the rows over seeds.
  """
  several = len({critic for _, critic in columns}) > 1
  header = ["seed"] + [
    f"{leaving}, {critic}" if several else leaving
    for leaving, critic in columns
  ]
  seeds = list(next(iter(columns.values())))
  rows = [
    [
      str(seed),
      *(_gain(by_seed[seed], "reward") for by_seed in columns.values()),
    ]
    for seed in seeds
  ]

  def over_seeds(name, show):
    row = []
    for by_seed in columns.values():
      values = [figures[name] for figures in by_seed.values()]
      known = [value for value in values if value is not None]
      row.append(show(statistics.fmean(known)) if known else "none")
    return row

  def percent(value):
    return f"{value:+.2f}"

  if len(seeds) > 1:
    above, mean = [], []
    for by_seed in columns.values():
      count = sum(x["reward_gain_ci95"][0] > 0 for x in by_seed.values())
      above.append(f"{count} of {len(seeds)}")
      gains = [figures["reward_gain_pct"] for figures in by_seed.values()]
      low, high = mean_interval(gains)
      mean.append(f"{statistics.fmean(gains):+.2f} [{low:+.2f}, {high:+.2f}]")
    rows.append(["interval above 0", *above])
    rows.append(["mean [95% over seeds]", *mean])
  for label, name in (
    ("one round, as much data", "one_round_gain_pct"),
    ("last over one round", "over_one_round_pct"),
    ("ES, as many sessions more", "longer_es_gain_pct"),
    ("last over that ES", "over_longer_es_pct"),
    ("valid %", "uvc_gain_pct"),
    ("duration %", "udt_gain_pct"),
    ("session length %", "session_length_gain_pct"),
    ("exploring cost %", "exploration_cost_pct"),
  ):
    rows.append([label, *over_seeds(name, percent)])
  rows.append(
    ["headroom reached", *over_seeds("headroom_reached", "{:.0%}".format)]
  )
  note = (
    "Session reward of the last round's policy over ES, %, with 95% intervals"
    " over users; below the seeds, means over seeds. The headroom is what a"
    " short privileged search finds, no bound: a policy may exceed it."
  )
  return Table("Overview", note, header, rows)


def seconds_table(seconds: Mapping[str, Mapping[str, float]]) -> Table:
  """Wall-clock split.

  Args:
    seconds: folder of seeds that ran side by side -> part -> seconds.
  """
  names = list(dict.fromkeys(name for x in seconds.values() for name in x))
  rows = [
    (
      folder,
      *(f"{spent[name]:.1f}" if name in spent else "" for name in names),
    )
    for folder, spent in seconds.items()
  ]
  note = "Seeds side by side share them; compilation counts where it happens."
  return Table("Seconds", note, ("run", *names), rows)


def markdown(tables: Sequence[Table], configuration: str) -> str:
  """The report as Markdown."""
  parts = ["# Progressive training\n"]
  for table in tables:
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    parts.append(f"## {table.title}\n\n{table.note}\n\n{body}\n")
  parts.append(f"## Configuration\n\n```json\n{configuration}\n```\n")
  return "\n".join(parts)


def _figure(width: float, height: float):
  import matplotlib.figure  # Only the HTML page needs it.

  return matplotlib.figure.Figure((width, height), layout="constrained")


def _image(figure, alt: str) -> str:
  for axes in figure.axes:
    axes.spines[["top", "right"]].set_visible(False)
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=110)
  encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
  return f'<img alt="{alt}" src="data:image/png;base64,{encoded}">'


def _overview_picture(columns: Columns) -> str:
  """Gains with intervals of every seed, leaving models side by side."""
  count = max(len(by_seed) for by_seed in columns.values())
  figure = _figure(10, 1.4 + 0.22 * count)
  grid = figure.subplots(1, len(columns), sharex=True, squeeze=False)
  for axes, (name, by_seed) in zip(grid.flat, columns.items(), strict=True):
    place = np.arange(len(by_seed))
    figures = list(by_seed.values())
    gain = np.array([row["reward_gain_pct"] for row in figures])
    interval = np.array([row["reward_gain_ci95"] for row in figures])
    axes.errorbar(
      gain,
      place,
      xerr=np.abs(interval.T - gain),
      fmt="o",
      color=_BLUE,
      capsize=2,
      label="progressive",
    )
    for source, marker, color, label in (
      ("one_round", "x", _ORANGE, "one round"),
      ("longer_es", "+", _GREEN, "ES, as many sessions more"),
    ):
      rival = [row[f"{source}_gain_pct"] for row in figures]
      axes.plot(rival, place, marker, color=color, label=label)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_yticks(place, [str(seed) for seed in by_seed])
    axes.invert_yaxis()
    axes.set_title(", ".join(name), fontsize=10)
  handles, labels = grid[0, 0].get_legend_handles_labels()
  figure.legend(
    handles, labels, loc="outside upper right", ncols=3, frameon=False
  )
  figure.supxlabel("reward over ES, %", fontsize=10)
  figure.supylabel("seed", fontsize=10)
  return _image(figure, "gain by seed")


def _gains_picture(result: Mapping[str, Any]) -> str:
  """Gains by round: the reward with intervals, and the other outcomes."""
  figure = _figure(10, 3.6)
  gains, others = figure.subplots(1, 2)
  rounds = result["rounds"]
  number = [row["round"] for row in rounds]
  gain = np.array([row["reward_gain_pct"] for row in rounds])
  interval = np.array([row["reward_gain_ci95"] for row in rounds])
  error = np.abs(interval.T - gain)
  gains.errorbar(
    number, gain, error, color=_BLUE, marker="o", capsize=3, label="progressive"
  )
  gains.axhline(
    result["one_round"]["reward_gain_pct"],
    color=_ORANGE,
    linestyle="--",
    label="one round, as much data",
  )
  gains.axhline(
    result["headroom"]["headroom_pct"],
    color=_GREEN,
    linestyle=":",
    label="privileged search",
  )
  for name, label, color in (
    ("uvc", "valid consumption", _BLUE),
    ("udt", "duration", _ORANGE),
    ("session_length", "session length", _GREEN),
  ):
    values = [row[f"{name}_gain_pct"] for row in rounds]
    others.plot(number, values, marker="o", color=color, label=label)
  for axes, what in ((gains, "reward"), (others, "outcome")):
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xticks(number)
    axes.set(xlabel="round", ylabel=f"{what} over ES, %")
    # Room for the legend above the lines.
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.3 * (high - low))
    axes.legend(frameon=False, fontsize=9, loc="upper left", ncols=2)
  return _image(figure, "gain by round")


def _training_picture(result: Mapping[str, Any]) -> str:
  """Metrics of training by update over all rounds."""
  figure = _figure(10, 4.6)
  metrics = result["metrics"]
  step = [row["step"] for row in metrics]
  ends = np.linspace(0, step[-1], len(result["rounds"]) + 1)[1:-1]
  for axes, (name, label) in zip(
    figure.subplots(2, 3, sharex=True).flat,
    (
      ("critic_loss", "critic loss"),
      ("q_mean", "mean Q of each reward group"),
      ("q_std", "critics' disagreement"),
      ("outside_share", "share outside the box"),
      ("bootstrap_weight", "bootstrap weight phi"),
      ("actor_loss", "actor loss"),
    ),
    strict=True,
  ):
    values = np.array([row[name] for row in metrics])
    for column, color in zip(
      values.reshape(len(step), -1).T, (_BLUE, _ORANGE, _GREEN), strict=False
    ):
      axes.plot(step, column, color=color, linewidth=1.2)
    for end in ends:
      axes.axvline(end, color=_GREY, linestyle=":", linewidth=0.8)
    if name == "bootstrap_weight" and not values.any():
      # Transitions of whole sessions: its mean is over no transition at all.
      label = "phi: no target bootstraps"
    axes.set_title(label, fontsize=10)
    axes.ticklabel_format(useOffset=False)
  figure.supxlabel("update; dotted: a new round", fontsize=10)
  return _image(figure, "training by update")


def _drift_picture(result: Mapping[str, Any]) -> str:
  """How far each component moved in each round (Fig. 2 of the paper)."""
  figure = _figure(10, 4.6)
  rounds = result["rounds"]
  histograms = np.array([row["drift_histogram"] for row in rounds])
  edges = DRIFT_BIN * np.arange(histograms.shape[2] + 1)
  grid = figure.subplots(2, len(_ACTIONS) // 2, sharex=True, sharey=True)
  for n, (axes, name) in enumerate(zip(grid.flat, _ACTIONS, strict=True)):
    for row, shade in zip(
      histograms[:, n], np.linspace(0.3, 1, len(rounds)), strict=True
    ):
      axes.stairs(row, edges, color=_BLUE, alpha=shade)
    axes.axvline(HALF_WIDTH, color=_ORANGE, linestyle="--", linewidth=1)
    axes.set_title(name, fontsize=9)
  figure.supxlabel(
    "|new - old action|; later rounds darker; dashed: the box", fontsize=10
  )
  figure.supylabel("share of requests", fontsize=10)
  return _image(figure, "drift by action component")


def _cells(tag: str, line: Sequence[str]) -> str:
  inner = "".join(f"<{tag}>{html_lib.escape(c)}</{tag}>" for c in line)
  return f"<tr>{inner}</tr>"


def _html_table(table: Table) -> str:
  rows = "".join(_cells("td", row) for row in table.rows)
  return (
    f"<p>{html_lib.escape(table.note)}</p><div><table>"
    f"{_cells('th', table.header)}{rows}</table></div>"
  )


def html(
  columns: Columns,
  tables: Mapping[str, Sequence[Table]],
  results: Mapping[str, Mapping[str, Any]],
  seconds: Table,
  configuration: str,
) -> str:
  """One self-contained page.

  Args:
    columns: as of `overview_table`.
    tables: title -> tables of one seed, leaving model and critic, the rounds'
      first.
    results: title -> what its figures are drawn from, see `result_table`, and
      `metrics`, the rows of its `metrics.jsonl`.
    seconds: of `seconds_table`.
    configuration: JSON shown at the end.

  Returns:
    The page; with several tables each is folded away.
  """
  overview = overview_table(columns)
  parts = [f"<h2>{overview.title}</h2>", _html_table(overview)]
  opened = " open"
  if len(tables) > 1:
    opened = ""
    parts.append(_overview_picture(columns))
  for title, (rounds, *others) in tables.items():
    result = results[title]
    headed = "".join(
      f"<h3>{html_lib.escape(other.title)}</h3>{_html_table(other)}"
      for other in others
    )
    parts.append(
      f"<details{opened}><summary>{html_lib.escape(title)}</summary>"
      f"{_html_table(rounds)}{_gains_picture(result)}"
      f"{_drift_picture(result)}{_training_picture(result)}"
      f"{headed}</details>"
    )
  parts.append(f"<h2>{seconds.title}</h2>{_html_table(seconds)}")
  return (
    '<!doctype html><html lang="en"><meta charset="utf-8">'
    "<title>Progressive training</title>"
    f"<style>{_STYLE}</style><h1>Progressive training</h1>{''.join(parts)}"
    "<details><summary>Configuration, fingerprints, versions</summary>"
    f"<pre>{html_lib.escape(configuration)}</pre></details></html>"
  )
