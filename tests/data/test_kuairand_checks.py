"""What an honest log may hold, and is said with counts."""

import shutil

import numpy as np
import pytest
from kuairand_files import (
  LOG_COLUMNS,
  lines_of,
  read,
  set_value,
  write_csv,
  write_lines,
)

from mtf_jax.data import kuairand
from mtf_jax.io import InputError

_DAY = 86_400_000


def _shift(folder, column, amount, rows):
  """Adds to a column of the plain log file; rows count from 1."""
  for row in rows:
    fields = lines_of(folder)[row].split(",")
    value = int(fields[LOG_COLUMNS.index(column)]) + amount
    set_value(folder, row, column, str(value))


def test_nothing_is_said_of_an_ordinary_log(folder, caplog):
  # Recorded two hours after midnight, as some rows of the real log are.
  _shift(folder, "time_ms", -20 * 3_600_000, range(3, 6))
  log, _ = read(folder)
  assert len(log.user) == 400
  assert not caplog.records


def test_a_date_that_is_often_the_neighbours_is_said(folder, caplog):
  # As of a log whose days are those of another time zone.
  _shift(folder, "time_ms", -20 * 3_600_000, range(1, 31))
  read(folder)
  assert (
    "in 30 of 400 rows date is not the day of time_ms in UTC+8" in caplog.text
  )


@pytest.mark.parametrize("days", [-3, 1, 400])
def test_a_date_of_another_day_is_refused_with_its_count(folder, days):
  _shift(folder, "time_ms", days * _DAY, range(20, 23))
  with pytest.raises(
    InputError,
    match=r"b\.csv: row 20: column date: expected the day of time_ms \(20\d{6},"
    r" 18:\d\d in UTC\+8\).*as in 2 more of these 200 rows",
  ):
    read(folder)


def test_play_times_of_another_unit_are_said(folder, caplog):
  for row in (7, 8):
    set_value(folder, row, "duration_ms", "30")
    set_value(folder, row, "play_time_ms", "3001")
  set_value(folder, 9, "duration_ms", "30")
  set_value(folder, 9, "play_time_ms", "3000")
  set_value(folder, 10, "duration_ms", "0")  # a picture
  read(folder)
  assert (
    "in 2 of 400 rows play_time_ms is more than 100 times duration_ms"
    in caplog.text
  )
  # Those durations are not the feature file's either.
  assert "in 3 of 400 rows duration_ms is not the feature" in caplog.text


def test_repetitions_that_differ_are_counted_and_the_first_is_kept(
  folder, caplog
):
  lines = lines_of(folder)
  write_lines(folder, [*lines, lines[3], lines[3], lines[9], lines[9]])
  set_value(folder, 201, "tab", "4")
  set_value(folder, 202, "tab", "5")
  set_value(folder, 202, "hourmin", "1900")  # not read
  set_value(folder, 203, "is_hate", "1")
  set_value(folder, 203, "tab", "6")
  log, repeated = read(folder)
  assert (len(log.user), repeated) == (400, 4)
  (record,) = caplog.records
  assert "3 of 4 rows that repeat user, video and time" in record.message
  assert "(tab 3, is_hate 1)" in record.message
  assert set(log.tab) == {1}
  assert not log.hate[log.tab == 6].any()


def test_a_file_that_is_there_twice_is_said(folder, caplog):
  shutil.copy(folder / "log_standard_b.csv", folder / "log_standard_copy.csv")
  log, repeated = read(folder)
  assert (len(log.user), repeated) == (400, 200)
  (record,) = caplog.records
  assert "200 of 600 rows repeat user, video and time" in record.message


def test_unknown_ids_are_counted_and_tolerated_up_to_a_share(folder, caplog):
  before, _ = read(folder)
  set_value(folder, 17, "user_id", "77777")
  set_value(folder, 30, "video_id", "-5")
  set_value(folder, 31, "video_id", "88888")
  set_value(folder, 31, "user_id", "77777")
  catalogue = kuairand.read_catalogue(folder)
  with pytest.raises(
    InputError,
    match=r"b\.csv: row 17: column user_id: expected an id of"
    r" user_features\.csv\.gz \(unknown in 3 of all 400 rows;"
    r" max_unknown_share is 0.007\), found 77777",
  ):
    kuairand.read_log(folder, catalogue, max_unknown_share=0.007)
  assert not caplog.records
  log, _ = kuairand.read_log(folder, catalogue, max_unknown_share=0.0075)
  assert "3 of 400 rows are left out" in caplog.text
  lines = lines_of(folder)
  time = LOG_COLUMNS.index("time_ms")
  left_out = [int(lines[row].split(",")[time]) for row in (17, 30, 31)]
  kept = before.select(~np.isin(before.time_ms, left_out))
  for a, b in zip(log, kept, strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_is_between_0_and_1(folder, share):
  with pytest.raises(InputError, match="max_unknown_share: expected 0 to 1"):
    kuairand.read_log(
      folder, kuairand.read_catalogue(folder), max_unknown_share=share
    )


def test_a_log_of_unknown_ids_alone_is_refused(folder):
  for path in folder.glob("log_*"):
    path.unlink()
  lines = [["77777" for _ in LOG_COLUMNS]]
  write_csv(folder / "log_standard_b.csv", LOG_COLUMNS, lines)
  for column, value in (
    ("date", "20220425"),
    ("time_ms", "1650882384975"),
    *((column, "0") for column in LOG_COLUMNS if column.startswith("is_")),
    ("long_view", "0"),
    ("tab", "0"),
  ):
    set_value(folder, 1, column, value)
  catalogue = kuairand.read_catalogue(folder)
  with pytest.raises(InputError, match="expected impressions, found none in"):
    kuairand.read_log(folder, catalogue, max_unknown_share=1.0)
