"""Containers for shards of a session log: what the loader needs of them.

  python -m benchmarks.containers --json_out=benchmarks/results/containers_cpu.json

The same random rows are written as session files (`.npz`), Arrow IPC files,
Parquet files and ArrayRecord files; each is read from front to back and in
batches of rows at random places, into NumPy arrays. Files are read from the
page cache: what is compared is the containers' work, not the disk's.
"""

import importlib
import os
import pathlib
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from absl import flags
from pyarrow import parquet as pq

from benchmarks import harness
from experiments import launch
from mtf_jax import npz
from mtf_jax.io import InputError

_SHARDS = flags.DEFINE_integer("shards", 4, "Files of each container.", 1)
_ROWS = flags.DEFINE_integer("rows", 100_000, "Rows of a file.", 1)
_BATCH = 256

# As a session log has them: 32 features, 10 components, 2 groups, 5 behaviours.
_RECORD = np.dtype(
  [
    ("observation", np.float32, 32),
    ("action", np.float32, 10),
    ("box_lower", np.float32, 10),
    ("box_upper", np.float32, 10),
    ("log_prob", np.float32),
    ("exploration_held", np.bool_),
    ("reward", np.float32, 2),
    ("feedback", np.float32, 5),
    ("terminal", np.bool_),
    ("bootstrap_only", np.bool_),
    ("session_id", np.int64),
    ("step", np.int32),
  ]
)
Columns = dict[str, np.ndarray]


class Container(NamedTuple):
  """How rows are written to a file and read from it.

  write: (path, columns).
  read: path -> columns, all rows.
  rows: (path, row numbers `[n]`) -> columns of these rows.
  """

  write: Callable[[pathlib.Path, Columns], None]
  read: Callable[[pathlib.Path], Columns]
  rows: Callable[[pathlib.Path, np.ndarray], Columns]


