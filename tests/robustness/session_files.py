"""Session files of all schema versions, damaged and crafted.

A file of version 3 or later has a digest: it is refused, or it gives the original;
one of version 5 has shown items, one of version 6 scores of candidates. Files of versions 1 and 2 have none beyond the checksums of a zip archive, so whoever
packs the archive anew can make another valid log of it. Of these a reader may
give what a strict reading of the same bytes gives, one that allows no field
twice, no byte behind an array and no header but NumPy's own: never anything
else.
"""

import ast
import io
import json
import pathlib
import struct
import zipfile
from typing import Any
from unittest import mock

import numpy as np

from mtf_jax.data import candidate_scores, session_log, shown_items
from tests.robustness import mutate, mutate_npz
from tests.robustness.kinds import Files, ReadOnly
from tests.session_logs import random_log, with_candidates, with_items

_NAME = "sessions.npz"
_METADATA = {"world": "0123456789abcdef", "note": "fuzz"}


def _flat(log: session_log.SessionLog) -> dict[str, np.ndarray]:
  fields = {**log._asdict(), "box_lower": log.box.lower}
  fields["box_upper"] = log.box.upper
  del fields["box"], fields["items"], fields["candidates"]
  own = {name: np.asarray(value) for name, value in fields.items()}
  return (
    own
    | shown_items.flatten(log.items)
    | candidate_scores.flatten(log.candidates)
  )


def _old_file(log: session_log.SessionLog, version: int) -> bytes:
  """As versions 1 and 2 of the package wrote it."""
  arrays: dict[str, Any] = _flat(log)
  if version == 1:
    del arrays["exploration_held"]
  header = {"schema_version": version, "metadata": _METADATA}
  buffer = io.BytesIO()
  np.savez(buffer, **arrays, header=json.dumps(header))
  return buffer.getvalue()


class Mismatch(Exception):
  """A strict reading finds no log."""


def _strict_array(content: bytes) -> np.ndarray:
  """The array of a member, from its bytes and Python's own parser."""
  if content[:6] != b"\x93NUMPY" or content[6] not in (1, 2, 3):
    raise Mismatch("no array")
  start, form = (10, "<H") if content[6] == 1 else (12, "<I")
  (length,) = struct.unpack_from(form, content, 8)
  header = ast.literal_eval(content[start : start + length].decode("latin1"))
  if set(header) != {"descr", "fortran_order", "shape"}:
    raise Mismatch("an array header of other fields")
  dtype, shape = np.dtype(header["descr"]), header["shape"]
  data = content[start + length :]
  if dtype.hasobject or any(type(n) is not int or n < 0 for n in shape):
    raise Mismatch("an array that no log has")
  order = "F" if header["fortran_order"] else "C"
  size = dtype.itemsize
  for n in shape:
    size *= n
  if size != len(data):
    raise Mismatch("more or less data than the shape says")
  return np.frombuffer(data, dtype).reshape(shape, order=order)


def strict_reading(content: bytes) -> tuple[dict[str, np.ndarray], Any]:
  """Fields and metadata of a file without a digest, nothing forgiven.

  Raises:
    Mismatch, or whatever Python's own readers raise: it is no such file.
  """
  with zipfile.ZipFile(io.BytesIO(content)) as archive:
    names = archive.namelist()
    if len(set(names)) != len(names) or archive.testzip() is not None:
      raise Mismatch("a member twice, or a wrong checksum")
    flat = {}
    for name in names:
      if not name.endswith(".npy"):
        raise Mismatch("a member that is no array")
      flat[name[: -len(".npy")]] = _strict_array(archive.read(name))
  header = json.loads(str(flat.pop("header")[()]))
  if set(header) != {"schema_version", "metadata"}:
    raise Mismatch("a header of other fields")
  rows = len(flat["terminal"])
  if header["schema_version"] == 1:
    if "exploration_held" in flat:
      raise Mismatch("a field of a later version")
    flat["exploration_held"] = np.zeros(rows, bool)
  elif header["schema_version"] != 2:
    raise Mismatch("another version")
  metadata = header["metadata"]
  if any(type(x) is not str for x in metadata.values()):
    raise Mismatch("metadata that is no text")
  return flat, metadata


