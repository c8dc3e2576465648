"""The folder of a progressive run: what lies where, written and read.

`run.json` says what the folder is a run of. Each leaving model and group of
seeds that run side by side has a folder, in it `result.json` once it is done,
and a folder for each learner: `metrics.jsonl`, a checkpoint of every round, the
policy of the single batch. At the top are `summary.json` and the report.
"""

import dataclasses
import json
import os
import pathlib
from typing import Any

from mtf_jax.io import write_json, write_text
from mtf_jax.studies.progressive.config import ProgressiveConfig
from mtf_jax.training.checkpoints import Checkpoints
from mtf_jax.worlds.leaving import LEAVING_MODELS

LAYOUT_VERSION = 2


def _different(values: tuple[Any, ...]) -> bool:
  return bool(values) and len(set(values)) == len(values)


class RunDirError(ValueError):
  """A folder that cannot be what it is asked for, in a sentence."""


@dataclasses.dataclass(frozen=True)
class Plan:
  """What a run consists of; a resumed run must have the same.

  world: "synthetic", or a world file.
  preset: name of the preset that `config` began as.
  seeds: each decides users, synthetic world and learner.
  parallel_seeds: seeds that run side by side; divides their number.
  leaving: names of the leaving models.
  learners: names as `ProgressiveConfig.with_learner` takes them.
  config: size of the run.
  """

  world: str
  preset: str
  seeds: tuple[int, ...]
  parallel_seeds: int
  leaving: tuple[str, ...]
  learners: tuple[str, ...]
  config: ProgressiveConfig

  def __post_init__(self):
    """Refuses what would only fail after minutes, the field's name first."""
    if min(self.seeds, default=-1) < 0 or not _different(self.seeds):
      raise ValueError(
        "seeds: expected different non-negative integers, found"
        f" {list(self.seeds)}."
      )
    if len(self.seeds) % self.parallel_seeds:
      raise ValueError(
        "parallel_seeds: expected a number that divides the number of seeds"
        f" {len(self.seeds)}, found {self.parallel_seeds}."
      )
    if not _different(self.leaving) or set(self.leaving) - set(LEAVING_MODELS):
      raise ValueError(
        f"leaving: expected different names of {', '.join(LEAVING_MODELS)},"
        f" found {', '.join(self.leaving)}."
      )
    if not _different(self.learners):
      raise ValueError(
        f"learners: expected different names, found {', '.join(self.learners)}."
      )
    for name in self.learners:
      try:
        self.config.with_learner(name)
      except ValueError as error:
        raise ValueError(f"learners: {name}: {error}") from error

  @property
  def groups(self) -> tuple[tuple[int, ...], ...]:
    """Seeds that run side by side."""
    size = self.parallel_seeds
    return tuple(
      self.seeds[n : n + size] for n in range(0, len(self.seeds), size)
    )

  @property
  def configs(self) -> dict[str, ProgressiveConfig]:
    """The configuration of each learner, tuned for it."""
    return {name: self.config.with_learner(name) for name in self.learners}

  def to_json(self) -> dict[str, Any]:
    """As `run.json` has it; `from_json` is its inverse."""
    return {
      "layout_version": LAYOUT_VERSION,
      "world": self.world,
      "preset": self.preset,
      "rounds": self.config.rounds,
      "seeds": list(self.seeds),
      "parallel_seeds": self.parallel_seeds,
      "leaving": list(self.leaving),
      "learners": list(self.learners),
      "config": self.config.to_json(),
    }

  @classmethod
  def from_json(cls, values: dict[str, Any]) -> "Plan":
    """The plan that `to_json` wrote."""
    return cls(
      world=values["world"],
      preset=values["preset"],
      seeds=tuple(values["seeds"]),
      parallel_seeds=values["parallel_seeds"],
      leaving=tuple(values["leaving"]),
      learners=tuple(values["learners"]),
      config=ProgressiveConfig.from_json(values["config"]),
    )


