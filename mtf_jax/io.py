"""Files that appear whole or not at all, digests of arrays, refusals of input.

What the package writes goes through here, with two exceptions: checkpoints are
Orbax's, and a run's metrics are appended to their file row by row
(`training.metrics`).
"""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np


class InputError(ValueError):
  """A file, folder or setting that a user gave cannot be used.

  Its message is one sentence that names the file (or setting), what was found
  and what was expected. Launchers print it without a traceback; any other
  exception is a fault of the package.
  """


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
  """A file to write into that takes the place of `path` once it is whole.

  The bytes go to a hidden temporary file beside it, which reaches the disk
  before it is renamed. If anything fails, the temporary is removed and an
  earlier file is untouched.

  Args:
    path: file to write or replace, in an existing folder.

  Yields:
    The open temporary, for bytes.

  Raises:
    OSError: the file could not be written.
  """
  path = pathlib.Path(path)
  # The process number keeps two runs that write the same file apart.
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  try:
    with temporary.open("wb") as file:
      yield file
      file.flush()
      os.fsync(file.fileno())
    temporary.replace(path)
  finally:
    temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
  """Writes a text file in UTF-8, all of it or nothing; see `replacing`."""
  with replacing(path) as file:
    file.write(text.encode("utf-8"))


def write_json(
  path: str | os.PathLike[str], value: Any, indent: int | None = 1
) -> None:
  """Writes a JSON file, all of it or nothing; see `replacing`.

  Args:
    path: file to write or replace, in an existing folder.
    value: what `json` can write.
    indent: spaces a level; all in one line if None.

  Raises:
    ValueError: the value holds NaN or an infinity, which JSON does not have.
    OSError: the file could not be written.
  """
  text = json.dumps(value, indent=indent, allow_nan=False)
  write_text(path, text + "\n")


def digest(
  arrays: Iterable[tuple[str, np.ndarray]], before: str = "", after: str = ""
) -> str:
  """Names the content of arrays: a SHA-256, 64 hexadecimal digits.

  Recorded results quote such digests, so what they are taken over must not
  change.

  Args:
    arrays: (name, array) in a fixed order. Names, types, shapes and values
      count, the memory layout does not.
    before: more to take in, before the arrays.
    after: more to take in, after them.

  Returns:
    The digits.
  """
  hasher = hashlib.sha256(before.encode())
  for name, array in arrays:
    hasher.update(f"{name}{array.dtype.str}{array.shape}".encode())
    # As bytes: a plain view exists neither of bfloat16 nor of empty arrays.
    hasher.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
  hasher.update(after.encode())
  return hasher.hexdigest()
