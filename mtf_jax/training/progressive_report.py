"""Tables of a progressive run in Markdown, and one page of HTML with figures.

`html` needs matplotlib (the `plots` extra); the tables do not.
"""

import base64
import html as html_lib
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtf_jax.worlds.world import TASKS

_BLUE, _ORANGE, _GREEN = "#1f5aa6", "#d9822b", "#3a8f5c"
_STYLE = (
  "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}"
  "table{border-collapse:collapse;margin:1em 0;font-size:13px}"
  "td,th{border-bottom:1px solid #ccc;padding:.25em .7em;text-align:right}"
  "td:first-child,th:first-child{text-align:left}"
  "div{overflow-x:auto}img{max-width:100%}"
)


class Table(NamedTuple):
  """A heading, a sentence and rows of text.

  title: heading.
  note: what the numbers are.
  header: names of the columns.
  rows: cells.
  """

  title: str
  note: str
  header: Sequence[str]
  rows: Sequence[Sequence[str]]


def _gain(figures: Mapping[str, Any], name: str) -> str:
  low, high = figures[f"{name}_gain_ci95"]
  return f"{figures[f'{name}_gain_pct']:+.2f} [{low:+.2f}, {high:+.2f}]"


def result_table(title: str, result: Mapping[str, Any]) -> Table:
  """The rounds of one seed and leaving model, and what to hold them against.

  Args:
    title: heading.
    result: `rounds` (figures of `progressive.play_round`), `one_round` and
      `headroom`.
  """
  header = ("policy", "reward % [95%]", "p", "valid %", "duration %")
  header += ("length %", "hate rate", "outside box", "exploring cost %")
  rows = []
  for figures in (*result["rounds"], result["one_round"]):
    number = figures.get("round")
    rows.append(
      (
        "one round, same data" if number is None else f"round {number}",
        _gain(figures, "reward"),
        f"{figures['reward_p_value']:.1g}",
        *(f"{figures[f'{n}_gain_pct']:+.2f}" for n in ("uvc", "udt")),
        f"{figures['session_length_gain_pct']:+.2f}",
        f"{figures['hate_rate']:.5f}",
        f"{figures['outside_share']:.1%}",
        f"{figures['exploration_cost_pct']:+.2f}" if number else "",
      )
    )
  low, high = result["headroom"]["headroom_ci95"]
  bound = f"{result['headroom']['headroom_pct']:+.2f} [{low:+.2f}, {high:+.2f}]"
  rows.append(("privileged optimum", bound, *[""] * (len(header) - 2)))
  note = (
    "Relative to ES in service, same users and sessions; interval over users."
    f" Hate rate of ES: {result['rounds'][0]['hate_rate_base']:.5f}."
  )
  return Table(title, note, header, rows)


def seconds_table(results: Mapping[str, Mapping[str, Any]]) -> Table:
  """Wall-clock split."""
  names = list(dict.fromkeys(n for r in results.values() for n in r["seconds"]))
  rows = [
    (title, *(f"{result['seconds'].get(name, 0):.1f}" for name in names))
    for title, result in results.items()
  ]
  note = "Compilation counts where it first happens."
  return Table("Seconds", note, ("run", *names), rows)


def markdown(tables: Sequence[Table]) -> str:
  """Tables as Markdown."""
  parts = []
  for table in tables:
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    parts.append(f"## {table.title}\n\n{table.note}\n\n{body}\n")
  return "\n".join(parts)


def text(table: Table) -> str:
  """A table for a terminal."""
  lines = [table.header, *table.rows]
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  body = "\n".join(
    "  ".join(
      cell.ljust(width) if n == 0 else cell.rjust(width)
      for n, (cell, width) in enumerate(zip(line, widths, strict=True))
    )
    for line in lines
  )
  return f"{table.title}\n{table.note}\n\n{body}\n"


def _picture(result: Mapping[str, Any]) -> str:
  """Gains by round, and drift by component against the box, as a data URI."""
  import matplotlib.figure  # Only the HTML page needs it.

  figure = matplotlib.figure.Figure((10, 3.6), layout="constrained")
  gains, drift = figure.subplots(1, 2)
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
    label="one round, same data",
  )
  gains.axhline(
    result["headroom"]["headroom_pct"],
    color=_GREEN,
    linestyle=":",
    label="privileged optimum",
  )
  gains.axhline(0, color="black", linewidth=0.8)
  gains.set_xticks(number)
  gains.set(xlabel="round", ylabel="reward over ES, %")
  gains.legend(frameon=False, fontsize=8)
  names = [f"{kind} {task}" for kind in ("power", "bias") for task in TASKS]
  values = np.array([row["drift"] for row in rounds])
  for row, shade in zip(values, np.linspace(0.35, 1, len(rounds)), strict=True):
    drift.plot(row, range(len(names)), "o", color=_BLUE, alpha=shade, ms=4)
  drift.axvline(0.15, color=_ORANGE, linestyle="--")
  drift.set_yticks(range(len(names)), names)
  drift.set(
    xlabel="mean |new - old action|, darker later; dashed: box", xlim=(0, None)
  )
  for axes in (gains, drift):
    axes.spines[["top", "right"]].set_visible(False)
  buffer = io.BytesIO()
  figure.savefig(buffer, format="png", dpi=120)
  encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
  return f"data:image/png;base64,{encoded}"


def html(
  results: Mapping[str, Mapping[str, Any]],
  tables: Sequence[Table],
  configuration: str,
) -> str:
  """One self-contained page.

  Args:
    results: title -> result, see `result_table`.
    tables: tables to show; one whose title is in `results` gets its figure.
    configuration: text shown at the end as it is.

  Returns:
    The page.
  """

  def cells(tag, line):
    inner = "".join(f"<{tag}>{html_lib.escape(c)}</{tag}>" for c in line)
    return f"<tr>{inner}</tr>"

  parts = []
  for table in tables:
    parts.append(f"<h2>{html_lib.escape(table.title)}</h2>")
    parts.append(f"<p>{html_lib.escape(table.note)}</p><div><table>")
    parts.append(cells("th", table.header))
    parts.extend(cells("td", row) for row in table.rows)
    parts.append("</table></div>")
    if table.title in results:
      source = _picture(results[table.title])
      parts.append(f'<img alt="gain by round, drift" src="{source}">')
  return (
    '<!doctype html><html lang="en"><meta charset="utf-8">'
    "<title>Progressive training</title>"
    f"<style>{_STYLE}</style><h1>Progressive training</h1>{''.join(parts)}"
    f"<h2>Configuration</h2><pre>{html_lib.escape(configuration)}</pre></html>"
  )
