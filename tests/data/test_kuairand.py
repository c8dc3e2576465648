"""The KuaiRand reader: what it reads, what it refuses, how much it holds."""

import gzip
import shutil
import subprocess
import sys

import kuairand_files
import numpy as np
import pytest

from mtf_jax.data import kuairand


@pytest.fixture(scope="module")
def template(tmp_path_factory):
  folder = tmp_path_factory.mktemp("template")
  kuairand_files.write_folder(folder, num_users=40, num_items=30, num_rows=400)
  return folder


@pytest.fixture
def folder(template, tmp_path):
  return shutil.copytree(template, tmp_path / "log")


def _read(folder):
  return kuairand.read_log(folder, kuairand.read_catalogue(folder))


def _lines(folder):
  return (folder / "log_standard_b.csv").read_text().splitlines()


def _set(folder, row, column, value):
  """Replaces one value of the plain log file; row counts from 1."""
  lines = _lines(folder)
  fields = lines[row].split(",")
  fields[kuairand_files.LOG_COLUMNS.index(column)] = value
  lines[row] = ",".join(fields)
  (folder / "log_standard_b.csv").write_text("\n".join(lines) + "\n")


def test_reads_every_file_in_order(folder):
  log, duplicates = _read(folder)
  assert len(log.user) == 400
  assert duplicates == 0
  order = np.lexsort([log.time_ms, log.user])
  np.testing.assert_array_equal(order, np.arange(400))
  # One impression, looked up by its time, against the line of the file.
  fields = dict(
    zip(kuairand_files.LOG_COLUMNS, _lines(folder)[5].split(","), strict=True)
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
  lines = _lines(folder)
  extra = [lines[3], lines[3], lines[9]]
  # In another file as well: the same impression.
  kuairand_files.write_csv(
    folder / "log_standard_c.csv.gz",
    kuairand_files.LOG_COLUMNS,
    [line.split(",") for line in extra],
  )
  log, duplicates = _read(folder)
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
  whole, _ = _read(folder)
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
  ],
)
def test_bad_value_names_file_row_and_column(folder, column, value, found):
  _set(folder, 17, column, value)
  pattern = rf"log_standard_b\.csv: row 17: column {column}: .*{found}"
  with pytest.raises(ValueError, match=pattern):
    _read(folder)


def test_row_number_counts_over_blocks(folder):
  _set(folder, 190, "is_hate", "7")
  stream = kuairand.iterate_log(
    folder, kuairand.read_catalogue(folder), block_bytes=2048
  )
  with pytest.raises(ValueError, match="row 190: column is_hate"):
    next(stream)  # refused before anything is handed out


def test_row_of_wrong_length(folder):
  lines = _lines(folder)
  lines[12] = "1,2,3"
  (folder / "log_standard_b.csv").write_text("\n".join(lines) + "\n")
  with pytest.raises(
    ValueError, match=r"b\.csv: row 12: .*19 columns, found 3"
  ):
    _read(folder)


def test_missing_column(folder):
  lines = _lines(folder)
  lines[0] = lines[0].replace("play_time_ms", "played")
  (folder / "log_standard_b.csv").write_text("\n".join(lines) + "\n")
  with pytest.raises(
    ValueError, match=r"b\.csv: row 0 \(header\): column play_time_ms: missing"
  ):
    _read(folder)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_gzip(folder, share):
  path = folder / "log_standard_a.csv.gz"
  data = path.read_bytes()
  path.write_bytes(data[: int(share * len(data))])
  with pytest.raises(
    ValueError, match=r"a\.csv\.gz: after row \d+: .*cut short or corrupt"
  ):
    _read(folder)


def test_missing_files(tmp_path, folder):
  with pytest.raises(ValueError, match="expected a folder"):
    kuairand.read_catalogue(tmp_path / "nowhere")
  for path in folder.glob("log_*"):
    path.unlink()
  with pytest.raises(ValueError, match=r"expected log_\*\.csv"):
    _read(folder)


def test_repeated_id_and_bad_duration(folder):
  path = folder / "video_features_basic_pure.csv"
  good = path.read_text()
  path.write_text(good.replace("\n7,", "\n8,"))
  with pytest.raises(
    ValueError, match="column video_id: expected every id once"
  ):
    kuairand.read_catalogue(folder)
  lines = good.splitlines()
  fields = lines[4].split(",")
  fields[6] = "long"
  path.write_text("\n".join([*lines[:4], ",".join(fields), *lines[5:]]))
  with pytest.raises(
    ValueError, match=r"row 4: column video_duration: .*'long'"
  ):
    kuairand.read_catalogue(folder)


def test_split_by_whole_days(folder):
  log, _ = _read(folder)
  earlier, later = kuairand.split_days(log, 20220429)
  assert earlier.date.max() == 20220428
  assert later.date.min() == 20220429
  assert len(earlier.user) + len(later.user) == len(log.user)
  with pytest.raises(ValueError, match="first_held_out"):
    kuairand.split_days(log, 20220425)


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
          fields[column] = str(copy * 10**7 + int(fields[column]))
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
def test_real_log():
  log, duplicates = _read(kuairand_files.REAL)
  assert len(log.user) == 193_583
  assert duplicates == 5_312
  assert log.click.mean() == pytest.approx(0.4493, abs=1e-4)
