"""How far a progressive run is: a progress line and the rows of metrics."""

import pathlib
from collections.abc import Sequence

from mtf_jax.studies.progressive import rounds as rounds_lib
from mtf_jax.studies.progressive.experiment import tree_index
from mtf_jax.training.metrics import (
  MetricsWriter,
  MultiplierAtCapWarning,
  NegativeTargetWarning,
  Progress,
  summarize,
)
from mtf_jax.training.tensorboard import TensorBoard


class Watch:
  """Counts the updates of all runs, and writes those of one to a file.

  Args:
    total: updates in all.
    tensorboard: whether runs write the folder `tensorboard`, too.
  """

  def __init__(self, total: int, tensorboard: bool = False):
    """Nothing is done yet."""
    self._progress = Progress(0, total)
    self._negative_targets = NegativeTargetWarning()
    self._at_cap = MultiplierAtCapWarning()
    self._done = 0
    self._tensorboard = tensorboard

  def skip(self, updates: int) -> None:
    """Counts updates that an earlier run did."""
    self._done += updates

  def board(self, folder: pathlib.Path, step: int) -> TensorBoard | None:
    """Of a run's folder, from a step on; None where it was not asked for."""
    if not self._tensorboard:
      return None
    return TensorBoard(folder / "tensorboard", step)

  def follow(
    self, seeds: Sequence[int], writer: MetricsWriter | None, before: int
  ) -> rounds_lib.OnChunk:
    """`on_chunk` of a training run whose rows count from `before`."""

    def on_chunk(state, metrics):
      # Of a chunk, by seed: `[R, U]`.
      self._done += metrics[0].shape[1]
      self._progress.update(self._done)
      for n, seed in enumerate(seeds):
        row = summarize(tree_index(metrics, n))
        self._negative_targets.check(row)
        self._at_cap.check(row)
        if writer is not None:
          step = before + int(state.step[n])
          writer.write({"seed": seed, "step": step, **row})

    return on_chunk
