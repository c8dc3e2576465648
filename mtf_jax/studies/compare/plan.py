"""What a comparison consists of, and the folder that it leaves behind.

`run.json` says what the folder is a comparison of. `cells/` has a record for the
global weights of each seed and leaving model and one for each cell, written when
it is done: a killed run goes on with the first cell that has none.
"""

import contextlib
import dataclasses
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from mtf_jax import folder_lock
from mtf_jax.io import InputError, write_json, write_text
from mtf_jax.studies.compare.config import (
  DATA,
  CompareConfig,
  cells,
  check_names,
)
from mtf_jax.studies.compare.methods import ABLATIONS, METHODS, VERSIONS
from mtf_jax.studies.progressive import records
from mtf_jax.studies.progressive.config import check_seeds
from mtf_jax.studies.progressive.records import RunDirError
from mtf_jax.worlds.leaving import LEAVING_MODELS

_PLAN = "the description of a comparison (run.json)"
_CELL = "the record of a cell"


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a comparison consists of; a resumed one must have the same.

  world: "synthetic", or a world file.
  preset: name of the preset that `config` began as.
  seeds: each decides users, synthetic world, logs and learners.
  leaving: names of the leaving models.
  methods: keys of `METHODS`.
  versions: of `VERSIONS` and `ABLATIONS`.
  data: of `DATA`.
  config: sizes.
  tuned: `method:version` -> hyperparameters.
  log_dir: folder of the log that the world was fitted to, whose held-out days
    policies are judged on besides; None for none.
  """

  world: str
  preset: str
  seeds: tuple[int, ...]
  leaving: tuple[str, ...]
  methods: tuple[str, ...]
  versions: tuple[str, ...]
  data: tuple[str, ...]
  config: CompareConfig
  tuned: dict[str, dict[str, float]]
  log_dir: str | None = None

  def __post_init__(self):
    """Refuses what would only fail after minutes, the field's name first."""
    check_seeds(self.seeds)
    check_names("leaving", self.leaving, LEAVING_MODELS)
    check_names("learners", self.methods, METHODS)
    check_names("versions", self.versions, (*VERSIONS, *ABLATIONS))
    check_names("data", self.data, DATA)
    if self.log_dir is not None and self.world == "synthetic":
      raise InputError(
        "log_dir: expected a --world that was fitted to the log, found"
        " synthetic."
      )
    for method, version, _ in self.cells:
      self.config.train_of(method, version, self.tuned)

  @property
  def cells(self) -> list[tuple[str, str, str]]:
    """Method, version and data of every cell of a seed and leaving model."""
    return cells(self.methods, self.versions, self.data)

  def to_json(self) -> dict[str, Any]:
    """As `run.json` has it."""
    values = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
    }
    lists = ("seeds", "leaving", "methods", "versions", "data")
    return {
      **values,
      **{name: list(values[name]) for name in lists},
      "config": self.config.to_json(),
    }


class CompareDir:
  """The folder of a comparison."""

  def __init__(self, path: str | os.PathLike[str]):
    """Names the folder; nothing is made or read."""
    self.path = pathlib.Path(path)

  @property
  def begun(self) -> bool:
    """Whether a comparison is there."""
    return os.path.lexists(self.path / "run.json")

  @contextlib.contextmanager
  def hold(self, plan: Plan, resume: bool) -> Iterator[None]:
    """Takes the folder for this plan, and keeps other processes out of it.

    Raises:
      InputError: it is no folder or cannot be written to, another process holds
        it, or it holds another comparison, or one where `resume` is not given,
        or none where it is.
    """
    if self.path.exists() and not self.path.is_dir():
      raise RunDirError(f"expected a folder, found the file {self.path}.")
    if not self.begun and (self.path / "cells").exists():
      raise RunDirError(
        f"{self.path} holds cells of a comparison whose run.json is gone; bring"
        " it back to go on, or name another folder."
      )
    if resume and not self.begun:
      raise RunDirError(f"there is no comparison in {self.path}.")
    with folder_lock.hold(self.path):
      file = self.path / "run.json"
      if self.begun and not resume:
        raise RunDirError(
          f"{self.path} holds a comparison; add --resume to go on with it, or"
          " name another folder."
        )
      if self.begun:
        _, found = records.read(file, _PLAN, "name another folder")
        records.check_same(file, plan.to_json(), found)
      else:
        records.write(file, plan.to_json())
      yield

  def _record(self, seed: int, leaving: str, name: str) -> pathlib.Path:
    return self.path / "cells" / f"{leaving}_seed_{seed}" / f"{name}.json"

  def read(
    self, seed: int, leaving: str, name: str, of: dict[str, Any]
  ) -> Any | None:
    """What a cell found, or None where it is not done.

    Args:
      seed, leaving: whose.
      name: of the cell.
      of: what it must be of, ready for JSON.

    Raises:
      InputError: it is damaged, or of something else.
    """
    file = self._record(seed, leaving, name)
    if not os.path.lexists(file):
      return None
    way_on = "move it away and give --resume, which makes it anew"
    _, content = records.read(file, _CELL, way_on)
    records.check_same(file, of, content.get("of", {}))
    return content["found"]

  def write(
    self, seed: int, leaving: str, name: str, of: dict[str, Any], found: Any
  ) -> None:
    """Keeps what a cell found, whole or not at all."""
    file = self._record(seed, leaving, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    records.write(file, {"of": of, "found": found})

  def write_json(self, name: str, value: Any) -> pathlib.Path:
    """Writes JSON at the top, whole or not at all."""
    write_json(self.path / name, value)
    return self.path / name

  def write_text(self, name: str, text: str) -> pathlib.Path:
    """Writes a file at the top, whole or not at all."""
    write_text(self.path / name, text)
    return self.path / name


class Clock:
  """Cells done and the time that the others will take."""

  def __init__(self, total: int):
    """Nothing is done yet of so many cells."""
    self._total, self._done = total, 0
    self._seconds: list[float] = []

  def skip(self) -> None:
    """A cell was there."""
    self._done += 1

  def done(self, seconds: float) -> str:
    """A cell was played; says how far it all is."""
    self._done += 1
    self._seconds.append(seconds)
    mean = sum(self._seconds) / len(self._seconds)
    left = (self._total - self._done) * mean / 60
    return f"{self._done} of {self._total} cells, about {left:.0f} minutes left"
