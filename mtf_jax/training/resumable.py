"""One training run in a folder: begins there, or goes on where it was left."""

import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from mtf_jax.data.transitions import TransitionDataset, sample_transitions
from mtf_jax.io import InputError, require_file
from mtf_jax.learners.base import Learner, normalization_from
from mtf_jax.training import folder_lock, loop, machine
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
  NegativeTargetWarning,
  Progress,
  read_rows,
  summarize,
)


def initial_state(
  config: TrainConfig, learner: Learner, dataset: TransitionDataset
) -> loop.TrainState:
  """The run that a configuration describes, before its first update.

  Args:
    config: its `seed` and `hyperparams` count here.
    learner: of `make_learner(config, dataset)`.
    dataset: rows on the device. One of them is the example of shapes that the
      learner is set up with, all of them decide the normalisation.

  Returns:
    The state at step 0.

  Raises:
    ValueError: a hyperparameter is outside its range.
  """
  network_key, batch_key, example_key = jax.random.split(
    jax.random.key(config.seed), 3
  )
  example = sample_transitions(example_key, dataset, 1)
  hyperparams = {
    name: jnp.asarray(value) for name, value in config.hyperparams.items()
  }
  learner_state = learner.init(
    network_key,
    jax.tree.map(lambda leaf: leaf[0], example),
    hyperparams_of(config.learner)(**hyperparams),
    normalization_from(dataset),
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
  apart = {"config", "num_updates", "machines", *OWN_KEYS}
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
    ValueError: the folder holds another run, or a hyperparameter is outside its
      range.
  """
  # First what may be refused: a bad configuration leaves no folder.
  check_keep(keep)
  if tensorboard:
    tensorboard_lib.require()
  learner = make_learner(config, dataset)
  state = initial_state(config, learner, dataset)
  loop.check_finite(state)
  record = {"config": config.to_json(), **data_record}
  record = json.loads(json.dumps(record))  # As a checkpoint has it.
  out_dir = pathlib.Path(out_dir)
  with folder_lock.hold(out_dir):
    return _train_held(
      config, learner, state, dataset, out_dir, record, keep, tensorboard
    )


def _train_held(
  config: TrainConfig,
  learner: Learner,
  state: loop.TrainState,
  dataset: TransitionDataset,
  out_dir: pathlib.Path,
  record: Mapping[str, Any],
  keep: int,
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
      record = {**record, "machines": machine.went_on([], 0)}
      checkpoints.save(0, state, record)
    else:
      state, found = restored
      _say(f"Going on from update {state.step}.")
      # Versions before 3 did not record it.
      machines = machine.went_on(found.get("machines", []), int(state.step))
      record = {**record, "machines": machines}
    board = None
    if tensorboard:
      board = tensorboard_lib.TensorBoard(
        out_dir / "tensorboard", int(state.step)
      )
    try:
      return _train(
        config, learner, state, dataset, out_dir, checkpoints, record, board
      )
    finally:
      if board is not None:
        board.close()
  except loop.NonFiniteError as error:
    if error.step not in checkpoints.steps():
      checkpoints.save(error.step, error.state, record)
    logging.error("%s The state before it is saved.", error)
    raise
  finally:
    checkpoints.close()


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
  dataset: TransitionDataset,
  out_dir: pathlib.Path,
  checkpoints: Checkpoints,
  record: Mapping[str, Any],
  board: tensorboard_lib.TensorBoard | None,
) -> loop.TrainState:
  """The loop, with a row of metrics a chunk and a checkpoint now and then."""
  first_step = int(state.step)
  writer = MetricsWriter(out_dir / "metrics.jsonl", first_step, board)
  progress = Progress(first_step, config.num_updates)
  negative_targets = NegativeTargetWarning()

  def on_chunk(state, metrics):
    step = int(state.step)
    row = summarize(metrics)
    negative_targets.check(row)
    rate = progress.update(step)
    writer.write(
      {"step": step, "time": time.time(), "updates_per_s": rate, **row}
    )
    if board is not None and step == config.num_updates:
      board.finish(config.to_json(), dict(tensorboard_lib.scalars(row)), step)
    if step % config.checkpoint_every == 0 or step == config.num_updates:
      checkpoints.save(step, state, record)

  return loop.train(
    learner,
    state,
    dataset,
    config.num_updates,
    batch_size=config.batch_size,
    chunk_size=config.chunk_size,
    on_chunk=on_chunk,
  )


def _say(message: str) -> None:
  print(message, file=sys.stderr, flush=True)
