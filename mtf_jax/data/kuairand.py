"""Reader of KuaiRand logs: real impressions of a short-video feed.

The layout is KuaiRand's own [1], for its Pure, 1K and 27K releases: any number
of `log_*.csv[.gz]` files and the feature files `user_features*.csv[.gz]` and
`video_features*.csv[.gz]` (those with "statistic" in the name are not read:
they average over the whole period, so they leak the later days).

A log is read in one pass of bounded memory: batches are checked, narrowed and
spilled into temporary partitions by user; each partition is then sorted, rid of
repeated impressions and handed out. Because everything is checked before
anything is handed out, a bad row leaves nothing half-loaded.

References:
  [1] Gao et al., "KuaiRand: An Unbiased Sequential Recommendation Dataset with
  Randomly Exposed Videos", CIKM 2022, https://kuairand.com.
"""

import contextlib
import os
import pathlib
import tempfile
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from pyarrow import ipc

from mtf_jax.data import csv_files, kuairand_checks, kuairand_values
from mtf_jax.io import InputError

# Columns that are used, with the type that they are narrowed to.
_LOG_TYPES: dict[str, type[np.signedinteger]] = {
  "user_id": np.int64,
  "video_id": np.int64,
  "time_ms": np.int64,
  "date": np.int32,
  "play_time_ms": np.int32,
  "duration_ms": np.int32,
  "tab": np.int16,
  **dict.fromkeys(kuairand_checks.FLAGS, np.int8),
}
_KEY = ("user_id", "time_ms", "video_id")
# Environment variable that names the folder where no argument does.
_LOG_DIR_VARIABLE = "MTF_JAX_KUAIRAND"

_USER_CATEGORIES = (
  "user_active_degree",
  "is_live_streamer",
  "is_video_author",
  "follow_user_num_range",
  "fans_user_num_range",
  "friend_user_num_range",
  "register_days_range",
  *(f"onehot_feat{n}" for n in range(18)),
)
_VIDEO_CATEGORIES = ("author_id", "video_type", "upload_type", "music_type")
_MISSING = ("", "NULL", "null", "nan")


class Catalogue(NamedTuple):
  """Users and videos of a log folder, indexed densely in the order of ids.

  user_ids: `[U]` int64, increasing.
  video_ids: `[I]` int64, increasing.
  user_categories: `[U, F]` int32 codes from 0 of the profile columns.
  user_category_names: `F` names.
  video_categories: `[I, G]` int32 codes of author, type, upload and music type.
  video_tags: `[I, W]` uint8, 1 where the video carries the tag.
  video_tag: `[I]` int32, the video's first tag, a column of `video_tags`.
  duration: `[I]` float32 seconds, `inf` if the video has none (pictures).
  """

  user_ids: np.ndarray
  video_ids: np.ndarray
  user_categories: np.ndarray
  user_category_names: tuple[str, ...]
  video_categories: np.ndarray
  video_tags: np.ndarray
  video_tag: np.ndarray
  duration: np.ndarray


class ImpressionLog(NamedTuple):
  """Columns of `n` impressions, each `[n]`, ordered by user and time.

  user, item: int32 indices into the catalogue.
  date: int32 as YYYYMMDD; time_ms: int64.
  play_seconds: float32; duration: float32 seconds, `inf` if not recorded.
  tab: int16, the page of the app.
  click ... hate, is_rand: int8, 0 or 1, as recorded.
  """

  user: np.ndarray
  item: np.ndarray
  date: np.ndarray
  time_ms: np.ndarray
  play_seconds: np.ndarray
  duration: np.ndarray
  tab: np.ndarray
  click: np.ndarray
  long_view: np.ndarray
  like: np.ndarray
  comment: np.ndarray
  follow: np.ndarray
  forward: np.ndarray
  hate: np.ndarray
  is_rand: np.ndarray

  def select(self, rows: np.ndarray) -> "ImpressionLog":
    """The impressions at `rows` (a mask or indices)."""
    return ImpressionLog(*(column[rows] for column in self))


def log_folder(log_dir: str | os.PathLike[str] | None = None) -> pathlib.Path:
  """The folder to read: the one that is given, or the environment's.

  Args:
    log_dir: folder in KuaiRand's layout; that of the environment variable
      MTF_JAX_KUAIRAND, as it is now, if None.

  Returns:
    The folder; whether it exists is not looked at.

  Raises:
    InputError: neither names one.
  """
  folder = log_dir or os.environ.get(_LOG_DIR_VARIABLE)
  if not folder:
    raise InputError(
      "log_dir: expected a folder in KuaiRand's layout, found none; give one or"
      f" set the environment variable {_LOG_DIR_VARIABLE}."
    )
  return pathlib.Path(folder)


