"""KuaiRand folders, their CSV damaged in structure and in values.

A log has no checksum: a digit changed makes another log, as valid as the first.
So what the reader gives is held against what an independent strict reading of
the same bytes gives, by Python's own `csv` and regular expressions. The strict
reading refuses what the reader must refuse: a line of another width, a column
that is missing or there twice, a number written otherwise than as plain ASCII
digits, a flag other than 0 and 1, a day that is none or half a day away from the
time, an unknown id. Where it refuses, or has other values, the reader must refuse
too. Rows that contradict each other may give the first, with a warning.
"""

import csv
import datetime
import gzip
import io
import pathlib
import re
import zlib
from typing import Any

import numpy as np

from mtf_jax.data import kuairand
from tests import kuairand_files
from tests.robustness import mutate
from tests.robustness.kinds import Files, ReadOnly, warnings_told

_USERS, _VIDEOS, _ROWS = 5, 6, 24
_NAMES = {
  "users": "user_features.csv",
  "videos": "video_features_basic.csv.gz",
  "first": "log_a.csv",
  "second": "log_b.csv.gz",
}
_BEIJING = datetime.timezone(datetime.timedelta(hours=8))
_START = int(datetime.datetime(2022, 4, 25, 12, tzinfo=_BEIJING).timestamp())
# Column of the strict reading -> column of the file.
_COLUMNS = {
  "time_ms": "time_ms",
  "date": "date",
  "tab": "tab",
  "click": "is_click",
  "long_view": "long_view",
  "like": "is_like",
  "comment": "is_comment",
  "follow": "is_follow",
  "forward": "is_forward",
  "hate": "is_hate",
  "is_rand": "is_rand",
}
_FLAGS = [name for name in _COLUMNS if name not in ("time_ms", "date", "tab")]
_ODD = (
  *(
    "",
    " 1",
    "1 ",
    "+1",
    "1_0",
    "\u0663",
    "0x1",
    "1.0",
    "1e3",
    "-0",
    "-1",
    "01",
  ),
  *("NULL", "nan", "inf", "1e308", "99999999999999999999", "2147483648", "²"),
  *('"1"', '"', "'1'", "1\t", "\x00", "True", "1;1", "é", "1\u00a0", "\uff12"),
  *("20220431", "20300101", "2022042", "0", "3", "1650882384", "-5"),
)


def _day(seconds: int) -> str:
  return datetime.datetime.fromtimestamp(seconds, _BEIJING).strftime("%Y%m%d")


def _milliseconds(video: int) -> str:
  return f"{10_000 + 1000 * video}" if video else ""


def _tables() -> dict[str, list[list[str]]]:
  """Rows of the four files, the header first."""
  rng = np.random.default_rng(5)
  users = [
    [
      *(f"{u}", "full", "0", f"{u % 2}", "0", "5", "(10,50]", "3", "[1,10)"),
      *("1", "[1,5)", "90", "61-90", *map(str, rng.integers(4, size=18))),
    ]
    for u in range(_USERS)
  ]
  videos = [
    [
      *(f"{v}", f"{v % 3}", "NORMAL", "2022-04-10", "Web", "0.0"),
      _milliseconds(v),
      *("720", "1280", "5", "9.0", "3,4" if v % 2 else "5"),
    ]
    for v in range(_VIDEOS)
  ]
  log = []
  for n in range(_ROWS):
    seconds = _START + 3600 * 7 * n
    flags = [f"{int(x)}" for x in rng.integers(2, size=7)]
    log.append(
      [
        *(f"{n % _USERS}", f"{n % _VIDEOS}", _day(seconds), "1200"),
        *(f"{1000 * seconds + n}", *flags, f"{500 * n}"),
        *(_milliseconds(n % _VIDEOS) or "0", "0", "0", "0", "0", "1"),
      ]
    )
  half = _ROWS // 2
  return {
    "users": [kuairand_files.USER_COLUMNS, *users],
    "videos": [kuairand_files.VIDEO_COLUMNS, *videos],
    "first": [kuairand_files.LOG_COLUMNS, *log[:half]],
    "second": [kuairand_files.LOG_COLUMNS, *log[half:]],
  }


def _text(rows: list[list[str]]) -> bytes:
  stream = io.StringIO()
  csv.writer(stream, lineterminator="\n").writerows(rows)
  return stream.getvalue().encode()


def _packed(part: str, content: bytes) -> bytes:
  if _NAMES[part].endswith(".gz"):
    return gzip.compress(content, 1, mtime=0)
  return content


class Mismatch(Exception):
  """A strict reading finds no log."""


