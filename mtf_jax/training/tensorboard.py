"""Metrics as TensorBoard reads them, beside the JSONL file.

The JSONL file is the record that a run resumes from; what is here may be deleted.
"""

import importlib.util
import os
from collections.abc import Iterator, Mapping
from typing import Any

from mtf_jax.io import InputError

# A thread writes; so much a killed run loses here, and nothing of the JSONL file.
_FLUSH_S = 5
# Of a row, what is no curve.
_NO_CURVES = ("seed", "step", "time")


def scalars(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
  """The numbers of a row by tag.

  Args:
    row: name -> number, list of numbers, or None. A `seed` goes before every
      tag, since the seeds of a run share its steps.

  Yields:
    Tag and number; the tags of a list end in the place in it.
  """
  prefix = f"seed_{row['seed']}/" if "seed" in row else ""
  for name, value in row.items():
    if name in _NO_CURVES:
      continue
    if isinstance(value, list):
      for place, one in enumerate(value):
        yield f"{prefix}{name}/{place}", float(one)
    elif isinstance(value, int | float):
      yield f"{prefix}{name}", float(value)


def settings(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
  """Nested settings as one level of numbers, truths and texts, by dotted name."""
  flat: dict[str, Any] = {}
  for name, value in values.items():
    if isinstance(value, Mapping):
      flat |= settings(value, f"{before}{name}.")
    elif isinstance(value, bool | int | float | str):
      flat[before + name] = value
    else:
      flat[before + name] = str(value)
  return flat


def require() -> None:
  """Refuses to go on without the writer.

  Raises:
    InputError: the `tensorboard` extra is not installed.
  """
  if importlib.util.find_spec("tensorboardX") is None:
    raise InputError(
      "tensorboardX: expected an installed package, found none; the extra"
      " `tensorboard` brings it (pip install 'mtf-jax[tensorboard]')."
    )


class TensorBoard:
  """Writes curves, and at the end settings and final figures.

  Args:
    folder: of the event files; created if missing.
    step: step from which the run goes on. TensorBoard hides later ones, which
      an interrupted run wrote after its last checkpoint.

  Raises:
    InputError: the `tensorboard` extra is not installed.
  """

  def __init__(self, folder: str | os.PathLike[str], step: int):
    """Opens a new event file beside those that are there."""
    require()
    import tensorboardX

    self._writer = tensorboardX.SummaryWriter(
      str(folder),
      purge_step=step + 1,
      flush_secs=_FLUSH_S,
      # Its own names are of whole seconds.
      filename_suffix=f".{step}",
    )

  def write(self, row: Mapping[str, Any]) -> None:
    """Adds the numbers of a row, which must have a `step`."""
    for tag, value in scalars(row):
      self._writer.add_scalar(tag, value, row["step"])

  def finish(
    self, config: Mapping[str, Any], figures: Mapping[str, float], step: int
  ) -> None:
    """Adds a row of TensorBoard's HPARAMS, as run `final`.

    Args:
      config: settings of the run, nested or not.
      figures: by tag, what the run ended with.
      step: of the figures.
    """
    named = {f"final/{tag}": value for tag, value in figures.items()}
    self._writer.add_hparams(settings(config), named, "final", step)

  def close(self) -> None:
    """Writes what is left."""
    self._writer.close()
