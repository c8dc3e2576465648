"""What a progressive run consists of."""

import dataclasses
from typing import Any

from mtf_jax.io import InputError
from mtf_jax.learners.registry import LEARNERS
from mtf_jax.studies.progressive.config import ProgressiveConfig, check_seeds
from mtf_jax.worlds.leaving import LEAVING_MODELS


def _different(values: tuple[Any, ...]) -> bool:
  return bool(values) and len(set(values)) == len(values)


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
    check_seeds(self.seeds)
    if self.parallel_seeds < 1 or len(self.seeds) % self.parallel_seeds:
      raise InputError(
        "parallel_seeds: expected a number that divides the number of seeds"
        f" {len(self.seeds)}, found {self.parallel_seeds}."
      )
    if not _different(self.leaving) or set(self.leaving) - set(LEAVING_MODELS):
      raise InputError(
        f"leaving: expected different names of {', '.join(LEAVING_MODELS)},"
        f" found {', '.join(self.leaving)}."
      )
    if not _different(self.learners):
      raise InputError(
        f"learners: expected different names, found {', '.join(self.learners)}."
      )
    for name in self.learners:
      try:
        self.config.with_learner(name)
      except ValueError as error:
        raise InputError(f"learners: {name}: {error}") from error
      most = LEARNERS[name.partition(":")[0]].max_rounds
      if most is not None and self.config.rounds > most:
        raise InputError(
          f"rounds: expected at most {most} for {name}, found"
          f" {self.config.rounds}."
        )

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
    """The plan that `to_json` wrote.

    Raises:
      ValueError: it has other fields or values; another version wrote it.
    """
    try:
      return cls._from_json(values)
    except KeyError as error:
      raise ValueError(f"expected the field {error}, found none") from error
    except (TypeError, AttributeError) as error:
      raise ValueError(f"found a value of another type ({error})") from error

  @classmethod
  def _from_json(cls, values: dict[str, Any]) -> "Plan":
    return cls(
      world=values["world"],
      preset=values["preset"],
      seeds=tuple(values["seeds"]),
      parallel_seeds=values["parallel_seeds"],
      leaving=tuple(values["leaving"]),
      learners=tuple(values["learners"]),
      config=ProgressiveConfig.from_json(values["config"]),
    )
