"""What the values of a KuaiRand log must be, alone and together.

A value out of its bounds is refused where it stands. What may happen in an
honest log, but is a sign of a mistake if it happens often, is counted and said.
"""

import datetime
import pathlib
from collections.abc import Mapping

import numpy as np
from absl import logging

from mtf_jax.data import csv_files, kuairand_values

FLAGS = (
  "is_click",
  "long_view",
  "is_like",
  "is_comment",
  "is_follow",
  "is_forward",
  "is_hate",
  "is_rand",
)
UTC_OFFSET_HOURS = 8  # KuaiRand's days are Beijing's
_HOUR = 3600 * 1000
DAY = 24 * _HOUR
_FIRST_DATE, _LAST_DATE = 20000101, 20991231
_FIRST_TIME, _LAST_TIME = 946684800000, 4102444800000  # the same in UTC

# `date` is when an impression was recorded. In the excerpt of KuaiRand-Pure
# 0.9% of the rows are recorded after midnight, up to 2.2 hours after it, and
# none before. Half a day also tells a time zone or a unit from a late record.
_LATE = 12 * _HOUR
_USUAL_SHARE_LATE = 0.05
# Short videos play in a loop: up to 63 times in the excerpt, in 898 s.
_USUAL_LOOPS = 100
# The excerpt repeats 2.7% of its rows.
_USUAL_SHARE_REPEATED = 0.1