def _rows(path: pathlib.Path) -> list[dict[str, str]]:
  content = path.read_bytes()
  if path.suffix == ".gz":
    content = gzip.decompress(content)
  text = content.decode("utf-8-sig")
  if "\x00" in text:
    raise Mismatch("a null character")
  header, *lines = csv.reader(io.StringIO(text, newline=""), strict=True)
  if len(set(header)) != len(header):
    raise Mismatch("a column twice")
  rows = []
  for line in lines:
    if line and len(line) != len(header):
      raise Mismatch("a line of another width")
    if line:
      rows.append(dict(zip(header, line, strict=True)))
  return rows


def _number(text: str, low: int, high: int) -> int:
  if not re.fullmatch("-?[0-9]+", text) or not low <= int(text) <= high:
    raise Mismatch(f"{text[:40]!r} for a number from {low} to {high}")
  return int(text)


def _ids(rows: list[dict[str, str]], column: str) -> list[int]:
  ids = [_number(row[column], 0, 2**63 - 1) for row in rows]
  if len(set(ids)) != len(ids) or not ids:
    raise Mismatch("an id twice, or none")
  return sorted(ids)


def strict_reading(folder: pathlib.Path) -> tuple[dict[str, list], bool]:
  """Columns in the order of user, time and video, the first row of each.

  The second is whether rows of one user, time and video contradict each other.

  Raises:
    Mismatch, or whatever Python's own readers raise: it is no such folder.
  """
  users = _ids(_rows(folder / _NAMES["users"]), "user_id")
  video_rows = _rows(folder / _NAMES["videos"])
  videos = _ids(video_rows, "video_id")
  for row in video_rows:
    text = row["video_duration"]
    if text not in ("", "NULL", "null", "nan") and not (
      re.fullmatch(r"[0-9]+(\.[0-9]*)?", text) and float(text) < 1e9
    ):
      raise Mismatch(f"a duration of {text[:40]!r}")
  found: dict[tuple, dict] = {}
  contradicted = False
  for name in ("first", "second"):
    for row in _rows(folder / _NAMES[name]):
      values = {
        "user": users.index(_number(row["user_id"], 0, 2**63 - 1)),
        "item": videos.index(_number(row["video_id"], 0, 2**63 - 1)),
        "play": _number(row["play_time_ms"], 0, 2**31 - 1),
        "duration": _number(row["duration_ms"], 0, 2**31 - 1),
      }
      for column, of_file in _COLUMNS.items():
        high = 1 if column in _FLAGS else 2**63 - 1
        low = 0 if column in _FLAGS else -(2**63)
        values[column] = _number(row[of_file], low, high)
      seconds, half = values["time_ms"] // 1000, 12 * 3600
      if (
        not _day(seconds - half) <= str(values["date"]) <= _day(seconds + half)
      ):
        raise Mismatch("a day that is not the time's")
      key = (values["user"], values["time_ms"], values["item"])
      contradicted |= found.setdefault(key, values) != values
  if not found:
    raise Mismatch("no rows")
  ordered = [found[key] for key in sorted(found)]
  columns = {name: [row[name] for row in ordered] for name in ordered[0]}
  for name in ("play", "duration"):
    seconds = (np.array(columns[name]) / 1000).astype(np.float32)
    if name == "duration":
      seconds[seconds == 0] = np.inf
    columns[name] = seconds.tolist()
  return columns, contradicted


def _columns(log: kuairand.ImpressionLog) -> dict[str, list]:
  """A log as `strict_reading` has it."""
  names = ("user", "item", *_COLUMNS)
  return {
    "play": log.play_seconds.tolist(),
    "duration": log.duration.tolist(),
    **{name: getattr(log, name).astype(int).tolist() for name in names},
  }


