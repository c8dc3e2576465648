"""A platform's log in: every format, every refusal, and after every kill."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pyarrow as pa
import pytest

import mtf_jax as mtf
from mtf_jax.data import (
  import_log,
  log_describe,
  log_tables,
  log_values,
  schema_file,
  session_log,
  sharded,
)
from mtf_jax.io import InputError
from tests import platform_logs

_ROOT = pathlib.Path(__file__).parents[2]


def _import(tmp_path, files, schema=platform_logs.SCHEMA, **keywords):
  return import_log.import_log(
    schema_file.parse_schema(schema),
    log_tables.input_files([str(path) for path in files]),
    tmp_path / "log",
    **keywords,
  )


def _equal(one, other):
  for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
    np.testing.assert_array_equal(a, b)


def _refusal(tmp_path, files, schema=platform_logs.SCHEMA, **keywords):
  with pytest.raises(InputError) as caught:
    _import(tmp_path, files, schema, **keywords)
  message = str(caught.value)
  assert message.endswith(".") and "\n" not in message, message
  assert not (tmp_path / "log").exists(), "something was left"
  return message


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
  """The log of a Parquet file, and what was in it."""
  folder = tmp_path_factory.mktemp("imported")
  found = platform_logs.columns()
  path = platform_logs.write(folder / "a.parquet", found)
  report = _import(folder, [path])
  return sharded.open_log(report.folder), found, report


def test_rows_are_what_the_schema_says(imported):
  log, found, report = imported
  whole = log.load_all()
  session_log.validate(whole)
  rows = len(found["sid"])
  assert log.manifest.rows == rows
  assert log.manifest.observation_names == (
    *("age", "country=cn", "country=us"),
    *(f"tag#{n}" for n in range(4)),
  )
  assert log.manifest.group_names == ("watch", "both")
  assert log.manifest.source["platform"] == "test"
  # One row of the file after the other, wherever it is now.
  place = {}
  for n, (number, step) in enumerate(
    zip(whole.session_id, whole.step, strict=True)
  ):
    place[int(number), int(step)] = n
  ids = log_values.text_numbers(pa.array(found["sid"]), seed=0) >> np.uint64(1)
  order = [
    place[int(number), int(step) - 1]
    for number, step in zip(ids, found["step"], strict=True)
  ]
  assert sorted(order) == list(range(rows))
  np.testing.assert_array_equal(
    whole.observation[order, 0], found["age"].astype(np.float32)
  )
  np.testing.assert_array_equal(
    whole.observation[order, 2], np.array(found["country"]) == "us"
  )
  tags = whole.observation[order, 3:]
  np.testing.assert_array_equal(tags.sum(1), 1)
  by_tag = dict(zip(found["tag"], tags.argmax(1), strict=True))
  assert [by_tag[tag] for tag in found["tag"]] == tags.argmax(1).tolist()
  assert len(set(by_tag.values())) > 1
  np.testing.assert_array_equal(whole.action[order, 1], found["a1"])
  np.testing.assert_array_equal(whole.box.lower[order, 0], found["lo0"])
  np.testing.assert_array_equal(whole.box.upper[order, 0], found["hi0"])
  expected = jax.vmap(mtf.box_log_prob)(whole.action, whole.box)
  np.testing.assert_allclose(whole.log_prob, expected, rtol=1e-5)
  np.testing.assert_allclose(
    whole.reward[order, 1], found["click"] + 2 * found["seconds"], rtol=1e-6
  )
  np.testing.assert_array_equal(
    whole.feedback[order, 1], found["seconds"].astype(np.float32)
  )
  np.testing.assert_array_equal(whole.terminal[order], found["left"])
  assert report.counts["rows read"] == rows
  assert report.counts["sessions"] == 30
  assert report.counts["sessions that the user left"] == found["left"].sum()
  cut = (
    "sessions cut, nothing after known: the last request gives no transition"
  )
  assert report.counts[cut] == 30 - found["left"].sum()


@pytest.mark.parametrize(
  "name", ["a.arrow", "a.csv", "a.csv.gz", "a.tsv", "a.tsv.gz"]
)
def test_every_format_gives_the_same(imported, tmp_path, name):
  log, found, _ = imported
  path = platform_logs.write(tmp_path / name, found)
  report = _import(tmp_path, [path])
  _equal(sharded.open_log(report.folder).load_all(), log.load_all())


def test_the_order_of_rows_and_files_does_not_matter(
  imported, tmp_path, monkeypatch
):
  log, found, _ = imported
  rows = np.random.default_rng(1).permutation(len(found["sid"]))
  for n, part in enumerate(np.array_split(rows, 3)):
    platform_logs.write(
      tmp_path / f"{2 - n}.parquet", platform_logs.take(found, part)
    )
  # Several runs, several shards.
  monkeypatch.setattr(import_log, "_RUN_BYTES", 2000)
  (tmp_path / "in").mkdir()
  for n in range(3):
    (tmp_path / f"{n}.parquet").rename(tmp_path / "in" / f"{n}.parquet")
  report = _import(tmp_path, [tmp_path / "in"], rows_per_shard=20)
  parts = sharded.open_log(report.folder)
  assert len(parts.manifest.shards) > 2
  _equal(parts.load_all(), log.load_all())
  np.testing.assert_allclose(parts.manifest.mean, log.manifest.mean)
  np.testing.assert_allclose(parts.manifest.stddev, log.manifest.stddev)
  assert parts.manifest.transitions == log.manifest.transitions


def test_a_check_counts_as_an_import_does_and_keeps_nothing(imported, tmp_path):
  _, found, report = imported
  path = platform_logs.write(tmp_path / "a.csv", found)
  (tmp_path / "scratch").mkdir()
  checked = import_log.check_log(
    schema_file.parse_schema(platform_logs.SCHEMA), [path], tmp_path / "scratch"
  )
  assert checked == report._replace(folder=None)
  assert not list((tmp_path / "scratch").iterdir())


def test_steps_that_are_numbered(imported, tmp_path):
  log, found, _ = imported
  path = platform_logs.write(tmp_path / "a.csv", found)
  report = _import(tmp_path, [path], platform_logs.SCHEMA_BY_STEP)
  _equal(sharded.open_log(report.folder).load_all(), log.load_all())


def test_whole_numbers_stay_the_ids_that_they_are(tmp_path):
  found = platform_logs.columns()
  found["sid"] = [2**62 + int(text[5:]) for text in found["sid"]]
  schema = platform_logs.SCHEMA.replace('kind = "text"', 'kind = "integer"')
  report = _import(
    tmp_path, [platform_logs.write(tmp_path / "a.csv", found)], schema
  )
  whole = sharded.open_log(report.folder).load_all()
  assert set(whole.session_id.tolist()) == set(found["sid"])


def test_repeated_rows_are_counted_and_contradictions_named(tmp_path):
  found = platform_logs.columns()
  rows = len(found["sid"])
  twice = platform_logs.take(found, [*range(rows), 3, 5, 3])
  path = platform_logs.write(tmp_path / "a.parquet", twice)
  report = _import(tmp_path, [path])
  assert report.counts["rows left out that repeat another one"] == 3
  whole = sharded.open_log(report.folder).load_all()
  assert len(whole.terminal) == rows

  twice["age"][rows] += 1
  path = platform_logs.write(tmp_path / "b.parquet", twice)
  other = tmp_path / "other"
  message = _refusal(other, [path])
  assert f"b.parquet: row {rows + 1}: expected one row" in message
  assert "b.parquet, row 4; mend the log" in message
  schema = platform_logs.SCHEMA.replace(
    'unit = "ms"', 'unit = "ms"\nconflicts = "keep_first"'
  )
  report = _import(other, [path], schema)
  assert report.counts["rows left out that repeat another one"] == 2
  assert report.counts["rows left out that contradict an earlier one"] == 1
  _equal(sharded.open_log(report.folder).load_all(), whole)


def _gap_schema(minutes):
  schema = platform_logs.SCHEMA.replace(
    "max_requests = 8", f"max_requests = 8\ngap_minutes = {minutes}"
  )
  return schema.replace('\n[end]\nexit = "left"\n', "\n")


def test_a_gap_ends_a_session(tmp_path):
  found = platform_logs.take(platform_logs.columns(), range(8))
  minute = 60_000
  found["sid"] = ["a"] * 5 + ["b"] * 3
  offsets = [0, 1, 45, 46, 47, 0, 46, 90]
  found["at"] = [platform_logs.START_MS + minute * n for n in offsets]
  path = platform_logs.write(tmp_path / "a.csv", found)
  report = _import(tmp_path, [path], _gap_schema(30))
  whole = sharded.open_log(report.folder).load_all()
  # The log ends at minute 90: a session that ended within half an hour of it
  # may have gone on.
  expected = {
    (0, 1): [0, 0],
    (2, 3, 4): [0, 0, 1],
    (5,): [1],
    (6,): [1],
    (7,): [0],
  }
  expected[0, 1] = [0, 1]
  ages = whole.observation[:, 0]
  by_session = {}
  for number in np.unique(whole.session_id):
    rows = np.flatnonzero(whole.session_id == number)
    of_file = tuple(
      int(np.flatnonzero(np.isclose(found["age"], age))[0])
      for age in ages[rows]
    )
    by_session[of_file] = whole.terminal[rows].astype(int).tolist()
    np.testing.assert_array_equal(whole.step[rows], np.arange(len(rows)))
  assert by_session == expected
  assert report.counts["sessions"] == 5
  assert report.counts["sessions that the user left"] == 4


def test_how_far_an_import_is(tmp_path, monkeypatch):
  """Rows of CSV files are not known in advance; the bytes of all files are."""
  monkeypatch.setattr(log_tables, "_BLOCK_BYTES", 1 << 10)
  columns = platform_logs.columns()
  rows = len(columns["sid"])
  half = rows // 2
  parts = (
    ("0.parquet", range(3)),
    ("1.arrow", range(3, half)),
    ("2.csv", [half + n % (rows - half) for n in range(1000)]),
    ("3.csv.gz", range(half, rows)),
  )
  files = []
  for name, part in parts:
    found = platform_logs.take(columns, part)
    if name == "2.csv":
      found["sid"] = [f"s{n}" for n in range(1000)]
    files.append(platform_logs.write(tmp_path / name, found))
  told = []
  _import(tmp_path, files[:3], rows_per_shard=3, on_progress=told.append)
  read = [one for one in told if one.stage == "read"]
  sizes = np.array([path.stat().st_size for path in files[:3]])
  ends = np.cumsum(sizes) / sizes.sum()
  shares = [one.share for one in read]
  assert shares == sorted(shares) and shares[-1] == 1.0
  assert shares[0] == pytest.approx(ends[0])
  assert any(share == pytest.approx(ends[1]) for share in shares)
  # Within the text, too, of which Arrow reads some blocks ahead.
  assert len({share for share in shares if ends[1] < share < 1}) > 3
  assert read[-1].rows == half + 1000
  written = [one.share for one in told if one.stage == "written"]
  assert written == sorted(written) and written[-1] == 1.0 > written[0] > 0
  packed = [part.share for part in log_tables.batches(files[3], ["sid"])]
  assert packed[-1] == 1.0


_SHOWN = """
import itertools, sys, time
from experiments import import_log

