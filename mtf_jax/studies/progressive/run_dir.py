"""The folder of a progressive run: what lies where, written and read.

`run.json` says what the folder is a run of. Each leaving model and group of
seeds that run side by side has a folder, in it `result.json` once it is done,
and a folder for each learner: `metrics.jsonl`, a checkpoint of every round, the
policy of the single batch. At the top are `summary.json` and the report.
"""

import contextlib
import errno
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from mtf_jax import folder_lock
from mtf_jax.io import write_json, write_text
from mtf_jax.studies.progressive import records
from mtf_jax.studies.progressive.group_dir import GroupDir
from mtf_jax.studies.progressive.plan import Plan
from mtf_jax.studies.progressive.records import RunDirError
from mtf_jax.worlds.leaving import LEAVING_MODELS

_PLAN = "the description of a progressive run (run.json)"
_WAY_ON = (
  "to go on, move it away and give --resume with the flags that the run was"
  " started with; to begin anew, name another folder"
)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


class RunDir:
  """The folder of a progressive run."""

  def __init__(self, path: str | os.PathLike[str]):
    """Names the folder; nothing is made or read."""
    self.path = pathlib.Path(path)

  @property
  def _plan(self) -> pathlib.Path:
    return self.path / "run.json"

  def _read(self) -> tuple[int, Plan]:
    """Layout version and plan of the run that is there."""
    version, content = records.read(self._plan, _PLAN, _WAY_ON)
    if not version:
      version = content.pop("layout_version", 1)
      if version != 2:
        raise RunDirError(
          f"{self._plan}: expected {_PLAN} of layout version"
          f" {records.LAYOUT_VERSION}, found {version}, which another version"
          " of the package wrote."
        )
    try:
      return version, Plan.from_json(content)
    except ValueError as error:
      raise RunDirError(
        f"{self._plan}: expected {_PLAN}, but in it"
        f" {str(error).removesuffix('.')}; {_WAY_ON}."
      ) from error

  def _groups(self) -> list[pathlib.Path]:
    """Folders of seeds that are there, of whatever plan."""
    found = (self.path.glob(f"{name}_seed_*") for name in LEAVING_MODELS)
    return [path for paths in found for path in paths]

  def plan(self) -> Plan:
    """What the folder is a run of.

    Raises:
      RunDirError: there is no run, a damaged one, or one of another layout.
    """
    if not os.path.lexists(self._plan):
      raise RunDirError(f"{self.path}: expected a progressive run, found none.")
    version, plan = self._read()
    if version != records.LAYOUT_VERSION:
      raise RunDirError(
        f"{self._plan}: expected {_PLAN} of layout version"
        f" {records.LAYOUT_VERSION}, found {version}; give --resume once with"
        " the flags that the run was started with, which brings it up to date."
      )
    return plan

  def claim(self, plan: Plan) -> None:
    """Takes a folder without a run for this one.

    Raises:
      InputError: it is no folder, holds a run or cannot be written to, or
        another process writes into it.
    """
    self._refuse_taken()
    with self.hold():
      self._refuse_taken()
      records.write(self._plan, plan.to_json())

  def _refuse_taken(self) -> None:
    if self.path.exists() and not self.path.is_dir():
      raise RunDirError(f"expected a folder, found the file {self.path}.")
    if os.path.lexists(self._plan):
      raise RunDirError(
        f"{self.path} holds a run; add --resume to go on with it, or name"
        " another folder."
      )
    if self._groups():
      raise RunDirError(
        f"{self.path} holds rounds of a run ({self._groups()[0].name}) whose"
        " run.json is gone; to go on, add --resume with the flags that the run"
        " was started with; to begin anew, name another folder."
      )

  def resume(self, plan: Plan) -> None:
    """Makes sure that the folder holds a run of this plan.

    A folder of layout version 2 is brought up to date. Where `run.json` is
    gone it is written anew: rounds and results say themselves what they are of.

    Raises:
      InputError: there is no run, a damaged or another one, or another process
        writes into it.
    """
    lost = not os.path.lexists(self._plan)
    if lost and not self._groups():
      raise RunDirError(f"there is no run in {self.path}.")
    with self.hold():
      version = 0 if lost else self.check(plan)
      if version == 2:
        for leaving in plan.leaving:
          for seeds in plan.groups:
            self.group(leaving, seeds).migrate(plan, seeds)
      if version != records.LAYOUT_VERSION:
        records.write(self._plan, plan.to_json())

  def check(self, plan: Plan) -> int:
    """Makes sure that `run.json` is of this plan; gives its layout version.

    Raises:
      RunDirError: it is damaged, or of another plan.
    """
    version, before = self._read()
    found = before.to_json()
    for name, value in plan.to_json().items():
      if found[name] != value:
        raise RunDirError(
          f"the run in {self.path} has another {name}; give the flags it was"
          " started with."
        )
    return version

  @contextlib.contextmanager
  def hold(self) -> Iterator[None]:
    """Keeps other processes from writing into the folder, and speaks plainly.

    Raises:
      InputError: another process holds it, or it cannot be written to, for a
        full disk for example.
    """
    with folder_lock.hold(self.path):
      try:
        yield
      except OSError as error:
        inside = str(error.filename or "").startswith(str(self.path))
        if not inside and error.errno not in _NO_ROOM:
          raise
        raise RunDirError(
          f"{error.filename or self.path} cannot be written to"
          f" ({error.strerror or error}); what was done before is kept, and"
          " --resume goes on from there."
        ) from error

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
