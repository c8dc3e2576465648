"""Files that appear whole or not at all, digests of arrays, refusals of input.

What the package writes goes through here, with two exceptions: checkpoints are
Orbax's, and a run's metrics are appended to their file row by row
(`training.metrics`).
"""

import codecs
import contextlib
import hashlib
import json
import operator
import os
import pathlib
import stat
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

import numpy as np


class InputError(ValueError):
  """A file, folder or setting that a user gave cannot be used.

  Its message is one sentence that names the file (or setting), what was found
  and what was expected. Launchers print it without a traceback; any other
  exception is a fault of the package.
  """


# What a path can name besides a regular file.
_OTHER_KINDS = {
  stat.S_IFDIR: "a folder",
  stat.S_IFIFO: "a named pipe",
  stat.S_IFSOCK: "a socket",
  stat.S_IFCHR: "a device",
  stat.S_IFBLK: "a device",
}


def require_file(path: str | os.PathLike[str], expected: str) -> pathlib.Path:
  """Refuses a path that is no readable regular file, without waiting for it.

  Readers ask this before they open what a user named: opening a named pipe
  waits for its other end, and other readers than Python's answer a folder or a
  missing file in words of their own.

  Args:
    path: what the user named; a link is followed.
    expected: what it should be, such as "a session file (.npz)".

  Returns:
    The path.

  Raises:
    InputError: the path is empty, missing, a link to nothing, no regular file,
      or may not be read.
  """
  name = os.fspath(path)

  def refusal(found: str) -> InputError:
    return InputError(f"{name or 'path'}: expected {expected}, found {found}.")

  if not name:
    raise refusal("an empty name")
  try:
    kind = stat.S_IFMT(os.stat(name).st_mode)
    if kind == stat.S_IFREG:
      # Only opening tells whether the file may be read.
      with open(name, "rb"):
        return pathlib.Path(path)
  except (FileNotFoundError, NotADirectoryError) as error:
    if os.path.islink(name):
      target = os.readlink(name)
      raise refusal(f"a link to {target}, which does not exist") from error
    raise refusal("no such file") from error
  except OSError as error:
    raise refusal(f"one that cannot be read ({error.strerror})") from error
  except ValueError as error:  # a null character
    raise refusal(f"an impossible name ({error})") from error
  raise refusal(_OTHER_KINDS.get(kind, "no regular file"))


# How files begin that are given in the place of others.
_BEGINNINGS = {
  b"PAR1": "a Parquet file",
  b"ARROW1": "an Arrow file",
  b"\x89HDF\r\n": "an HDF5 file",
  b"SQLite format 3": "an SQLite database",
  b"\x93NUMPY": "a single NumPy array (.npy)",
  b"PK\x03\x04": "a zip archive (or .npz)",
  b"PK\x05\x06": "a zip archive (or .npz)",
  b"\x1f\x8b": "a gzip file",
  b"BZh": "a bzip2 file",
  b"\xfd7zXZ": "an xz file",
  b"\x28\xb5\x2f\xfd": "a zstd file",
  b"\x80\x02": "a pickle",
  b"\x80\x03": "a pickle",
  b"\x80\x04": "a pickle",
  b"\x80\x05": "a pickle",
  b"\xff\xfe": "UTF-16 text",
  b"\xfe\xff": "UTF-16 text",
  b"mtf_jax world ": "a world file",
}


def kind_of(head: bytes) -> str:
  """Says what a file seems to be, for the refusal of one that was not expected.

  Args:
    head: its first bytes, some hundred.

  Returns:
    A few words, such as "a Parquet file" or "text that begins with 'a,b'".
  """
  if not head:
    return "an empty file"
  for beginning, kind in _BEGINNINGS.items():
    if head.startswith(beginning):
      return kind
  try:
    # The last character may be cut.
    text = codecs.getincrementaldecoder("utf-8-sig")().decode(head)
  except UnicodeDecodeError:
    return "a file of an unknown kind"
  line = (text.splitlines() or [""])[0]
  if not all(c.isprintable() or c == "\t" for c in line):
    return "a file of an unknown kind"
  return f"text that begins with {line[:40]!r}"


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