ticks = itertools.count(0, 20)
time.monotonic = lambda: next(ticks)
speed = import_log._Speed()
for share in (0.1, 0.3, 0.5):
  speed("read", round(10_000 * share), share)
speed("written", 0, 0.0)
"""


def test_an_import_says_how_long_it_will_take():
  done = subprocess.run(
    [sys.executable, "-c", _SHOWN], capture_output=True, text=True, check=True
  )
  assert done.stderr.splitlines() == [
    "3,000 rows read, 100 rows/s, 0:01:10 left",
    "5,000 rows read, 100 rows/s, 0:00:50 left",
  ]


def test_what_followed_a_cut(tmp_path):
  found = platform_logs.take(platform_logs.columns(), range(4))
  found["sid"], found["step"] = ["a"] * 4, [1, 2, 3, 4]
  found["left"] = [False] * 4
  found["after"] = ["false", "false", "false", "true"]
  # Whatever stands in such a row beside observation and box.
  for name in ("a0", "a1", "click", "seconds"):
    found[name] = [*found[name][:3], None]
  schema = platform_logs.SCHEMA_BY_STEP + 'bootstrap_only = "after"\n'
  report = _import(
    tmp_path, [platform_logs.write(tmp_path / "a.csv", found)], schema
  )
  whole = sharded.open_log(report.folder).load_all()
  np.testing.assert_array_equal(whole.bootstrap_only, [0, 0, 0, 1])
  assert not whole.terminal.any() and not whole.action[3].any()
  np.testing.assert_allclose(whole.box.lower[3, 0], found["lo0"][3], rtol=1e-6)
  assert report.counts["sessions cut, what came after known"] == 1
  found["after"] = ["false", "true", "false", "false"]
  for name in ("a0", "a1", "click", "seconds"):
    found[name][3] = found[name][2]
  for name in ("lo0", "lo1", "hi0", "hi1"):
    found[name][3] = found[name][2]
  path = platform_logs.write(tmp_path / "b.csv", found)
  assert "b.csv: row 2: column after: expected true on one row after" in (
    _refusal(tmp_path / "other", [path], schema)
  )


_WEIGHTS = """
[action]
powers = ["p0"]
biases = ["b0"]
fusion_spec = { power_base = -2.0, power_rate = 1.5, bias_base = 0.1, bias_rate = -0.5 }

