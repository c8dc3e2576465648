"""A platform's own log in: from its files to a folder of session files.

Two passes, both in bounded memory, both going on where a killed process left
them. The first reads the files in order, checks every row, and writes runs of
records sorted by a hash of the session (`log_runs`). The second takes one range
of hashes after the other, which has all rows of its sessions, makes sessions of
them and writes a shard. The manifest comes last: before it, the folder is no
log.
"""

import functools
import hashlib
import json
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from mtf_jax import folder_lock
from mtf_jax.data import log_manifest, sharded
from mtf_jax.data.log_manifest import LogManifest, Shard, write_manifest
from mtf_jax.data.log_records import record_dtype, records_of
from mtf_jax.data.log_runs import Runs, RunState, write_run
from mtf_jax.data.log_schema import LogSchema, base_column
from mtf_jax.data.log_sessions import sessions_of
from mtf_jax.data.log_tables import batches, column_types
from mtf_jax.data.log_values import Batch
from mtf_jax.io import InputError, json_text, write_json

# Records of a run, sorted in memory at a time.
_RUN_BYTES = 1 << 27
_WORK = "import"
# Quantiles that a warning shows.
_QUANTILES = (0.0, 0.01, 0.5, 0.99, 1.0)


class Progress(NamedTuple):
  """How far an import is.

  stage: "read" of rows, or "written" of rows.
  rows: of this stage so far, those of an interrupted import among them.
  share: of the stage that is done: of the files' bytes, and of the shards.
  """

  stage: str
  rows: int
  share: float


class ImportReport(NamedTuple):
  """What an import found.

  counts: what was read, left out and changed, by name.
  warnings: sentences about values that are not plausible.
  folder: the log; None where the files were only checked.
  """

  counts: dict[str, int]
  warnings: tuple[str, ...]
  folder: pathlib.Path | None


def import_log(
  schema: LogSchema,
  files: Sequence[pathlib.Path],
  out_dir: pathlib.Path,
  *,
  resume: bool = False,
  rows_per_shard: int = 100_000,
  on_progress: Callable[[Progress], None] = lambda _: None,
) -> ImportReport:
  """Imports files into a new folder.

  What cannot be used leaves nothing behind. A process that is killed, or meets a
  full disk, leaves a folder that is no log and that `resume` goes on with; the
  result is the same, byte for byte.

  Args:
    schema: what the columns are.
    files: in the order in which they are read, see `log_tables.input_files`.
    out_dir: the folder to make.
    resume: go on with an interrupted import of the same files and schema; begin
      one if there is none.
    rows_per_shard: rows of a session file, about.
    on_progress: called now and then.

  Returns:
    The report; the folder is whole.

  Raises:
    InputError: a file or row that cannot be used, a folder that is not empty,
      or another import there.
    OSError: something could not be written.
  """
  identity = _identity(schema, files, rows_per_shard)
  work = out_dir / _WORK
  if (out_dir / log_manifest.MANIFEST).exists():
    return _finished(out_dir, identity, resume)
  if work.is_dir() and not resume:
    raise InputError(
      f"{out_dir}: expected a new folder, found an interrupted import; go on"
      " with --resume, or delete it."
    )
  there = list(out_dir.iterdir()) if out_dir.exists() else []
  if not work.is_dir() and there:
    raise InputError(
      f"{out_dir}: expected a new or empty folder, found {there[0].name} in it."
    )
  with folder_lock.hold(out_dir):
    work.mkdir(exist_ok=True)
    _same_import(work, identity)
    job = _Job(schema, files, work, rows_per_shard, on_progress)
    try:
      return job.run(out_dir, identity["import"])
    except InputError:
      # What cannot be used leaves nothing behind.
      shutil.rmtree(out_dir)
      raise


def check_log(
  schema: LogSchema,
  files: Sequence[pathlib.Path],
  scratch: pathlib.Path,
  *,
  rows_per_shard: int = 100_000,
  on_progress: Callable[[Progress], None] = lambda _: None,
) -> ImportReport:
  """Checks files as `import_log` does, sessions too, and keeps nothing.

  Args:
    schema, files, rows_per_shard, on_progress: as there.
    scratch: a folder with room for the sorted rows, which are deleted.

  Returns:
    The report, without a folder.

  Raises:
    InputError, OSError: as there.
  """
  with tempfile.TemporaryDirectory(dir=scratch) as work:
    job = _Job(schema, files, pathlib.Path(work), rows_per_shard, on_progress)
    return job.run(None, "")


