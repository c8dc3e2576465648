"""CSV files: found, streamed, and refused by name.

Every refusal of a file's content passes `refuse` and so names the file; where
there is one, also the row (counted from 1 after the header) and the column.
"""

import codecs
import contextlib
import csv
import gzip
import io
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, NoReturn

import pyarrow as pa
from absl import logging
from pyarrow import csv as pa_csv

from mtf_jax.io import InputError, kind_of, require_file

_SUFFIXES = (".csv", ".csv.gz")
# KuaiRand's longest header has a thousand; a file without lines is not read
# whole in search of its first.
_HEADER_BYTES = 1 << 16
_HEAD_BYTES = 512  # what tells a file's kind
_DELIMITERS = {"\t": "tabs", ";": "semicolons", "|": "bars"}
# How Arrow says that a row has another width, or which one is no text.
_WIDTH = re.compile(r"Expected (\d+) columns, got (\d+): (.*)")
_ROW = re.compile(r"Row #(\d+): ")


def refuse(path: pathlib.Path, place: str, problem: str) -> NoReturn:
  """Refuses a file's content.

  Args:
    path: the file.
    place: where in it, such as "row 3: column date: "; "" for the whole.
    problem: what was found and what was expected.

  Raises:
    InputError: always.
  """
  raise InputError(f"{path}: {place}{problem}")


def find_files(
  log_dir: str | os.PathLike[str], stem: str
) -> list[pathlib.Path]:
  """Files `stem*.csv[.gz]` of a folder, those of "statistic" left out.

  Others that begin so are named in a warning.

  Raises:
    InputError: there is no such folder, or no such file in it; a file is there
      twice, plain and gzipped.
  """
  folder = pathlib.Path(log_dir)
  try:
    named = sorted(
      path
      for path in folder.iterdir()
      if path.name.startswith(stem) and "statistic" not in path.name
    )
  except (OSError, ValueError) as error:
    reason = "no such folder"
    if not isinstance(error, FileNotFoundError):
      reason = getattr(error, "strerror", None) or str(error)
    raise InputError(
      f"log_dir: expected a folder, found {folder} ({reason})."
    ) from error
  found = [path for path in named if path.name.endswith(_SUFFIXES)]
  others = ", ".join(path.name for path in named if path not in found)
  if not found:
    raise InputError(
      f"log_dir: expected {stem}*.csv or {stem}*.csv.gz in {folder}, found"
      f" {others or 'none'}."
    )
  for path in found:
    if path.with_name(f"{path.name}.gz") in found:
      refuse(
        path, "", "expected a file once, found it gzipped as well; remove one."
      )
  if others:
    logging.warning(
      "%s: %s: not read, since the names do not end in .csv or .csv.gz.",
      folder,
      others,
    )
  return found


@contextlib.contextmanager
def _open(path: pathlib.Path) -> Iterator[tuple[BinaryIO, BinaryIO]]:
  """The file's text as bytes, unpacked if its name ends in `.gz`; the file."""
  require_file(path, "a CSV file")
  with open(path, "rb") as raw:
    if path.suffix != ".gz":
      yield raw, raw
      return
    kind = kind_of(raw.read(_HEAD_BYTES))
    if kind != "a gzip file":
      refuse(path, "", f"expected a gzip file, as its name says, found {kind}.")
    raw.seek(0)
    with gzip.open(raw) as stream:
      yield stream, raw  # type: ignore[misc]  # reads like a binary file


def _header(
  path: pathlib.Path, stream: BinaryIO, columns: Sequence[str], delimiters: str
) -> tuple[list[str], str]:
  """Names of the file's columns, and what is between them.

  Refuses what is no CSV file with `columns`.
  """
  line = stream.readline(_HEADER_BYTES)
  kind = kind_of(line[:_HEAD_BYTES])
  if not kind.startswith("text"):
    plain_name = kind == "a gzip file" and path.suffix != ".gz"
    packed = "; name it .csv.gz" if plain_name else ""
    refuse(path, "", f"expected CSV text in UTF-8, found {kind}{packed}.")
  place = "row 0 (header): "
  if len(line) == _HEADER_BYTES:
    refuse(
      path, place, f"expected less than {_HEADER_BYTES} bytes, found more."
    )
  try:
    # Excel begins a file with a byte order mark.
    text = line.decode("utf-8-sig")
    delimiter = next((d for d in delimiters if d in text), delimiters[0])
    names = next(csv.reader([text], delimiter=delimiter, strict=True))
  except (UnicodeDecodeError, csv.Error) as error:
    refuse(path, place, f"expected a line of CSV text in UTF-8, found {error}.")
  missing = [column for column in columns if column not in names]
  if missing:
    for other, plural in _DELIMITERS.items():
      if other in text and len(names) == 1:
        refuse(path, place, f"expected commas between columns, found {plural}.")
    plural = "s" if len(missing) > 1 else ""
    refuse(
      path,
      place,
      f"column{plural} {', '.join(missing)}: missing, found"
      f" {', '.join(names)[:500]}.",
    )
  for column in names:
    if names.count(column) > 1:
      refuse(path, place, f"column {column}: expected once, found twice.")
  return names, delimiter