[box]
centre = ["c0", "d0"]
half_width = 0.1
"""


def test_fusion_weights_become_the_action_that_made_them(tmp_path):
  found = platform_logs.columns()
  spec = mtf.FusionSpec(
    power_base=-2.0, power_rate=1.5, bias_base=0.1, bias_rate=-0.5
  )

  def weights(action):
    return jax.vmap(mtf.weights_from_action, (0, None))(action, spec)

  action = np.stack([found["a0"], found["a1"]], axis=1)
  centre = np.clip(action + 0.05, -1, 1).astype(np.float32)
  power, bias = weights(action)
  found["p0"], found["b0"] = np.asarray(power[:, 0]), np.asarray(bias[:, 0])
  power, bias = weights(centre)
  found["c0"], found["d0"] = np.asarray(power[:, 0]), np.asarray(bias[:, 0])
  start, stop = (
    platform_logs.SCHEMA.index(name) for name in ("[action]", "[exploration]")
  )
  schema = platform_logs.SCHEMA[:start] + _WEIGHTS + platform_logs.SCHEMA[stop:]
  path = platform_logs.write(tmp_path / "a.parquet", found)
  whole = sharded.open_log(_import(tmp_path, [path], schema).folder).load_all()

  def rows(*parts):
    table = np.concatenate(parts, axis=1)
    return table[np.argsort(table[:, 0])]

  ages = np.asarray(found["age"])[:, None]
  np.testing.assert_allclose(
    rows(whole.observation[:, :1], whole.action, whole.box.lower),
    rows(ages, action, np.clip(centre - 0.1, -1, 1)),
    atol=2e-6,
  )
  found["b0"] = np.where(np.arange(len(power)) == 4, 0, bias[:, 0])
  path = platform_logs.write(tmp_path / "b.parquet", found)
  message = _refusal(tmp_path / "other", [path], schema)
  assert "row 5: column b0: expected a positive weight, as its" in message


def test_rounding_is_clipped_and_counted(tmp_path):
  found = platform_logs.columns()
  hi = found["hi0"]
  found["a0"] = found["a0"].copy()
  found["a0"][7] = np.nextafter(hi[7], np.float32(2))
  path = platform_logs.write(tmp_path / "a.parquet", found)
  report = _import(tmp_path, [path])
  (count,) = (n for name, n in report.counts.items() if "clipped" in name)
  assert count == 1
  session_log.validate(sharded.open_log(report.folder).load_all())


def test_implausible_values_are_counted_and_shown(tmp_path):
  found = platform_logs.columns()
  found["age"] = found["age"] * 1000
  path = platform_logs.write(tmp_path / "a.parquet", found)
  report = _import(tmp_path, [path])
  (warning,) = report.warnings
  outside = int((found["age"] > 10).sum())
  rows = len(found["age"])
  assert warning.startswith(
    f"column age: {outside} of {rows} values are outside 0 to 10; is the unit"
  )
  assert f"100% {found['age'].max():.4g}" in warning


def test_what_the_schema_fills_in_is_counted(tmp_path):
  found = platform_logs.columns()
  found["age"] = [None, np.nan, *found["age"][2:]]
  found["country"] = ["de", *found["country"][1:]]
  path = platform_logs.write(tmp_path / "a.parquet", found)
  schema = platform_logs.SCHEMA.replace("high = 10", "high = 10\nmissing = 3")
  schema = schema.replace('"us"]', '"us"]\nunknown = "zeros"')
  report = _import(tmp_path, [path], schema)
  assert report.counts["age missing, set to 3"] == 2
  assert report.counts["country not in the vocabulary"] == 1
  whole = sharded.open_log(report.folder).load_all()
  assert (whole.observation[:, 0] == 3).sum() == 2
  assert (whole.observation[:, 1:3].sum(axis=1) == 0).sum() == 1


def _changed(name, row, value):
  def change(found):
    found[name] = list(found[name])
    found[name][row] = value

  return change


def _all(name, value):
  def change(found):
    found[name] = [value(x) for x in found[name]]

  return change


_ROWS = {
  "no session": (_changed("sid", 3, None), "row 4: column sid: expected a ses"),
  "no number": (_changed("age", 3, None), "row 4: column age: expected a num"),
  "not finite": (
    _changed("age", 3, np.inf),
    "row 4: column age: expected a finite 32 bit number, found inf",
  ),
  "not 32 bits": (_changed("seconds", 3, 1e39), "number, found 1e+39"),
  "text": (
    _all("age", lambda x: f"{x}y"),
    "column age: expected a number, fou",
  ),
  "seconds as ms": (
    _all("at", lambda x: x // 1000),
    "row 1: column at: expected a time of the years 2000 to 2100 with the unit"
    " ms, found 1767225600, which may be in another unit.",
  ),
  "category": (
    _changed("country", 2, "de"),
    "row 3: column country: expected one of cn, us, found 'de'; add it to val",
  ),
  "no category": (_changed("country", 2, None), "cn, us, found none"),
  "outside": (
    _changed("a1", 2, 0.9),
    "row 3: column a1: expected an action in its box [",
  ),
  "inverted": (_changed("lo0", 2, 0.99), "row 3: column lo0: expected at most"),
  "flag": (_all("left", lambda x: 2 * x), "column left: expected 0 or 1, foun"),
  "early exit": (
    _all("left", lambda x: True),
    "column left: expected true on the last row of a session only",
  ),
  "long": (
    _all("sid", lambda x: "one"),
    "column sid: expected sessions of at most 8 requests, found a longer one",
  ),
  "list": (
    _all("age", lambda x: [x]),
    "column age: expected numbers, found li",
  ),
}


@pytest.mark.parametrize("case", _ROWS)
def test_a_row_that_cannot_be_used_is_refused(case, tmp_path):
  change, message = _ROWS[case]
  found = platform_logs.columns()
  change(found)
  if case == "long":
    found["at"] = [platform_logs.START_MS + n for n in range(len(found["at"]))]
    found["left"] = [False] * len(found["at"])
  path = platform_logs.write(tmp_path / "a.parquet", found)
  refused = _refusal(tmp_path, [path])
  assert refused.startswith(f"{path}: ")
  assert message in refused


def test_a_missing_step_is_refused(tmp_path):
  found = platform_logs.columns()
  last = np.append(np.diff(found["step"]) < 1, True)
  row = int(np.flatnonzero((found["step"] == 2) & last)[0])
  found["step"][row] = 5
  path = platform_logs.write(tmp_path / "a.parquet", found)
  assert f"row {row + 1}: column step: expected step 2 of its sess" in _refusal(
    tmp_path, [path], platform_logs.SCHEMA_BY_STEP
  )


def test_propensities_must_be_those_of_the_box(tmp_path):
  found = platform_logs.columns()
  rows = len(found["sid"])
  found["density"] = np.full(rows, 1 / 0.2**2)
  schema = platform_logs.SCHEMA.replace(
    'kind = "uniform"', 'kind = "uniform"\npropensity = "density"'
  )
  path = platform_logs.write(tmp_path / "a.parquet", found)
  _import(tmp_path, [path], schema)
  found["density"][5:8] = 24.0
  path = platform_logs.write(tmp_path / "b.parquet", found)
  message = _refusal(tmp_path / "other", [path], schema)
  assert "row 6: column density: expected the log density 3.21" in message
  assert f"found 3.17805; 3 of the {rows} rows" in message
  found["density"][5] = 0
  path = platform_logs.write(tmp_path / "c.parquet", found)
  assert "row 6: column density: expected a positive density, found 0" in (
    _refusal(tmp_path / "other", [path], schema)
  )


_TIMES = {
  "no zone": (
    "2026-01-01 08:00:0{}",
    None,
    "column at: expected a time_zone in [order] for times without one",
  ),
  "zone of the schema": ("2026-01-01 08:00:0{}", "Asia/Shanghai", None),
  "own zone": ("2026-01-01T00:00:0{}Z", None, None),
  "own zone wins": ("2026-01-01T08:00:0{}+08:00", "UTC", None),
  "no time": (
    "noon {}",
    "UTC",
    "row 1: column at: expected a time such as 2026",
  ),
}


@pytest.mark.parametrize("case", _TIMES)
def test_time_zones_are_explicit(case, tmp_path):
  text, zone, message = _TIMES[case]
  found = platform_logs.take(platform_logs.columns(), range(6))
  found["sid"], found["left"] = ["a"] * 6, [False] * 6
  found["at"] = [text.format(n) for n in range(6)]
  line = "" if zone is None else f'time_zone = "{zone}"'
  schema = platform_logs.SCHEMA.replace('unit = "ms"', line)
  for name in ("a.csv", "a.parquet"):
    path = platform_logs.write(tmp_path / name, found)
    if message is None:
      batch = next(log_tables.batches(path, ["at"]))
      order = schema_file.parse_schema(schema).order
      times = log_values.times(
        log_values.Batch(path, batch.first_row, batch.rows), order
      )
      expected = 1000 * platform_logs.START_MS + 1_000_000 * np.arange(6)
      np.testing.assert_array_equal(times, expected)
    else:
      assert message in _refusal(tmp_path, [path], schema)


_SCHEMAS = {
  "no toml": (("[session]", "[session"), "expected TOML, found"),
  "twice": (
    ('column = "age"', 'column = "a0"'),
    "column a0: expected once, fou",
  ),
  "unknown table": (("[source]", "[sauce]"), "expected the tables source, ses"),
  "unknown key": (
    ("max_requests", "max_request"),
    "[session] max_requests: exp",
  ),
  "more keys": (("[end]", "[end]\nat = 1"), "[end]: expected no at; docs/plat"),
  "kind": (
    ('kind = "text"', 'kind = "uuid"'),
    "one of text, integer, found 'uui",
  ),
  "unit": (
    ('unit = "ms"', 'unit = "ns"'),
    "[order] unit: expected one of s, ms",
  ),
  "zone": (
    ('unit = "ms"', 'time_zone = "Mars"'),
    "[order] time_zone: expected a name such as Asia/Shanghai, found 'Mars'",
  ),
  "limits": (("high = 10", "high = -1"), "low: expected at most high = -1"),
  "vocabulary": (('["cn", "us"]', "[]"), "values: expected a list of texts"),
  "components": (
    ('"lo0", "lo1"', '"lo0"'),
    "[box] lower: expected a list of co",
  ),
  "no box": (
    ("lower =", "# lower ="),
    "[box]: expected lower and upper, or cen",
  ),
  "no way": (
    ('kind = "uniform"', ""),
    "[exploration] kind: expected one of uni",
  ),
  "no density": (
    ('kind = "uniform"', 'kind = "logged"'),
    "[exploration] log_prob: expected a column, or propensity, found none",
  ),
  "weight": (
    ("seconds = 0.5", "minutes = 1"),
    "weights of click, seconds, found",
  ),
  "no end": (
    ('exit = "left"', ""),
    "[end] exit: expected the column that is tru",
  ),
  "unit of steps": (
    ('kind = "time"', 'kind = "step"'),
    "[order] unit: expected none where kind = \"step\", found 'ms'",
  ),
  "first of times": (
    ('unit = "ms"', 'unit = "ms"\nfirst = 1'),
    '[order] first: expected none where kind = "time", found 1',
  ),
  "bounds of a category": (
    ('["cn", "us"]', '["cn", "us"]\nlow = 0'),
    "low: expected none beside values or buckets, found 0",
  ),
  "unknown of a number": (
    ("high = 10", 'high = 10\nunknown = "zeros"'),
    "unknown: expected none without values, found 'zeros'",
  ),
  "gap by step": (
    ('kind = "time"\nunit = "ms"', 'kind = "step"'),
    "gap_minutes: expected an order by time, found one by step",
  ),
}


@pytest.mark.parametrize("case", _SCHEMAS)
def test_a_schema_that_cannot_be_used_is_refused(case, tmp_path):
  (old, new), message = _SCHEMAS[case]
  text = platform_logs.SCHEMA
  if case == "gap by step":
    text = _gap_schema(30)
  assert old in text
  path = tmp_path / "schema.toml"
  path.write_text(text.replace(old, new, 1))
  with pytest.raises(InputError) as caught:
    schema_file.read_schema(path)
  refused = str(caught.value)
  assert refused.startswith(f"{path}: ") and message in refused
  assert refused.endswith(".") and "\n" not in refused


def test_files_that_cannot_be_used_are_refused(tmp_path):
  found = platform_logs.columns()
  path = platform_logs.write(tmp_path / "a.parquet", found)
  content = path.read_bytes()
  cut = tmp_path / "cut.parquet"
  cut.write_bytes(content[:-100])
  assert "cut.parquet: expected a whole .parquet file" in _refusal(
    tmp_path, [cut]
  )
  damaged = bytearray(content)
  damaged[60:200] = bytes(140)
  cut.write_bytes(damaged)
  assert "cut.parquet: " in _refusal(tmp_path, [cut])
  text = tmp_path / "text.parquet"
  text.write_text("sid,at\n")
  assert "text.parquet: expected a whole .parquet file" in _refusal(
    tmp_path, [text]
  )
  del found["hi1"], found["age"]
  other = platform_logs.write(tmp_path / "other.csv", found)
  assert "age, hi1" in _refusal(tmp_path, [other])
  other = platform_logs.write(tmp_path / "other.arrow", found)
  assert "other.arrow: expected the columns age, hi1, found sid, at" in (
    _refusal(tmp_path, [other])
  )
  empty = platform_logs.take(platform_logs.columns(), range(1))
  empty = {name: values[:0] for name, values in empty.items()}
  types = platform_logs.table_of(platform_logs.columns()).schema
  with pa.OSFile(str(tmp_path / "none.arrow"), "wb") as file:
    pa.ipc.new_file(file, types).close()
  assert "none.arrow: expected rows, found none in 1 files" in _refusal(
    tmp_path, [tmp_path / "none.arrow"]
  )
  for names, message in (
    ([path, path], "a.parquet: expected once, found twice"),
    ([tmp_path / "schema"], "schema: expected a file of a log, found no such"),
  ):
    with pytest.raises(InputError, match=message):
      log_tables.input_files([str(name) for name in names])


def test_a_folder_with_something_in_it_is_refused(imported, tmp_path):
  log, found, _ = imported
  path = platform_logs.write(tmp_path / "a.parquet", found)
  (tmp_path / "log").mkdir()
  (tmp_path / "log" / "mine").write_text("")
  with pytest.raises(InputError, match="or empty folder, found mine in it"):
    _import(tmp_path, [path])
  assert (tmp_path / "log" / "mine").exists()
  with pytest.raises(InputError, match="expected a new folder, found a log"):
    _import(log.folder.parent, [path])
  assert sharded.open_log(log.folder).fingerprint == log.fingerprint


# Imports in small steps, so that a kill comes between them.
_PROGRAM = """
import pathlib, sys, time
from mtf_jax.data import import_log, log_tables, schema_file, sharded

