"""A platform's files as a stream of record batches: Parquet, Arrow and CSV."""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet as pq

from mtf_jax.data import csv_files
from mtf_jax.data.csv_files import refuse
from mtf_jax.io import InputError, require_file

# Rows of a batch, and the text of one.
_BATCH_ROWS = 1 << 16
_BLOCK_BYTES = 1 << 23
_PARQUET = (".parquet", ".pq")
_ARROW = (".arrow", ".feather", ".ipc")
_CSV = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
_DELIMITERS = ",\t"


def input_files(names: Sequence[str]) -> tuple[pathlib.Path, ...]:
  """Files that a user named.

  Args:
    names: files; a folder stands for the files in it, in the order of their
      names, hidden ones and those that begin with `_` left out.

  Returns:
    The files, in order.

  Raises:
    InputError: none at all, one named twice, missing, or of an unknown kind.
  """
  found: list[pathlib.Path] = []
  for name in names:
    path = pathlib.Path(name)
    if path.is_dir():
      inside = sorted(x for x in path.iterdir() if x.is_file())
      found.extend(x for x in inside if not x.name.startswith((".", "_")))
    else:
      found.append(require_file(path, "a file of a log"))
  if not found:
    raise InputError(f"{', '.join(names)}: expected files, found none.")
  for path in found:
    _reader_of(path)
    if found.count(path) > 1:
      raise InputError(f"{path}: expected once, found twice.")
  return tuple(found)


def _reader_of(path: pathlib.Path) -> Any:
  for suffixes, reader in (
    (_PARQUET, _parquet),
    (_ARROW, _arrow),
    (_CSV, _csv),
  ):
    if path.name.endswith(suffixes):
      return reader
  raise InputError(
    f"{path}: expected a name ending in"
    f" {', '.join((*_PARQUET, *_ARROW, *_CSV))}, found another."
  )


class Part(NamedTuple):
  """Consecutive rows of a file.

  first_row: rows of the file before them.
  rows: what they hold.
  share: of the file that is read once they are.
  """

  first_row: int
  rows: pa.RecordBatch
  share: float


def batches(
  path: pathlib.Path, columns: Sequence[str], skip: int = 0
) -> Iterator[Part]:
  """Streams a file.

  Args:
    path: its name says of what kind it is.
    columns: those to read.
    skip: rows to leave out at the beginning.

  Yields:
    Its parts, in order.

  Raises:
    InputError: the file is missing, damaged, of another kind than its name
      says, or lacks a column.
  """
  require_file(path, "a file of a log")
  for part in _reader_of(path)(path, list(columns), skip):
    before = max(0, skip - part.first_row)
    if before < part.rows.num_rows:
      yield Part(part.first_row + before, part.rows.slice(before), part.share)


def column_types(path: pathlib.Path) -> dict[str, pa.DataType]:
  """Names and types of a file's columns; those of CSV are text.

  Raises:
    InputError: as `batches`.
  """
  require_file(path, "a file of a log")
  reader = _reader_of(path)
  if reader is _csv:
    names = csv_files.column_names(path, _DELIMITERS)
    return dict.fromkeys(names, pa.string())
  with _refusing(path):
    if reader is _parquet:
      schema = pq.read_schema(path)
    else:
      with pa.OSFile(str(path)) as file:
        schema = pa.ipc.open_file(file).schema
  return dict(zip(schema.names, schema.types, strict=True))


@contextlib.contextmanager
def _refusing(path: pathlib.Path) -> Iterator[None]:
  """What Arrow finds wrong with a file, in a sentence."""
  try:
    yield
  except InputError:
    raise
  except (pa.ArrowException, OSError) as error:
    kind = path.name.rpartition(".")[2]
    reason = " ".join(str(error).split())[:160]
    refuse(path, "", f"expected a whole .{kind} file, found: {reason}.")


def _check_columns(
  path: pathlib.Path, there: Sequence[str], wanted: Sequence[str]
) -> None:
  missing = [name for name in wanted if name not in there]
  if missing:
    plural = "s" if len(missing) > 1 else ""
    refuse(
      path,
      "",
      f"expected the column{plural} {', '.join(missing)[:300]}, found"
      f" {', '.join(there)[:500]}.",
    )
  for name in wanted:
    if there.count(name) > 1:
      refuse(path, "", f"column {name}: expected once, found twice.")


def _parquet(
  path: pathlib.Path, columns: list[str], skip: int
) -> Iterator[Part]:
  with _refusing(path):
    # Column chunks are streamed, not read whole: a row group may be large.
    file = pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False)
    with file:
      _check_columns(path, file.schema_arrow.names, columns)
      row, groups = 0, []
      for group in range(file.num_row_groups):
        rows = file.metadata.row_group(group).num_rows
        if row + rows > skip:
          groups.append(group)
        elif not groups:
          row += rows
      if not groups:
        return
      for batch in file.iter_batches(
        _BATCH_ROWS, row_groups=groups, columns=columns, use_threads=False
      ):
        end = row + batch.num_rows
        yield Part(row, batch, end / file.metadata.num_rows)
        row = end


def _arrow(path: pathlib.Path, columns: list[str], skip: int) -> Iterator[Part]:
  del skip  # Batches before are mapped, not read.
  with _refusing(path), pa.memory_map(str(path)) as source:
    reader = pa.ipc.open_file(source)
    _check_columns(path, reader.schema.names, columns)
    row, count = 0, reader.num_record_batches
    for number in range(count):
      batch = reader.get_batch(number)
      for start in range(0, batch.num_rows, _BATCH_ROWS):
        part = batch.slice(start, _BATCH_ROWS).select(columns)
        end = min(start + _BATCH_ROWS, batch.num_rows)
        yield Part(row, part, (number + end / batch.num_rows) / count)
        row += part.num_rows


def _csv(path: pathlib.Path, columns: list[str], skip: int) -> Iterator[Part]:
  del skip  # The text has to be parsed in any case.
  share = 0.0

  def on_share(of_file: float) -> None:
    nonlocal share
    share = of_file

  for row, batch in csv_files.batches(
    path, columns, _BLOCK_BYTES, _DELIMITERS, on_share
  ):
    yield Part(row, batch, share)
