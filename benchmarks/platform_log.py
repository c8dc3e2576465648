"""A platform's request log, made up: many files, unsorted, ids that are texts.

  python -m benchmarks.platform_log --rows=20000000 --files=20 --out_dir=requests

Rows of a session lie in different files, in no order; one in a thousand is
there twice. Beside the files' folder stands `schema.toml`, which says what the
columns are.
"""

import pathlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
from absl import flags
from pyarrow import csv as pa_csv
from pyarrow import parquet as pq

from benchmarks import harness
from experiments import launch

_ROWS = flags.DEFINE_integer("rows", 20_000_000, "Rows, about.", 1)
_FILES = flags.DEFINE_integer("files", 20, "Files.", 1)
_KIND = flags.DEFINE_enum("kind", "parquet", ["parquet", "csv"], "Of files.")
_SEED = launch.define_seed("seed", 0, "Seed of the values.")
_OUT_DIR = launch.define_out_dir("requests")

FEATURES, COMPONENTS = 32, 10
COUNTRIES = ("br", "cn", "de", "in", "us")
BEHAVIOURS = ("clicks", "likes", "watch_seconds", "follows")
# Requests of a session, 1 to that many alike.
MAX_REQUESTS = 19
# One in so many rows is there twice.
_REPEATED = 1000
_HALF_WIDTH = 0.15
_START = 1_767_225_600_000  # ms since 1970: 2026-01-01
_BLOCK = 200_000  # rows made at a time

SCHEMA = f"""\
[source]
platform = "made up"

[session]
column = "session"
kind = "text"
max_requests = {MAX_REQUESTS}

[order]
column = "time_ms"
kind = "time"
unit = "ms"

[[observation]]
column = "country"
values = [{", ".join(f'"{name}"' for name in COUNTRIES)}]

[[observation]]
column = "channel"
buckets = 8

[[observation]]
column = "feature[0:{FEATURES}]"
low = -8.0
high = 8.0

[action]
columns = ["action[0:{COMPONENTS}]"]

[box]
centre = ["baseline[0:{COMPONENTS}]"]
half_width = {_HALF_WIDTH}

[exploration]
kind = "uniform"
log_prob = "log_prob"
held = false

[feedback]
behaviours = [{", ".join(f'"{name}"' for name in BEHAVIOURS)}]

[reward.groups.consumption]
watch_seconds = 0.01
clicks = 0.1

[reward.groups.interaction]
likes = 1.0
follows = 2.0

[end]
exit = "left"
"""


