"""One training run in a folder: begins there, or goes on where it was left."""

import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging
from jax.sharding import Mesh

from mtf_jax import folder_lock
from mtf_jax.data.log_strata import LogStrata
from mtf_jax.data.strata import Dataset, stratify
from mtf_jax.data.stream import ShardPool
from mtf_jax.data.transitions import TransitionDataset, sample_transitions
from mtf_jax.distributed import mesh as mesh_lib
from mtf_jax.distributed import processes
from mtf_jax.io import InputError, require_file
from mtf_jax.learners.base import Learner, Normalization, normalization_from
from mtf_jax.training import loop, machine
from mtf_jax.training import tensorboard as tensorboard_lib
from mtf_jax.training.checkpoints import (
  OWN_KEYS,
  CheckpointError,
  Checkpoints,
  check_keep,
)
from mtf_jax.training.config import TrainConfig, hyperparams_of, make_learner
from mtf_jax.training.metrics import (
  MetricsWriter,
  MultiplierAtCapWarning,
  NegativeTargetWarning,
  Progress,
  read_rows,
  summarize,
)

# Shards that have left the pool of a streamed log.
_POSITION = "stream_position"


def initial_state(
  config: TrainConfig,
  learner: Learner,
  dataset: TransitionDataset,
  normalization: Normalization | None = None,
) -> loop.TrainState:
  """The run that a configuration describes, before its first update.

  Args:
    config: its `seed` and `hyperparams` count here.
    learner: of `make_learner(config, dataset)`.
    dataset: rows on the device. One of them is the example of shapes that the
      learner is set up with.
    normalization: of the observations; that of the dataset if omitted.

  Returns:
    The state at step 0.

  Raises:
    ValueError: a hyperparameter is outside its range.
  """
  network_key, batch_key, example_key = jax.random.split(
    jax.random.key(config.seed), 3
  )
  hyperparams = {
    name: jnp.asarray(value) for name, value in config.hyperparams.items()
  }

  def init(rng_key, example_key, dataset, normalization):
    example = sample_transitions(example_key, dataset, 1)
    # The numbers are no arguments: `init` checks those that it knows.
    return learner.init(
      rng_key,
      jax.tree.map(lambda leaf: leaf[0], example),
      hyperparams_of(config.learner)(**hyperparams),
      normalization,
    )

  learner_state = jax.jit(init, compiler_options=machine.runs_once())(
    network_key,
    example_key,
    dataset,
    normalization_from(dataset) if normalization is None else normalization,
  )
  return loop.start(batch_key, learner_state)


