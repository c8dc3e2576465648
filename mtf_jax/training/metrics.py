"""What the host says about a run: a metrics file, a progress line, warnings."""

import json
import os
import pathlib
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

import numpy as np
from absl import logging

from mtf_jax.io import InputError, require_file, write_text
from mtf_jax.steps import OnStep
from mtf_jax.training.tensorboard import TensorBoard

_BAR = 20  # Characters.
_PLAIN_EVERY = 30.0  # Seconds between lines where there is no terminal.


def summarize(metrics: Any) -> dict[str, Any]:
  """One row from a chunk's metrics.

  Args:
    metrics: NamedTuple of arrays with a leading axis over updates.

  Returns:
    Name -> number, or list for one number per reward group: the mean over the
    updates, except the smallest of a `*_min` and the largest of a `*_max`.
  """
  row = {}
  for name, value in metrics._asdict().items():
    reduce: Callable[..., Any] = np.mean
    if name.endswith("_min"):
      reduce = np.min
    elif name.endswith("_max"):
      reduce = np.max
    # In float64: the sum of finite numbers may be beyond float32.
    row[name] = reduce(np.asarray(value, np.float64), axis=0).tolist()
  return row


class MetricsWriter:
  """Appends rows to a JSONL file; a resumed run leaves no row twice.

  Args:
    path: file to append to.
    step: step from which the run goes on. Rows of later steps, which an
      interrupted run wrote after its last checkpoint, are dropped, and so is
      what a killed run left of a last line.
    board: shown every row, too.

  Raises:
    InputError: a line is no row, which no interruption explains; or the file
      could not be read or written.
  """

  def __init__(
    self,
    path: str | os.PathLike[str],
    step: int,
    board: TensorBoard | None = None,
  ):
    """Drops what is later than `step`, by an atomic rewrite."""
    self._path = pathlib.Path(path)
    self._board = board
    try:
      if self._path.exists():
        require_file(self._path, "a metrics file (.jsonl)")
        kept = [line for line, at in read_rows(self._path) if at <= step]
        write_text(self._path, "".join(kept))
    except OSError as error:
      raise self._unwritable(error) from error

  def write(self, row: dict[str, Any]) -> None:
    """Appends one row, which must have a `step`.

    Raises:
      InputError: it could not be written, for a full disk for example.
    """
    line = json.dumps(row, allow_nan=False)
    try:
      with self._path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
      if self._board is not None:
        self._board.write(row)
    except OSError as error:
      raise self._unwritable(error) from error

  def _unwritable(self, error: OSError) -> InputError:
    return InputError(f"{self._path}: could not be written ({error.strerror}).")


def read_rows(path: str | os.PathLike[str]) -> list[tuple[str, int]]:
  """The rows of a metrics file, each with its line end, and their steps.

  A last line without an end that is no row is what a killed run left of one,
  and is left out.

  Args:
    path: the file.

  Raises:
    InputError: another line is no JSON object with a whole number `step`.
    OSError: the file cannot be read.
  """
  lines = pathlib.Path(path).read_bytes().split(b"\n")
  torn = lines.pop()  # Nothing, if the last line has its end.
  rows = []
  for number, line in enumerate(lines, 1):
    step = _step_of(line)
    if step is None:
      raise InputError(
        f"{path}: expected a JSON object with a whole number 'step' in line"
        f" {number}, found {line[:60]!r}; delete the line, or move the file away"
        " to go on without the rows before."
      )
    rows.append((line.decode() + "\n", step))
  step = _step_of(torn)
  return rows if step is None else [*rows, (torn.decode() + "\n", step)]


def _step_of(line: bytes) -> int | None:
  """Step of a row, None if the line is none."""
  try:
    row = json.loads(line.decode())
  except (ValueError, RecursionError):
    return None
  step = row.get("step") if isinstance(row, dict) else None
  return step if type(step) is int else None


