"""What the fuzz harness asks of a kind of input."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from absl import logging as absl_logging

# Path inside the folder of a case -> content.
Files = dict[str, bytes]


class Kind(Protocol):
  """An input of the package: how it is damaged, read and compared.

  name: of the table, and of `--replay`.
  share: of 100 cases.
  """

  name: str
  share: int

  def mutate(self, rng: np.random.Generator) -> tuple[str, Files]:
    """What was done, in words, and the files of the case."""

  def read(self, folder: pathlib.Path) -> Any:
    """What the package makes of the files; its refusals pass."""

  def difference(self, folder: pathlib.Path, found: Any) -> str:
    """How what was read differs from the original, nothing if not at all."""

  def changed(self, folder: pathlib.Path, files: Files, refused: bool) -> str:
    """What reading or refusing did to the user's files and must not."""


def contents(folder: pathlib.Path) -> Files:
  """The files of a folder."""
  return {
    str(path.relative_to(folder)): path.read_bytes()
    for path in folder.rglob("*")
    if path.is_file()
  }


class ReadOnly:
  """A kind whose readers leave every file as it is and add none."""

  def changed(self, folder: pathlib.Path, files: Files, refused: bool) -> str:
    del refused
    return difference_of(contents(folder), files)


def difference_of(found: Files, expected: Files) -> str:
  """Names of files that are gone, new or other, comma between."""
  names = found.keys() | expected.keys()
  return ", ".join(
    sorted(name for name in names if found.get(name) != expected.get(name))
  )


class _Told(logging.Handler):
  """Keeps the lines of a logger."""

  def __init__(self):
    super().__init__(logging.WARNING)
    self.lines: list[str] = []

  def emit(self, record: logging.LogRecord) -> None:
    self.lines.append(record.getMessage())


@contextlib.contextmanager
def warnings_told() -> Iterator[list[str]]:
  """The warnings that a user would see meanwhile, and nobody sees."""
  told, logger = _Told(), absl_logging.get_absl_logger()
  before, logger.handlers = logger.handlers, [told]
  try:
    yield told.lines
  finally:
    logger.handlers = before
