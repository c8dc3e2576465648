"""Imports a platform's request log into a folder of session files.

  python -m experiments.import_log --describe --input=requests.parquet > schema.toml
  python -m experiments.import_log --schema=schema.toml --input=requests --dry_run
  python -m experiments.import_log --schema=schema.toml --input=requests \
    --out_dir=runs/log

`--input` names files or folders: Parquet, Arrow, CSV (also tabs, also gzipped).
A killed import goes on with `--resume`.
"""

import pathlib
import sys
import tempfile
import time

from absl import flags

from experiments import launch
from mtf_jax.io import InputError
from mtf_jax.training.metrics import clock

_SCHEMA = launch.define_in_file(
  "schema",
  None,
  "What the columns are (.toml).",
  "a schema file (.toml)",
  required=False,
)
_INPUT = flags.DEFINE_list("input", None, "Files or folders.", required=True)
_OUT_DIR = launch.define_out_dir(None, required=False)
_DESCRIBE = flags.DEFINE_bool(
  "describe", False, "Print a schema filled in for the first file."
)
_DRY_RUN = flags.DEFINE_bool(
  "dry_run", False, "Check and count; leave nothing behind."
)
_RESUME = flags.DEFINE_bool("resume", False, "Go on with a killed import.")
_ROWS_PER_SHARD = flags.DEFINE_integer(
  "rows_per_shard", 100_000, "Rows of a session file, about.", 1
)


class _Speed:
  """Lines with rows a second and the time left; on a terminal one, rewritten."""

  def __init__(self) -> None:
    self._stage, self._first, self._start, self._shown = "", 0, 0.0, 0.0
    self._share = 0.0  # Where the stage began.

  def __call__(self, stage: str, rows: int, share: float) -> None:
    now = time.monotonic()
    if stage != self._stage:
      # Rows of a killed import took no time in this one.
      self._stage, self._first, self._share = stage, rows, share
      self._start = self._shown = now
    terminal = sys.stderr.isatty()
    if now - self._shown < (0.2 if terminal else 10):
      return
    self._shown = now
    rate = (rows - self._first) / (now - self._start)
    line = f"{rows:,} rows {stage}, {rate:,.0f} rows/s"
    if share > self._share:
      seconds = (now - self._start) * (1 - share) / (share - self._share)
      line += f", {clock(seconds)} left"
    print(
      f"\r{line}    " if terminal else line,
      end="" if terminal else "\n",
      file=sys.stderr,
      flush=True,
    )

  def end(self) -> None:
    """Leaves the rewritten line."""
    if self._stage and sys.stderr.isatty():
      print(file=sys.stderr)


def _required(name: str, value: str | None) -> str:
  if value is None:
    raise InputError(f"--{name}: expected a value without --describe.")
  return value


def main() -> None:
  """Describes, checks or imports; prints what was found."""
  try:
    # pyarrow is an extra.
    from mtf_jax.data import import_log, log_describe, log_tables, schema_file
  except ModuleNotFoundError as error:
    raise InputError(
      f"{error.name}: expected an installed package, found none; the extra"
      " `data` brings it (pip install 'mtf-jax[data]')."
    ) from error
  files = log_tables.input_files(_INPUT.value)
  if _DESCRIBE.value:
    print(log_describe.describe(files[0]), end="")
    return
  with launch.refusals():
    schema = schema_file.read_schema(_required("schema", _SCHEMA.value))
  speed = _Speed()

  def on_progress(progress: import_log.Progress) -> None:
    speed(*progress)

  start = time.monotonic()
  try:
    if _DRY_RUN.value:
      scratch = pathlib.Path(_OUT_DIR.value or tempfile.gettempdir())
      while not scratch.is_dir():
        scratch = scratch.absolute().parent
      report = import_log.check_log(
        schema, files, scratch, on_progress=on_progress
      )
    else:
      report = import_log.import_log(
        schema,
        files,
        pathlib.Path(_required("out_dir", _OUT_DIR.value)),
        resume=_RESUME.value,
        rows_per_shard=_ROWS_PER_SHARD.value,
        on_progress=on_progress,
      )
  finally:
    speed.end()
  for warning in report.warnings:
    print(f"Warning: {warning}", file=sys.stderr)
  for name, count in report.counts.items():
    print(f"{name}: {count}")
  seconds, rows = time.monotonic() - start, report.counts["rows read"]
  done = f"written to {report.folder}" if report.folder else "nothing written"
  # A resumed import has not read all rows itself.
  speed_of_all = "" if _RESUME.value else f" {rows / seconds:,.0f} rows/s,"
  print(f"{seconds:.1f} s,{speed_of_all} {done}")


if __name__ == "__main__":
  launch.run(
    main,
    resume=lambda: () if _RESUME.value or _DRY_RUN.value else ("--resume",),
  )
