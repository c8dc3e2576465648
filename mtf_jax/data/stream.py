"""Training rows of a log that does not fit: a pool of shards that moves on.

`K` shards of the log are on the device at a time. A batch is drawn from all
their transitions alike, inside jit, as from a log that fits; between chunks of
updates the oldest shards make room for the next ones, which threads have read
and handed over while the device trained.

What is promised of the mixing: every pass takes all shards, in a new random
order. A shard stays for as many draws as the pool has transitions, so that each
of its transitions is drawn once a pass in the mean, with replacement, as many
times as in a log that fits; shards of unequal sizes shift that by a fraction of
their difference. Two rows of a batch are of the same shard with
probability `1 / K`. Shards of an import hold sessions by a hash of their ids,
so that each is itself a random part of the log.

Letters: `K` shards of the pool, `N` rows of a shard.
"""

import functools
import importlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.sharded import ShardedLog
from mtf_jax.data.transitions import (
  Rows,
  TransitionDataset,
  dataset_from,
)
from mtf_jax.io import InputError

# Shards that are read, or handed over, beside those of the pool.
_AHEAD = 2


def bytes_per_row(log: ShardedLog) -> int:
  """What a row of a `TransitionDataset` takes on the device."""
  manifest = log.manifest
  features, components, groups = (
    len(manifest.observation_names),
    len(manifest.action_names),
    len(manifest.group_names),
  )
  # Observation, action, box, reward twice and log_prob, discount, step,
  # next_row, start_row of four bytes; five flags.
  return 4 * (features + 3 * components + 2 * groups + 5) + 5


def max_rows(log: ShardedLog) -> int:
  """Rows of the largest shard, which every place of a pool has room for."""
  return max(shard.rows for shard in log.manifest.shards)


