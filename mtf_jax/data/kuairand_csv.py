"""CSV files of a KuaiRand folder: found, streamed, parsed, with exact errors.

Every error names the file, the row (counted from 1 after the header) and the
column.
"""

import contextlib
import gzip
import os
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import NoReturn

import numpy as np
import pyarrow as pa
from pyarrow import compute as pc
from pyarrow import csv as pa_csv


def find_files(
  log_dir: str | os.PathLike[str], stem: str
) -> list[pathlib.Path]:
  """Files `stem*.csv[.gz]` of a folder, those of "statistic" left out.

  Raises:
    ValueError: there is no such folder, or no such file in it.
  """
  folder = pathlib.Path(log_dir)
  if not folder.is_dir():
    raise ValueError(f"log_dir: expected a folder, found {folder}.")
  found = sorted(
    path
    for path in folder.glob(f"{stem}*")
    if path.name.endswith((".csv", ".csv.gz")) and "statistic" not in path.name
  )
  if not found:
    raise ValueError(
      f"log_dir: expected {stem}*.csv or {stem}*.csv.gz in {folder}, found"
      " none."
    )
  return found


def batches(
  path: pathlib.Path, columns: Sequence[str], block_bytes: int
) -> Iterator[tuple[int, pa.RecordBatch]]:
  """Streams a CSV file.

  Args:
    path: the file, gzipped if its name ends so.
    columns: those to read, as strings.
    block_bytes: bytes parsed at a time.

  Yields:
    (rows before the batch, the batch).

  Raises:
    ValueError: a missing column, a row of another width, or a truncated file.
  """
  opener = gzip.open if path.suffix == ".gz" else open
  broken: list[str] = []

  def on_invalid(row):
    broken.append(
      f"{path.name}: row {row.number}:"
      f" expected {row.expected_columns} columns, found {row.actual_columns}"
      f" in {row.text[:80]!r}."
    )
    return "error"

  rows = 0
  with opener(path, "rb") as stream:
    header = b""
    try:
      header = stream.readline()
      names = header.decode("utf-8").strip().split(",")
      for column in columns:
        if column not in names:
          raise ValueError(
            f"{path.name}: row 0 (header): column {column}: missing, found"
            f" {', '.join(names)}."
          )
      reader = pa_csv.open_csv(
        stream,
        read_options=pa_csv.ReadOptions(
          column_names=names, block_size=block_bytes, use_threads=False
        ),
        parse_options=pa_csv.ParseOptions(invalid_row_handler=on_invalid),
        convert_options=pa_csv.ConvertOptions(
          column_types=dict.fromkeys(columns, pa.string()),
          include_columns=list(columns),
          strings_can_be_null=False,
        ),
      )
      with reader:
        for batch in reader:
          yield rows, batch
          rows += batch.num_rows
    except (EOFError, OSError, zlib.error) as error:
      raise ValueError(
        f"{path.name}: after row {rows}: the file is cut short or corrupt"
        f" ({error}), columns {', '.join(columns)} cannot be read."
      ) from error
    except pa.ArrowInvalid as error:
      if "Empty CSV" in str(error) and header:
        return  # a header without rows
      text = broken[0] if broken else f"{path.name}: after row {rows}: {error}"
      raise ValueError(text) from error


def fail(
  path: pathlib.Path,
  first_row: int,
  index: int,
  column: str,
  found: str | int,
  expected: str,
) -> NoReturn:
  """Raises `ValueError` for the value at `index` of a batch.

  Args:
    path: the file.
    first_row: rows of it before the batch.
    index: row of the batch, from 0.
    column: the value's.
    found: the value.
    expected: in words.
  """
  raise ValueError(
    f"{path.name}: row {first_row + index + 1}: column {column}: expected"
    f" {expected}, found {found!r}."
  )


def integers(
  path: pathlib.Path,
  first_row: int,
  column: str,
  strings: pa.Array,
  dtype: type[np.signedinteger],
) -> np.ndarray:
  """Parses one column of a batch, exactly, as integers of `dtype`.

  Raises:
    ValueError: a value is no integer, or out of the type's range.
  """
  try:
    return pc.cast(strings, pa.from_numpy_dtype(dtype)).to_numpy(
      zero_copy_only=False
    )
  except pa.ArrowInvalid:
    for index, text in enumerate(strings.to_pylist()):
      with contextlib.suppress(ValueError):
        limits = np.iinfo(dtype)
        if limits.min <= int(text) <= limits.max:
          continue
      fail(path, first_row, index, column, text, f"an {dtype.__name__}")
    raise


def table(
  paths: Sequence[pathlib.Path], columns: Sequence[str]
) -> tuple[dict[str, list[str]], list[tuple[pathlib.Path, int]]]:
  """All rows of files as strings by column, and (file, row from 0) of each.

  Raises:
    ValueError: as `batches`.
  """
  values: dict[str, list[str]] = {column: [] for column in columns}
  places: list[tuple[pathlib.Path, int]] = []
  for path in paths:
    for first_row, batch in batches(path, columns, 1 << 20):
      for column in columns:
        values[column].extend(batch.column(column).to_pylist())
      places.extend((path, first_row + k) for k in range(batch.num_rows))
  return values, places