def clock(seconds: float) -> str:
  """Hours, minutes and seconds, as 1:02:03."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f"{hours}:{minutes:02d}:{rest:02d}"


class Progress:
  """A bar with updates a second and the time left.

  On a terminal it overwrites itself. Elsewhere a plain line says the same every
  half minute, so that the log of a job tells whether it goes on.

  Args:
    step: updates done at the start.
    num_updates: updates in all.
    stream: where it goes.
    unit: what is counted, if not updates.
  """

  def __init__(
    self,
    step: int,
    num_updates: int,
    stream: TextIO = sys.stderr,
    unit: str = "updates",
  ):
    """Starts the clock at the first chunk, whose time is the compiler's."""
    self._num_updates = num_updates
    self._stream = stream
    self._unit = unit
    self._step = step
    self._start: tuple[int, float] | None = None
    self._said = 0.0

  def update(self, step: int) -> float | None:
    """Shows that `step` updates are done.

    Returns:
      Updates a second since the first chunk, None at the first chunk.
    """
    now = time.monotonic()
    rate = None
    if self._start is None:
      self._start, self._said = (step, now), now
    else:
      first_step, first_time = self._start
      rate = (step - first_step) / max(now - first_time, 1e-9)
    left = ""
    if rate is not None:
      left = f", {clock((self._num_updates - step) / rate)} left"
    # Where nothing is done yet, nothing was compiled either.
    speed = "compiled" if step else "begun"
    if rate is not None:
      # Steps of a fit take seconds each.
      speed = f"{rate:{'.1f' if rate >= 1 else '.2g'}} {self._unit}/s"
    share = step / self._num_updates
    text = f"{step}/{self._num_updates} ({share:.0%}), {speed}{left}"
    if self._stream.isatty():
      done = "#" * int(_BAR * share)
      end = "\n" if step >= self._num_updates else ""
      self._stream.write(f"\r[{done:-<{_BAR}}] {text}    {end}")
      self._stream.flush()
    elif now - self._said >= _PLAIN_EVERY:
      self._said = now
      self._stream.write(f"{text}\n")
      self._stream.flush()
    return rate


def shown_steps(unit: str, stream: TextIO = sys.stderr) -> OnStep:
  """A progress bar for a computation that counts its own steps.

  Args:
    unit: what it counts, in the plural.
    stream: where the bar goes.

  Returns:
    What `steps.Steps` tells; computations that follow each other have a bar each.
  """
  bar = Progress(0, 1, stream, unit)

  def on_step(done: int, total: int) -> None:
    nonlocal bar
    if not done:
      bar = Progress(0, total, stream, unit)
    bar.update(done)

  return on_step


class NegativeTargetWarning:
  """Warns once that phi has turned against its purpose.

  `phi` shrinks a target towards 0. Where a target is negative that raises it,
  and the critics learn that leaving the box is good.
  """

  def __init__(self):
    """Not yet warned."""
    self._warned = False

  def check(self, row: dict[str, Any]) -> None:
    """Looks at `negative_target_share` of a row from `summarize`."""
    # Not every learner bootstraps.
    share = row.get("negative_target_share", 0.0)
    if share > 0 and not self._warned:
      self._warned = True
      logging.warning(
        "%.2g of the bootstrapped targets are negative: there the bootstrap"
        " weight rewards leaving the box. Shift the rewards (hyperparameter"
        " reward_shift) so that returns are not negative.",
        share,
      )


class MultiplierAtCapWarning:
  """Warns once of each reward group whose bound its multiplier cannot enforce."""

  def __init__(self):
    """Not yet warned."""
    self._warned = set()

  def check(self, row: dict[str, Any]) -> None:
    """Looks at `multiplier_at_cap` of a row from `summarize`."""
    # Few learners have bounds.
    for group, share in enumerate(row.get("multiplier_at_cap", ())):
      # In all updates of the row: in passing it may be there.
      if share == 1 and group not in self._warned:
        self._warned.add(group)
        logging.warning(
          "The multiplier of reward group %d is at its cap: the policy that is"
          " being trained breaks the group's bound (hyperparameter"
          " allowed_loss). Either no policy keeps it, or multiplier_cap is too"
          " low.",
          group,
        )
