"""Rows in strata: parts that live on devices of their own and are drawn alike.

Every batch has the same number of transitions from each stratum, so that a device
that holds some strata draws its share of a batch without a look at other rows,
and what is drawn does not depend on the number of devices.

Letters: `F` strata, `N` rows of a stratum, `B` transitions of a batch.
"""

import itertools
from typing import Any, NamedTuple

import chex
import jax
import numpy as np

from mtf_jax.data.transitions import (
  Transition,
  TransitionDataset,
  sample_transitions,
  take_transitions,
)
from mtf_jax.io import InputError


class Strata(NamedTuple):
  """Transitions in parts of equal size, in the order of the log.

  parts: a dataset with a leading axis `F` on every leaf. `next_row` and
    `start_row` count from the first row of the stratum; rows past the end of a
    shorter one are never drawn.
  """

  parts: TransitionDataset


# What batches are drawn from.
Dataset = TransitionDataset | Strata


def stratify(dataset: TransitionDataset, num_strata: int) -> Strata:
  """Cuts a dataset into strata, on the host.

  Strata differ by one transition at most. A row that two of them need, at a cut
  within a session, is in both.

  Args:
    dataset: of one log.
    num_strata: `F`.

  Returns:
    The strata, NumPy arrays: nothing is put on a device.

  Raises:
    InputError: there are fewer transitions than strata.
  """
  rows = jax.tree.map(np.asarray, dataset)
  cuts = cuts_of(int(rows.num_transitions), num_strata)
  spans = [span_of(rows, *both) for both in itertools.pairwise(cuts)]
  num_rows = max(high - low for low, high in spans)
  parts = [stratum(rows, *both, num_rows) for both in itertools.pairwise(cuts)]
  return Strata(jax.tree.map(lambda *leaves: np.stack(leaves), *parts))


def cuts_of(num_transitions: int, num_strata: int) -> np.ndarray:
  """Where strata begin and end, int64 `[F + 1]`, in transitions of the log.

  Args:
    num_transitions: of the log.
    num_strata: `F`.

  Raises:
    InputError: there are fewer transitions than strata.
  """
  if not 1 <= num_strata <= num_transitions:
    raise InputError(
      f"num_strata: expected 1 to {num_transitions}, the log's number of"
      f" transitions, found {num_strata}."
    )
  return (
    np.arange(num_strata + 1, dtype=np.int64) * num_transitions // num_strata
  )


def span_of(rows: Any, low: int, high: int) -> tuple[int, int]:
  """First row, and the row after the last, that transitions of a range need.

  Args:
    rows: a dataset, NumPy arrays.
    low, high: the first transition, and the one after the last.
  """
  start = rows.start_row[low:high]
  return int(start[0]), int(max(start[-1], rows.next_row[start].max())) + 1


def stratum(rows: Any, low: int, high: int, num_rows: int) -> Any:
  """One stratum of a dataset, padded.

  Args:
    rows: a dataset, NumPy arrays.
    low, high: as in `span_of`.
    num_rows: `N`, at least as many as the transitions' span.

  Returns:
    The dataset of these transitions, NumPy arrays, as a part of `Strata` has it.
  """
  first, after = span_of(rows, low, high)
  start = rows.start_row[low:high]

  def padded(array: np.ndarray) -> np.ndarray:
    room = [(0, num_rows - array.shape[0])] + [(0, 0)] * (array.ndim - 1)
    return np.pad(array, room)

  fields = rows._replace(num_transitions=rows.discount)
  cut = jax.tree.map(lambda leaf: padded(leaf[first:after]), fields)
  return cut._replace(
    # Of rows that no transition starts from it may lie outside.
    next_row=np.clip(cut.next_row - np.int32(first), 0, num_rows - 1),
    start_row=padded(start - np.int32(first)),
    num_transitions=np.int32(start.shape[0]),
  )


def is_of_each_run(dataset: Dataset) -> bool:
  """Whether a dataset has a leading axis `R`, one for each run."""
  if isinstance(dataset, Strata):
    return dataset.parts.num_transitions.ndim == 2
  return dataset.num_transitions.ndim == 1


def draw_batch(
  rng_key: chex.PRNGKey, dataset: Dataset, batch_size: int
) -> Transition:
  """Draws transitions with replacement, uniformly in each stratum.

  Args:
    rng_key: random number generator key, consumed.
    dataset: rows on the device, or strata on one device or more.
    batch_size: `B`, static, a multiple of `F`.

  Returns:
    A `Transition` with a leading axis `B`, stratum after stratum; see
    `sample_transitions`, which draws from rows that are not in strata.

  Raises:
    InputError: `F` does not divide `batch_size`.
  """
  if not isinstance(dataset, Strata):
    return sample_transitions(rng_key, dataset, batch_size)
  size = dataset.parts.num_transitions
  if batch_size % size.shape[0]:
    raise InputError(
      f"batch_size: expected a multiple of the {size.shape[0]} strata, found"
      f" {batch_size}."
    )
  shape = (size.shape[0], batch_size // size.shape[0])
  draw = jax.random.randint(rng_key, shape, 0, size[:, None])
  # A gather with a batch axis: XLA leaves it on the device that has the stratum.
  batch = jax.vmap(take_transitions)(dataset.parts, draw)
  return jax.tree.map(
    lambda leaf: leaf.reshape(batch_size, *leaf.shape[2:]), batch
  )