class KuaiRand(ReadOnly):
  """Folders of CSV files: what `read_catalogue` and `read_log` give."""

  name = "kuairand"
  share = 20

  def __init__(self, folder: pathlib.Path):
    """Makes the four files of a small log."""
    del folder
    self._tables = _tables()
    self._files = {part: _text(rows) for part, rows in self._tables.items()}

  def mutate(self, rng: np.random.Generator) -> tuple[str, Files]:
    files = dict(self._files)
    part = mutate.pick(rng, ("users", "videos", "first", "first", "second"))
    kind = int(rng.integers(8))
    if kind == 0:
      what, content = mutate.damage_bytes(rng, _packed(part, files[part]))
      packed = {_NAMES[n]: _packed(n, text) for n, text in files.items()}
      return f"{_NAMES[part]}: {what}", {**packed, _NAMES[part]: content}
    if kind == 1:
      what, content = mutate.damage_bytes(rng, files[part])
    elif kind == 2:
      what, content = self._other_text(rng, files[part])
    else:
      rows = [list(row) for row in self._tables[part]]
      what = _damage_rows(rng, rows)
      content = _text(rows) if rng.integers(2) else _plain(rows)
    files[part] = content
    packed = {_NAMES[n]: _packed(n, text) for n, text in files.items()}
    return f"{_NAMES[part]}: {what}", packed

  def _other_text(self, rng, content):
    text = content.decode()
    return mutate.pick(
      rng,
      (
        ("with a BOM", b"\xef\xbb\xbf" + content),
        ("UTF-16", text.encode("utf-16")),
        ("Windows line ends", text.replace("\n", "\r\n").encode()),
        ("old Mac line ends", text.replace("\n", "\r").encode()),
        ("tabs", text.replace(",", "\t").encode()),
        ("semicolons", text.replace(",", ";").encode()),
        ("an empty line", text.replace("\n", "\n\n", 3).encode()),
        ("no last line end", content.rstrip(b"\n")),
        ("gzip once more", gzip.compress(content, 1, mtime=0)),
        ("bad UTF-8", content.replace(b"1", b"\xff", 1)),
        ("a header alone", content.split(b"\n")[0] + b"\n"),
        ("no header", content.split(b"\n", 1)[1]),
        ("all columns quoted", _quoted(text)),
        ("a column of an index", _indexed(text)),
        ("zlib", zlib.compress(content)),
      ),
    )

  def read(self, folder: pathlib.Path) -> Any:
    with warnings_told() as told:
      catalogue = kuairand.read_catalogue(folder)
      return kuairand.read_log(folder, catalogue)[0], told

  def difference(self, folder: pathlib.Path, found: Any) -> str:
    log, told = found
    try:
      strict, contradicted = strict_reading(folder)
    except Exception as error:
      return f"strictly no log: {type(error).__name__}: {error}"
    if contradicted and not any("differ from it" in line for line in told):
      return "rows that contradict each other, without a word"
    columns = _columns(log)
    wrong = [name for name, x in strict.items() if columns[name] != x]
    return f"other values of {', '.join(wrong)}" if wrong else ""


def _plain(rows: list[list[str]]) -> bytes:
  """Without quotes, whatever the values need."""
  return "".join(",".join(row) + "\n" for row in rows).encode()


def _quoted(text: str) -> bytes:
  stream = io.StringIO()
  writer = csv.writer(stream, quoting=csv.QUOTE_ALL, lineterminator="\n")
  writer.writerows(csv.reader(io.StringIO(text)))
  return stream.getvalue().encode()


def _indexed(text: str) -> bytes:
  """As pandas writes with an index: one more column, without a name."""
  first, *rest = text.splitlines()
  lines = [f",{first}", *(f"{n},{line}" for n, line in enumerate(rest))]
  return ("\n".join(lines) + "\n").encode()


def _damage_rows(rng: np.random.Generator, rows: list[list[str]]) -> str:
  """Rows, columns, names or single values changed, in place."""
  what = mutate.pick(
    rng,
    (
      *("value", "value", "value", "value", "column", "twice", "name", "row"),
      *("row twice", "narrow", "wide", "columns", "rows", "other row"),
    ),
  )
  row = 1 + int(rng.integers(len(rows) - 1))
  column, other = (int(x) for x in rng.integers(len(rows[0]), size=2))
  name = rows[0][column]
  if what == "value":
    rows[row][column] = mutate.pick(rng, _ODD)
    return f"{name} {rows[row][column]!r} in row {row}"
  if what == "column":
    for line in rows:
      del line[column]
    return f"{name} removed"
  if what == "twice":
    for line in rows:
      line.append(line[column])
    rows[int(rng.integers(1, len(rows)))][-1] = "7"
    return f"{name} twice"
  if what == "name":
    new = mutate.pick(
      rng,
      (name.upper(), f" {name}", f'"{name}"', "", f"{name}x", rows[0][other]),
    )
    rows[0][column] = new
    return f"{name} renamed {new!r}"
  if what == "row":
    del rows[row]
    return f"row {row} removed"
  if what == "row twice":
    rows.append(list(rows[row]))
    return f"row {row} twice"
  if what == "narrow":
    del rows[row][column]
    return f"row {row} without {name}"
  if what == "wide":
    rows[row].insert(column, "1")
    return f"row {row} with one more"
  if what == "columns":
    for line in rows:
      line[column], line[other] = line[other], line[column]
    return f"{name} and {rows[0][column]} change places, names and all"
  if what == "rows":
    rows[1:] = [rows[1 + int(k)] for k in rng.permutation(len(rows) - 1)]
    return "rows in another order"
  # The same impression with another outcome.
  again = list(rows[row])
  again[column] = "1" if again[column] != "1" else "0"
  rows.append(again)
  return f"row {row} again with another {name}"
