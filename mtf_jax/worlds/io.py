"""World files: one versioned file, checked, written all or nothing, no pickle.

The file is a line of ASCII, `mtf_jax world <schema version> <sha256>`, and then
an uncompressed `.npz` archive whose bytes the checksum covers. The archive holds
the leaves by their path in the pytree and a JSON header.
"""

import hashlib
import io
import json
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.io import replacing
from mtf_jax.kernels.fusion import FusionSpec
from mtf_jax.worlds import leaving as leaving_lib
from mtf_jax.worlds.response import ResponseModel
from mtf_jax.worlds.satisfaction import Satisfaction
from mtf_jax.worlds.scores import ScoreTables
from mtf_jax.worlds.world import World, fingerprint

SCHEMA_VERSION = 1
_MAGIC = "mtf_jax world"
_HEADER = "header"
_PARTS = {
  "response": ResponseModel,
  "satisfaction": Satisfaction,
  "scores": ScoreTables,
  "fusion_spec": FusionSpec,
}
_ARRAYS = ("group_weights", "user_features", "population", "pool", "item_tag")
_STATIC = ("feature_names", "num_candidates", "slate_size", "name")


def _leaving_name(leaving: Any) -> str:
  for name, model in leaving_lib.LEAVING_MODELS.items():
    if isinstance(leaving, model):
      return name
  raise ValueError(
    "world.leaving: expected one of the named models"
    f" {', '.join(leaving_lib.LEAVING_MODELS)}, found"
    f" {type(leaving).__name__}; a file cannot hold code."
  )


def save_world(path: str | os.PathLike[str], world: World) -> str:
  """Writes a world, all of it or nothing.

  Args:
    path: file to write or replace.
    world: a world under one of the named leaving models.

  Returns:
    The world's fingerprint.

  Raises:
    ValueError: the leaving model is the user's own.
    OSError: the file could not be written; an earlier file is untouched.
  """
  header = {name: getattr(world, name) for name in _STATIC}
  header["leaving"] = _leaving_name(world.leaving)
  header["fingerprint"] = fingerprint(world)
  parts = {**dict.fromkeys(_PARTS), "leaving": None}
  flat = {name: np.asarray(getattr(world, name)) for name in _ARRAYS}
  for part in parts:
    for field, value in getattr(world, part)._asdict().items():
      flat[f"{part}/{field}"] = np.asarray(value)
  buffer = io.BytesIO()
  # A JSON string is a plain unicode array: no pickle on either side.
  arrays: dict[str, Any] = {**flat, _HEADER: json.dumps(header)}
  np.savez(buffer, **arrays)
  payload = buffer.getbuffer()
  checksum = hashlib.sha256(payload).hexdigest()
  with replacing(path) as file:
    file.write(f"{_MAGIC} {SCHEMA_VERSION} {checksum}\n".encode("ascii"))
    file.write(payload)
  return header["fingerprint"]


def load_world(path: str | os.PathLike[str]) -> World:
  """Reads and checks a world that `save_world` wrote.

  Args:
    path: the file.

  Returns:
    The world, its arrays on the default device.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is no world, damaged, or of another schema version.
  """
  content = pathlib.Path(path).read_bytes()
  line, _, payload = content.partition(b"\n")
  words = line.decode("ascii", "replace").rsplit(" ", 2)
  if len(words) != 3 or words[0] != _MAGIC:
    raise ValueError(
      f"{path}: expected a world file beginning with {_MAGIC!r}, found"
      f" {line[:40]!r}."
    )
  if words[1] != str(SCHEMA_VERSION):
    raise ValueError(
      f"{path}: expected schema version {SCHEMA_VERSION}, found {words[1]}."
    )
  checksum = hashlib.sha256(payload).hexdigest()
  if checksum != words[2]:
    raise ValueError(
      f"{path}: expected the checksum {words[2]}, found {checksum}; the file is"
      " damaged."
    )
  with np.load(io.BytesIO(payload), allow_pickle=False) as archive:
    flat = {name: archive[name] for name in archive.files}
  header = json.loads(str(flat.pop(_HEADER)))
  parts: dict[str, Any] = {
    **_PARTS,
    "leaving": leaving_lib.LEAVING_MODELS[header["leaving"]],
  }
  fields: dict[str, Any] = {name: flat[name] for name in _ARRAYS}
  for part, kind in parts.items():
    fields[part] = kind(*(flat[f"{part}/{field}"] for field in kind._fields))
  fields = jax.tree.map(jnp.asarray, fields)
  static = {name: header[name] for name in _STATIC}
  static["feature_names"] = tuple(static["feature_names"])
  world = World(**fields, **static)
  if fingerprint(world) != header["fingerprint"]:
    raise ValueError(
      f"{path}: expected the fingerprint {header['fingerprint']}, found"
      f" {fingerprint(world)}."
    )
  return world