def iterate_log(
  log_dir: str | os.PathLike,
  catalogue: Catalogue,
  *,
  max_unknown_share: float = 0.0,
  partitions: int = 64,
  block_bytes: int = 1 << 20,
) -> Iterator[tuple[ImpressionLog, int]]:
  """Streams a log of any size, all of a user's impressions together.

  Memory holds one block of a file and one of the partitions; the checked,
  narrowed columns (46 bytes a row) wait on disk in between. A warning says with
  counts what is no error but unusual; see `kuairand_checks`.

  Args:
    log_dir: folder with the log files.
    catalogue: `read_catalogue(log_dir)`.
    max_unknown_share: share of the rows, 0 to 1, that may be of users or videos
      that the catalogue does not have; they are left out and counted in a
      warning.
    partitions: parts that the users are spread over; the log's narrowed size
      divided by it must fit in memory.
    block_bytes: bytes of a file parsed at a time, at least those of a row.

  Yields:
    (impressions ordered by user and time, repeated ones dropped of them), once
    per non-empty partition. Rows that agree in user, video and time are one
    impression; the first that is read is kept. If others differ from it, a
    warning after the last partition counts them.

  Raises:
    InputError: a file that is none or no CSV, missing columns, an unparsable
      value, one out of its bounds, a date that is not that of the time, too
      many unknown ids or a truncated file, naming file, row (counted from 1
      after the header) and column; before the first yield.
  """
  if not 0 <= max_unknown_share <= 1:
    raise InputError(
      f"max_unknown_share: expected 0 to 1, found {max_unknown_share}."
    )
  columns = tuple(_LOG_TYPES)
  milliseconds = np.where(
    np.isinf(catalogue.duration), 0, 1000.0 * catalogue.duration
  )
  checks = kuairand_checks.Checks(
    {"user_id": catalogue.user_ids, "video_id": catalogue.video_ids},
    milliseconds,
    max_unknown_share,
  )
  files = csv_files.find_files(log_dir, "log_")
  with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
    writers: dict[int, ipc.RecordBatchStreamWriter] = {}
    schema = pa.schema(
      [(name, pa.from_numpy_dtype(dtype)) for name, dtype in _LOG_TYPES.items()]
    )
    for path in files:
      for first_row, batch in csv_files.batches(path, columns, block_bytes):
        values = {
          column: kuairand_values.integers(
            path, first_row, column, batch.column(column), dtype
          )
          for column, dtype in _LOG_TYPES.items()
        }
        known = checks.block(path, first_row, values)
        part = np.where(known, values["user_id"] % partitions, -1)
        for number in np.unique(part[known]).tolist():
          if number not in writers:
            sink = pathlib.Path(folder, str(number))
            writers[number] = stack.enter_context(
              ipc.new_stream(str(sink), schema)
            )
          rows = part == number
          writers[number].write_batch(
            pa.record_batch(
              [values[column][rows] for column in columns], schema=schema
            )
          )
    stack.close()
    checks.finish(str(log_dir))
    num_rows, num_repeated, differing = 0, 0, Counter[str]()
    for number in sorted(writers):
      with ipc.open_stream(pathlib.Path(folder, str(number))) as reader:
        table = reader.read_all()
      values, differ = _without_repeated(
        {name: table.column(name).to_numpy() for name in columns}
      )
      repeated = table.num_rows - len(values["user_id"])
      num_rows += table.num_rows
      num_repeated += repeated
      differing += differ
      yield _impressions(values, catalogue), repeated
    kuairand_checks.say_repeated(
      str(log_dir), num_rows, num_repeated, differing
    )


def _without_repeated(
  values: dict[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], Counter[str]]:
  """Rows in order, the first of each key.

  Returns:
    (columns; by column how many of the others differ from the first there,
    under "any" how many do anywhere).
  """
  order = np.lexsort([values[name] for name in reversed(_KEY)])
  values = {name: column[order] for name, column in values.items()}
  keep = np.ones(len(order), bool)
  keep[1:] = np.any(
    [values[name][1:] != values[name][:-1] for name in _KEY], axis=0
  )
  again = np.flatnonzero(~keep)
  # The kept row that stands last before each of the others.
  first = np.flatnonzero(keep)[np.cumsum(keep)[again] - 1]
  differ = {
    name: column[again] != column[first] for name, column in values.items()
  }
  differ["any"] = np.any(list(differ.values()), axis=0)
  counts = Counter({name: int(rows.sum()) for name, rows in differ.items()})
  return {name: column[keep] for name, column in values.items()}, counts


def _impressions(
  values: dict[str, np.ndarray], catalogue: Catalogue
) -> ImpressionLog:
  duration = (values["duration_ms"] / 1000).astype(np.float32)
  return ImpressionLog(
    user=_index(catalogue.user_ids, values["user_id"]),
    item=_index(catalogue.video_ids, values["video_id"]),
    date=values["date"],
    time_ms=values["time_ms"],
    play_seconds=(values["play_time_ms"] / 1000).astype(np.float32),
    duration=np.where(duration > 0, duration, np.float32(np.inf)),
    tab=values["tab"],
    click=values["is_click"],
    long_view=values["long_view"],
    like=values["is_like"],
    comment=values["is_comment"],
    follow=values["is_follow"],
    forward=values["is_forward"],
    hate=values["is_hate"],
    is_rand=values["is_rand"],
  )


def _index(ids: np.ndarray, values: np.ndarray) -> np.ndarray:
  return np.searchsorted(ids, values).astype(np.int32)


