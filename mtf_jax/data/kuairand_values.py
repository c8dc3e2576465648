"""Values of a KuaiRand folder's files: one grammar of numbers, exact refusals."""

import contextlib
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
from pyarrow import compute as pc

from mtf_jax.data import csv_files

# One grammar of numbers. Python's `int` and Arrow's cast each take more: signs,
# spaces, underscores and other scripts' digits the one, hexadecimal the other.
_INTEGER = re.compile(r"-?[0-9]+", re.ASCII)
_DECIMAL = re.compile(r"[0-9]+(\.[0-9]+)?", re.ASCII)
_IN_INTEGER = b"-0123456789"
# Text parsed at a time. A vocabulary a block is held until all are one: larger
# blocks repeat fewer texts.
_BLOCK_BYTES = 1 << 24


def fail(
  path: pathlib.Path,
  first_row: int,
  index: int,
  column: str,
  found: str | int,
  expected: str,
) -> NoReturn:
  """Refuses the value at `index` of a batch.

  Args:
    path: the file.
    first_row: rows of it before the batch.
    index: row of the batch, from 0.
    column: the value's.
    found: the value.
    expected: in words.

  Raises:
    InputError: always.
  """
  shown = found if isinstance(found, int) else repr(found[:80])
  csv_files.refuse(
    path,
    f"row {first_row + index + 1}: column {column}: ",
    f"expected {expected}, found {shown}.",
  )


def _in_grammar(strings: pa.StringArray) -> bool:
  """Whether no byte stands in the strings that no integer has."""
  _, offsets, text = strings.buffers()
  if text is None:
    return True
  ends = np.frombuffer(offsets, np.int32)[strings.offset :]
  used = text.slice(ends[0], ends[len(strings)] - ends[0]).to_pybytes()
  return not used.translate(None, _IN_INTEGER)


def integers(
  path: pathlib.Path,
  first_row: int,
  column: str,
  strings: pa.StringArray,
  dtype: type[np.signedinteger],
) -> np.ndarray:
  """Parses one column of a batch, exactly, as integers of `dtype`.

  An integer is a sequence of the digits 0 to 9, after a minus or not.

  Raises:
    InputError: a value is no integer, or out of the type's range.
  """
  if _in_grammar(strings):
    with contextlib.suppress(pa.ArrowInvalid):
      return pc.cast(strings, pa.from_numpy_dtype(dtype)).to_numpy(
        zero_copy_only=False
      )
  limits = np.iinfo(dtype)
  for index, text in enumerate(strings.to_pylist()):
    # Python refuses to parse numbers of thousands of digits.
    good = _INTEGER.fullmatch(text) and len(text) < 100
    if not good or not limits.min <= int(text) <= limits.max:
      fail(path, first_row, index, column, text, f"an {dtype.__name__}")
  # Only what Arrow refuses and the grammar takes would come here.
  return np.array([int(text) for text in strings.to_pylist()], dtype)


def decimal(text: str) -> float:
  """A non-negative number such as 87433.0; NaN if the text is none."""
  return float(text) if _DECIMAL.fullmatch(text) else float("nan")


class Categories(NamedTuple):
  """A column of texts that repeat: each is in memory once.

  codes: `[n]` int32, the place of each row's text in `texts`.
  texts: the different ones, in the order of their first rows.
  """

  codes: np.ndarray
  texts: list[str]


class Table(NamedTuple):
  """All rows of files.

  ids: `[n]` int64.
  columns: by name.
  files: (file, its rows), in order.
  """

  ids: np.ndarray
  columns: dict[str, Categories]
  files: list[tuple[pathlib.Path, int]]

  def place(self, row: int) -> tuple[pathlib.Path, int]:
    """The file of a row and its number there, from 0."""
    for path, rows in self.files:
      if row < rows:
        return path, row
      row -= rows
    raise IndexError(row)


def table(
  paths: Sequence[pathlib.Path], id_column: str, columns: Sequence[str]
) -> Table:
  """All rows of files, each with an id of its own.

  Args:
    paths: the files.
    id_column: name of the column of ids.
    columns: other columns to read, as texts.

  Returns:
    The rows, in the order of the files.

  Raises:
    InputError: as `csv_files.batches`; no row at all, an id that is no non-negative
      integer, or is there twice.
  """
  blocks: list[np.ndarray] = []
  values: dict[str, list[pa.Array]] = {column: [] for column in columns}
  files: list[tuple[pathlib.Path, int]] = []
  for path in paths:
    rows = 0
    for first_row, batch in csv_files.batches(
      path, (id_column, *columns), _BLOCK_BYTES
    ):
      strings = batch.column(id_column)
      found = integers(path, first_row, id_column, strings, np.int64)
      if (found < 0).any():
        index = int(np.argmax(found < 0))
        value = found[index].item()
        fail(path, first_row, index, id_column, value, "a non-negative integer")
      blocks.append(found)
      for column in columns:
        values[column].append(pc.dictionary_encode(batch.column(column)))
      rows += batch.num_rows
    files.append((path, rows))
  if not blocks:
    csv_files.refuse(
      paths[0], "", "expected rows after the header, found none."
    )
  ids = np.concatenate(blocks)
  found_table = Table(
    ids,
    # A column's parts are given up as soon as they are one.
    {column: _categories(values.pop(column)) for column in columns},
    files,
  )
  # Of equal ids the first is the earliest row.
  order = np.argsort(ids, kind="stable")
  again = order[1:][ids[order][1:] == ids[order][:-1]]
  if len(again):
    path, row = found_table.place(int(again.min()))
    fail(path, row, 0, id_column, ids[again.min()].item(), "every id once")
  return found_table


def _categories(parts: list[pa.Array]) -> Categories:
  """One vocabulary for all parts of a column."""
  unified = pa.chunked_array(parts).unify_dictionaries()
  codes = [part.indices.to_numpy() for part in unified.chunks]
  # Every part has the whole vocabulary now.
  return Categories(
    np.concatenate(codes), unified.chunk(0).dictionary.to_pylist()
  )