def _differences(found, expected) -> str:
  flat, metadata = _flat(found[0]), found[1]
  if flat.keys() != expected[0].keys():
    return f"fields {sorted(flat)}"
  for name, array in expected[0].items():
    mine = flat[name]
    if (mine.dtype, mine.shape) != (array.dtype, array.shape):
      return f"{name}: {mine.dtype} {mine.shape}"
    if mine.tobytes() != array.tobytes():
      return f"{name}: other values"
  return "" if metadata == expected[1] else f"metadata {metadata!r:.80}"


class Sessions(ReadOnly):
  """Session files: what `load_sessions` gives."""

  name = "sessions"
  share = 42

  def __init__(self, folder: pathlib.Path):
    """Writes one log in all versions."""
    self._log = random_log(num_rows=24, features=5, components=2)
    path = folder / _NAME
    session_log.save_sessions(path, self._log, _METADATA)
    self._current = path.read_bytes()
    self._folder = folder
    self._items = with_items(self._log)
    self._candidates = with_candidates(self._log)
    # By version; what is written most comes last.
    self._contents = {n: _old_file(self._log, n) for n in (1, 2)}
    for version, log in ((5, self._items), (6, self._candidates)):
      session_log.save_sessions(path, log, _METADATA)
      self._contents[version] = path.read_bytes()
    self._contents[4] = self._current

  def mutate(self, rng: np.random.Generator) -> tuple[str, Files]:
    versions = list(self._contents)
    version = versions[int(rng.integers(len(versions)))]
    if rng.integers(3):
      version = versions[-1]
    content = self._contents[version]
    kind = int(rng.integers(10))
    if kind < 3:
      what, content = mutate.damage_bytes(rng, content)
    elif kind < 7:
      what, content = mutate_npz.damage_archive(rng, content)
    elif kind < 9:
      what, content = self._other_header(rng, content)
    else:
      what, content = self._crafted(rng)
    return f"version {version}: {what}", {_NAME: content}

  def _other_header(self, rng, content):
    members = mutate_npz.members_of(content)
    (place,) = (
      n for n, member in enumerate(members) if member.name == "header.npy"
    )
    header = json.loads(str(np.load(io.BytesIO(members[place].content))))
    what, text = mutate.damage_json_text(rng, header)
    array = np.asarray(text)
    if rng.integers(8) == 0:
      done, array = mutate_npz.damage_array(rng, array)
      what += f", {done}"
    members[place] = mutate_npz.Member("header.npy", mutate_npz.npy(array))
    return f"header: {what}", mutate_npz.pack(members)

  def _crafted(self, rng):
    """What no log may hold, written as the package writes, digest and all."""
    flat = _flat(self._log)
    names = [name for name, array in flat.items() if array.dtype == np.float32]
    what = mutate.pick(
      rng,
      ("nan", "inf", "box", "outside", "step", "closed", "terminal", "tail"),
    )
    name = mutate.pick(rng, names)
    row = 1 + 4 * int(rng.integers(5))  # of sessions of four rows: the second
    flat = {name: array.copy() for name, array in flat.items()}
    if what in ("nan", "inf"):
      flat[name].reshape(len(flat[name]), -1)[row, 0] = float(what)
    elif what == "box":
      flat["box_lower"], flat["box_upper"] = (
        flat["box_upper"],
        flat["box_lower"],
      )
    elif what == "outside":
      flat["action"][row] = flat["box_upper"][row] + 1
    elif what == "step":
      flat["step"][row] += 1
    elif what == "closed":
      flat["session_id"][-4:] = flat["session_id"][0]
    elif what == "terminal":
      flat["terminal"][row] = True
    else:
      flat["bootstrap_only"][row] = True
    box = session_log.ActionBox(flat.pop("box_lower"), flat.pop("box_upper"))
    log = session_log.SessionLog(box=box, **flat)
    path = self._folder / _NAME
    with mock.patch.object(session_log, "validate", lambda log: None):
      session_log.save_sessions(path, log, _METADATA)
    return f"crafted: {what} in row {row} ({name})", path.read_bytes()

  def read(self, folder: pathlib.Path) -> Any:
    return session_log.load_sessions(folder / _NAME)

  def difference(self, folder: pathlib.Path, found: Any) -> str:
    log = self._log
    if found[0].items is not None:
      log = self._items
    elif found[0].candidates is not None:
      log = self._candidates
    expected = (_flat(log), _METADATA)
    differs = _differences(found, expected)
    if not differs:
      return ""
    try:
      strict = strict_reading((folder / _NAME).read_bytes())
    except Exception as error:
      return f"{differs} (strictly: {error})"
    return _differences(found, strict)