def _identity(
  schema: LogSchema, files: Sequence[pathlib.Path], rows_per_shard: int
) -> dict[str, Any]:
  """What an interrupted import must agree with."""
  # A file that was touched is another one to go on with, though the log that
  # comes of it may be the same.
  content = {
    "schema": repr(schema),
    "rows_per_shard": rows_per_shard,
    "files": [[path.name, path.stat().st_size] for path in files],
  }
  name = hashlib.sha256(json_text(content).encode()).hexdigest()
  times = [[str(path), path.stat().st_mtime_ns] for path in files]
  return {"import": name, "times": times}


def _same_import(work: pathlib.Path, identity: dict[str, Any]) -> None:
  path = work / "import.json"
  if not path.exists():
    write_json(path, identity)
  elif json.loads(path.read_bytes()) != identity:
    raise InputError(
      f"{work.parent}: expected the interrupted import of the same files,"
      " schema and rows a shard, found another; delete the folder to begin"
      " anew."
    ) from None


def _finished(
  out_dir: pathlib.Path, identity: dict[str, Any], resume: bool
) -> ImportReport:
  """A folder that is whole already, which `resume` leaves as it is."""
  log = sharded.open_log(out_dir)
  if not resume or log.manifest.source.get("import") != identity["import"]:
    raise InputError(f"{out_dir}: expected a new folder, found a log.")
  # Killed after the manifest was there.
  shutil.rmtree(out_dir / _WORK, ignore_errors=True)
  return ImportReport(log.manifest.counts, (), out_dir)


class _ShardState(NamedTuple):
  """What is known of a shard that is written: JSON in the working folder."""

  shard: Shard | None
  moments: sharded.Moments
  counts: dict[str, int]


