"""What a folder of session files says of itself: `manifest.json`.

The manifest is written last and at once: a folder without one is no log, so
that an import that was killed leaves nothing that loads.

Letters: `S` state features, `A` action components, `G` reward groups, `E`
behaviours.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, get_args, get_origin

from mtf_jax.io import InputError, json_text, read_json_object, write_text

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
_EXPECTED = "the manifest of a folder of logged sessions"


class Shard(NamedTuple):
  """One session file of the folder.

  file: its name.
  rows: rows, those that hold only an observation among them.
  sessions: sessions; none has rows in two files.
  transitions: rows that a one-step transition starts from where a cut session
    bootstraps, see `transitions.dataset_from`.
  bytes: size of the file.
  digest: its digest, see `session_log.save_sessions`.
  """

  file: str
  rows: int
  sessions: int
  transitions: int
  bytes: int
  digest: str


@dataclasses.dataclass(frozen=True)
class LogManifest:
  """The description of a folder of session files.

  observation_names: `S` names, in the order of the features.
  action_names: `A` names.
  group_names: `G` names of reward groups.
  behaviour_names: `E` names.
  exploration: how actions were drawn, in words.
  source: where the log comes from, such as platform, world and policy.
  mean, stddev: `S` numbers over all rows, for the normalisation.
  counts: what was read, left out and changed, by name.
  shards: the session files, in order.
  """

  observation_names: tuple[str, ...]
  action_names: tuple[str, ...]
  group_names: tuple[str, ...]
  behaviour_names: tuple[str, ...]
  exploration: str
  source: dict[str, str]
  mean: tuple[float, ...]
  stddev: tuple[float, ...]
  counts: dict[str, int]
  shards: tuple[Shard, ...]

  @property
  def rows(self) -> int:
    """Rows of all shards."""
    return sum(shard.rows for shard in self.shards)

  @property
  def sessions(self) -> int:
    """Sessions of all shards."""
    return sum(shard.sessions for shard in self.shards)

  @property
  def transitions(self) -> int:
    """One-step transitions of all shards."""
    return sum(shard.transitions for shard in self.shards)


def _text(values: Mapping[str, Any]) -> str:
  """The one way in which a manifest is written: its own digest covers it."""
  body = json_text(values, indent=1)
  sha256 = hashlib.sha256(body.encode()).hexdigest()
  return json_text({**values, "manifest_sha256": sha256}, 1) + "\n"


def write_manifest(folder: pathlib.Path, manifest: LogManifest) -> None:
  """Writes `manifest.json`, all of it or nothing: the folder is a log now.

  Args:
    folder: holds the shards.
    manifest: the description.

  Raises:
    OSError: it could not be written.
  """
  values = {
    "format_version": FORMAT_VERSION,
    **dataclasses.asdict(manifest),
    "shards": [shard._asdict() for shard in manifest.shards],
  }
  # Tuples are lists in JSON: as they will be read.
  write_text(folder / MANIFEST, _text(json.loads(json_text(values))))


def read_manifest(
  folder: str | os.PathLike[str],
) -> tuple[LogManifest, str]:
  """Reads and checks the manifest; the shards are not looked at.

  Args:
    folder: of an import.

  Returns:
    The description and the manifest's SHA-256, which covers the shards' digests
    and so names the content of the whole log.

  Raises:
    InputError: there is none, it is of another format version, or damaged.
  """
  folder = pathlib.Path(folder)
  if folder.is_dir() and not (folder / MANIFEST).exists():
    raise InputError(
      f"{folder}: expected a folder of logged sessions, found no {MANIFEST};"
      " an import that was interrupted goes on with --resume."
    )
  path = folder / MANIFEST
  values, text = read_json_object(path, _EXPECTED)
  version = values.pop("format_version", None)
  if type(version) is not int or version != FORMAT_VERSION:
    raise InputError(
      f"{path}: expected format version {FORMAT_VERSION}, found"
      f" {str(version)[:60]}; another version of mtf_jax may have written it."
    )
  sha256 = values.pop("manifest_sha256", None)
  if text != _text({"format_version": version, **values}):
    raise InputError(
      f"{path}: expected the bytes that its own digest {str(sha256)[:64]}"
      " names, found others; the file is damaged or was edited."
    )
  return _parsed(path, values), str(sha256)


def _parsed(path: pathlib.Path, values: dict[str, Any]) -> LogManifest:
  """Checked by field: whoever edits a file can also compute its digest."""
  types_of = {f.name: f.type for f in dataclasses.fields(LogManifest)}
  shards = values.get("shards")
  if isinstance(shards, list):
    values["shards"] = tuple(
      Shard(**shard)
      if isinstance(shard, dict) and set(shard) == set(Shard._fields)
      else shard
      for shard in shards
    )
  for name in values.keys() | types_of.keys():
    if name not in values or name not in types_of:
      what = "missing" if name in types_of else "unknown"
      raise InputError(
        f"{path}: expected the fields of a log, found {name[:60]} {what}."
      )
    if isinstance(values[name], list):
      values[name] = tuple(values[name])
    if not _is(values[name], types_of[name]):
      raise InputError(
        f"{path}: {name}: expected {types_of[name]}, found"
        f" {str(values[name])[:60]!r}."
      )
  for shard in values["shards"]:
    whole = (shard.rows, shard.sessions, shard.transitions, shard.bytes)
    if not all(type(number) is int and number >= 0 for number in whole) or (
      pathlib.PurePath(str(shard.file)).name != shard.file
    ):
      raise InputError(
        f"{path}: shards: expected a file name and whole numbers, found"
        f" {str(shard)[:120]}."
      )
  if (
    not values["shards"]
    or len(values["mean"]) != len(values["observation_names"])
    or len(values["stddev"]) != len(values["observation_names"])
  ):
    raise InputError(
      f"{path}: expected shards, and a mean and a deviation of every"
      " feature, found fewer."
    )
  return LogManifest(**values)


def _is(value: Any, kind: Any) -> bool:
  """Whether a JSON value, lists being tuples, is of a field's type."""
  origin, inside = get_origin(kind), get_args(kind)
  if origin is tuple:
    return isinstance(value, tuple) and all(_is(x, inside[0]) for x in value)
  if origin is dict:
    return isinstance(value, dict) and all(
      _is(x, inside[1]) for x in value.values()
    )
  if kind is float:
    return type(value) in (int, float)
  return type(value) is kind if isinstance(kind, type) else False
