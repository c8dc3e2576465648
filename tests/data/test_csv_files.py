"""CSV files: every way of writing one is read, nothing else is, and it is named."""

import csv
import gzip
import io
import os
import resource

import kuairand_files
import numpy as np
import pyarrow as pa
import pytest
from kuairand_files import lines_of, read, set_value, write_lines
from pyarrow import parquet

from mtf_jax.data import kuairand
from mtf_jax.io import InputError

_NAME = "log_standard_b.csv"


def _refusal(folder):
  """The sentence that refuses a folder."""
  with pytest.raises(InputError) as raised:
    read(folder)
  text = str(raised.value)
  assert "\n" not in text
  assert text.endswith(".")
  return text


def _refused(folder, path, *expected):
  """That the folder is refused in a sentence that names the file."""
  text = _refusal(folder)
  assert text.startswith(f"{path}: ")
  for part in expected:
    assert part in text


def _quoted(text):
  stream = io.StringIO(newline="")
  writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
  writer.writerows(csv.reader(text.splitlines()))
  return stream.getvalue()


@pytest.mark.parametrize(
  "rewrite",
  [
    lambda text: "\ufeff" + text,
    _quoted,
    lambda text: "\ufeff" + _quoted(text).replace("\n", "\r\n"),
    lambda text: text.replace("\n", "\r\n"),
    lambda text: text.removesuffix("\n"),
    lambda text: text.replace("\n", "\n\n"),
  ],
  ids=["bom", "quotes", "excel", "crlf", "no last line end", "empty lines"],
)
@pytest.mark.parametrize(
  "name", [_NAME, "log_standard_a.csv.gz", "user_features.csv.gz"]
)
def test_every_way_of_writing_csv_is_read_alike(
  template, folder, name, rewrite
):
  path = folder / name
  packed = path.suffix == ".gz"
  text = path.read_bytes()
  text = rewrite((gzip.decompress(text) if packed else text).decode()).encode()
  path.write_bytes(gzip.compress(text) if packed else text)
  expected, _ = read(template)
  found, _ = read(folder)
  for a, b in zip(expected, found, strict=True):
    np.testing.assert_array_equal(a, b)


def _parquet(folder):
  parquet.write_table(pa.table({"user_id": [1]}), folder / _NAME)


def _gzip(folder):
  (folder / _NAME).write_bytes(gzip.compress((folder / _NAME).read_bytes()))


def _utf_16(folder):
  (folder / _NAME).write_text((folder / _NAME).read_text(), encoding="utf-16")


def _bad_utf_8(folder):
  text = (folder / _NAME).read_bytes()
  (folder / _NAME).write_bytes(text.replace(b"user_id", b"us\xe9r_id", 1))


def _tabs(folder):
  (folder / _NAME).write_text((folder / _NAME).read_text().replace(",", "\t"))


def _carriage_returns(folder):
  (folder / _NAME).write_text((folder / _NAME).read_text().replace("\n", "\r"))


def _folder(folder):
  (folder / _NAME).unlink()
  (folder / _NAME).mkdir()


def _pipe(folder):
  (folder / _NAME).unlink()
  os.mkfifo(folder / _NAME)


def _link(folder):
  (folder / _NAME).unlink()
  (folder / _NAME).symlink_to("nowhere.csv")


@pytest.mark.parametrize(
  ("spoil", "expected"),
  [
    (_parquet, "expected CSV text in UTF-8, found a Parquet file"),
    (_gzip, "found a gzip file; name it .csv.gz"),
    (_utf_16, "found UTF-16 text"),
    (_bad_utf_8, "expected CSV text in UTF-8, found a file of an unknown kind"),
    (_tabs, "row 0 (header): expected commas between columns, found tabs"),
    (_carriage_returns, "row 0 (header): expected a line of CSV text"),
    (_folder, "expected a CSV file, found a folder"),
    (_pipe, "expected a CSV file, found a named pipe"),
    (_link, "found a link to nowhere.csv, which does not exist"),
    (lambda folder: (folder / _NAME).write_text(""), "found an empty file"),
  ],
)
def test_what_is_no_csv_file_is_said_to_be_what_it_is(folder, spoil, expected):
  spoil(folder)
  _refused(folder, folder / _NAME, expected)


