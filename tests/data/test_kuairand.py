"""The KuaiRand reader: what it reads, what it refuses, how much it holds."""

import gzip
import shutil
import subprocess
import sys

import kuairand_files
import numpy as np
import pytest
from kuairand_files import lines_of, read, set_value

from mtf_jax.data import kuairand
from mtf_jax.io import InputError


def test_reads_every_file_in_order(folder):
  log, duplicates = read(folder)
  assert len(log.user) == 400
  assert duplicates == 0
  order = np.lexsort([log.time_ms, log.user])
  np.testing.assert_array_equal(order, np.arange(400))
  # One impression, looked up by its time, against the line of the file.
  fields = dict(
    zip(kuairand_files.LOG_COLUMNS, lines_of(folder)[5].split(","), strict=True)
  )
  (row,) = np.flatnonzero(log.time_ms == int(fields["time_ms"]))
  assert log.user[row] == int(fields["user_id"])
  assert log.item[row] == int(fields["video_id"])
  assert log.play_seconds[row] == pytest.approx(
    int(fields["play_time_ms"]) / 1000
  )
  assert log.click[row] == int(fields["is_click"])
  assert log.date[row] == int(fields["date"])


def test_ids_are_dense_in_catalogue_order(folder):
  path = folder / "user_features.csv.gz"
  lines = gzip.decompress(path.read_bytes()).decode().splitlines()
  path.write_bytes(gzip.compress("\n".join([lines[0], *lines[:0:-1]]).encode()))
  catalogue = kuairand.read_catalogue(folder)
  np.testing.assert_array_equal(catalogue.user_ids, np.arange(40))
  name = catalogue.user_category_names.index("is_live_streamer")
  np.testing.assert_array_equal(
    catalogue.user_categories[:, name], np.arange(40) % 2
  )


def test_catalogue_content(folder):
  catalogue = kuairand.read_catalogue(folder)
  assert catalogue.video_tags.shape == (30, 3)
  np.testing.assert_array_equal(catalogue.video_tags.sum(axis=1)[:2], [1, 2])
  np.testing.assert_array_equal(catalogue.video_tag[:2], [2, 0])  # "5", "3"
  assert (catalogue.duration > 0).all()


def test_exact_duplicates_are_dropped_and_counted(folder):
  lines = lines_of(folder)
  extra = [lines[3], lines[3], lines[9]]
  # In another file as well: the same impression.
  kuairand_files.write_csv(
    folder / "log_standard_c.csv.gz",
    kuairand_files.LOG_COLUMNS,
    [line.split(",") for line in extra],
  )
  log, duplicates = read(folder)
  assert duplicates == 3
  assert len(log.user) == 400


def test_streaming_gives_every_row_once_and_users_whole(folder):
  catalogue = kuairand.read_catalogue(folder)
  parts = list(
    kuairand.iterate_log(folder, catalogue, partitions=7, block_bytes=4096)
  )
  assert len(parts) == 7
  users = [np.unique(part.user) for part, _ in parts]
  assert len(np.concatenate(users)) == len(np.unique(np.concatenate(users)))
  whole, _ = read(folder)
  times = np.concatenate([part.time_ms for part, _ in parts])
  np.testing.assert_array_equal(np.sort(times), np.sort(whole.time_ms))


