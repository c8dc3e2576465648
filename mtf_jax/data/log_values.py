"""Columns of a batch as checked NumPy arrays; a refusal names file, row, column.

Rows are counted from 1 within a file. A value that a row need not have, because
the row holds only an observation, is 0.
"""

import pathlib
from collections.abc import Callable
from typing import NamedTuple, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtf_jax.data import csv_files
from mtf_jax.data.log_schema import UNITS, Order, base_column

_MICROSECONDS = pa.timestamp("us")
_UTC = pa.timestamp("us", "UTC")
# What a request can be of: others are of another unit, or broken.
_EARLIEST, _LATEST = 946_684_800_000_000, 4_102_444_800_000_000  # 2000, 2100
_TRUE, _FALSE = ("true", "1", "t", "yes"), ("false", "0", "f", "no")
# The odd constants of the finaliser that SplitMix64 ends with.
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_STEP = np.uint64(0x9E3779B97F4A7C15)


class Batch(NamedTuple):
  """Rows of a file.

  path: the file.
  first_row: rows of the file before these.
  rows: the columns.
  """

  path: pathlib.Path
  first_row: int
  rows: pa.RecordBatch

  def refuse(self, row: int, column: str, problem: str) -> NoReturn:
    """Refuses a value.

    Args:
      row: within the batch, from 0.
      column: its name.
      problem: what was expected and what was found.

    Raises:
      InputError: always.
    """
    place = f"row {self.first_row + row + 1}: column {column}: "
    csv_files.refuse(self.path, place, problem)

  def refuse_type(
    self, column: str, expected: str, found: pa.DataType
  ) -> NoReturn:
    """Refuses a column."""
    csv_files.refuse(
      self.path, f"column {column}: ", f"expected {expected}, found {found}."
    )

  def column(self, name: str) -> pa.Array:
    """A column, or the elements of a vector; empty texts are null."""
    base, place = base_column(name)
    # A name with brackets may be a column's own.
    if name in self.rows.schema.names:
      base, place = name, None
    array = self.rows.column(self.rows.schema.get_field_index(base))
    if pa.types.is_dictionary(array.type):
      array = array.dictionary_decode()
    if place is not None:
      array = self._elements(array, name, place)
    if pa.types.is_string(array.type) or pa.types.is_large_string(array.type):
      array = array.cast(pa.large_string())
      empty = pc.equal(array, "")
      if pc.any(empty).as_py():
        array = pc.if_else(empty, pa.scalar(None, array.type), array)
    return array

  def _elements(self, array: pa.Array, name: str, place: int) -> pa.Array:
    kind = array.type
    if not (
      pa.types.is_list(kind)
      or pa.types.is_large_list(kind)
      or pa.types.is_fixed_size_list(kind)
    ):
      self.refuse_type(name, "a column of lists", kind)
    lengths = pc.fill_null(pc.list_value_length(array), place + 1)
    short = np.flatnonzero(lengths.to_numpy(zero_copy_only=False) <= place)
    if short.size:
      self.refuse(
        int(short[0]), name, f"expected more than {place} values, found fewer."
      )
    return pc.list_element(array, place)


def _is_text(kind: pa.DataType) -> bool:
  return bool(pa.types.is_large_string(kind))


def _nulls(array: pa.Array) -> np.ndarray:
  return np.asarray(array.is_null().to_numpy(zero_copy_only=False))


def numbers(
  batch: Batch,
  column: str,
  needed: np.ndarray | None = None,
  missing: tuple[float, Callable[[int], None]] | None = None,
) -> np.ndarray:
  """Numbers, flags (0 and 1) or texts of numbers, float64 `[N]`.

  Args:
    batch: rows.
    column: its name.
    needed: bool `[N]`, rows that must have a value; all if omitted. Others are
      0, whatever stands there.
    missing: what stands for an empty value (or NaN), and who is told how many
      there were; None refuses it.

  Raises:
    InputError: another type, an empty value, or one that is not finite or too
      large for 32 bits.
  """
  array = batch.column(column)
  kind = array.type
  if pa.types.is_boolean(kind):
    array = array.cast(pa.int8())
  elif _is_text(kind):
    array = _parsed(batch, column, array)
  elif not (
    pa.types.is_integer(kind)
    or pa.types.is_floating(kind)
    or pa.types.is_decimal(kind)
    or pa.types.is_null(kind)
  ):
    batch.refuse_type(column, "numbers", kind)
  array = array.cast(pa.float64(), safe=False)
  wanted = np.ones(len(array), bool) if needed is None else needed
  empty = _nulls(array) & wanted
  values = array.fill_null(0).to_numpy(zero_copy_only=False)
  if missing is not None:
    instead, tell = missing
    empty |= np.isnan(values)
    tell(int(empty.sum()))
    values = np.where(empty, instead, values)
  elif empty.any():
    batch.refuse(int(empty.argmax()), column, "expected a number, found none.")
  bad = np.flatnonzero(~(np.abs(values) <= np.finfo(np.float32).max) & wanted)
  if bad.size:
    row = int(bad[0])
    batch.refuse(
      row, column, f"expected a finite 32 bit number, found {values[row]}."
    )
  return np.where(wanted, values, 0.0)