def test_plain_text_under_a_gzip_name_is_said(folder):
  path = folder / "user_features.csv.gz"
  path.write_bytes(gzip.decompress(path.read_bytes()))
  _refused(folder, path, "expected a gzip file, as its name says, found text")


def test_a_file_without_lines_is_not_read_in_search_of_a_header(folder):
  # A gigabyte of zeros is a megabyte of gzip, and of letters as well.
  path = folder / "log_standard_a.csv.gz"
  with gzip.open(path, "wb", compresslevel=1) as stream:
    for _ in range(64):
      stream.write(b"a" * (1 << 20))
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  _refused(folder, path, "row 0 (header): expected less than 65536 bytes")
  after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  assert after - before < 16 * 1024


def test_a_row_longer_than_a_block_is_said(folder):
  lines = lines_of(folder)
  lines[7] += "0" * (3 << 20)
  write_lines(folder, lines)
  _refused(folder, folder / _NAME, "rows of at most 1048576 bytes, found more")


def test_row_of_wrong_length(folder):
  lines = lines_of(folder)
  lines[12] = "1,2,3"
  write_lines(folder, lines)
  _refused(
    folder, folder / _NAME, "row 12: expected 19 columns, found 3 in '1,2,3'"
  )


def test_bytes_that_are_no_text_are_named_by_row(folder):
  path = folder / _NAME
  lines = path.read_bytes().splitlines()
  lines[12] = b"\xff" + lines[12]
  path.write_bytes(b"\n".join(lines))
  _refused(folder, path, "row 12: expected text in UTF-8")
  # In a row of another length, which is shown.
  lines[12] = b"1,\xff"
  path.write_bytes(b"\n".join(lines))
  _refused(folder, path, "row 12: expected 19 columns, found 2")


@pytest.mark.parametrize(
  ("spoilt", "found"),
  [(b"18\xff0", "other bytes"), (b"18\0", "null character")],
)
def test_nor_are_other_bytes_in_columns_that_are_not_read(
  folder, spoilt, found
):
  path = folder / _NAME
  path.write_bytes(path.read_bytes().replace(b"1800", spoilt, 1))
  _refused(folder, path, f"expected text in UTF-8, found {found}")


def test_text_of_other_scripts_is_text(folder):
  """Its characters of several bytes are cut by the blocks."""
  for row in range(1, 201):
    set_value(folder, row, "hourmin", "\u516d\u70b9")
  catalogue = kuairand.read_catalogue(folder)
  parts = kuairand.iterate_log(folder, catalogue, block_bytes=701)
  assert sum(len(part.user) for part, _ in parts) == 400


@pytest.mark.parametrize(
  "name", [_NAME, "log_standard_a.csv.gz", "video_features_basic_pure.csv"]
)
def test_a_quote_left_open_does_not_swallow_rows(folder, name):
  """In the last column it takes all rows after it for its value."""
  path = folder / name
  packed = path.suffix == ".gz"
  text = gzip.decompress(path.read_bytes()) if packed else path.read_bytes()
  # A column that is not read, so that its value is not looked at.
  lines = [line + b",0" for line in text.replace(b'"3,4"', b"3").splitlines()]
  lines[20] = lines[20][:-1] + b'"0'
  text = b"\n".join(lines) + b"\n"
  path.write_bytes(gzip.compress(text) if packed else text)
  _refused(folder, path, f"found 20 rows in {len(lines) - 1} lines")


def test_all_missing_columns_are_named_at_once(folder):
  lines = lines_of(folder)
  for column in ("play_time_ms", "tab"):
    lines[0] = lines[0].replace(column, "other")
  write_lines(folder, lines)
  _refused(
    folder,
    folder / _NAME,
    "row 0 (header): columns play_time_ms, tab: missing, found user_id, video_",
  )