def json_text(value: Any, indent: int | None = None) -> str:
  """JSON as every reader takes it.

  JSON has neither NaN nor infinities, though Python writes them. A figure that
  is NaN is undefined (a rate of no events) and becomes null. An infinity is a
  fault of whoever computed it.

  Args:
    value: what `json` can write.
    indent: spaces a level; all in one line if None.

  Returns:
    The text, without a line end.

  Raises:
    ValueError: the value holds an infinity.
  """
  return json.dumps(_null_for_nan(value), indent=indent, allow_nan=False)


def _null_for_nan(value: Any) -> Any:
  if isinstance(value, dict):
    return {name: _null_for_nan(part) for name, part in value.items()}
  if isinstance(value, (list, tuple)):
    return [_null_for_nan(part) for part in value]
  # Of all numbers NaN alone differs from itself.
  return None if isinstance(value, float) and value != value else value


def write_json(
  path: str | os.PathLike[str], value: Any, indent: int | None = 1
) -> None:
  """Writes a JSON file, all of it or nothing; see `replacing`.

  Args:
    path: file to write or replace, in an existing folder.
    value: as `json_text` takes it.
    indent: spaces a level; all in one line if None.

  Raises:
    ValueError: the value holds an infinity, which JSON does not have.
    OSError: the file could not be written.
  """
  write_text(path, json_text(value, indent) + "\n")


def read_json_object(
  path: str | os.PathLike[str], expected: str
) -> tuple[dict[str, Any], str]:
  """Reads a JSON file that must hold an object.

  Args:
    path: the file.
    expected: what a message says that it should be.

  Returns:
    The object, and the text that it was read from, for whoever checks a digest.

  Raises:
    InputError: there is none, or it holds something else.
  """
  path = require_file(path, expected)
  try:
    text = path.read_bytes().decode("utf-8")
    values = json.loads(text)
    if not isinstance(values, dict):
      raise ValueError(f"a {type(values).__name__}")
  except (ValueError, RecursionError) as error:
    raise InputError(
      f"{path}: expected {expected}, found a file that is no JSON object"
      f" ({str(error)[:80]})."
    ) from error
  return values, text


def as_array(value: Any, name: str) -> np.ndarray:
  """What a user gave as a NumPy array; refuses what NumPy would drop.

  `np.asarray` takes the values under a mask for values, without a word.

  Args:
    value: an array, or what NumPy makes one of.
    name: what to call it.

  Returns:
    The array.

  Raises:
    InputError: the array has masked values, or the value is no array.
  """
  if np.ma.is_masked(value):
    count = int(np.ma.count_masked(value))
    raise InputError(
      f"{name}: expected an array without a mask, found {count} of"
      f" {np.size(value)} values masked; drop their rows or fill them."
    )
  try:
    return np.asarray(value)
  except ValueError as error:  # lists of different lengths
    raise InputError(f"{name}: expected an array, found {error}.") from error


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
  """Puts a file's name before the sentence of a refusal raised inside.

  Args:
    path: the file whose content is checked.

  Raises:
    InputError: as was raised inside, with the name.
  """
  try:
    yield
  except InputError as error:
    raise InputError(f"{os.fspath(path)}: {error}") from error


MAX_SEED = 2**32 - 1


def check_seed(seed: int, name: str = "seed") -> int:
  """Refuses what is no seed.

  JAX drops the bits of a seed above the 32nd: 2^32 would be 0 again.

  Args:
    seed: from 0 to `MAX_SEED`.
    name: what to call it.

  Returns:
    The seed, a Python integer.

  Raises:
    InputError: it is no integer, or outside the range.
  """
  try:
    # JSON's true is no seed, although Python counts it as 1.
    number = -1 if isinstance(seed, bool) else operator.index(seed)
  except TypeError:
    number = -1
  if not 0 <= number <= MAX_SEED:
    raise InputError(
      f"{name}: expected an integer from 0 to {MAX_SEED}, found {seed!r}."
    )
  return number


def type_name(dtype: np.dtype) -> str:
  """A data type as messages call it; NumPy's names leave out the byte order."""
  swapped = "" if dtype.isnative else " in the other byte order"
  return f"{dtype.name}{swapped}"


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