class _Watched(io.RawIOBase):
  """A binary stream that counts lines and looks for what is no text.

  Arrow does not look into columns that it does not convert.
  """

  def __init__(self, stream: BinaryIO):
    self._stream = stream
    self._decoder = codecs.getincrementaldecoder("utf-8")()
    self._num_newlines = 0
    self._last = b"\n"
    self.not_text = ""

  def readable(self) -> bool:
    return True

  def read(self, size: int = -1) -> bytes:
    data = self._stream.read(size)
    if b"\0" in data:
      self.not_text = self.not_text or "null characters"
    # A character may be cut by a block.
    if not data.isascii() or self._decoder.getstate()[0]:
      try:
        self._decoder.decode(data, final=not data)
      except UnicodeDecodeError:
        self.not_text = self.not_text or "other bytes"
        self._decoder.reset()
    self._num_newlines += data.count(b"\n")
    self._last = data[-1:] or self._last
    return data

  @property
  def num_lines(self) -> int:
    return self._num_newlines + (self._last != b"\n")


def _num_filled_lines(path: pathlib.Path) -> int:
  """Lines after the header that are not empty."""
  with _open(path) as (stream, _):
    stream.readline()
    return sum(1 for line in stream if line.strip(b"\r\n"))


def column_names(path: pathlib.Path, delimiters: str = ",") -> list[str]:
  """Names of a file's columns.

  Args:
    path: the file, gzipped if its name ends so.
    delimiters: what may be between columns; the first that the header has is.

  Raises:
    InputError: no readable CSV file.
  """
  try:
    with _open(path) as (stream, _):
      return _header(path, stream, (), delimiters)[0]
  except (EOFError, OSError, zlib.error) as error:
    refuse(path, "row 0 (header): ", f"cut short or corrupt ({error}).")


def batches(
  path: pathlib.Path,
  columns: Sequence[str],
  block_bytes: int,
  delimiters: str = ",",
  on_share: Callable[[float], None] = lambda _: None,
) -> Iterator[tuple[int, pa.RecordBatch]]:
  """Streams a CSV file: UTF-8, a header, a row a line.

  A byte order mark, quotes (of the header too), line ends of LF or CRLF and
  empty lines are taken as such. Values may not span lines: a quote left open
  would take the rows after it for its value.

  Args:
    path: the file, gzipped if its name ends so.
    columns: those to read, as strings.
    block_bytes: bytes parsed at a time.
    delimiters: what may be between columns; the first that the header has is.
    on_share: told, before each batch, the share of the file's bytes that has been
      read.

  Yields:
    (rows before the batch, the batch).

  Raises:
    InputError: no readable file, another format, missing columns, a row of
      another width, or a truncated file. That a value spans lines, or one of
      another column is no text, is noticed after the last batch.
  """
  rows = 0
  try:
    with _open(path) as (stream, file):
      size = max(1, os.fstat(file.fileno()).st_size)
      names, delimiter = _header(path, stream, columns, delimiters)
      watched = _Watched(stream)
      reader = pa_csv.open_csv(
        watched,
        read_options=pa_csv.ReadOptions(
          column_names=names, block_size=block_bytes, use_threads=False
        ),
        parse_options=pa_csv.ParseOptions(delimiter=delimiter),
        convert_options=pa_csv.ConvertOptions(
          column_types=dict.fromkeys(columns, pa.string()),
          include_columns=list(columns),
          strings_can_be_null=False,
        ),
      )
      with reader:
        for batch in reader:
          on_share(file.tell() / size)
          yield rows, batch
          rows += batch.num_rows
    if watched.not_text:
      refuse(path, "", f"expected text in UTF-8, found {watched.not_text}.")
    if rows != watched.num_lines and rows != (n := _num_filled_lines(path)):
      refuse(
        path,
        "",
        f"expected a row a line, found {rows} rows in {n} lines: a quote is"
        " left open, or a line ends in a lone carriage return.",
      )
  except (EOFError, OSError, zlib.error) as error:
    refuse(path, f"after row {rows}: ", f"cut short or corrupt ({error}).")
  except pa.ArrowException as error:
    _refuse_rows(path, rows, block_bytes, " ".join(str(error).split()))


def _refuse_rows(
  path: pathlib.Path, rows: int, block_bytes: int, error: str
) -> None:
  """Says in a sentence what Arrow found after so many rows."""
  if "Empty CSV" in error:
    return  # a header without rows
  row, width = _ROW.search(error), _WIDTH.search(error)
  place = f"row {row[1]}: " if row else f"after row {rows}: "
  if width:
    expected, found, text = width.groups()
    problem = f"expected {expected} columns, found {found} in {text[:80]!r}."
  elif "UTF8" in error:
    problem = "expected text in UTF-8, found other bytes."
  elif "straddling" in error:
    problem = f"expected rows of at most {block_bytes} bytes, found more."
  elif "out of sync" in error:
    problem = "expected values of one line, found a quote left open."
  else:
    problem = f"expected rows of CSV text, found: {error[:200]}."
  refuse(path, place, problem)