def _parsed(batch: Batch, column: str, array: pa.Array) -> pa.Array:
  try:
    return array.cast(pa.float64())
  except pa.ArrowInvalid:
    for row, text in enumerate(array.to_pylist()):
      try:
        if text is not None:
          pa.scalar(text).cast(pa.float64())
      except pa.ArrowInvalid:
        batch.refuse(row, column, f"expected a number, found {text[:60]!r}.")
    raise


def flags(batch: Batch, column: str) -> np.ndarray:
  """Booleans, 0 and 1, or texts of them, bool `[N]`.

  Raises:
    InputError: anything else.
  """
  array = batch.column(column)
  if _is_text(array.type):
    lower = pc.utf8_lower(array)
    yes = pc.is_in(lower, pa.array(_TRUE, lower.type))
    known = pc.or_(yes, pc.is_in(lower, pa.array(_FALSE, lower.type)))
    bad = np.flatnonzero(~np.asarray(known.to_numpy(zero_copy_only=False)))
    if bad.size:
      row = int(bad[0])
      found = array[row].as_py()
      batch.refuse(
        row, column, f"expected true or false, found {found or 'none'!r}."
      )
    return np.asarray(yes.to_numpy(zero_copy_only=False))
  values = numbers(batch, column)
  bad = np.flatnonzero((values != 0) & (values != 1))
  if bad.size:
    row = int(bad[0])
    batch.refuse(row, column, f"expected 0 or 1, found {values[row]:g}.")
  return values == 1


def texts(batch: Batch, column: str) -> pa.Array:
  """Texts; whole numbers and flags as they are written. Nulls stay.

  Raises:
    InputError: another type.
  """
  array = batch.column(column)
  kind = array.type
  if not (
    _is_text(kind)
    or pa.types.is_integer(kind)
    or pa.types.is_boolean(kind)
    or pa.types.is_null(kind)
  ):
    batch.refuse_type(column, "texts or whole numbers", kind)
  return array.cast(pa.large_string())


def integers(batch: Batch, column: str) -> np.ndarray:
  """Whole numbers of 64 bits, or texts of them, int64 `[N]`; none is empty.

  Unsigned ones above 2^63 become negative, which names them as well.

  Raises:
    InputError: another type or value.
  """
  array = batch.column(column)
  if _is_text(array.type):
    try:
      array = array.cast(pa.int64())
    except pa.ArrowInvalid:
      for row, text in enumerate(array.to_pylist()):
        try:
          if text is not None:
            pa.scalar(text).cast(pa.int64())
        except pa.ArrowInvalid:
          batch.refuse(
            row, column, f"expected a whole number, found {text[:60]!r}."
          )
      raise
  if not pa.types.is_integer(array.type):
    batch.refuse_type(column, "whole numbers", array.type)
  empty = np.flatnonzero(_nulls(array))
  if empty.size:
    batch.refuse(int(empty[0]), column, "expected a whole number, found none.")
  if pa.types.is_uint64(array.type):
    return array.to_numpy().view(np.int64)
  return array.cast(pa.int64()).to_numpy(zero_copy_only=False)


