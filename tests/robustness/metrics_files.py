"""Metrics files of training runs, damaged, as a run that goes on finds them.

Nothing vouches for their numbers, so what is kept is held against an independent
strict reading of the same bytes: each line that has its end must be a JSON object
with a whole number `step`; those up to the run's step stay to the byte, in their
order. A last line without its end is what a kill left. A line that is neither
must be refused, not dropped.
"""

import json
import pathlib
from typing import Any

import numpy as np

from mtf_jax.training.metrics import MetricsWriter
from tests.robustness import mutate
from tests.robustness.kinds import Files, contents, difference_of

_NAME = "metrics.jsonl"
_STEP = 6
_NEW = {"step": 7, "actor_loss": 0.25}


def _row(line: bytes) -> int | None:
  """Step of a row; None for what is none."""
  try:
    row = json.loads(line.decode("utf-8"))
  except (ValueError, RecursionError):
    return None
  step = row.get("step") if isinstance(row, dict) else None
  return step if type(step) is int else None


class Metrics:
  """Metrics files: what `MetricsWriter` keeps and adds to."""

  name = "metrics"
  share = 3

  def __init__(self, folder: pathlib.Path):
    """Makes rows up to a step beyond the one that the run goes on from."""
    del folder
    self._rows = [
      {"step": step, "time": 1.5e9 + step, "actor_loss": [0.5 / step, 0.125]}
      for step in range(1, _STEP + 3)
    ]

  def mutate(self, rng: np.random.Generator) -> tuple[str, Files]:
    lines = [json.dumps(row).encode() + b"\n" for row in self._rows]
    if rng.integers(2):
      number = int(rng.integers(len(lines)))
      what, text = mutate.damage_json_text(rng, self._rows[number])
      lines[number] = text.encode() + b"\n"
      what = f"line {number + 1}: {what}"
      content = b"".join(lines)
    else:
      what, content = mutate.damage_bytes(rng, b"".join(lines))
    return what, {_NAME: content}

  def read(self, folder: pathlib.Path) -> Any:
    before = (folder / _NAME).read_bytes()
    MetricsWriter(folder / _NAME, _STEP).write(_NEW)
    return before, (folder / _NAME).read_bytes()

  def difference(self, folder: pathlib.Path, found: Any) -> str:
    del folder
    before, after = found
    *lines, torn = before.split(b"\n")
    steps = [_row(line) for line in lines]
    if None in steps:
      return "a line that is no row, dropped or kept"
    rows = list(zip(lines, steps, strict=True))
    if _row(torn) is not None:
      rows.append((torn, _row(torn)))
    kept = [line for line, step in rows if step <= _STEP]
    expected = [*kept, json.dumps(_NEW).encode(), b""]
    return "" if after.split(b"\n") == expected else "other rows are kept"

  def changed(self, folder: pathlib.Path, files: Files, refused: bool) -> str:
    return difference_of(contents(folder), files) if refused else ""
