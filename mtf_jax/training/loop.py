"""The training loop: scans of updates on the device, the host between them.

What a chunk is: `chunks`, whose state and programs are named here too.

Letters: `R` runs trained at once, `U` updates of a chunk.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from mtf_jax.data.strata import Dataset
from mtf_jax.io import InputError
from mtf_jax.learners.base import Learner
from mtf_jax.training import chunks, state_leaves
from mtf_jax.training.chunks import TrainState as TrainState
from mtf_jax.training.chunks import start as start
from mtf_jax.training.chunks import update_chunk as update_chunk
from mtf_jax.training.chunks import update_chunk_many as update_chunk_many


class NonFiniteError(InputError, FloatingPointError):
  """Training met a loss or a gradient that is not finite.

  state: the training state before the update that failed, marked healthy.
  step: number of updates done before it.
  metric: name of the first metric that is not finite.
  """

  def __init__(self, state: TrainState, step: int, metric: str):
    """Keeps the last good state for the caller to save."""
    super().__init__(
      f"{metric}: expected a finite value, found one that is not in the update"
      f" after step {step}."
    )
    self.state = state
    self.step = step
    self.metric = metric


class NonFiniteStateError(InputError, FloatingPointError):
  """Training met a state that is not finite though the metrics were.

  The message names the first leaf. There is no good state to keep: the last one
  is that of the checkpoint before.
  """


@functools.partial(jax.jit, static_argnames="many")
def _finite(leaves: list[jax.Array], *, many: bool) -> list[jax.Array]:
  """Whether each leaf is finite: scalars, or `[R]` for many runs."""
  return [
    jnp.all(jnp.isfinite(leaf), axis=tuple(range(int(many), leaf.ndim)))
    for leaf in leaves
  ]


def _non_finite_leaves(
  learner_state: Any, many: bool
) -> list[tuple[str, np.ndarray]]:
  """Name and, for each run, fault of the leaves that are not finite somewhere.

  Hyperparameters are apart: a bound that never binds is `inf`.
  """
  leaves = {
    state_leaves.name_of(path): leaf
    for path, leaf in jax.tree_util.tree_leaves_with_path(learner_state)
    if jnp.issubdtype(leaf.dtype, jnp.inexact)
    and not state_leaves.is_hyperparam(path)
  }
  finite = jax.device_get(_finite(list(leaves.values()), many=many))
  faults = zip(leaves, (~np.asarray(each) for each in finite), strict=True)
  return [(name, fault) for name, fault in faults if fault.any()]


def check_finite(state: TrainState) -> None:
  """Refuses a state of one run that is not finite.

  A loss that does not see a value, or clips it, is finite all the same.

  Args:
    state: the run; the learner's hyperparameters may be infinite.

  Raises:
    NonFiniteStateError: a leaf has a value that is not finite.
  """
  faults = _non_finite_leaves(state.learner, many=False)
  if faults:
    raise NonFiniteStateError(
      f"learner.{faults[0][0]}: expected finite values, found some that are not"
      f" in the state at step {int(state.step)}, and in {len(faults)} arrays in"
      " all; are the log's observations and rewards of a moderate size?"
    )


def first_non_finite(metrics: Any) -> str:
  """Name of the metric that stopped being finite first, from `[U, ...]`."""
  rows = {
    name: ~np.isfinite(value).reshape(value.shape[0], -1).all(axis=1)
    for name, value in metrics._asdict().items()
  }
  return min(
    (name for name, row in rows.items() if row.any()),
    key=lambda name: int(np.argmax(rows[name])),
  )


def _chunks(done: int, num_updates: int, chunk_size: int) -> Iterator[int]:
  """Sizes of the chunks left; they end at multiples of `chunk_size`.

  So a run that goes on from the middle of a chunk falls back into step.
  """
  if done > num_updates:
    raise ValueError(
      f"num_updates: expected at least the {done} updates already done, found"
      f" {num_updates}."
    )
  while done < num_updates:
    size = min(chunk_size - done % chunk_size, num_updates - done)
    yield size
    done += size


def train(
  learner: Learner,
  state: TrainState,
  dataset: Dataset | Callable[[int], Dataset],
  num_updates: int,
  *,
  batch_size: int,
  chunk_size: int = 100,
  mesh: Mesh | None = None,
  on_chunk: Callable[[TrainState, Any], None] | None = None,
) -> TrainState:
  """Trains one run until it has done `num_updates` updates in all.

  A state restored from a checkpoint goes on where it was: in chunks of the same
  size it ends, on a CPU, in the same bits as a run without the interruption.

  Args:
    learner: the algorithm.
    state: the run, new or restored; donated.
    dataset: rows on the device; or what gives those of the chunk that begins
      after so many updates, such as `data.stream.ShardPool`.
    num_updates: total number of updates, those already done included. An
      algorithm in closed form has done all after one.
    batch_size: transitions drawn for each update.
    chunk_size: updates between two looks of the host.
    mesh: where `distributed.mesh` put state and rows; one device if omitted.
    on_chunk: called with the state and the chunk's metrics, NumPy arrays with a
      leading axis; the state is donated when it returns, so it must save what
      it wants to keep.

  Returns:
    The trained state.

  Raises:
    NonFiniteError: a loss or a gradient is not finite; it carries the last good
      state.
    NonFiniteStateError: the state after a chunk is not finite.
    ValueError: the state has done more than `num_updates` updates.
  """
  if learner.fit is not None:
    # A round is one update, however many are asked for.
    num_updates = min(num_updates, 1)
  for size in _chunks(int(state.step), num_updates, chunk_size):
    if learner.fit is not None:
      state, metrics = chunks.fit_once(
        learner, state, dataset, mesh, many=False
      )
    else:
      rows = dataset(int(state.step)) if callable(dataset) else dataset
      state, metrics = chunks.advance(
        learner,
        state,
        rows,
        batch_size=batch_size,
        num_updates=size,
        mesh=mesh,
        many=False,
      )
    if not state.healthy:
      good = state._replace(healthy=jnp.ones((), jnp.bool_))
      check_finite(good)
      raise NonFiniteError(good, int(state.step), first_non_finite(metrics))
    check_finite(state)
    if on_chunk is not None:
      on_chunk(state, metrics)
  return state


def train_many(
  learner: Learner,
  state: TrainState,
  dataset: Dataset,
  num_updates: int,
  *,
  batch_size: int,
  chunk_size: int = 100,
  mesh: Mesh | None = None,
  on_chunk: Callable[[TrainState, Any], None] | None = None,
) -> TrainState:
  """Trains `R` runs at once: seeds, hyperparameters, or both.

  `state` has a leading axis `R` on every leaf, hyperparameters and keys among
  them. `dataset` is one for all runs, or has the axis as well: one for each. A
  run that meets a metric that is not finite stays at its last good state, one
  whose state is not finite after a chunk stays at that; each is named in the
  log and has `healthy` False in the result; the others go on.
  Arguments are otherwise those of `train`; the runs are divided over the mesh's
  axis `seed`.

  Returns:
    The trained states, leading axis `R`.

  Raises:
    FloatingPointError: no run is left.
    ValueError: the states have done more than `num_updates` updates.
  """
  failed = ~np.asarray(state.healthy)
  # A run that stopped early is behind the others and stays there.
  done = int(np.max(state.step))
  if learner.fit is not None:
    num_updates = min(num_updates, 1)
  for size in _chunks(done, num_updates, chunk_size):
    if learner.fit is not None:
      state, metrics = chunks.fit_once(learner, state, dataset, mesh, many=True)
    else:
      state, metrics = chunks.advance(
        learner,
        state,
        dataset,
        batch_size=batch_size,
        num_updates=size,
        mesh=mesh,
        many=True,
      )
    now_failed = ~np.asarray(state.healthy)
    for run in np.flatnonzero(now_failed & ~failed):
      name = first_non_finite(type(metrics)(*(leaf[run] for leaf in metrics)))
      logging.warning(
        "run %d: %s is not finite in the update after step %d; it stops there.",
        run,
        name,
        state.step[run],
      )
    failed = now_failed
    for name, fault in _non_finite_leaves(state.learner, many=True):
      for run in np.flatnonzero(fault & ~failed):
        logging.warning(
          "run %d: learner.%s is not finite at step %d; it stops there.",
          run,
          name,
          state.step[run],
        )
      failed = failed | fault
    if (failed & ~now_failed).any():
      state = state._replace(healthy=jnp.asarray(~failed))
    if failed.all():
      raise FloatingPointError(
        f"state: expected a finite run, found none left of {failed.size}."
      )
    if on_chunk is not None:
      on_chunk(state, metrics)
  return state
