"""Files of a run that are read back: JSON under a checksum, and other runs'.

A record is `{"layout_version": ..., "sha256": ..., "content": ...}`; the SHA-256
is that of the version and of the content as `io.json_text` writes it, so that
what is read is what was written, or is refused. The records of checkpoints are
under the checksum of their checkpoint.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from mtf_jax.io import InputError, json_text, require_file, write_json

LAYOUT_VERSION = 3  # 2: no checksum, and results without what they are of.
_FIELDS = {"layout_version", "sha256", "content"}


class RunDirError(InputError):
  """A folder that cannot be what it is asked for, in a sentence."""


def _sha256(version: Any, content: Any) -> str:
  return hashlib.sha256(f"{version} {json_text(content)}".encode()).hexdigest()


def write(path: str | os.PathLike[str], content: Any) -> None:
  """Writes a record, all of it or nothing.

  Args:
    path: file to write or replace.
    content: as `io.json_text` takes it.
  """
  digest = _sha256(LAYOUT_VERSION, content)
  write_json(
    path,
    {"layout_version": LAYOUT_VERSION, "sha256": digest, "content": content},
  )


def _refuse_constant(name: str) -> Any:
  raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
  number = float(digits)
  if not np.isfinite(number):
    raise ValueError(f"{digits} is no finite number")
  return number


def read_json(path: str | os.PathLike[str], expected: str, way_on: str) -> Any:
  """Reads a JSON file.

  Args:
    path: the file.
    expected: what it should be, for the refusal.
    way_on: what its user can do, for the refusal.

  Raises:
    RunDirError: it cannot be read, or is no JSON.
  """
  try:
    content = require_file(path, expected).read_bytes()
  except InputError as error:
    raise RunDirError(f"{str(error).removesuffix('.')}; {way_on}.") from error
  try:
    return json.loads(
      content.decode(), parse_float=_finite, parse_constant=_refuse_constant
    )
  except (ValueError, RecursionError) as error:
    found = f"what is no JSON ({error})" if content else "an empty file"
    raise RunDirError(
      f"{path}: expected {expected}, found {found}; {way_on}."
    ) from error


def read(
  path: str | os.PathLike[str], expected: str, way_on: str
) -> tuple[int, Any]:
  """Reads a record that `write` wrote, or JSON of the layouts before.

  Args:
    path: the file.
    expected: what it should be, for the refusal.
    way_on: what its user can do, for the refusal.

  Returns:
    The layout version and the content. Files of versions 1 and 2 have no
    checksum: the version is 0 for them, and the content all of the file.

  Raises:
    RunDirError: it cannot be read, is damaged, or is of a later version.
  """
  values = read_json(path, expected, way_on)
  if not isinstance(values, dict):
    raise RunDirError(
      f"{path}: expected {expected}, found JSON of a"
      f" {type(values).__name__}; {way_on}."
    )
  # A field that was renamed must not make it a file without a checksum.
  if not _FIELDS & (set(values) - {"layout_version"}):
    return 0, values
  if set(values) != _FIELDS:
    raise RunDirError(
      f"{path}: expected {expected} with the fields"
      f" {', '.join(sorted(_FIELDS))}, found {', '.join(sorted(values))}:"
      f" it is damaged; {way_on}."
    )
  version, content = values["layout_version"], values["content"]
  try:
    found = _sha256(version, content)
  except RecursionError:
    found = "none"
  if found != values["sha256"]:
    raise RunDirError(
      f"{path}: expected {expected} whose SHA-256 is {values['sha256']}, found"
      f" {found}: it is damaged; {way_on}."
    )
  if version != LAYOUT_VERSION:
    raise RunDirError(
      f"{path}: expected {expected} of layout version {LAYOUT_VERSION}, found"
      f" {version}, which another version of the package wrote."
    )
  return version, content


def _flat(value: Any, name: str = "") -> dict[str, Any]:
  if not isinstance(value, dict) or not value:
    return {name: value}
  flat = {}
  for part, inner in value.items():
    flat |= _flat(inner, f"{name}.{part}" if name else part)
  return flat


def check_same(
  path: str | os.PathLike[str],
  expected: Mapping[str, Any],
  found: Mapping[str, Any],
) -> None:
  """Refuses what another run left.

  Args:
    path: what is being read.
    expected: of this run, as JSON has it.
    found: of what is read; may hold more.

  Raises:
    RunDirError: they differ; the sentence names where.
  """
  before = _flat({name: found.get(name) for name in expected})
  for name, value in _flat(dict(expected)).items():
    if name not in before or before[name] != value:
      raise RunDirError(
        f"{path}: expected {name} {value!r}, found {before.get(name)!r}: it is"
        " of another run; give what that was started with, or use another"
        " folder."
      )


def undefined_as_none(value: Any) -> Any:
  """Figures as a record gives them back: None for what is not finite.

  A gain over nothing is NaN or infinite. JSON has neither, and a resumed run
  must go on with the same figures as one that was not interrupted.
  """
  if isinstance(value, dict):
    return {name: undefined_as_none(part) for name, part in value.items()}
  if isinstance(value, (list, tuple)):
    return [undefined_as_none(part) for part in value]
  return None if isinstance(value, float) and not np.isfinite(value) else value