def _columns(rng: np.random.Generator, rows: int) -> Columns:
  """Random values; ids and steps as sessions of ten requests have them."""
  found = {}
  for name in _RECORD.names or ():
    field = _RECORD[name]
    shape = (rows, *field.shape)
    if field.base == np.float32:
      found[name] = rng.normal(size=shape).astype(np.float32)
    else:
      found[name] = np.zeros(shape, field.base)
  found["session_id"] = np.repeat(rng.integers(0, 2**62, -(-rows // 10)), 10)[
    :rows
  ]
  found["step"] = (np.arange(rows) % 10).astype(np.int32)
  found["terminal"] = found["step"] == 9
  return found


def _write_npz(path: pathlib.Path, columns: Columns) -> None:
  with path.open("wb") as file:
    npz.save_npz(file, columns, digest_name="digest")


def _read_npz(path: pathlib.Path) -> Columns:
  with npz.open_npz(path, "a session file") as archive:
    return {
      name: archive.read(name) for name in archive.names if name != "digest"
    }


def _rows_npz(path: pathlib.Path, rows: np.ndarray) -> Columns:
  """By mapping the stored members, which the package's reader does not do."""
  found = {}
  with zipfile.ZipFile(path) as archive, path.open("rb") as file:
    for info in archive.infolist()[:-1]:
      file.seek(info.header_offset + 26)
      sizes = np.frombuffer(file.read(4), "<u2")
      file.seek(info.header_offset + 30 + int(sizes.sum()))
      np.lib.format.read_magic(file)
      shape, _, dtype = np.lib.format.read_array_header_1_0(file)
      mapped = np.memmap(path, dtype, "r", file.tell(), shape)
      found[info.filename.removesuffix(".npy")] = mapped[rows]
  return found


def _table(columns: Columns) -> pa.Table:
  arrays = {}
  for name, column in columns.items():
    flat = pa.array(column.reshape(-1))
    if column.ndim == 2:
      flat = pa.FixedSizeListArray.from_arrays(flat, column.shape[1])
    arrays[name] = flat
  return pa.table(arrays)


def _numpy(table: pa.Table) -> Columns:
  found = {}
  for name in table.column_names:
    column = table[name].combine_chunks()
    width = _RECORD[name].shape
    flat = column.flatten() if width else column
    # `array` copies: a mapped file's pages are read here, not later.
    values = np.array(flat.to_numpy(zero_copy_only=False))
    found[name] = values.reshape(-1, *width)
  return found


def _write_arrow(path: pathlib.Path, columns: Columns) -> None:
  table = _table(columns)
  with (
    pa.OSFile(str(path), "wb") as file,
    pa.ipc.new_file(file, table.schema) as writer,
  ):
    writer.write_table(table)


def _mapped(path: pathlib.Path) -> pa.Table:
  return pa.ipc.open_file(pa.memory_map(str(path))).read_all()


def _read_arrow(path: pathlib.Path) -> Columns:
  return _numpy(_mapped(path))


def _rows_arrow(path: pathlib.Path, rows: np.ndarray) -> Columns:
  return _numpy(_mapped(path).take(pa.array(rows)))


def _write_parquet(path: pathlib.Path, columns: Columns) -> None:
  pq.write_table(_table(columns), path, row_group_size=10_000)


def _read_parquet(path: pathlib.Path) -> Columns:
  return _numpy(pq.read_table(path, use_threads=False))


def _rows_parquet(path: pathlib.Path, rows: np.ndarray) -> Columns:
  """Row groups that hold a wanted row are decoded whole."""
  file = pq.ParquetFile(path)
  groups = np.unique(rows // 10_000)
  table = file.read_row_groups(groups.tolist(), use_threads=False)
  place = np.searchsorted(groups, rows // 10_000) * 10_000 + rows % 10_000
  return _numpy(table.take(pa.array(place)))


def _array_record() -> Any:
  """The package, which nothing else here needs: pip install array_record."""
  try:
    return importlib.import_module("array_record.python.array_record_module")
  except ImportError as error:
    raise InputError(
      "array_record: expected an installed package, found none; pip install"
      " array_record."
    ) from error


def _write_records(path: pathlib.Path, columns: Columns) -> None:
  table = np.empty(len(columns["step"]), _RECORD)
  for name, column in columns.items():
    table[name] = column
  # One row a record: what makes a row reachable alone.
  writer = _array_record().ArrayRecordWriter(
    str(path), "group_size:1,uncompressed"
  )
  for row in table:
    writer.write(row.tobytes())
  writer.close()


def _from_records(records: list[bytes]) -> Columns:
  table = np.frombuffer(b"".join(records), _RECORD)
  return {name: np.array(table[name]) for name in _RECORD.names or ()}


def _read_records(path: pathlib.Path) -> Columns:
  reader = _array_record().ArrayRecordReader(str(path))
  return _from_records(reader.read_all())


def _rows_records(path: pathlib.Path, rows: np.ndarray) -> Columns:
  reader = _array_record().ArrayRecordReader(str(path))
  return _from_records(reader.read(rows.tolist()))


CONTAINERS = {
  "session file (.npz)": Container(_write_npz, _read_npz, _rows_npz),
  "Arrow IPC": Container(_write_arrow, _read_arrow, _rows_arrow),
  "Parquet": Container(_write_parquet, _read_parquet, _rows_parquet),
  "ArrayRecord": Container(_write_records, _read_records, _rows_records),
}


def _seconds(calls: Iterator[Callable[[], object]]) -> float:
  """Of the fastest call; other work on the machine only adds to it."""
  best = float("inf")
  for call in calls:
    start = time.perf_counter()
    call()
    best = min(best, time.perf_counter() - start)
  return best


def _measure(
  container: Container, folder: pathlib.Path, repeats: int
) -> dict[str, float]:
  rng = np.random.default_rng(0)
  shards = [_columns(rng, _ROWS.value) for _ in range(_SHARDS.value)]
  paths = [folder / f"{n}" for n in range(_SHARDS.value)]
  start = time.perf_counter()
  for path, columns in zip(paths, shards, strict=True):
    container.write(path, columns)
  written = time.perf_counter() - start
  for path, columns in zip(paths, shards, strict=True):
    found = container.read(path)
    some = rng.integers(0, _ROWS.value, _BATCH)
    picked = container.rows(path, some)
    for name, column in columns.items():
      np.testing.assert_array_equal(found[name], column)
      np.testing.assert_array_equal(picked[name], column[some])

  def all_of_them() -> None:
    for path in paths:
      container.read(path)

  def random_batch() -> None:
    path = paths[rng.integers(len(paths))]
    container.rows(path, rng.integers(0, _ROWS.value, _BATCH))

  total = _SHARDS.value * _ROWS.value
  return {
    "write_rows_per_s": total / written,
    "sequential_rows_per_s": total
    / _seconds(all_of_them for _ in range(repeats)),
    "random_batch_rows_per_s": _BATCH
    / _seconds(random_batch for _ in range(repeats)),
    "bytes_per_row": sum(os.path.getsize(path) for path in paths) / total,
  }


def main() -> None:
  """Writes, reads and compares; prints a table."""
  results = {}
  for name, container in CONTAINERS.items():
    with tempfile.TemporaryDirectory() as folder:
      results[name] = _measure(
        container, pathlib.Path(folder), harness.REPEATS.value
      )
  print(
    harness.markdown_table(
      (
        "container",
        "written, rows/s",
        "read in order, rows/s",
        f"random batches of {_BATCH}, rows/s",
        "bytes a row",
      ),
      [
        (name, *(f"{value:,.0f}" for value in found.values()))
        for name, found in results.items()
      ],
    )
  )
  if harness.JSON_OUT.value:
    harness.write_json(
      harness.JSON_OUT.value,
      {
        "environment": harness.environment(),
        "rows": _ROWS.value,
        "shards": _SHARDS.value,
        "containers": results,
      },
    )


if __name__ == "__main__":
  launch.run(main)
