"""What an exported policy says of itself: names, units, ranges, digests.

Letters: `S` state features, `A` action components, `K` tasks, `L` slate
positions.
"""

import dataclasses
import hashlib
import importlib.util
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from mtf_jax.io import InputError, json_text, read_json_object, write_text

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
FILES = ("act.stablehlo", "serve.stablehlo", "self_test.npz")


class Feature(NamedTuple):
  """One component of the observation.

  name: as the log and the world call it.
  unit: of the number that the policy is given, in words.
  low, high: a value outside is not one that the policy was made for.
  default: what stands for a missing value, where a caller allows that.
  """

  name: str
  unit: str
  low: float
  high: float
  default: float


@dataclasses.dataclass(frozen=True)
class Manifest:
  """The description of an exported policy; `manifest.json` holds it.

  features: of the observation, `S` of them, in their order.
  mean, scale: `S` numbers, the affine map that the policy applies to an
    observation by itself; for information.
  tasks: `K` names, in the order of the scores.
  fusion_spec: by field the `K` numbers that make weights of an action.
  half_width: of the box explored around the policy, normalised action units;
    0 does not explore.
  exploration: "session" if one key serves all requests of a session, "request"
    if each has its own.
  slate_size: `L`.
  source: where the policy comes from: learner, round, seed, fingerprints.
  versions: of the packages that exported it.
  sha256: by file name the digest of its bytes.
  """

  features: tuple[Feature, ...]
  mean: tuple[float, ...]
  scale: tuple[float, ...]
  tasks: tuple[str, ...]
  fusion_spec: dict[str, list[float]]
  half_width: float
  exploration: str
  slate_size: int
  source: dict[str, Any]
  versions: dict[str, str]
  sha256: dict[str, str]

  @property
  def observation_names(self) -> tuple[str, ...]:
    """Names of the observation's `S` components."""
    return tuple(feature.name for feature in self.features)


def require_flatbuffers() -> None:
  """Refuses to go on without what JAX writes and reads programs with.

  Raises:
    InputError: it is not installed.
  """
  if importlib.util.find_spec("flatbuffers") is None:
    raise InputError(
      "flatbuffers: expected an installed package, found none; the extra"
      " `serving` brings it (pip install 'mtf-jax[serving]')."
    )


def file_digest(content: bytes) -> str:
  """SHA-256 of bytes, 64 hexadecimal digits."""
  return hashlib.sha256(content).hexdigest()


def _text(values: Mapping[str, Any]) -> str:
  """The one way in which a manifest is written: its own digest covers it."""
  body = json_text(values, indent=1)
  return json_text({**values, "manifest_sha256": file_digest(body.encode())}, 1)


def write_manifest(folder: pathlib.Path, manifest: Manifest) -> None:
  """Writes `manifest.json`, all of it or nothing.

  Args:
    folder: exists.
    manifest: the description.

  Raises:
    OSError: it could not be written.
  """
  values = {
    "format_version": FORMAT_VERSION,
    **dataclasses.asdict(manifest),
    "features": [feature._asdict() for feature in manifest.features],
  }
  # Tuples are lists in JSON: as they will be read.
  values = json.loads(json_text(values))
  write_text(folder / MANIFEST, _text(values) + "\n")


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
  """Reads and checks the manifest of an exported policy.

  Args:
    folder: of `export.export_policy`.

  Returns:
    The description. The other files are not looked at.

  Raises:
    InputError: there is none, it is of another format version, or damaged.
  """
  path = pathlib.Path(folder) / MANIFEST
  values, text = read_json_object(path, "the manifest of an exported policy")
  version = values.get("format_version")
  if version != FORMAT_VERSION:
    raise InputError(
      f"{path}: expected format version {FORMAT_VERSION}, found {version!r};"
      " a newer mtf_jax may have written it."
    )
  recorded = values.pop("manifest_sha256", None)
  if text != _text(values) + "\n":
    raise InputError(
      f"{path}: expected the bytes that its own digest {recorded!r} names, found"
      " others; the file is damaged or was edited."
    )
  del values["format_version"]
  values["features"] = tuple(Feature(**x) for x in values["features"])
  for name in ("mean", "scale", "tasks"):
    values[name] = tuple(values[name])
  return Manifest(**values)