@pytest.mark.parametrize(
  ("column", "value", "found"),
  [
    ("play_time_ms", "-5", "-5"),
    ("duration_ms", "-1", "-1"),
    ("play_time_ms", "1.5e", "1.5e"),
    ("play_time_ms", "", "''"),
    ("play_time_ms", "3000000000", "3000000000"),
    ("is_like", "2", "2"),
    ("date", "20220431", "20220431"),
    ("user_id", "77777", "77777"),
    ("video_id", "77777", "77777"),
    ("time_ms", "now", "now"),
    # Python's `int` takes these, Arrow refuses them.
    ("user_id", " 1", "' 1'"),
    ("user_id", "+1", r"'\+1'"),
    ("user_id", "1_0", "'1_0'"),
    ("user_id", "\u0661", "'\u0661'"),
    # Arrow takes these, Python refuses them.
    ("user_id", "0x1F", "'0x1F'"),
    ("is_like", "0X1", "'0X1'"),
    ("user_id", "9223372036854775808", "int64, found '9223372036854775808'"),
    ("user_id", "9" * 5000, "int64, found '9999"),
    ("tab", "-1", "-1"),
    ("duration_ms", "86400001", "at most a day .*86400001"),
    ("play_time_ms", "86400001", "at most a day .*86400001"),
    # What decides the held-out days.
    ("date", "2022428", "2022428"),
    ("date", "20300101", "the day of time_ms .*20300101"),
    ("time_ms", "0", "milliseconds since 1970.*found 0"),
    ("time_ms", "-1650882384975", "milliseconds since 1970.*-1650882384975"),
    ("time_ms", "1650882384", "milliseconds since 1970.*1650882384"),
    ("time_ms", "1650882384975000", "milliseconds since 1970"),
  ],
)
def test_bad_value_names_file_row_and_column(folder, column, value, found):
  set_value(folder, 17, column, value)
  pattern = rf"log_standard_b\.csv: row 17: column {column}: .*{found}"
  with pytest.raises(InputError, match=pattern):
    read(folder)


def test_row_number_counts_over_blocks(folder):
  set_value(folder, 190, "is_hate", "7")
  stream = kuairand.iterate_log(
    folder, kuairand.read_catalogue(folder), block_bytes=2048
  )
  with pytest.raises(InputError, match="row 190: column is_hate"):
    next(stream)  # refused before anything is handed out


def test_split_by_whole_days(folder):
  log, _ = read(folder)
  earlier, later = kuairand.split_days(log, 20220429)
  assert earlier.date.max() == 20220428
  assert later.date.min() == 20220429
  assert len(earlier.user) + len(later.user) == len(log.user)
  for day in (20220425, 20220501):
    with pytest.raises(
      InputError,
      match=rf"6 days \(20220425 to 20220430\) .* found {day}; .* --test_from",
    ):
      kuairand.split_days(log, day)


_PEAK = """
import resource, sys
from mtf_jax.data import kuairand
catalogue = kuairand.read_catalogue(sys.argv[1])
rows = 0
for part, _ in kuairand.iterate_log(
  sys.argv[1], catalogue, partitions=32, block_bytes=1 << 18
):
  rows += len(part.user)
print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_does_not_grow_with_the_log(template, tmp_path):
  peaks = []
  for copies in (1, 16):
    folder = shutil.copytree(template, tmp_path / str(copies))
    lines = (folder / "log_standard_b.csv").read_text().splitlines()
    (folder / "log_standard_a.csv.gz").unlink()
    column = kuairand_files.LOG_COLUMNS.index("time_ms")
    with open(folder / "log_standard_b.csv", "w") as stream:
      stream.write(lines[0] + "\n")
      for copy in range(100 * copies):
        for line in lines[1:]:
          fields = line.split(",")
          fields[column] = str(copy * 7 + int(fields[column]))
          stream.write(",".join(fields) + "\n")
    output = subprocess.run(
      [sys.executable, "-c", _PEAK, str(folder)],
      capture_output=True,
      text=True,
      check=True,
    ).stdout
    rows, peak = (int(field) for field in output.split())
    assert rows == 20_000 * copies
    peaks.append(peak)
  size = (folder / "log_standard_b.csv").stat().st_size / 1024
  # 300,000 more rows are 20 MB of text; a reader that kept even its narrowed
  # columns would grow by more than a third of that.
  assert peaks[1] - peaks[0] < size / 3


@pytest.mark.skipif(not kuairand_files.REAL.is_dir(), reason="no KuaiRand log")
def test_real_log(caplog):
  log, duplicates = read(kuairand_files.REAL)
  assert len(log.user) == 193_583
  assert duplicates == 5_312
  assert log.click.mean() == pytest.approx(0.4493, abs=1e-4)
  # Nothing else is unusual.
  (record,) = caplog.records
  assert "48 of 5312 rows that repeat user, video and" in record.message
  assert "(date 40, is_follow 1, play_time_ms 7" in record.message