def pool_shards(log: ShardedLog, device_bytes: float) -> int | None:
  """How many shards a pool of so much memory has; None if the log fits.

  Args:
    log: opened.
    device_bytes: memory for the rows on the device.

  Raises:
    InputError: not even two shards fit, besides those read ahead.
  """
  row = bytes_per_row(log)
  if row * log.manifest.rows <= device_bytes:
    return None
  shard = row * max_rows(log)
  count = int(device_bytes // shard) - _AHEAD
  if count < 2:
    raise InputError(
      f"{log.folder}: expected memory on the device for {2 + _AHEAD} shards of"
      f" {shard / 2**30:.3g} GiB, found {device_bytes / 2**30:.3g} GiB; import"
      " the log with fewer rows a shard, or give it more memory."
    )
  return min(count, len(log.manifest.shards))


class PoolConfig(NamedTuple):
  """What decides which shards are in the pool when.

  shards: `K`.
  batch_size, chunk_size: of the training.
  seed: of the order of the shards.
  """

  shards: int
  batch_size: int
  chunk_size: int
  seed: int


class _Source:
  """Shards as Grain reads them: whole, padded to one size, on the device."""

  def __init__(self, log: ShardedLog):
    self._log = log
    self._rows = max_rows(log)

  def __len__(self) -> int:
    return len(self._log.manifest.shards)

  def __getitem__(self, number: int) -> Rows:
    log = self._log.load(int(number))
    there = len(log.terminal)

    def padded(array: chex.Array) -> np.ndarray:
      room = np.zeros((self._rows, *array.shape[1:]), array.dtype)
      room[:there] = array
      return room

    fields: dict[str, Any] = {
      name: jax.tree.map(padded, getattr(log, name))
      for name in Rows._fields
      if name != "valid"
    }
    # In the thread that read it: the device trains meanwhile.
    fields["valid"] = np.arange(self._rows) < there
    return jax.device_put(Rows(**fields))


def _grain() -> Any:
  try:
    return importlib.import_module("grain")
  except ImportError as error:
    raise InputError(
      "grain: expected an installed package to read a log that does not fit,"
      " found none; the extra `stream` brings it (pip install"
      " 'mtf-jax[stream]')."
    ) from error


@functools.partial(jax.jit, donate_argnames="pool")
def _put(pool: Rows, shard: Rows, start: chex.Numeric) -> Rows:
  """Overwrites a place of the pool."""

  def write(array: jax.Array, part: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(array, part, start, axis=0)

  return jax.tree.map(write, pool, shard)


class ShardPool:
  """The rows that training draws from after so many updates.

  Which they are hangs on the log, the configuration and the number of updates
  alone: a run that goes on has the pool that it would have had.
  """

  def __init__(
    self,
    log: ShardedLog,
    config: PoolConfig,
    *,
    num_steps: int = 1,
    discount: float = 1.0,
  ):
    """Reads nothing yet.

    Args:
      log: opened.
      config: which shards, when.
      num_steps, discount: of the transitions, see `dataset_from`; they are made
        on the device whenever a shard comes in.

    Raises:
      InputError: Grain is not installed, or the log has no transition.
    """
    transitions = log.manifest.transitions
    if not transitions:
      raise InputError(
        f"{log.folder}: expected at least one transition, found none in"
        f" {log.manifest.rows} rows."
      )
    self._config = config
    self._num_steps, self._discount = num_steps, discount
    self._rows_of_place = max_rows(log)
    # Transitions of a shard, times the number of shards: kept whole, so that
    # positions are exact.
    self._num_shards, self._num_transitions = (
      len(log.manifest.shards),
      transitions,
    )
    self._grain = _grain()
    self._order = (
      self._grain.MapDataset.source(_Source(log))
      .seed(config.seed)
      .shuffle()
      .repeat()
    )
    self._rows: Rows | None = None
    self._reader: Iterator[Rows] = iter(())
    self._taken = 0  # Shards that were ever put in, those of all passes.
    self._dataset: TransitionDataset | None = None

  def position(self, step: int) -> int:
    """The iterator's state: shards that have left the pool by then.

    Args:
      step: updates done. The pool moves between chunks, so that all steps of a
        chunk have one position.
    """
    config = self._config
    chunk = step // config.chunk_size
    draws = chunk * config.chunk_size * config.batch_size
    # No shard may be left out where a chunk draws more than the pool has.
    return min(
      draws * self._num_shards // self._num_transitions, chunk * config.shards
    )

  def __call__(self, step: int) -> TransitionDataset:
    """The transitions to draw from.

    Args:
      step: updates done.

    Returns:
      The dataset of the pool. The one before must not be used any more: its
      memory may have been written over.

    Raises:
      InputError: a shard is missing or damaged.
    """
    first = self.position(step)
    last = first + self._config.shards
    if self._rows is None or not first <= self._taken <= last:
      self._start(first)
    for _ in range(self._taken, last):
      self._take()
    if self._dataset is None:
      assert self._rows is not None
      self._dataset = dataset_from(
        self._rows, num_steps=self._num_steps, discount=self._discount
      )
    return self._dataset

  def _start(self, first: int) -> None:
    """Goes to a position: the shards of its pool are read one by one."""
    self._taken = first
    options = self._grain.ReadOptions(
      num_threads=_AHEAD, prefetch_buffer_size=_AHEAD
    )
    self._reader = iter(self._order[first:].to_iter_dataset(options))

  def _take(self) -> None:
    """The next shard takes the place of the oldest."""
    shard = next(self._reader)
    if self._rows is None:

      def room(array: jax.Array) -> jax.Array:
        size = self._config.shards * self._rows_of_place
        return jnp.zeros((size, *array.shape[1:]), array.dtype)

      self._rows = jax.tree.map(room, shard)
    place = self._taken % self._config.shards
    # Donated: whoever holds the dataset of before must not use it any more.
    self._dataset = None
    self._rows = _put(self._rows, shard, place * self._rows_of_place)
    self._taken += 1
