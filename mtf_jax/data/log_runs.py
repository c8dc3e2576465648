"""Records sorted on disk: runs that fit into memory, read back by range of key.

A run is a file of records sorted by `key`. Every range of keys is then a slice
of every run, so that a part of the sessions can be read whole, wherever its
rows stood. Keys are scattered evenly, so equal ranges hold about as many rows.
"""

import json
import pathlib
from typing import NamedTuple

import numpy as np

from mtf_jax.io import InputError, replacing, write_json

# Of so many records the key of the first is in memory.
_BLOCK = 128


class RunState(NamedTuple):
  """What was read up to the end of a run.

  file, row: the input file and the rows of it that are in runs.
  rows: records of this run.
  latest: the largest `order` so far.
  counts: what was changed so far.
  """

  file: int
  row: int
  rows: int
  latest: int
  counts: dict[str, int]


def _path(folder: pathlib.Path, number: int, kind: str) -> pathlib.Path:
  return folder / f"run-{number:05d}.{kind}"


def write_run(
  folder: pathlib.Path, number: int, records: np.ndarray, state: RunState
) -> None:
  """Sorts records by key and writes them; the run is there whole or not at all.

  Args:
    folder: exists.
    number: of the run, from 0.
    records: in the order of the files; rows of one key stay in it.
    state: of the reading after them.

  Raises:
    OSError: it could not be written.
  """
  whole = records[np.argsort(records["key"], kind="stable")]
  with replacing(_path(folder, number, "records")) as file:
    file.write(whole.view(np.uint8).data)
  with replacing(_path(folder, number, "keys")) as file:
    file.write(np.ascontiguousarray(whole["key"][::_BLOCK]).data)
  # The run counts from here on.
  write_json(_path(folder, number, "json"), state._asdict())


class Runs:
  """The runs of a folder."""

  def __init__(self, folder: pathlib.Path, dtype: np.dtype):
    """Finds the runs that are whole.

    Args:
      folder: of `write_run`.
      dtype: of the records.

    Raises:
      InputError: a run is missing or of another size.
    """
    self._dtype = dtype
    self.states: list[RunState] = []
    self._paths: list[pathlib.Path] = []
    self._keys: list[np.ndarray] = []
    while True:
      number = len(self.states)
      state_path = _path(folder, number, "json")
      if not state_path.exists():
        break
      state = RunState(**json.loads(state_path.read_bytes()))
      path = _path(folder, number, "records")
      keys = _path(folder, number, "keys")
      for part, size in (
        (path, state.rows * dtype.itemsize),
        (keys, -(-state.rows // _BLOCK) * 8),
      ):
        if not part.exists() or part.stat().st_size != size:
          raise InputError(
            f"{part}: expected the {size} bytes of {state.rows} sorted rows,"
            " found a file that is missing or cut; delete the folder to import"
            " anew."
          )
      self.states.append(state)
      self._paths.append(path)
      self._keys.append(np.fromfile(keys, np.uint64))

  @property
  def rows(self) -> int:
    """Records of all runs."""
    return sum(state.rows for state in self.states)

  def read(self, part: int, num_parts: int) -> np.ndarray:
    """The records of one of `num_parts` equal ranges of keys, sorted whole.

    Args:
      part: which range, from 0.
      num_parts: how many there are.

    Returns:
      Records sorted by key, check, order, file and row.
    """
    low, high = (n * 2**64 // num_parts for n in (part, part + 1))
    slices = []
    # Read, not mapped: pages of a mapping count as this process's memory.
    for path, keys in zip(self._paths, self._keys, strict=True):
      # Blocks that may hold such keys, whole; then the records that do.
      start = max(0, int(np.searchsorted(keys, np.uint64(low))) - 1)
      stop = int(np.searchsorted(keys, np.uint64(high - 1), side="right"))
      records = np.fromfile(
        path,
        self._dtype,
        count=(stop - start) * _BLOCK,
        offset=start * _BLOCK * self._dtype.itemsize,
      )
      key = records["key"]
      inside = (key >= np.uint64(low)) & (key <= np.uint64(high - 1))
      slices.append(records[inside])
    found = np.concatenate(slices)
    names = ("row", "file", "order", "check", "key")
    return found[np.lexsort([found[name] for name in names])]
