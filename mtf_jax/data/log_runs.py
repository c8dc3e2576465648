"""Records sorted on disk: runs that fit into memory, read back by range of key.

A run is a file of records sorted by `key`. Every range of keys is then a slice
of every run, so that a part of the sessions can be read whole, wherever its
rows stood. Keys are scattered evenly, so equal ranges hold about as many rows.
"""

import bisect
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from mtf_jax.io import InputError, replacing, write_json


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


def _paths(
  folder: pathlib.Path, number: int
) -> tuple[pathlib.Path, pathlib.Path]:
  name = f"run-{number:05d}"
  return folder / f"{name}.records", folder / f"{name}.json"


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
  path, state_path = _paths(folder, number)
  with replacing(path) as file:
    order = np.argsort(records["key"], kind="stable")
    file.write(records[order].view(np.uint8).data)
  # The run counts from here on.
  write_json(state_path, state._asdict())


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
    self._records: list[np.memmap[Any, Any]] = []
    while True:
      path, state_path = _paths(folder, len(self.states))
      if not state_path.exists():
        break
      state = RunState(**json.loads(state_path.read_bytes()))
      if (
        not path.exists() or path.stat().st_size != state.rows * dtype.itemsize
      ):
        raise InputError(
          f"{path}: expected {state.rows} sorted rows, found a file that is"
          " missing or cut; delete the folder to import anew."
        )
      self.states.append(state)
      self._records.append(np.memmap(path, dtype, "r"))

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
    for records in self._records:

      def key(place: int, records: np.ndarray = records) -> int:
        return int(records["key"][place])

      places = range(len(records))
      start = bisect.bisect_left(places, low, key=key)
      stop = bisect.bisect_left(places, high, key=key)
      # Read, not mapped: pages of a mapping count as this process's memory.
      slices.append(
        np.fromfile(
          str(records.filename),
          self._dtype,
          count=stop - start,
          offset=start * self._dtype.itemsize,
        )
      )
    found = np.concatenate(slices)
    names = ("row", "file", "order", "check", "key")
    return found[np.lexsort([found[name] for name in names])]
