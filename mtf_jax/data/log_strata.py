"""Strata of a folder of session files, each read by itself.

A stratum is a range of the log's transitions, and the manifest says how many
each file has: whoever needs some strata opens the files that hold them and no
others. The strata are those of `strata.stratify`, but for padding, which nothing
draws.

Letters: `F` strata, `N` rows of a stratum.
"""

from typing import Any

import chex
import jax
import numpy as np

from mtf_jax.data import sharded, strata
from mtf_jax.data.session_log import SessionLog
from mtf_jax.data.sharded import ShardedLog
from mtf_jax.data.transitions import (
  TransitionDataset,
  dataset_from,
  rows_from,
)
from mtf_jax.io import InputError


class LogStrata:
  """The strata of a log; of them the file read last is in memory."""

  def __init__(
    self,
    log: ShardedLog,
    num_strata: int,
    *,
    num_steps: int = 1,
    discount: chex.Numeric = 1.0,
  ):
    """Looks at the manifest alone.

    Args:
      log: opened.
      num_strata: `F`.
      num_steps, discount: as in `transitions.dataset_from`; the end of a session
        that the log cut is bootstrapped from.

    Raises:
      InputError: there are fewer transitions than strata.
    """
    self.num_strata = num_strata
    self._log = log
    self._steps: dict[str, Any] = {"num_steps": num_steps, "discount": discount}
    shards = log.manifest.shards
    # Transitions before each file, and of all.
    self._newest: tuple[int, SessionLog] | None = None
    self._before = np.cumsum([0, *(shard.transitions for shard in shards)])
    self._cuts = strata.cuts_of(int(self._before[-1]), num_strata)
    files = [self.files_of(number) for number in range(num_strata)]
    self._num_rows_read = max(
      sum(shards[file].rows for file in of_one) for of_one in files
    )
    # A bound that all processes know: the rows that transitions start from, the
    # others of the files, and those that the last transition looks ahead.
    others = [
      sum(shards[file].rows - shards[file].transitions for file in of_one)
      for of_one in files
    ]
    sizes = np.diff(self._cuts) + others + num_steps
    self.num_rows = min(int(max(sizes)), self._num_rows_read)

  def files_of(self, number: int) -> range:
    """Numbers of the files that hold transitions of a stratum.

    Args:
      number: of the stratum, from 0.
    """
    low, high = self._cuts[number], self._cuts[number + 1]
    # Files without a transition share their place with the next one.
    first = int(np.searchsorted(self._before, low, side="right")) - 1
    after = int(np.searchsorted(self._before, high, side="left"))
    return range(first, after)

  def load(self, number: int) -> TransitionDataset:
    """Reads one stratum.

    Args:
      number: of the stratum, from 0.

    Returns:
      Its rows, NumPy arrays, `N` of them in every stratum of the log.

    Raises:
      InputError: as `ShardedLog.load`, or the files have other transitions than
        the manifest says.
    """
    files = self.files_of(number)
    # One size for all strata: one program.
    room = sharded.empty_like(self._file(files.start), self._num_rows_read)
    start = 0
    for file in files:
      start = sharded.copy_rows(self._file(file), room, start)
    valid = np.arange(self._num_rows_read) < start
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
      dataset = dataset_from(rows_from(room, valid), **self._steps)
    rows = jax.tree.map(np.asarray, dataset)
    # After the last row the room is empty, as is a box there.
    rows = rows._replace(
      next_row=np.minimum(rows.next_row, np.int32(start - 1))
    )
    before, after = self._before[files.start], self._before[files.stop]
    if int(rows.num_transitions) != after - before:
      raise InputError(
        f"{self._log.folder}: expected {after - before} transitions in"
        f" {', '.join(self._log.manifest.shards[file].file for file in files)} as"
        f" in the manifest, found {int(rows.num_transitions)}."
      )
    low, high = self._cuts[number] - before, self._cuts[number + 1] - before
    return strata.stratum(rows, int(low), int(high), self.num_rows)

  def _file(self, number: int) -> SessionLog:
    """A file; the newest stays, for strata in order begin where one ended."""
    if self._newest is None or self._newest[0] != number:
      self._newest = None  # One is in memory.
      self._newest = (number, self._log.load(number))
    return self._newest[1]