class LearnerDir:
  """What one learner leaves behind under a leaving model and group of seeds."""

  def __init__(self, path: pathlib.Path):
    """Names the folder; nothing is made."""
    self.path = path

  @property
  def metrics(self) -> pathlib.Path:
    """Metrics of all rounds, a JSON line for each chunk and seed."""
    return self.path / "metrics.jsonl"

  @property
  def rounds(self) -> pathlib.Path:
    """Folder of the checkpoints of the rounds."""
    return self.path / "checkpoints"

  @property
  def single_batch(self) -> pathlib.Path:
    """Folder of the policy trained on as much data in one round."""
    return self.path / "single_batch"

  def open_rounds(self, keep: int) -> Checkpoints:
    """Checkpoints of the rounds, one each."""
    return Checkpoints(self.rounds, keep=keep)

  def open_single_batch(self) -> Checkpoints:
    """The checkpoint of the single batch."""
    return Checkpoints(self.single_batch, keep=1)

  def read_metrics(self, seed: int) -> list[dict[str, Any]]:
    """Rows of one seed."""
    lines = self.metrics.read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["seed"] == seed]


class GroupDir:
  """What seeds side by side leave behind under one leaving model."""

  def __init__(self, path: pathlib.Path):
    """Names the folder; nothing is made."""
    self.path = path

  def learner(self, name: str) -> LearnerDir:
    """Folder of a learner; a colon in its name is no part of a path."""
    return LearnerDir(self.path / name.replace(":", "_"))

  @property
  def _result(self) -> pathlib.Path:
    return self.path / "result.json"

  def read_result(self) -> dict[str, Any] | None:
    """Results by seed, None until all learners are done."""
    if not self._result.exists():
      return None
    return json.loads(self._result.read_text(encoding="utf-8"))

  def write_result(self, result: dict[str, Any]) -> None:
    """Says that all learners are done, and with what result."""
    write_json(self._result, result)


class RunDir:
  """The folder of a progressive run."""

  def __init__(self, path: str | os.PathLike[str]):
    """Names the folder; nothing is made or read."""
    self.path = pathlib.Path(path)

  def _read(self) -> dict[str, Any]:
    path = self.path / "run.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    found = values.get("layout_version", 1)
    if found != LAYOUT_VERSION:
      raise RunDirError(
        f"{self.path}: expected a run of layout version {LAYOUT_VERSION}, found"
        f" {found}, which another version of the package wrote."
      )
    return values

  def plan(self) -> Plan:
    """What the folder is a run of.

    Raises:
      RunDirError: there is no run, or one of another layout.
    """
    if not (self.path / "run.json").exists():
      raise RunDirError(f"{self.path}: expected a progressive run, found none.")
    return Plan.from_json(self._read())

  def claim(self, plan: Plan) -> None:
    """Takes a folder without a run for this one.

    Raises:
      RunDirError: it is no folder, holds a run or cannot be written to.
    """
    if self.path.exists() and not self.path.is_dir():
      raise RunDirError(f"expected a folder, found the file {self.path}.")
    if (self.path / "run.json").exists():
      raise RunDirError(
        f"{self.path} holds a run; add --resume to go on with it, or name"
        " another folder."
      )
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      write_json(self.path / "run.json", plan.to_json())
    except OSError as error:
      raise RunDirError(
        f"{self.path} cannot be written to ({error.strerror})."
      ) from error

  def resume(self, plan: Plan) -> None:
    """Makes sure that the folder holds a run of this plan.

    Raises:
      RunDirError: there is no run, or another one.
    """
    if not (self.path / "run.json").exists():
      raise RunDirError(f"there is no run in {self.path}.")
    before = self._read()
    for name, value in plan.to_json().items():
      if before.get(name) != value:
        raise RunDirError(
          f"the run in {self.path} has another {name}; give the flags it was"
          " started with."
        )

  def group(self, leaving: str, seeds: tuple[int, ...]) -> GroupDir:
    """Folder of seeds side by side under one leaving model."""
    joined = "_".join(map(str, seeds))
    return GroupDir(self.path / f"{leaving}_seed_{joined}")

  def outputs(self) -> list[pathlib.Path]:
    """What a finished run left here, for people: files, or patterns of them."""
    names = ("summary.json", "report.md", "report.html")
    found = [self.path / name for name in names if (self.path / name).exists()]
    inside = ("metrics.jsonl", "checkpoints", "single_batch")
    return [*found, *(self.path / "*" / "*" / name for name in inside)]

  def write_json(self, name: str, value: Any) -> None:
    """Writes JSON at the top, whole or not at all."""
    write_json(self.path / name, value)

  def write(self, name: str, text: str) -> pathlib.Path:
    """Writes a file at the top, whole or not at all."""
    path = self.path / name
    write_text(path, text)
    return path