def test_a_missing_or_repeated_column(folder):
  lines = lines_of(folder)
  good = lines[0]
  lines[0] = good.replace("play_time_ms", "played")
  write_lines(folder, lines)
  _refused(
    folder, folder / _NAME, "row 0 (header): column play_time_ms: missing"
  )
  lines[0] = good.replace("profile_stay_time", "play_time_ms")
  write_lines(folder, lines)
  _refused(folder, folder / _NAME, "column play_time_ms: expected once, found")
  # Nor is there another column that nobody could tell from its like.
  lines[0] = good.replace("profile_stay_time", "hourmin")
  write_lines(folder, lines)
  _refused(folder, folder / _NAME, "column hourmin: expected once, found twice")


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_gzip(folder, share):
  path = folder / "log_standard_a.csv.gz"
  data = path.read_bytes()
  path.write_bytes(data[: int(share * len(data))])
  _refused(folder, path, "after row ", "cut short or corrupt")


@pytest.mark.parametrize(
  ("value", "expected"),
  [
    (" 7", "int64, found ' 7'"),
    ("0x7", "int64, found '0x7'"),
    ("\u0667", "int64, found '\u0667'"),
    ("99999999999999999999", "int64, found '99999999999999999999'"),
    ("-7", "non-negative integer, found -7"),
    ("8", "every id once, found 8"),
  ],
)
def test_ids_of_feature_files_have_the_logs_grammar(folder, value, expected):
  path = folder / "video_features_basic_pure.csv"
  path.write_text(path.read_text().replace("\n7,", f"\n{value},"))
  row = 9 if value == "8" else 8  # the second of equal ones is the repetition
  _refused(folder, path, f"row {row}: column video_id: expected ", expected)


@pytest.mark.parametrize(
  "value", ["long", "1e308", "inf", "-1", " 9", "1e3", "0x9", "\u0669"]
)
def test_durations_of_videos_are_numbers_of_at_most_a_day(folder, value):
  path = folder / "video_features_basic_pure.csv"
  lines = path.read_text().splitlines()
  fields = lines[4].split(",")
  fields[kuairand_files.VIDEO_COLUMNS.index("video_duration")] = value
  path.write_text("\n".join([*lines[:4], ",".join(fields), *lines[5:]]))
  _refused(
    folder,
    path,
    "row 4: column video_duration: expected a time of at most a day",
    repr(value),
  )


def test_a_feature_file_without_rows_is_named(folder):
  path = folder / "video_features_basic_pure.csv"
  path.write_text(path.read_text().splitlines()[0] + "\n")
  _refused(folder, path, "expected rows after the header, found none")


def test_a_file_plain_and_gzipped_is_refused(folder):
  data = gzip.decompress((folder / "log_standard_a.csv.gz").read_bytes())
  (folder / "log_standard_a.csv").write_bytes(data)
  _refused(folder, folder / "log_standard_a.csv", "found it gzipped as well")


def test_files_of_other_names_are_not_passed_over_in_silence(folder, caplog):
  (folder / "log_standard_a.csv.gz").rename(folder / "log_standard_a.CSV.GZ")
  log, _ = read(folder)
  assert len(log.user) == 200
  assert "log_standard_a.CSV.GZ: not read" in caplog.text
  (folder / _NAME).rename(folder / "log_standard_b.parquet")
  assert "found log_standard_a.CSV.GZ, log_standard_b.parquet." in _refusal(
    folder
  )


def test_missing_folders_and_files(tmp_path, folder):
  nowhere = tmp_path / "nowhere"
  assert f"expected a folder, found {nowhere} (no such" in _refusal(nowhere)
  assert "(Not a directory)" in _refusal(folder / _NAME)
  for path in folder.glob("log_*"):
    path.unlink()
  assert f"expected log_*.csv or log_*.csv.gz in {folder}, found none." in (
    _refusal(folder)
  )