folder = pathlib.Path(sys.argv[1])
import_log._RUN_BYTES = 3000
log_tables._BATCH_ROWS = 16
write = sharded.write_shard

def slowly(*args):
  time.sleep(float(sys.argv[2]))
  return write(*args)

sharded.write_shard = slowly
import_log.import_log(
  schema_file.read_schema(folder / "schema.toml"),
  log_tables.input_files([str(folder / "in")]),
  folder / "log",
  resume="--resume" in sys.argv,
  rows_per_shard=12,
  on_progress=lambda progress: time.sleep(float(sys.argv[2])),
)
"""


def _start(folder, pause, *more):
  return subprocess.Popen(
    [sys.executable, "-c", _PROGRAM, str(folder), str(pause), *more],
    cwd=_ROOT,
    env={**os.environ, "PYTHONPATH": str(_ROOT)},
    stderr=subprocess.PIPE,
    text=True,
  )


def test_killed_anywhere_it_goes_on_to_the_same_bytes(tmp_path):
  for name in ("whole", "killed"):
    (tmp_path / name / "in").mkdir(parents=True)
    (tmp_path / name / "schema.toml").write_text(platform_logs.SCHEMA)
    for n in range(2):
      found = platform_logs.columns(seed=n)
      found["sid"] = [f"{n}-{text}" for text in found["sid"]]
      platform_logs.write(tmp_path / name / "in" / f"{n}.parquet", found)
  whole = _start(tmp_path / "whole", 0)
  said = whole.communicate(timeout=200)[1]
  assert whole.returncode == 0, said
  log = tmp_path / "killed" / "log"
  work = log / "import"
  # Once while it reads, once while it writes.
  for awaited in ("run-00002.json", "shard-00003.json"):
    process = _start(tmp_path / "killed", 0.1, "--resume")
    deadline = time.monotonic() + 200
    while not (work / awaited).exists():
      assert process.poll() is None, process.stderr.read()
      assert time.monotonic() < deadline
      time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not (log / "manifest.json").exists()
    with pytest.raises(InputError, match=r"found no manifest\.json; an import"):
      sharded.open_log(log)
  unasked = _start(tmp_path / "killed", 0)
  assert (
    "an interrupted import; go on with --resume" in unasked.communicate()[1]
  )
  resumed = _start(tmp_path / "killed", 0, "--resume")
  said = resumed.communicate(timeout=200)[1]
  assert resumed.returncode == 0, said

  def content(folder):
    return {path.name: path.read_bytes() for path in (folder / "log").iterdir()}

  assert content(tmp_path / "killed") == content(tmp_path / "whole")
  assert len(content(tmp_path / "whole")) > 8


def test_another_import_is_not_gone_on_with(imported, tmp_path, monkeypatch):
  _, found, _ = imported
  path = platform_logs.write(tmp_path / "a.parquet", found)

  def stop(progress):
    if progress.stage == "written":
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    _import(tmp_path, [path], on_progress=stop)
  schema = platform_logs.SCHEMA.replace("high = 10", "high = 11")
  with pytest.raises(InputError, match="interrupted import of the same files"):
    _import(tmp_path, [path], schema, resume=True)
  assert (tmp_path / "log" / "import").is_dir()
  report = _import(tmp_path, [path], resume=True)
  assert sharded.open_log(report.folder).manifest.rows == len(found["sid"])
  # Nothing is left to do, and nothing is done.
  again = _import(tmp_path, [path], resume=True)
  assert again.counts == report.counts


@pytest.mark.parametrize("name", ["a.parquet", "a.csv"])
def test_the_schema_that_is_described_imports_the_file(tmp_path, name):
  found = platform_logs.columns()
  renamed = {"sid": "session", "at": "time_ms"}
  for n in range(2):
    renamed |= {f"a{n}": f"action_{n}", f"lo{n}": f"lower_{n}"}
    renamed |= {f"hi{n}": f"upper_{n}"}
  found = {renamed.get(key, key): value for key, value in found.items()}
  del found["step"]
  path = platform_logs.write(tmp_path / name, found)
  text = log_describe.describe(path)
  schema = schema_file.parse_schema(text)
  assert schema.action.columns == ("action_0", "action_1")
  assert schema.order.unit == "ms" and schema.exit == "left"
  assert schema.behaviours == ("click", "seconds")
  report = _import(tmp_path, [path], text)
  log = sharded.open_log(report.folder)
  assert log.manifest.rows == len(found["session"])
  assert log.manifest.observation_names[0] == "age"


def test_numbers_of_texts_stay_what_they_are():
  """Folders of before have them as session ids."""
  texts = ["", "a", "ä session id", "0123456789abcdef", "b" * 100]
  array = pa.array(["before", *texts])[1:]
  found = log_values.text_numbers(array, seed=0)
  again = [
    log_values.text_numbers(pa.array([text]), seed=0)[0] for text in texts
  ]
  np.testing.assert_array_equal(found, again)
  assert len({*found, *log_values.text_numbers(array, seed=1)}) == 10
  assert found.tolist() == _NUMBERS


_NUMBERS = [
  12035550249420947055,
  17106707319094771287,
  15359986880203115964,
  258490580942532625,
  11508156106749545992,
]


_PEAK = """
import pathlib, resource, sys
from mtf_jax.data import import_log, log_tables, schema_file

