"""Updates on the device: a scan of them is one dispatch.

Letters: `R` runs trained at once, `U` updates of a chunk.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mtf_jax.data.strata import Dataset, draw_batch, is_of_each_run
from mtf_jax.data.transitions import TransitionDataset
from mtf_jax.distributed import mesh as mesh_lib
from mtf_jax.io import InputError
from mtf_jax.learners.base import Learner


class TrainState(NamedTuple):
  """A training run; a pytree of arrays, with a leading axis `R` for many.

  learner: the learner's own state.
  rng_key: key from which the batches are drawn.
  step: int32 scalar, updates done.
  healthy: bool scalar; False freezes the run at its last good state.
  """

  learner: Any
  rng_key: chex.PRNGKey
  step: jax.Array
  healthy: jax.Array


def _where(condition: jax.Array, one: Any, other: Any) -> Any:
  """A pytree of either, chosen by a scalar."""
  return jax.tree.map(functools.partial(jnp.where, condition), one, other)


def start(rng_key: chex.PRNGKey, learner_state: Any) -> TrainState:
  """A training state at step 0; vmap it for many runs."""
  return TrainState(
    learner=learner_state,
    rng_key=rng_key,
    step=jnp.zeros((), jnp.int32),
    healthy=jnp.ones((), jnp.bool_),
  )


def _chunk(
  learner: Learner,
  state: TrainState,
  dataset: Dataset,
  batch_size: int,
  num_updates: int,
  mesh: Mesh | None,
  freeze: bool,
) -> tuple[TrainState, Any]:
  def body(state, _):
    rng_key, batch_key = jax.random.split(state.rng_key)
    batch = draw_batch(batch_key, dataset, batch_size)
    if mesh is not None:
      batch = mesh_lib.constrain_batch(mesh, batch)
    learner_state, metrics = learner.update(state.learner, batch)
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(metrics)]
    healthy = state.healthy & jnp.all(jnp.stack(finite))
    updated = TrainState(learner_state, rng_key, state.step + 1, healthy)
    if freeze:
      # The run stops at the last good state although the scan goes on.
      updated = _where(healthy, updated, state)._replace(healthy=healthy)
    if mesh is not None:
      updated = mesh_lib.constrain_state(mesh, updated)
      metrics = mesh_lib.constrain_whole(mesh, metrics)
    return updated, metrics

  return jax.lax.scan(body, state, length=num_updates)


_STATIC = ("learner", "batch_size", "num_updates", "mesh", "freeze")


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnames="state")
def update_chunk(
  learner: Learner,
  state: TrainState,
  dataset: Dataset,
  *,
  batch_size: int,
  num_updates: int,
  mesh: Mesh | None = None,
  freeze: bool = True,
) -> tuple[TrainState, Any]:
  """One dispatch: `num_updates` updates of one run.

  Args:
    learner: the algorithm, static.
    state: the run; donated.
    dataset: rows on the device, an argument like any other.
    batch_size: transitions drawn for each update, static.
    num_updates: `U`, static.
    mesh: where state and rows live, static; one device if omitted.
    freeze: whether a run stops at its last good state, static. That takes full
      passes over the parameters; without it a state that comes back unhealthy
      is of no use, and the caller needs a copy from before, see `advance`.

  Returns:
    The state after the updates, and the metrics with a leading axis `U`.
  """
  return _chunk(learner, state, dataset, batch_size, num_updates, mesh, freeze)


@functools.partial(jax.jit, static_argnames=_STATIC, donate_argnames="state")
def update_chunk_many(
  learner: Learner,
  state: TrainState,
  dataset: Dataset,
  *,
  batch_size: int,
  num_updates: int,
  mesh: Mesh | None = None,
  freeze: bool = True,
) -> tuple[TrainState, Any]:
  """`update_chunk` of `R` runs; metrics are `[R, U, ...]`.

  The runs share one dataset, or the dataset has a leading axis `R` too.
  """
  axes = (0, 0 if is_of_each_run(dataset) else None)

  def one(state, dataset):
    return _chunk(
      learner, state, dataset, batch_size, num_updates, mesh, freeze
    )

  if state.step.shape[0] > 1:
    spmd_axis_name = None if mesh is None else "seed"
    return jax.vmap(one, in_axes=axes, spmd_axis_name=spmd_axis_name)(
      state, dataset
    )
  # A batch axis of one costs XLA's matrix products on CPU 40%.
  alone = [
    tree if axis is None else jax.tree.map(lambda leaf: leaf[0], tree)
    for tree, axis in zip((state, dataset), axes, strict=True)
  ]
  return jax.tree.map(lambda leaf: leaf[None], one(*alone))


@jax.jit
def _copy(state: TrainState) -> TrainState:
  return jax.tree.map(jnp.copy, state)


def advance(
  learner: Learner,
  state: TrainState,
  dataset: Dataset,
  *,
  batch_size: int,
  num_updates: int,
  mesh: Mesh | None,
  many: bool,
) -> tuple[TrainState, Any]:
  """A chunk of `update_chunk`, at the price of a chunk that cannot fail.

  It is run without the freeze, and where a run has failed once more from its
  start with it. The start is a copy on the device that lives as long as the
  chunk: one more state in memory, one pass over it in a chunk instead of some
  in every update.

  Args:
    learner: the algorithm.
    state: the run, donated; runs with a leading axis `R` if `many`.
    dataset: rows on the device.
    batch_size: transitions drawn for each update.
    num_updates: `U`.
    mesh: where state and rows live.
    many: whether these are many runs.

  Returns:
    The state after the updates, frozen at its last good one where it is not
    healthy, and the metrics as NumPy arrays, `[U, ...]` or `[R, U, ...]`.
  """
  chunk = functools.partial(
    update_chunk_many if many else update_chunk,
    learner,
    dataset=dataset,
    batch_size=batch_size,
    num_updates=num_updates,
    mesh=mesh,
  )
  # A run that stopped in an earlier chunk stays where it is.
  if np.asarray(state.healthy).all():
    begin = _copy(state)
    state, metrics = chunk(state=state, freeze=False)
    metrics = jax.device_get(metrics)
    if np.asarray(state.healthy).all():
      return state, metrics
    state = begin
  state, metrics = chunk(state=state, freeze=True)
  return state, jax.device_get(metrics)


@functools.partial(
  jax.jit, static_argnames=("learner", "many"), donate_argnames="state"
)
def _fit(
  learner: Learner, state: TrainState, dataset: Dataset, *, many: bool
) -> tuple[TrainState, Any]:
  """A round in closed form, counted as one update; metrics are `[1]`."""

  fit = learner.fit
  assert fit is not None  # Callers ask before.

  def one(state, dataset):
    learner_state, metrics = fit(state.learner, dataset)
    finite = [jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(metrics)]
    healthy = state.healthy & jnp.all(jnp.stack(finite))
    kept = _where(healthy, learner_state, state.learner)
    step = state.step + healthy.astype(jnp.int32)
    state = state._replace(learner=kept, step=step, healthy=healthy)
    return state, jax.tree.map(lambda leaf: leaf[None], metrics)

  if not many:
    return one(state, dataset)
  axes = (0, 0 if is_of_each_run(dataset) else None)
  return jax.vmap(one, in_axes=axes)(state, dataset)


def fit_once(
  learner: Learner,
  state: TrainState,
  dataset: Any,
  mesh: Mesh | None,
  *,
  many: bool,
) -> tuple[TrainState, Any]:
  """The round of a learner in closed form; arguments and result as `advance`.

  Raises:
    InputError: the rows are divided or streamed.
  """
  if mesh is not None or not isinstance(dataset, TransitionDataset):
    raise InputError(
      "learner: expected rows on one device for an algorithm in closed form,"
      " found them divided or streamed; leave out mesh and strata, or give a log"
      " that fits."
    )
  state, metrics = _fit(learner, state, dataset, many=many)
  return state, jax.device_get(metrics)