def _day_start(date: int) -> int:
  """Milliseconds since 1970 at which a day YYYYMMDD begins; -1 if it is none."""
  if not _FIRST_DATE <= date <= _LAST_DATE:
    return -1
  try:
    day = datetime.date(date // 10000, date // 100 % 100, date % 100)
  except ValueError:
    return -1
  since_1970 = day.toordinal() - datetime.date(1970, 1, 1).toordinal()
  return since_1970 * DAY - UTC_OFFSET_HOURS * _HOUR


class Checks:
  """Checks a log block by block and counts what is not refused at once."""

  def __init__(
    self,
    ids: Mapping[str, np.ndarray],
    video_milliseconds: np.ndarray,
    max_unknown_share: float,
  ):
    """Starts with counts of 0.

    Args:
      ids: known ids, increasing, of the columns `user_id` and `video_id`.
      video_milliseconds: the feature file's duration of each video, 0 if it has
        none.
      max_unknown_share: see `kuairand.iterate_log`.
    """
    self._ids = ids
    self._video_milliseconds = video_milliseconds
    self._max_unknown_share = max_unknown_share
    self._num_rows = 0
    self._num_unknown = 0
    self._num_other_day = 0
    self._num_loops = 0
    self._num_other_duration = 0
    self._first_unknown: tuple[pathlib.Path, int, int, str, int] | None = None

  def block(
    self,
    path: pathlib.Path,
    first_row: int,
    values: Mapping[str, np.ndarray],
  ) -> np.ndarray:
    """Checks a block of rows.

    Args:
      path: the file.
      first_row: rows of it before the block.
      values: the block's columns `[n]`.

    Returns:
      bool `[n]`, the rows whose user and video are known.

    Raises:
      InputError: a value out of its bounds, or a date of another time.
    """

    def require(column, good, expected):
      if not good.all():
        index = int(np.argmin(good))
        others = int(np.sum(~good)) - 1
        if others:
          expected += f" (as in {others} more of these {len(good)} rows)"
        value = values[column][index].item()
        kuairand_values.fail(path, first_row, index, column, value, expected)

    for column in ("play_time_ms", "duration_ms"):
      good = (values[column] >= 0) & (values[column] <= DAY)
      require(column, good, f"a non-negative time of at most a day ({DAY} ms)")
    for column in FLAGS:
      require(column, (values[column] == 0) | (values[column] == 1), "0 or 1")
    require("tab", values["tab"] >= 0, "a non-negative page number")
    time = values["time_ms"]
    good = (time >= _FIRST_TIME) & (time < _LAST_TIME)
    require("time_ms", good, "milliseconds since 1970, of this century")

    dates, inverse = np.unique(values["date"], return_inverse=True)
    starts = np.array([_day_start(date.item()) for date in dates], np.int64)
    good = (starts >= 0)[inverse]
    require("date", good, "a date YYYYMMDD of this century")
    since = time - starts[inverse]
    good = (since >= -_LATE) & (since < DAY + _LATE)
    if not good.all():
      own = int(time[np.argmin(good)]) + UTC_OFFSET_HOURS * _HOUR
      moment = datetime.datetime.fromtimestamp(own // 1000, datetime.UTC)
      require(
        "date",
        good,
        f"the day of time_ms ({moment:%Y%m%d}, {moment:%H:%M} in UTC+8) or a"
        " neighbour less than 12 hours away",
      )

    _, user_known = self._find("user_id", values)
    videos, video_known = self._find("video_id", values)
    duration = values["duration_ms"].astype(np.int64)
    own_duration = self._video_milliseconds[videos]
    differ = np.abs(own_duration - duration) > 1
    differ &= video_known & (own_duration > 0) & (duration > 0)
    loops = (values["play_time_ms"] > _USUAL_LOOPS * duration) & (duration > 0)
    self._num_rows += len(time)
    self._num_other_day += int(np.sum((since < 0) | (since >= DAY)))
    self._num_loops += int(np.sum(loops))
    self._num_other_duration += int(np.sum(differ))
    known = user_known & video_known
    self._num_unknown += int(np.sum(~known))
    if self._first_unknown is None and not known.all():
      index = int(np.argmin(known))
      column = "video_id" if user_known[index] else "user_id"
      value = values[column][index].item()
      self._first_unknown = (path, first_row, index, column, value)
    return known

  def _find(
    self, column: str, values: Mapping[str, np.ndarray]
  ) -> tuple[np.ndarray, np.ndarray]:
    """Places of a block's ids among the known ones, and which are known."""
    ids = self._ids[column]
    place = np.minimum(np.searchsorted(ids, values[column]), len(ids) - 1)
    return place, ids[place] == values[column]

  def finish(self, log_dir: str) -> None:
    """Judges the counts of all blocks; says what is unusual.

    Args:
      log_dir: the folder, for the sentences.

    Raises:
      InputError: more unknown ids than tolerated.
    """
    num_rows = self._num_rows
    if self._first_unknown is not None:
      if self._num_unknown > self._max_unknown_share * num_rows:
        stem = self._first_unknown[3].replace("_id", "_features")
        known_in = ", ".join(
          path.name for path in csv_files.find_files(log_dir, stem)
        )
        kuairand_values.fail(
          *self._first_unknown,
          f"an id of {known_in} (unknown in {self._num_unknown} of all"
          f" {num_rows} rows; max_unknown_share is"
          f" {self._max_unknown_share:g})",
        )
      logging.warning(
        f"{log_dir}: {self._num_unknown} of {num_rows} rows are left out, since"
        " the feature files have no such user or video."
      )
    if self._num_other_day > _USUAL_SHARE_LATE * num_rows:
      logging.warning(
        f"{log_dir}: in {self._num_other_day} of {num_rows} rows date is not the"
        f" day of time_ms in UTC+{UTC_OFFSET_HOURS}; days are split by date,"
        " hours are those of time_ms."
      )
    if self._num_loops:
      logging.warning(
        f"{log_dir}: in {self._num_loops} of {num_rows} rows play_time_ms is"
        f" more than {_USUAL_LOOPS} times duration_ms; are both milliseconds?"
      )
    if self._num_other_duration:
      logging.warning(
        f"{log_dir}: in {self._num_other_duration} of {num_rows} rows"
        " duration_ms is not the feature file's video_duration."
      )


def say_repeated(
  log_dir: str, num_rows: int, num_repeated: int, differing: Mapping[str, int]
) -> None:
  """Says what was unusual about impressions that are there several times.

  Args:
    log_dir: the folder.
    num_rows: rows read, the repetitions included.
    num_repeated: repetitions, all dropped.
    differing: by column, those that differ from the one that is kept; `any`
      counts each once.
  """
  if differing["any"]:
    columns = ", ".join(
      f"{name} {count}"
      for name, count in differing.items()
      if count and name != "any"
    )
    logging.warning(
      f"{log_dir}: {differing['any']} of {num_repeated} rows that repeat user,"
      f" video and time of another differ from it ({columns}); the first one"
      " read is kept."
    )
  if num_repeated > _USUAL_SHARE_REPEATED * num_rows:
    logging.warning(
      f"{log_dir}: {num_repeated} of {num_rows} rows repeat user, video and"
      " time of another and are left out; is a file there twice?"
    )
