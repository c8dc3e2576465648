"""Logs of any size: a folder of session files and its manifest.

A session lies in one file, whole. Every file is a session file like any other
(`session_log`), so that whoever can read one can read a part of the log.

Letters: `N` rows, `S` state features.
"""

import os
import pathlib
from typing import NamedTuple

import jax
import numpy as np

from mtf_jax.data import session_log
from mtf_jax.data.log_manifest import (
  LogManifest,
  Shard,
  read_manifest,
)
from mtf_jax.data.session_log import SessionLog
from mtf_jax.io import InputError, naming

# In every session file of a folder: the import that it belongs to.
IMPORT = "import"


class ShardedLog(NamedTuple):
  """A folder of session files; nothing of them is in memory.

  folder: where they are.
  manifest: what the log is.
  fingerprint: SHA-256 that names the content of the whole log.
  """

  folder: pathlib.Path
  manifest: LogManifest
  fingerprint: str

  def load(self, number: int) -> SessionLog:
    """Reads one shard; threads may do so at the same time.

    Args:
      number: of the shard, from 0.

    Returns:
      Its rows, NumPy arrays.

    Raises:
      InputError: the file is missing, damaged, or another one than the
        manifest names, of another import or with other columns.
    """
    shard = self.manifest.shards[number]
    path = self.folder / shard.file
    log, _ = session_log.load_sessions(path, expected_digest=shard.digest)
    _refuse_more(log, path)
    sizes = (
      *(log.observation.shape[1], log.action.shape[1]),
      *(log.reward.shape[1], log.feedback.shape[1], log.terminal.shape[0]),
    )
    expected = (*_sizes(self.manifest), shard.rows)
    if sizes != expected:
      raise InputError(
        f"{path}: expected sizes (S, A, G, E, N) of {expected} as in the"
        f" manifest, found {sizes}."
      )
    return log

  def load_all(self) -> SessionLog:
    """Reads all shards into one log.

    Returns:
      All rows, NumPy arrays.

    Raises:
      InputError: as `load`.
    """
    whole = empty_like(self.load(0), self.manifest.rows)
    start = 0
    for number in range(len(self.manifest.shards)):
      start = copy_rows(self.load(number), whole, start)
    return whole


def _refuse_more(log: SessionLog, path: pathlib.Path) -> None:
  for columns, what in (
    (log.items, "shown items"),
    (log.candidates, "scores of candidates"),
  ):
    if columns is not None:
      raise InputError(
        f"{path}: expected rows without {what}, which a manifest does not know,"
        " found some with them."
      )


def _sizes(manifest: LogManifest) -> tuple[int, int, int, int]:
  return (
    len(manifest.observation_names),
    len(manifest.action_names),
    len(manifest.group_names),
    len(manifest.behaviour_names),
  )


def open_log(folder: str | os.PathLike[str]) -> ShardedLog:
  """Opens a folder of session files; reads the manifest alone.

  Args:
    folder: of `experiments.import_log`, or of `write_log`.

  Returns:
    The log.

  Raises:
    InputError: no manifest, a damaged one, or a file that is missing or of
      another size than the manifest says.
  """
  manifest, fingerprint = read_manifest(folder)
  folder = pathlib.Path(folder)
  for shard in manifest.shards:
    path = folder / shard.file
    try:
      size = path.stat().st_size
    except OSError as error:
      raise InputError(
        f"{path}: expected a session file of the log ({error.strerror})."
      ) from error
    if size != shard.bytes:
      raise InputError(
        f"{path}: expected {shard.bytes} bytes as in the manifest, found"
        f" {size}; the file is cut or of another import."
      )
  return ShardedLog(folder, manifest, fingerprint)


def write_shard(
  folder: pathlib.Path, number: int, log: SessionLog, import_id: str
) -> Shard:
  """Writes one session file of a folder, all of it or nothing.

  Args:
    folder: exists; has no manifest yet.
    number: of the shard, from 0.
    log: its rows; sessions are whole.
    import_id: names what the folder is made of.

  Returns:
    The manifest's entry.

  Raises:
    InputError: the rows are not valid.
    OSError: it could not be written.
  """
  path = folder / f"shard-{number:05d}.npz"
  _refuse_more(log, path)
  with naming(path):
    digest = session_log.save_sessions(path, log, {IMPORT: import_id})
  starts = num_transitions(log)
  return Shard(
    file=path.name,
    rows=len(log.terminal),
    sessions=int((log.step == 0).sum()),
    transitions=starts,
    bytes=path.stat().st_size,
    digest=digest,
  )


def num_transitions(log: SessionLog) -> int:
  """Rows of a log that a transition starts from where a cut one bootstraps."""
  goes_on = np.zeros(len(log.terminal), bool)
  goes_on[:-1] = log.step[1:] == np.asarray(log.step[:-1]) + 1
  return int((~log.bootstrap_only & (log.terminal | goes_on)).sum())


class Moments(NamedTuple):
  """Sums over rows, that of parts from those of the parts.

  rows: how many.
  mean: `S` means.
  squares: `S` sums of squared deviations from the mean.
  """

  rows: int
  mean: tuple[float, ...]
  squares: tuple[float, ...]

  @classmethod
  def of(cls, observation: np.ndarray) -> "Moments":
    """Those of rows `[N, S]`, in float64."""
    values = observation.astype(np.float64)
    mean = values.mean(axis=0)
    squares = np.square(values - mean).sum(axis=0)
    return cls(len(values), tuple(mean.tolist()), tuple(squares.tolist()))

  def merged(self, other: "Moments") -> "Moments":
    """Those of both parts, by Chan's rule."""
    total = self.rows + other.rows
    apart = np.subtract(other.mean, self.mean)
    mean = np.add(self.mean, apart * other.rows / total)
    squares = np.add(self.squares, other.squares)
    squares = squares + apart**2 * self.rows * other.rows / total
    return Moments(total, tuple(mean.tolist()), tuple(squares.tolist()))

  @property
  def stddev(self) -> tuple[float, ...]:
    """`S` standard deviations."""
    return tuple(np.sqrt(np.divide(self.squares, self.rows)).tolist())


def empty_like(log: SessionLog, rows: int) -> SessionLog:
  """A log of so many rows, all 0, of the types and sizes of another."""

  def empty(array: np.ndarray) -> np.ndarray:
    return np.zeros((rows, *array.shape[1:]), array.dtype)

  return jax.tree.map(empty, log)


def copy_rows(source: SessionLog, target: SessionLog, start: int) -> int:
  """Copies a log's rows into a larger one; returns the row after them."""
  stop = start + len(source.terminal)

  def copy(column: np.ndarray, room: np.ndarray) -> None:
    room[start:stop] = column

  jax.tree.map(copy, source, target)
  return stop