def read_log(
  log_dir: str | os.PathLike,
  catalogue: Catalogue,
  *,
  max_unknown_share: float = 0.0,
) -> tuple[ImpressionLog, int]:
  """Reads a log that fits in memory; see `iterate_log`.

  Args:
    log_dir: folder with the log files.
    catalogue: `read_catalogue(log_dir)`.
    max_unknown_share: share of the rows, 0 to 1, that may be of unknown users
      or videos and are left out.

  Returns:
    (impressions ordered by user and time, repeated ones dropped).

  Raises:
    InputError: as `iterate_log`, or no impression at all.
  """
  parts = list(
    iterate_log(log_dir, catalogue, max_unknown_share=max_unknown_share)
  )
  if not parts:
    raise InputError(f"log_dir: expected impressions, found none in {log_dir}.")
  joined = ImpressionLog(
    *(
      np.concatenate(column)
      for column in zip(*(p[0] for p in parts), strict=True)
    )
  )
  order = np.lexsort([joined.item, joined.time_ms, joined.user])
  return joined.select(order), sum(part[1] for part in parts)


def split_days(
  log: ImpressionLog, test_from: int, name: str = "test_from"
) -> tuple[ImpressionLog, ImpressionLog]:
  """Splits by whole days: before `test_from` (YYYYMMDD), and from it on.

  Args:
    log: impressions.
    test_from: the day.
    name: what a caller calls it.

  Raises:
    InputError: one of the two parts would be empty.
  """
  later = log.date >= test_from
  if later.all() or not later.any():
    days = np.unique(log.date)
    raise InputError(
      f"{name}: expected one of the log's {len(days)} days"
      f" ({days[0]} to {days[-1]}) and not the first, found {test_from}; give"
      f" another --{name}."
    )
  return log.select(~later), log.select(later)


def _codes(values: kuairand_values.Categories, rows: np.ndarray) -> np.ndarray:
  """Codes from 0 in the order of the texts, those that are missing alike."""
  known = [text if text not in _MISSING else "" for text in values.texts]
  code = np.unique(np.array(known), return_inverse=True)[1].astype(np.int32)
  return code[values.codes][rows]


def read_catalogue(log_dir: str | os.PathLike) -> Catalogue:
  """Reads the users and the videos of a log folder.

  Args:
    log_dir: folder with `user_features*.csv[.gz]` and
      `video_features*.csv[.gz]`.

  Returns:
    The catalogue. Categories that are missing have a code of their own.

  Raises:
    InputError: a file that is none or no CSV, missing columns, an unparsable or
      repeated id or an unparsable duration, naming file, row and column.
  """
  users = kuairand_values.table(
    csv_files.find_files(log_dir, "user_features"),
    "user_id",
    _USER_CATEGORIES,
  )
  user_rows = np.argsort(users.ids)
  videos = kuairand_values.table(
    csv_files.find_files(log_dir, "video_features"),
    "video_id",
    (*_VIDEO_CATEGORIES, "tag", "video_duration"),
  )
  rows = np.argsort(videos.ids)
  # Tags are few, sets of them some thousands: videos have the number of a set.
  tag_sets = videos.columns["tag"]
  names_of = [
    [tag for tag in text.split(",") if tag not in _MISSING] or ["unknown"]
    for text in tag_sets.texts
  ]
  vocabulary = {
    tag: code
    for code, tag in enumerate(sorted({t for ts in names_of for t in ts}))
  }
  tags_of = np.zeros((len(names_of), len(vocabulary)), np.uint8)
  for place, names in enumerate(names_of):
    tags_of[place, [vocabulary[name] for name in names]] = 1
  first_tag = np.array([vocabulary[names[0]] for names in names_of], np.int32)
  tag_set = tag_sets.codes[rows]
  return Catalogue(
    user_ids=users.ids[user_rows],
    video_ids=videos.ids[rows],
    user_categories=np.stack(
      [_codes(users.columns[name], user_rows) for name in _USER_CATEGORIES],
      axis=1,
    ),
    user_category_names=_USER_CATEGORIES,
    video_categories=np.stack(
      [_codes(videos.columns[name], rows) for name in _VIDEO_CATEGORIES],
      axis=1,
    ),
    video_tags=tags_of[tag_set],
    video_tag=first_tag[tag_set],
    duration=_durations(videos)[rows],
  )


def _durations(videos: kuairand_values.Table) -> np.ndarray:
  """Seconds of every video, `inf` where it has none; refuses other values."""
  column = videos.columns["video_duration"]
  seconds = np.full(len(column.texts), np.inf, np.float32)
  for place, text in enumerate(column.texts):
    if text in _MISSING:
      continue
    milliseconds = kuairand_values.decimal(text)
    if not milliseconds <= kuairand_checks.DAY:
      path, row = videos.place(int(np.argmax(column.codes == place)))
      expected = f"a time of at most a day ({kuairand_checks.DAY} ms)"
      kuairand_values.fail(path, row, 0, "video_duration", text, expected)
    if milliseconds > 0:
      seconds[place] = milliseconds / 1000
  return seconds[column.codes]
