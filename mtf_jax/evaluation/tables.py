"""Tables of results, as text."""

from collections.abc import Sequence
from typing import NamedTuple


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