def times(batch: Batch, order: Order) -> np.ndarray:
  """Times as microseconds since 1970 in UTC, int64 `[N]`.

  Args:
    batch: rows.
    order: what the column holds: timestamps, texts of them (ISO 8601), or
      numbers of `order.unit`.

  Raises:
    InputError: a time without a zone where the schema names none, a number
      without a unit, one that is no time of the years 2000 to 2100, or an empty
      value.
  """
  column = order.column
  array = batch.column(column)
  kind = array.type
  if _is_text(kind) and order.unit is None:
    array = _parsed_times(batch, order, array)
  elif pa.types.is_timestamp(kind):
    if kind.tz is None:
      array = _placed(batch, order, array.cast(_MICROSECONDS, safe=False))
    array = array.cast(_UTC, safe=False)
  else:
    if order.unit is None:
      batch.refuse_type(
        column, "timestamps, or a unit in [order] for numbers", kind
      )
    floats = numbers(batch, column) * UNITS[order.unit]
    whole = np.round(np.clip(floats, -1e18, 1e18)).astype(np.int64)
    return _plausible(batch, order, whole)
  empty = np.flatnonzero(_nulls(array))
  if empty.size:
    batch.refuse(int(empty[0]), column, "expected a time, found none.")
  return _plausible(
    batch, order, array.cast(pa.int64()).to_numpy(zero_copy_only=False)
  )


def _placed(batch: Batch, order: Order, array: pa.Array) -> pa.Array:
  """Times without a zone, in that of the schema."""
  if order.time_zone is None:
    batch.refuse_type(
      order.column, "a time_zone in [order] for times without one", array.type
    )
  # A clock that is set back shows an hour twice: the first is taken, so that
  # the same files always give the same times.
  return pc.assume_timezone(
    array, order.time_zone, ambiguous="earliest", nonexistent="earliest"
  )


def _parsed_times(batch: Batch, order: Order, array: pa.Array) -> pa.Array:
  try:
    return array.cast(_UTC)
  except pa.ArrowInvalid:
    pass
  try:
    plain = array.cast(_MICROSECONDS)
  except pa.ArrowInvalid:
    for row, text in enumerate(array.to_pylist()):
      for kind in (_UTC, _MICROSECONDS):
        try:
          pa.scalar(text, pa.large_string()).cast(kind)
          break
        except pa.ArrowInvalid:
          continue
      else:
        batch.refuse(
          row,
          order.column,
          f"expected a time such as 2026-01-31T08:00:00Z, found {text[:60]!r}.",
        )
    batch.refuse_type(
      order.column, "times that all have a zone, or none", array.type
    )
  return _placed(batch, order, plain).cast(_UTC)


def _plausible(batch: Batch, order: Order, values: np.ndarray) -> np.ndarray:
  bad = np.flatnonzero((values < _EARLIEST) | (values > _LATEST))
  if bad.size:
    row = int(bad[0])
    unit = f" with the unit {order.unit}" if order.unit else ""
    raw = batch.column(order.column)[row]
    batch.refuse(
      row,
      order.column,
      f"expected a time of the years 2000 to 2100{unit}, found"
      f" {str(raw)[:40]}, which may be in another unit.",
    )
  return values


def mixed(values: np.ndarray) -> np.ndarray:
  """A bijection of 64 bit numbers that scatters them, uint64 `[N]`."""
  values = values + _STEP
  values = (values ^ (values >> np.uint64(30))) * _MIX[0]
  values = (values ^ (values >> np.uint64(27))) * _MIX[1]
  return values ^ (values >> np.uint64(31))


def text_numbers(array: pa.Array, seed: int) -> np.ndarray:
  """Texts as 64 bit numbers that depend on their bytes alone, uint64 `[N]`.

  Args:
    array: texts without nulls.
    seed: gives other numbers; those of two seeds are independent.
  """
  array = array.cast(pa.large_string())
  _, offsets_buffer, data_buffer = array.buffers()
  offsets = np.frombuffer(offsets_buffer, np.int64)[
    array.offset : array.offset + len(array) + 1
  ]
  data = np.zeros(int(offsets[-1] - offsets[0]) + 8, np.uint8)
  if data_buffer is not None:
    data[:-8] = np.frombuffer(data_buffer, np.uint8)[offsets[0] : offsets[-1]]
  # Eight bytes from every place on.
  words: np.ndarray = np.ndarray(len(data) - 7, "<u8", data, strides=(1,))
  start, length = offsets[:-1] - offsets[0], np.diff(offsets)
  found = mixed(length.astype(np.uint64) ^ mixed(np.full(1, seed, np.uint64)))
  longest = int(length.max(initial=0))
  for done in range(0, longest, 8):
    rows = np.flatnonzero(length > done)
    word = words[start[rows] + done]
    left = np.minimum(length[rows] - done, 8).astype(np.uint64)
    word &= np.uint64(2**64 - 1) >> (np.uint64(8) * (np.uint64(8) - left))
    found[rows] = mixed(found[rows] ^ word)
  return found
