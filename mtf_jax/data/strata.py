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
  # Any: its arrays are NumPy's from here on.
  rows: Any = jax.tree.map(np.asarray, dataset)
  total = int(rows.num_transitions)
  if not 1 <= num_strata <= total:
    raise InputError(
      f"num_strata: expected 1 to {total}, the log's number of transitions,"
      f" found {num_strata}."
    )
  cuts = np.arange(num_strata + 1, dtype=np.int64) * total // num_strata
  starts = [rows.start_row[low:high] for low, high in itertools.pairwise(cuts)]
  spans = [
    (int(start[0]), int(max(start[-1], rows.next_row[start].max())) + 1)
    for start in starts
  ]
  num_rows = max(high - low for low, high in spans)

  def padded(array: np.ndarray) -> np.ndarray:
    after = [(0, num_rows - array.shape[0])] + [(0, 0)] * (array.ndim - 1)
    return np.pad(array, after)

  def part(start: np.ndarray, span: tuple[int, int]) -> TransitionDataset:
    low, high = span
    fields = rows._replace(num_transitions=rows.discount)
    cut = jax.tree.map(lambda leaf: padded(leaf[low:high]), fields)
    return cut._replace(
      # Of rows that no transition starts from it may lie outside.
      next_row=np.clip(cut.next_row - np.int32(low), 0, num_rows - 1),
      start_row=padded(start - np.int32(low)),
      num_transitions=np.int32(start.shape[0]),
    )

  parts = [part(*both) for both in zip(starts, spans, strict=True)]
  return Strata(jax.tree.map(lambda *leaves: np.stack(leaves), *parts))


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
