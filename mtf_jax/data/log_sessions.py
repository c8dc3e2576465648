"""From sorted records to sessions: duplicates, steps, how a session ends.

Letters: `N` rows.
"""

import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from mtf_jax.data import log_values
from mtf_jax.data.csv_files import refuse
from mtf_jax.data.log_records import PLACE
from mtf_jax.data.log_schema import LogSchema
from mtf_jax.data.session_log import SessionLog
from mtf_jax.kernels.exploration import ActionBox

_MINUTE = 60_000_000  # microseconds


def sessions_of(
  records: np.ndarray,
  schema: LogSchema,
  *,
  files: Sequence[pathlib.Path],
  latest: int,
  counts: dict[str, int],
) -> SessionLog:
  """Makes whole sessions of the records of some ids.

  Args:
    records: `[N]`, all those of their ids, sorted by `Runs.read`; one or more.
    schema: what they are.
    files: their files, for refusals.
    latest: the largest `order` of the whole log. A session that ends closer to
      it than `gap_minutes` may have gone on.
    counts: added to: what was left out and how sessions end.

  Returns:
    The rows, NumPy arrays.

  Raises:
    InputError: conflicting rows, a missing step, an exit before the end, or a
      session that is too long; the message names file and row.
  """

  def refuse_row(number: int, problem: str) -> None:
    record = records[number]
    refuse(files[record["file"]], f"row {record['row'] + 1}: ", problem)

  def count(name: str, more: int) -> None:
    if more:
      counts[name] = counts.get(name, 0) + int(more)

  records = records[_kept(records, schema, files, count)]
  rows = len(records)
  first = np.ones(rows, bool)
  first[1:] = ~_same(records, ("key", "check"))
  if schema.session.gap_minutes is not None:
    gap = round(schema.session.gap_minutes * _MINUTE)
    first[1:] |= np.diff(records["order"]) > gap
  last = np.ones(rows, bool)
  last[:-1] = first[1:]
  start = np.flatnonzero(first)
  block = np.cumsum(first) - 1
  step = np.arange(rows) - start[block]
  if schema.order.kind == "step":
    bad = np.flatnonzero(records["order"] != step)
    if bad.size:
      offset = schema.order.first
      row = int(bad[0])
      refuse_row(
        row,
        f"column {schema.order.column}: expected step {step[row] + offset} of"
        f" its session, found {records['order'][row] + offset}.",
      )
  extra, left = records["bootstrap_only"], records["exit"]
  longest = schema.session.max_requests
  bad = np.flatnonzero((step >= longest) & ~extra)
  if bad.size:
    refuse_row(
      int(bad[0]),
      f"column {schema.session.column}: expected sessions of at most"
      f" {longest} requests, found a longer one.",
    )
  bad = np.flatnonzero(left & ~last)
  if bad.size:
    refuse_row(
      int(bad[0]),
      f"column {schema.exit}: expected true on the last row of a session only,"
      " found it before others.",
    )
  bad = np.flatnonzero(extra & (~last | first))
  if bad.size:
    refuse_row(
      int(bad[0]),
      f"column {schema.bootstrap_only}: expected true on one row after the"
      " requests of a session only, found it elsewhere.",
    )
  terminal = left.copy()
  if schema.session.gap_minutes is not None:
    terminal |= last & ~extra & (latest - records["order"] > gap)
  count("sessions", len(start))
  count("sessions that the user left", terminal.sum())
  count("sessions cut, what came after known", extra.sum())
  count(
    "sessions cut, nothing after known: the last request gives no transition",
    (last & ~extra & ~terminal).sum(),
  )
  return SessionLog(
    observation=records["observation"].copy(),
    action=records["action"].copy(),
    box=ActionBox(
      lower=records["box_lower"].copy(), upper=records["box_upper"].copy()
    ),
    log_prob=records["log_prob"].copy(),
    exploration_held=records["exploration_held"].copy(),
    reward=records["reward"].copy(),
    feedback=records["feedback"].copy(),
    terminal=terminal,
    bootstrap_only=extra.copy(),
    session_id=_ids(records, schema, start)[block],
    step=step.astype(np.int32),
  )


def _same(records: np.ndarray, names: Sequence[str]) -> np.ndarray:
  """Whether each record but the first agrees with the one before it."""
  same = np.ones(len(records) - 1, bool)
  for name in names:
    same &= records[name][1:] == records[name][:-1]
  return same


def _kept(
  records: np.ndarray,
  schema: LogSchema,
  files: Sequence[pathlib.Path],
  count: Callable[[str, int], None],
) -> np.ndarray:
  """Bool `[N]`: rows that are no repetition of an earlier one."""
  again = np.zeros(len(records), bool)
  again[1:] = _same(records, ("key", "check", "order"))
  repeated = np.flatnonzero(again)
  if not repeated.size:
    return ~again
  # Compared with the first row of their session and order, which stays.
  original = np.maximum.accumulate(np.where(again, 0, np.arange(len(records))))[
    repeated
  ]
  equal = np.ones(len(repeated), bool)
  for name in records.dtype.names or ():
    if name not in PLACE:
      same = records[name][repeated] == records[name][original]
      equal &= same.reshape(len(repeated), -1).all(axis=1)
  different = np.flatnonzero(~equal)
  if different.size and schema.order.conflicts == "refuse":
    one, other = (
      records[numbers[different[0]]] for numbers in (original, repeated)
    )
    refuse(
      files[other["file"]],
      f"row {other['row'] + 1}: ",
      "expected one row for a session and"
      f" {schema.order.kind}, found another one with other values in"
      f" {files[one['file']]}, row {one['row'] + 1}; mend the log, or set"
      ' conflicts = "keep_first" in [order].',
    )
  count("rows left out that repeat another one", equal.sum())
  count("rows left out that contradict an earlier one", different.size)
  return ~again


def _ids(
  records: np.ndarray, schema: LogSchema, start: np.ndarray
) -> np.ndarray:
  """A number for each session, different within these records."""
  ids = records["session"][start]
  if schema.session.gap_minutes is not None:
    # The sessions of one id: the first keeps it.
    key = records["key"][start]
    place = np.arange(len(start)) - np.searchsorted(key, key)
    later = log_values.mixed(key + place.astype(np.uint64)) >> np.uint64(1)
    ids = np.where(place > 0, later.view(np.int64), ids)
  while True:
    # Two texts of one number are rarer than broken disks, not impossible.
    _, where = np.unique(ids, return_index=True)
    if len(where) == len(ids):
      return ids
    again = np.ones(len(ids), bool)
    again[where] = False
    ids = ids + again
