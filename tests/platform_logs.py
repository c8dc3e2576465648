"""A small platform log for the tests, and a schema that fits it."""

import gzip

import numpy as np
import pyarrow as pa
from pyarrow import csv as pa_csv
from pyarrow import parquet as pq

SCHEMA = """
[source]
platform = "test"

[session]
column = "sid"
kind = "text"
max_requests = 8

[order]
column = "at"
kind = "time"
unit = "ms"

[[observation]]
column = "age"
low = 0
high = 10

[[observation]]
column = "country"
values = ["cn", "us"]

[[observation]]
column = "tag"
buckets = 4

[action]
columns = ["a0", "a1"]

[box]
lower = ["lo0", "lo1"]
upper = ["hi0", "hi1"]

[exploration]
kind = "uniform"
held = false

[feedback]
behaviours = ["click", "seconds"]

[reward.groups.watch]
seconds = 0.5
[reward.groups.both]
click = 1
seconds = 2

[end]
exit = "left"
"""
SCHEMA_BY_STEP = SCHEMA.replace(
  'column = "at"\nkind = "time"\nunit = "ms"',
  'column = "step"\nkind = "step"\nfirst = 1',
)
START_MS = 1_767_225_600_000


def columns(num_sessions=30, seed=0):
  """Columns by name, sessions of 1 to 4 requests, in order."""
  rng = np.random.default_rng(seed)
  length = rng.integers(1, 5, num_sessions)
  session = np.repeat(np.arange(num_sessions), length)
  rows = len(session)
  step = np.arange(rows) - np.repeat(np.cumsum(length) - length, length)
  last = np.append(session[1:] != session[:-1], True)
  centre = rng.uniform(-0.5, 0.5, (rows, 2)).astype(np.float32)
  lower, upper = centre - np.float32(0.1), centre + np.float32(0.1)
  unit = rng.random((rows, 2), np.float32)
  action = np.clip(lower + unit * (upper - lower), lower, upper)
  found = {
    "sid": [f"user-{n:03d}" for n in session],
    "at": (START_MS + session * 3 + step * 1000).astype(np.int64),
    "step": step + 1,
    "age": rng.uniform(0, 10, rows).round(3),
    "country": [("cn", "us")[n] for n in rng.integers(0, 2, rows)],
    "tag": [f"t{n}" for n in rng.integers(0, 9, rows)],
    "click": rng.integers(0, 3, rows),
    "seconds": rng.uniform(0, 60, rows).round(2),
    "left": last & (session % 3 != 0),
  }
  for n in range(2):
    found |= {f"a{n}": action[:, n], f"lo{n}": lower[:, n]}
    found |= {f"hi{n}": upper[:, n]}
  return found


def take(found, rows):
  """Some rows, in the order of their numbers."""
  table = pa.table(found).take(pa.array(rows))
  return {name: table[name].to_pylist() for name in table.column_names}


def table_of(found):
  """The columns as Arrow has them; the float32 ones stay it."""
  table = pa.table(found)
  for n, name in enumerate(table.column_names):
    if name[-1] in "01" and pa.types.is_floating(table[name].type):
      table = table.set_column(n, name, table[name].cast(pa.float32()))
  return table


def write(path, found):
  """Writes a table in the format that its name says; returns the path."""
  table = table_of(found)
  if path.suffix == ".parquet":
    pq.write_table(table, path, row_group_size=16)
  elif path.suffix == ".arrow":
    with (
      pa.OSFile(str(path), "wb") as file,
      pa.ipc.new_file(file, table.schema) as writer,
    ):
      writer.write_table(table, max_chunksize=16)
  else:
    sink = pa.BufferOutputStream()
    tabs = ".tsv" in path.suffixes
    options = pa_csv.WriteOptions(delimiter="\t" if tabs else ",")
    pa_csv.write_csv(table, sink, options)
    text = sink.getvalue().to_pybytes()
    if path.suffix == ".gz":
      # As Excel and Windows have it.
      text = gzip.compress(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    path.write_bytes(text)
  return path