class _Job:
  """One import, or one check, with its working folder."""

  def __init__(
    self,
    schema: LogSchema,
    files: Sequence[pathlib.Path],
    work: pathlib.Path,
    rows_per_shard: int,
    on_progress: Callable[[Progress], None],
  ):
    self._schema, self._files, self._work = schema, files, work
    self._rows_per_shard, self._on_progress = rows_per_shard, on_progress
    self._dtype = record_dtype(schema)

  def run(self, out_dir: pathlib.Path | None, import_id: str) -> ImportReport:
    """Both passes; writes shards and the manifest if there is a folder."""
    runs = self._sorted()
    last = runs.states[-1]
    counts = {"rows read": runs.rows, **last.counts}
    num_parts = max(1, round(runs.rows / self._rows_per_shard))
    states: list[_ShardState] = []
    rows = 0
    warnings = self._implausible(runs, num_parts, counts)
    for part in range(num_parts):
      state = self._found(part)
      made = state is None
      if state is None:
        records = runs.read(part, num_parts)
        if not len(records):
          continue  # No session has such a key.
        latest = runs.states[-1].latest
        state = self._made(part, records, latest, out_dir, import_id)
      states.append(state)
      for name, number in state.counts.items():
        counts[name] = counts.get(name, 0) + number
      rows += state.moments.rows
      if made:
        share = (part + 1) / num_parts
        self._on_progress(Progress("written", rows, share))
    if out_dir is None:
      return ImportReport(counts, warnings, None)
    moments = functools.reduce(
      sharded.Moments.merged, (state.moments for state in states)
    )
    schema = self._schema
    write_manifest(
      out_dir,
      LogManifest(
        observation_names=schema.observation_names,
        action_names=schema.action.columns,
        group_names=schema.group_names,
        behaviour_names=schema.behaviours,
        exploration=schema.exploration.kind,
        source={**schema.source, "import": import_id},
        mean=moments.mean,
        stddev=moments.stddev,
        counts=counts,
        shards=tuple(s.shard for s in states if s.shard is not None),
      ),
    )
    shutil.rmtree(self._work)
    return ImportReport(counts, warnings, out_dir)

  def _sorted(self) -> Runs:
    """The first pass, or what is left of it."""
    runs = Runs(self._work, self._dtype)
    start = RunState(0, 0, 0, -(2**63), {})
    state = runs.states[-1] if runs.states else start
    rows, number = runs.rows, len(runs.states)
    # A file that is not there is refused when its turn comes.
    sizes = [
      path.stat().st_size if path.exists() else 0 for path in self._files
    ]
    ends = np.cumsum([0, *sizes]) / max(1, sum(sizes))
    held: list[np.ndarray] = []
    counts = dict(state.counts)
    latest = state.latest
    size = max(1, _RUN_BYTES // self._dtype.itemsize)
    for file, row, read, records in self._records(
      state.file, state.row, counts
    ):
      held.append(records)
      if len(records):
        latest = max(latest, int(records["order"].max()))
      count = sum(len(part) for part in held)
      rows += len(records)
      share = np.interp(file + read, range(len(ends)), ends)
      self._on_progress(Progress("read", rows, float(share)))
      # The last position closes the pass: a run of its own, which may be empty.
      if count >= size or file == len(self._files):
        whole = np.concatenate(held)
        held.clear()
        state = RunState(file, row, len(whole), latest, dict(counts))
        if len(whole):
          write_run(self._work, number, whole, state)
          number += 1
    found = Runs(self._work, self._dtype)
    if not found.states:
      raise InputError(
        f"{self._files[0]}: expected rows, found none in {len(self._files)}"
        " files."
      )
    return found

  def _records(
    self, file: int, row: int, counts: dict[str, int]
  ) -> Iterator[tuple[int, int, float, np.ndarray]]:
    """Records from a position on, behind the position after them: file, row, and
    share of the file."""
    columns = self._schema.columns
    for number in range(file, len(self._files)):
      path = self._files[number]
      wanted = _columns_of(path, columns)
      skip = row if number == file else 0
      for part in batches(path, wanted, skip):
        batch = Batch(path, part.first_row, part.rows)
        records = records_of(batch, self._schema, number, counts)
        end = part.first_row + part.rows.num_rows
        yield number, end, part.share, records
    yield len(self._files), 0, 0.0, np.empty(0, self._dtype)

  def _found(self, part: int) -> _ShardState | None:
    """What is known of a shard that an interrupted import has written."""
    path = self._work / f"shard-{part:05d}.json"
    if not path.exists():
      return None
    values = json.loads(path.read_bytes())
    return _ShardState(
      Shard(*values["shard"]),
      sharded.Moments(*map(_tuples, values["moments"])),
      values["counts"],
    )

  def _made(
    self,
    part: int,
    records: np.ndarray,
    latest: int,
    out_dir: pathlib.Path | None,
    import_id: str,
  ) -> _ShardState:
    """A shard of sorted records; written if there is a folder."""
    counts: dict[str, int] = {}
    log = sessions_of(
      records,
      self._schema,
      files=self._files,
      latest=latest,
      counts=counts,
    )
    moments = sharded.Moments.of(log.observation)
    if out_dir is None:
      return _ShardState(None, moments, counts)
    shard = sharded.write_shard(out_dir, part, log, import_id)
    write_json(
      self._work / f"shard-{part:05d}.json",
      {"shard": list(shard), "moments": list(moments), "counts": counts},
    )
    return _ShardState(shard, moments, counts)

  def _implausible(
    self, runs: Runs, num_parts: int, counts: dict[str, int]
  ) -> tuple[str, ...]:
    """Warnings with quantiles, which are those of a random part of the ids."""
    doubted = [
      feature
      for feature in self._schema.observation
      if any(name.startswith(f"{feature.column} outside ") for name in counts)
    ]
    if not doubted:
      return ()
    parts = (runs.read(part, num_parts) for part in range(num_parts))
    sample = next(records for records in parts if len(records))
    names = self._schema.observation_names
    sentences = []
    for feature in doubted:
      values = sample["observation"][:, names.index(feature.names[0])]
      shown = ", ".join(
        f"{share:.0%} {value:.4g}"
        for share, value in zip(
          _QUANTILES, np.quantile(values, _QUANTILES), strict=True
        )
      )
      name = f"{feature.column} outside {feature.low:g} to {feature.high:g}"
      sentences.append(
        f"column {feature.column}: {counts[name]} of {counts['rows read']}"
        f" values are outside {feature.low:g} to {feature.high:g}; is the unit"
        f" what you take it for? Quantiles of a sample: {shown}."
      )
    return tuple(sentences)


def _tuples(value: Any) -> Any:
  return tuple(value) if isinstance(value, list) else value


def _columns_of(path: pathlib.Path, names: Sequence[str]) -> list[str]:
  """Columns to read of a file: a vector once for all of its elements."""
  there = column_types(path)
  bases = (name if name in there else base_column(name)[0] for name in names)
  return list(dict.fromkeys(bases))