import_log._RUN_BYTES = 1 << 20
log_tables._BATCH_ROWS = 1 << 10
folder = pathlib.Path(sys.argv[1])
report = import_log.import_log(
  schema_file.parse_schema((folder / "schema.toml").read_text()),
  log_tables.input_files([str(folder / "in")]),
  folder / "log",
  rows_per_shard=5000,
)
print(report.counts["rows read"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_memory_does_not_grow_with_the_log(tmp_path):
  found = []
  for files in (1, 12):
    folder = tmp_path / str(files)
    (folder / "in").mkdir(parents=True)
    (folder / "schema.toml").write_text(platform_logs.SCHEMA)
    for n in range(files):
      columns = platform_logs.columns(num_sessions=8000, seed=n)
      columns["sid"] = [f"{n}-{text}" for text in columns["sid"]]
      platform_logs.write(folder / "in" / f"{n}.parquet", columns)
    printed = subprocess.run(
      [sys.executable, "-c", _PEAK, str(folder)],
      cwd=_ROOT,
      env={**os.environ, "PYTHONPATH": str(_ROOT)},
      stdout=subprocess.PIPE,
      text=True,
      check=True,
      timeout=300,
    ).stdout
    found.append([int(number) for number in printed.split()])
  (few, small), (many, large) = found
  record = import_log.record_dtype(
    schema_file.parse_schema(platform_logs.SCHEMA)
  ).itemsize
  assert large - small < (many - few) * record / 3
