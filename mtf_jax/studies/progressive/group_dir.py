"""What seeds side by side leave behind, and each learner of theirs."""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from mtf_jax.io import require_file
from mtf_jax.studies.progressive import records
from mtf_jax.studies.progressive.config import ProgressiveConfig
from mtf_jax.studies.progressive.plan import Plan
from mtf_jax.studies.progressive.records import RunDirError
from mtf_jax.studies.progressive.summary import seed_summary
from mtf_jax.training.checkpoints import Checkpoints
from mtf_jax.training.metrics import read_rows

_RESULT = "the result of a group of seeds (result.json)"
_WAY_ON = (
  "move it away and give --resume, which makes it anew from the checkpoints"
)
_METRICS = "metrics of training (metrics.jsonl)"
_METRICS_WAY_ON = (
  "move it away to go on without a picture of the training so far"
)


def made_of(
  configs: Mapping[str, ProgressiveConfig],
  worlds: Sequence[str],
  seeds: Sequence[int],
) -> dict[str, Any]:
  """What the result of seeds side by side is of, ready for JSON.

  Args:
    configs: of each learner, by its name in the run.
    worlds: fingerprint of each seed's world.
    seeds: theirs.
  """
  return {
    "configs": {name: config.to_json() for name, config in configs.items()},
    "worlds": list(worlds),
    "seeds": list(seeds),
  }


def check_same_run(
  path: str | os.PathLike[str],
  expected: Mapping[str, Any],
  found: Mapping[str, Any],
) -> None:
  """Refuses what another run left, as `records.check_same` does.

  A configuration of an earlier version, which lacks a field that has a default
  now, is that of this version with the default.
  """

  def renewed(config):
    try:
      return ProgressiveConfig.from_json(config).to_json()
    except ValueError:
      return config  # Its difference is named below.

  found = dict(found)
  if "config" in found:
    found["config"] = renewed(found["config"])
  if "configs" in found:
    found["configs"] = {n: renewed(x) for n, x in found["configs"].items()}
  records.check_same(path, expected, found)


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

  def metrics_sha256(self) -> str | None:
    """Names the rows so far; None where there is no file."""
    if not os.path.lexists(self.metrics):
      return None
    content = require_file(self.metrics, _METRICS).read_bytes()
    return hashlib.sha256(content).hexdigest()

  def check_metrics(self, sha256: str | None) -> None:
    """Refuses rows that are not those that a record speaks of.

    A file that is gone is gone: the report then has no picture of the training.

    Args:
      sha256: of `metrics_sha256` at the time; None where it was not recorded.

    Raises:
      InputError: the rows are others, or cannot be read.
    """
    found = self.metrics_sha256()
    if found is None:
      logging.warning("%s: not there; the report goes without.", self.metrics)
    elif sha256 is not None and found != sha256:
      raise RunDirError(
        f"{self.metrics}: expected {_METRICS} whose SHA-256 is {sha256}, found"
        f" {found}: it is damaged; {_METRICS_WAY_ON}."
      )

  def check_no_round_is_lost(self, updates: int) -> None:
    """Refuses to begin where rows tell of rounds whose checkpoints are gone.

    Args:
      updates: of a round; those of the first may be rows without a checkpoint.

    Raises:
      InputError: there are rows of later rounds, or what is no row.
    """
    if not os.path.lexists(self.metrics):
      return
    rows = read_rows(require_file(self.metrics, _METRICS))
    last = max((step for _, step in rows), default=0)
    if last > updates:
      raise RunDirError(
        f"{self.metrics}: expected rows up to update {updates} beside no"
        f" checkpoints, found update {last} of a later round; bring"
        f" {self.rounds} back to go on, or move the file away to begin anew."
      )

  def read_metrics(
    self, seed: int, sha256: str | None = None
  ) -> list[dict[str, Any]]:
    """Rows of one seed; none if the file is gone.

    Args:
      seed: whose.
      sha256: as in `check_metrics`.

    Raises:
      InputError: they are not what the run wrote, or cannot be read.
    """
    self.check_metrics(sha256)
    if not os.path.lexists(self.metrics):
      return []
    rows = []
    for number, line in enumerate(self.metrics.read_bytes().splitlines(), 1):
      try:
        row = json.loads(line)
        if row["seed"] == seed:
          rows.append({**row, "step": int(row["step"])})
      except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise RunDirError(
          f"{self.metrics}: expected a JSON object with seed and step in line"
          f" {number}, found {line[:40]!r}; {_METRICS_WAY_ON}."
        ) from error
    return rows


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

  def read_result(self, expected: Mapping[str, Any]) -> dict[str, Any] | None:
    """Results by seed, None until all learners are done.

    Args:
      expected: of `made_of`, what they must be of.

    Raises:
      InputError: they are damaged or of another run.
    """
    if not os.path.lexists(self._result):
      return None
    version, content = records.read(self._result, _RESULT, _WAY_ON)
    if not version:
      raise RunDirError(
        f"{self._result}: expected {_RESULT} with a checksum, found none; in a"
        " run of an earlier version give --resume once, else"
        f" {_WAY_ON}."
      )
    check_same_run(self._result, expected, content["made_of"])
    return content["seeds"]

  def write_result(
    self, of: Mapping[str, Any], result: Mapping[str, Any]
  ) -> None:
    """Says that all learners are done, and with what result.

    Args:
      of: of `made_of`, what it is of.
      result: figures by seed.
    """
    records.write(self._result, {"made_of": of, "seeds": result})

  def migrate(self, plan: Plan, seeds: tuple[int, ...]) -> None:
    """Puts a result of layout version 2, which had no checksum, under one.

    Raises:
      RunDirError: it is none of this plan.
    """
    if not os.path.lexists(self._result):
      return
    version, result = records.read(self._result, _RESULT, _WAY_ON)
    if version:
      return
    try:
      (learners,) = {tuple(x["learners"]) for x in result.values()}
      worlds = [result[str(seed)]["fingerprint"] for seed in seeds]
      actions = [x["baseline_policy"]["action"] for x in result.values()]
      for of_seed in result.values():
        seed_summary(of_seed)  # It reads nearly all that the report does.
      if len(actions) != len(worlds) or learners != plan.learners:
        raise ValueError
    except (
      KeyError,
      IndexError,
      TypeError,
      ValueError,
      AttributeError,
    ) as error:
      raise RunDirError(
        f"{self._result}: expected {_RESULT} of the seeds {list(seeds)} and the"
        f" learners {', '.join(plan.learners)}, found other fields;"
        f" {_WAY_ON}."
      ) from error
    self.write_result(made_of(plan.configs, worlds, seeds), result)
