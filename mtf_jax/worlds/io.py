"""World files: one versioned file, checked, written all or nothing, no pickle.

The file is a line of ASCII, `mtf_jax world <schema version> <sha256>`, and then
an uncompressed `.npz` archive whose bytes the checksum covers. The archive holds
the leaves by their path in the pytree and a JSON header.
"""

import hashlib
import io
import json
import os
from collections.abc import Mapping
from typing import IO, Any

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.io import (
  InputError,
  as_array,
  json_text,
  kind_of,
  naming,
  replacing,
  require_file,
)
from mtf_jax.kernels.fusion import FusionSpec
from mtf_jax.npz import Npz
from mtf_jax.worlds import leaving as leaving_lib
from mtf_jax.worlds import schema
from mtf_jax.worlds.response import ResponseModel
from mtf_jax.worlds.satisfaction import Satisfaction
from mtf_jax.worlds.scores import ScoreTables
from mtf_jax.worlds.world import World, fingerprint

# 1: users calibrated colder than their log; made again, not migrated.
SCHEMA_VERSION = 2
_EXPECTED = "a world file"
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
  raise InputError(
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
    InputError: the leaving model is the user's own, or a leaf is none of a
      world, see `schema`: such a file could not be read.
    OSError: the file could not be written; an earlier file is untouched.
  """
  header = {name: getattr(world, name) for name in _STATIC}
  header["feature_names"] = list(world.feature_names)
  header["leaving"] = _leaving_name(world.leaving)
  header["fingerprint"] = fingerprint(world)
  flat = _flatten(world)
  schema.check_header(header)
  schema.check_arrays(flat, header)
  schema.check_values(flat)
  buffer = io.BytesIO()
  # A JSON string is a plain unicode array: no pickle on either side.
  arrays: dict[str, Any] = {**flat, _HEADER: json_text(header)}
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
    InputError: the file is missing, no world, damaged, of another schema
      version, or its content is none of a world; see `schema`. Types, shapes
      and sizes are refused before memory is taken for them.
  """
  with require_file(path, _EXPECTED).open("rb") as file, naming(path):
    payload = _checked_payload(file)
    archive = Npz(io.BytesIO(payload), _EXPECTED)
    if _HEADER not in archive.names:
      raise archive.refusal("one without header")
    try:
      header = json.loads(archive.text(_HEADER))
    except InputError:
      raise
    except (ValueError, RecursionError) as error:
      raise archive.refusal("one whose header is no JSON") from error
    schema.check_header(header)
    leaves = [name for name in archive.names if name != _HEADER]
    schema.check_arrays({n: archive.layout(n) for n in leaves}, header)
    flat = {name: archive.read(name) for name in leaves}
    schema.check_values(flat)
    world = _unflatten(flat, header)
    if fingerprint(world) != header["fingerprint"]:
      raise InputError(
        f"expected the fingerprint {header['fingerprint']:.60}, found"
        f" {fingerprint(world)}."
      )
  return world


def _checked_payload(file: IO[bytes]) -> bytes:
  """The archive behind the first line, if its checksum is right."""
  line = file.readline(256)
  words = line.decode("ascii", "replace").rstrip("\n").rsplit(" ", 2)
  if len(words) != 3 or words[0] != _MAGIC:
    raise InputError(f"expected {_EXPECTED}, found {kind_of(line)}.")
  if words[1] != str(SCHEMA_VERSION):
    raise InputError(
      f"expected schema version {SCHEMA_VERSION}, found {words[1]:.20}; make"
      " the world again."
    )
  payload = file.read()
  checksum = hashlib.sha256(payload).hexdigest()
  if checksum != words[2]:
    raise InputError(
      f"expected the checksum {words[2]}, found {checksum}; the file is"
      " damaged."
    )
  return payload


def _flatten(world: World) -> dict[str, np.ndarray]:
  """Leaves by their path."""
  flat = {name: as_array(getattr(world, name), name) for name in _ARRAYS}
  for part in (*_PARTS, "leaving"):
    for field, value in getattr(world, part)._asdict().items():
      flat[f"{part}/{field}"] = as_array(value, f"{part}/{field}")
  return flat


def _unflatten(
  flat: Mapping[str, np.ndarray], header: Mapping[str, Any]
) -> World:
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
  return World(**fields, **static)
