"""Reports as Markdown and as one page of HTML; pictures need matplotlib."""

import base64
import html as html_lib
import io
from collections.abc import Sequence
from typing import Any

from mtf_jax.evaluation.tables import Table

BLUE, ORANGE, GREEN, GREY = "#1f5aa6", "#d9822b", "#3a8f5c", "#777777"

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


def figure(width: float, height: float) -> Any:
  """An empty figure of so many inches."""
  import matplotlib.figure  # Only the HTML page needs it.

  return matplotlib.figure.Figure((width, height), layout="constrained")


def image(drawn: Any, alt: str) -> str:
  """A figure as an `img` element that needs no other file."""
  for axes in drawn.axes:
    axes.spines[["top", "right"]].set_visible(False)
  buffer = io.BytesIO()
  drawn.savefig(buffer, format="png", dpi=110)
  encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
  return f'<img alt="{alt}" src="data:image/png;base64,{encoded}">'


def _cells(tag: str, line: Sequence[str]) -> str:
  inner = "".join(f"<{tag}>{html_lib.escape(c)}</{tag}>" for c in line)
  return f"<tr>{inner}</tr>"


def html_table(table: Table) -> str:
  """Note and cells of a table, without its title."""
  rows = "".join(_cells("td", row) for row in table.rows)
  return (
    f"<p>{html_lib.escape(table.note)}</p><div><table>"
    f"{_cells('th', table.header)}{rows}</table></div>"
  )


def html_page(title: str, parts: Sequence[str], configuration: str) -> str:
  """One self-contained page, the configuration folded away at its end."""
  return (
    '<!doctype html><html lang="en"><meta charset="utf-8">'
    f"<title>{title}</title>"
    f"<style>{_STYLE}</style><h1>{title}</h1>{''.join(parts)}"
    "<details><summary>Configuration, fingerprints, versions</summary>"
    f"<pre>{html_lib.escape(configuration)}</pre></details></html>"
  )


def markdown(title: str, tables: Sequence[Table], configuration: str) -> str:
  """The tables as Markdown, and the configuration."""
  parts = [f"# {title}\n"]
  for table in tables:
    lines = [table.header, ["---"] * len(table.header), *table.rows]
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    parts.append(f"## {table.title}\n\n{table.note}\n\n{body}\n")
  parts.append(f"## Configuration\n\n```json\n{configuration}\n```\n")
  return "\n".join(parts)