def _check_same_run(
  found: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
  """Refuses to go on from the checkpoint of another run."""
  config = found["config"]
  if not isinstance(config, dict):
    raise CheckpointError(
      f"config: expected fields in the record of the checkpoint of the folder,"
      f" found {config!r}."
    )
  # A field that an earlier version did not have was as its default says.
  before = {**TrainConfig().to_json(), **config, **found}
  now = {**expected["config"], **expected}
  # A run may be made longer, and go on elsewhere.
  apart = {"config", "num_updates", "machines", _POSITION, *OWN_KEYS}
  for name in {**now, **before}:
    if name not in apart and before.get(name) != now.get(name):
      raise CheckpointError(
        f"{name}: expected {before.get(name)!r} as in the checkpoint of the"
        f" folder, found {now.get(name)!r}; use another folder for another run."
      )


def train_in_folder(
  config: TrainConfig,
  dataset: TransitionDataset,
  out_dir: str | os.PathLike[str],
  data_record: Mapping[str, Any],
  *,
  keep: int = 3,
  mesh: Mesh | None = None,
  normalization: Normalization | None = None,
  stream: ShardPool | None = None,
  log_strata: LogStrata | None = None,
  tensorboard: bool = False,
) -> loop.TrainState:
  """Trains until `config.num_updates` updates are done in all.

  `checkpoints/` and `metrics.jsonl` are written into the folder. A run that was
  interrupted ends, on a CPU, in the same bits as one that was not, if versions,
  kind of device and number of threads are the same (`training.machine`); going
  on elsewhere is recorded in the checkpoints and warned of.

  Args:
    config: what to train.
    dataset: rows on the device, made with the configuration's `num_steps` and
      `discount`.
    out_dir: created if missing; the newest whole checkpoint there is gone on
      from.
    data_record: what the rows are, by name, JSON-serialisable; a checkpoint of
      other rows is refused.
    keep: checkpoints to keep.
    mesh: devices to train on, of all processes; one device if omitted. It may be
      another one when the run goes on. The first process alone reads and writes
      the folder.
    normalization: of the observations; that of the dataset if omitted.
    stream: gives the rows to train on where they do not all fit, `dataset`
      then being an example of them. Its position is in every checkpoint.
    log_strata: gives the rows to train on where a mesh divides them, of as many
      strata as the configuration has, `dataset` then being an example of them.
      Each process reads those of its own devices.
    tensorboard: whether the folder `tensorboard` gets the metrics, too, and at
      the end the configuration and the last row. Needs the extra of that name.

  Returns:
    The trained state.

  Raises:
    NonFiniteError: a loss or a gradient is not finite; the state before it is
      saved.
    NonFiniteStateError: the state is not finite, at the start or later; it is
      not saved.
    CheckpointError: no checkpoint could be read, or one not be written.
    InputError: another process trains in the folder, or it cannot be written
      to.
    ValueError: the folder holds another run, a hyperparameter is outside its
      range, or the mesh cannot be divided among.
  """
  # First what may be refused: a bad configuration leaves no folder.
  check_keep(keep)
  if tensorboard:
    tensorboard_lib.require()
  learner = make_learner(config, dataset)
  if learner.fit is not None:
    config = dataclasses.replace(
      config, num_updates=1, chunk_size=1, checkpoint_every=1
    )
  state = initial_state(config, learner, dataset, normalization)
  rows = _rows(config, dataset, stream, log_strata, mesh, state)
  loop.check_finite(state)
  record = {"config": config.to_json(), **data_record}
  record = json.loads(json.dumps(record))  # As a checkpoint has it.
  out_dir = pathlib.Path(out_dir)
  if not processes.is_first():
    return _train_along(config, learner, state, rows, mesh)
  with folder_lock.hold(out_dir):
    return _train_held(
      config, learner, state, rows, out_dir, record, keep, mesh, tensorboard
    )


def _train_along(
  config: TrainConfig,
  learner: Learner,
  state: loop.TrainState,
  rows: Dataset | ShardPool,
  mesh: Mesh | None,
) -> loop.TrainState:
  """The part of a process that is not the first: it only computes."""

  def on_chunk(state, metrics):
    del metrics
    if _is_due(config, int(state.step)):
      processes.whole(state)

  state = processes.from_first(state)
  try:
    return _train_on(config, learner, state, rows, mesh, on_chunk)
  except loop.NonFiniteError as error:
    processes.whole(error.state)
    raise


def _is_due(config: TrainConfig, step: int) -> bool:
  return step % config.checkpoint_every == 0 or step == config.num_updates


def _rows(
  config: TrainConfig,
  dataset: TransitionDataset,
  stream: ShardPool | None,
  log_strata: LogStrata | None,
  mesh: Mesh | None,
  state: loop.TrainState,
) -> Dataset | ShardPool:
  """What the loop draws from, where it is to live."""
  if log_strata is not None:
    if mesh is None or stream is not None:
      raise InputError(
        "log_strata: expected a mesh and no stream, found"
        f" {'a stream' if stream is not None else 'no mesh'}."
      )
    if log_strata.num_strata != config.num_strata:
      raise InputError(
        f"log_strata: expected num_strata of them, {config.num_strata}, found"
        f" {log_strata.num_strata}."
      )
  if stream is not None:
    if mesh is not None or config.num_strata > 1:
      raise InputError(
        "mesh, num_strata: expected one device and one stratum for rows that are"
        " streamed, found more; give a log that fits, or no mesh."
      )
    return stream
  if mesh is None:
    rows: Dataset = dataset
    if config.num_strata > 1:
      rows = stratify(dataset, config.num_strata)
    return jax.device_put(rows)
  mesh_lib.check_fits(
    mesh,
    batch_size=config.batch_size,
    critic_updates=config.critic_updates,
    num_strata=config.num_strata,
  )
  mesh_lib.state_shardings(mesh, state)
  if log_strata is not None:
    return mesh_lib.put_strata(mesh, log_strata)
  if config.num_strata > 1:
    return mesh_lib.put_dataset(mesh, stratify(dataset, config.num_strata))
  return mesh_lib.put_dataset(mesh, dataset)


def _train_held(
  config: TrainConfig,
  learner: Learner,
  state: loop.TrainState,
  rows: Dataset | ShardPool,
  out_dir: pathlib.Path,
  record: Mapping[str, Any],
  keep: int,
  mesh: Mesh | None,
  tensorboard: bool,
) -> loop.TrainState:
  """`train_in_folder` while no other process writes there."""
  checkpoints = Checkpoints(out_dir / "checkpoints", keep=keep)
  try:
    restored = checkpoints.restore(
      state, check=lambda found: _check_same_run(found, record)
    )
    if restored is None:
      _refuse_rows(out_dir / "metrics.jsonl")
      _say(f"No checkpoint in {out_dir}: starting at update 0.")
      record = {**record, "machines": machine.went_on([], 0, mesh)}
      checkpoints.save(0, state, _at(record, rows, 0))
    else:
      state, found = restored
      _check_position(found, rows, int(state.step))
      _say(f"Going on from update {state.step}.")
      # Versions before 3 did not record it.
      machines = machine.went_on(
        found.get("machines", []), int(state.step), mesh
      )
      record = {**record, "machines": machines}
    state = processes.from_first(state)
    board = None
    if tensorboard:
      board = tensorboard_lib.TensorBoard(
        out_dir / "tensorboard", int(state.step)
      )
    try:
      return _train(
        config, learner, state, rows, out_dir, checkpoints, record, mesh, board
      )
    finally:
      if board is not None:
        board.close()
  except loop.NonFiniteError as error:
    last_good = processes.whole(error.state)
    if error.step not in checkpoints.steps():
      checkpoints.save(error.step, last_good, _at(record, rows, error.step))
    logging.error("%s The state before it is saved.", error)
    raise
  finally:
    checkpoints.close()


def _at(
  record: Mapping[str, Any],
  dataset: Dataset | ShardPool,
  step: int,
) -> dict[str, Any]:
  """A checkpoint's record, with the state of the iterator if there is one."""
  if isinstance(dataset, ShardPool):
    return {**record, _POSITION: dataset.position(step)}
  return dict(record)


def _check_position(
  found: Mapping[str, Any],
  dataset: Dataset | ShardPool,
  step: int,
) -> None:
  """Refuses to go on where the rows would be others than before."""
  if isinstance(dataset, ShardPool):
    there, here = found[_POSITION], dataset.position(step)
    if there != here:
      raise CheckpointError(
        f"{_POSITION}: expected {there!r} as in the checkpoint of the folder,"
        f" found {here} at update {step}; another version wrote it."
      )


def _refuse_rows(path: pathlib.Path) -> None:
  """A run that starts anew would drop the rows of one before."""
  if path.exists() and read_rows(require_file(path, "a metrics file (.jsonl)")):
    raise InputError(
      f"{path}: expected no rows in a folder without checkpoints, found those of"
      " a run; bring its checkpoints back to go on, or name another folder."
    )


def _train(
  config: TrainConfig,
  learner: Learner,
  state: loop.TrainState,
  rows: Dataset | ShardPool,
  out_dir: pathlib.Path,
  checkpoints: Checkpoints,
  record: Mapping[str, Any],
  mesh: Mesh | None,
  board: tensorboard_lib.TensorBoard | None,
) -> loop.TrainState:
  """The loop, with a row of metrics a chunk and a checkpoint now and then."""
  first_step = int(state.step)
  writer = MetricsWriter(out_dir / "metrics.jsonl", first_step, board)
  progress = Progress(first_step, config.num_updates)
  negative_targets = NegativeTargetWarning()
  at_cap = MultiplierAtCapWarning()

  def on_chunk(state, metrics):
    step = int(state.step)
    row = summarize(metrics)
    negative_targets.check(row)
    at_cap.check(row)
    rate = progress.update(step)
    writer.write(
      {"step": step, "time": time.time(), "updates_per_s": rate, **row}
    )
    if board is not None and step == config.num_updates:
      board.finish(config.to_json(), dict(tensorboard_lib.scalars(row)), step)
    if _is_due(config, step):
      checkpoints.save(step, processes.whole(state), _at(record, rows, step))

  return _train_on(config, learner, state, rows, mesh, on_chunk)


def _train_on(
  config: TrainConfig,
  learner: Learner,
  state: loop.TrainState,
  rows: Dataset | ShardPool,
  mesh: Mesh | None,
  on_chunk: Callable[[loop.TrainState, Any], None],
) -> loop.TrainState:
  """The loop, on one device or over the mesh."""
  if mesh is not None:
    state = mesh_lib.put_state(mesh, state)
  return loop.train(
    learner,
    state,
    rows,
    config.num_updates,
    batch_size=config.batch_size,
    chunk_size=config.chunk_size,
    mesh=mesh,
    on_chunk=on_chunk,
  )


def _say(message: str) -> None:
  print(message, file=sys.stderr, flush=True)