def _sessions(rows: int, first: int) -> tuple[np.ndarray, np.ndarray]:
  """Numbers of sessions, and their lengths by a hash: the same in all files."""
  numbers = np.arange(first, first + rows, dtype=np.uint64)
  scattered = (numbers + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
  lengths = (scattered >> np.uint64(40)) % np.uint64(MAX_REQUESTS) + np.uint64(
    1
  )
  return numbers.astype(np.int64), lengths.astype(np.int64)


def _vector(values: np.ndarray) -> pa.Array:
  return pa.FixedSizeListArray.from_arrays(
    pa.array(values.reshape(-1)), values.shape[1]
  )


def _block(
  rng: np.random.Generator,
  session: np.ndarray,
  step: np.ndarray,
  last: np.ndarray,
) -> pa.Table:
  """Rows of one request each."""
  rows = len(session)
  feature = rng.standard_normal((rows, FEATURES), np.float32)
  baseline = rng.uniform(-0.9, 0.9, (rows, COMPONENTS)).astype(np.float32)
  centre = baseline.astype(np.float64)
  lower = np.clip(centre - _HALF_WIDTH, -1, 1).astype(np.float32)
  upper = np.clip(centre + _HALF_WIDTH, -1, 1).astype(np.float32)
  unit = rng.random((rows, COMPONENTS), np.float32)
  action = np.clip(lower + unit * (upper - lower), lower, upper)
  log_prob = -np.log(upper - lower).sum(axis=1)
  place = action[:, 0] - baseline[:, 0]
  liking = 1 / (1 + np.exp(-feature[:, 0] - 3 * place))
  return pa.table(
    {
      "session": pa.array([f"s-{number:012x}" for number in session]),
      "time_ms": _START + session * 37 + step * 45_000,
      "country": pa.array(COUNTRIES).take(
        pa.array(rng.integers(0, len(COUNTRIES), rows))
      ),
      "channel": pa.array([f"c{n}" for n in rng.integers(0, 300, rows)]),
      "feature": _vector(feature),
      "action": _vector(action),
      "baseline": _vector(baseline),
      "log_prob": log_prob,
      "clicks": rng.binomial(6, liking).astype(np.int32),
      "likes": rng.binomial(6, 0.1 * liking).astype(np.int32),
      "watch_seconds": (60 * liking * rng.random(rows)).astype(np.float32),
      "follows": rng.binomial(6, 0.01, rows).astype(np.int32),
      "left": last,
    }
  )


def _blocks(
  seed: int, file: int, num_files: int, num_sessions: int
) -> Iterator[pa.Table]:
  """Tables of a file: of every session the requests that fall to the file."""
  rng = np.random.default_rng((seed, file))
  for first in range(0, num_sessions, _BLOCK):
    session, length = _sessions(min(_BLOCK, num_sessions - first), first)
    # Requests of a session go to one file after the other, from a place of its
    # own on.
    step = (file - 7 * session) % num_files
    wanted = []
    while (there := step < length).any():
      wanted.append((session[there], step[there], length[there]))
      session, step, length = (
        session[there],
        step[there] + num_files,
        length[there],
      )
    if not wanted:
      continue
    session, step, length = (
      np.concatenate(part) for part in zip(*wanted, strict=True)
    )
    table = _block(rng, session, step, step == length - 1)
    rows = rng.permutation(len(session))
    again = rows[: len(rows) // _REPEATED]
    yield table.take(pa.array(np.concatenate([rows, again])))


def _flat(table: pa.Table) -> pa.Table:
  """Vectors as columns `feature[0]`, ...: CSV has no lists."""
  columns = {}
  for name in table.column_names:
    column = table[name].combine_chunks()
    if not pa.types.is_fixed_size_list(column.type):
      columns[name] = column
      continue
    width = column.type.list_size
    values = column.flatten().to_numpy().reshape(-1, width)
    for place in range(width):
      columns[f"{name}[{place}]"] = pa.array(values[:, place])
  return pa.table(columns)


def generate(
  folder: pathlib.Path,
  rows: int,
  *,
  files: int = 20,
  kind: str = "parquet",
  seed: int = 0,
) -> list[pathlib.Path]:
  """Writes the files and, beside their folder, `schema.toml`.

  Args:
    folder: created.
    rows: of all files, about, repeated ones not counted.
    files: how many.
    kind: "parquet" or "csv".
    seed: of the values.

  Returns:
    The files.
  """
  folder.mkdir(parents=True, exist_ok=True)
  (folder.parent / "schema.toml").write_text(SCHEMA, encoding="utf-8")
  num_sessions = max(1, round(rows / ((MAX_REQUESTS + 1) / 2)))
  paths = []
  for file in range(files):
    path = folder / f"part-{file:04d}.{kind}"
    writer = None
    for table in _blocks(seed, file, files, num_sessions):
      if kind == "csv":
        table = _flat(table)
      if writer is None:
        make = pq.ParquetWriter if kind == "parquet" else pa_csv.CSVWriter
        writer = make(path, table.schema)
      writer.write_table(table)
    if writer is not None:
      writer.close()
      paths.append(path)
  return paths


def main() -> None:
  """Writes the log."""
  folder = pathlib.Path(_OUT_DIR.value)
  paths = generate(
    folder, _ROWS.value, files=_FILES.value, kind=_KIND.value, seed=_SEED.value
  )
  size = sum(path.stat().st_size for path in paths)
  print(f"{len(paths)} files, {size / 2**30:.2f} GiB, in {folder}")
  if harness.JSON_OUT.value:
    harness.write_json(
      harness.JSON_OUT.value, {"files": len(paths), "bytes": size}
    )


if __name__ == "__main__":
  launch.run(main)
