"""What the arrays and the header of a world must be like, whoever made them.

JAX clamps an index that is out of range and computes on with what is not a
number: a world that breaks these rules would give results, and nobody would
ask. Letters: those of `world`, `D` factors, `H` duration buckets, `N`
interactions, `Q` points of a play table, `T` play knots, `V` levels of a score.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtf_jax.arrays import FieldType, Laid, check_fields
from mtf_jax.data.behaviours import BEHAVIOURS, INTERACTIONS, TASKS
from mtf_jax.io import InputError
from mtf_jax.worlds.leaving import LEAVING_MODELS
from mtf_jax.worlds.noise import COUNTERS_PER_REQUEST
from mtf_jax.worlds.response import PLAY_KNOTS, Z_POINTS

_SIZES = {
  "E": len(BEHAVIOURS),
  "K": len(TASKS),
  "N": len(INTERACTIONS),
  "Q": Z_POINTS,
  "T": PLAY_KNOTS,
  "V": 256,
}
_F, _I = np.float32, np.int32
# Leaves by their path, apart from those of the leaving model (scalars).
_FIELDS: dict[str, FieldType] = {
  "response/user_interest": (_F, "U"),
  "response/item_interest": (_F, "I"),
  "response/user_factors": (_F, "UD"),
  "response/item_factors": (_F, "ID"),
  "response/reach_scale": (_F, ""),
  "response/watch_shift": (_F, ""),
  "response/duration": (_F, "I"),
  "response/duration_bucket": (_I, "I"),
  "response/play_table": (_F, "HQ"),
  "response/residual_scale": (_F, ""),
  "response/interaction_play": (_F, "NT"),
  "response/interaction_reach": (_F, "N"),
  "response/interaction_coupling": (_F, "NN"),
  "response/user_interaction": (_F, "UN"),
  "response/item_interaction": (_F, "IN"),
  "response/interaction_shift": (_F, ""),
  "satisfaction/taste": (_F, "UE"),
  "satisfaction/evening_taste": (_F, "E"),
  "satisfaction/regret": (_F, "I"),
  "satisfaction/regretted": (_F, "E"),
  "satisfaction/center": (_F, "U"),
  "satisfaction/scale": (_F, ""),
  "scores/codes": (np.uint8, "UPK"),
  "scores/values": (_F, "KV"),
  "fusion_spec/power_base": (_F, "K"),
  "fusion_spec/power_rate": (_F, "K"),
  "fusion_spec/bias_base": (_F, "K"),
  "fusion_spec/bias_rate": (_F, "K"),
  "group_weights": (_F, "GE"),
  "user_features": (_F, "UF"),
  "population": (_I, "W"),
  "pool": ((np.uint16, _I), "UP"),
  "item_tag": (_I, "I"),
}
# Index -> what it counts through: a leaf and its axis.
_INDICES = {
  "population": ("response/user_interest", 0),
  "pool": ("response/item_interest", 0),
  "response/duration_bucket": ("response/play_table", 0),
}
_POSITIVE = (
  "response/duration",
  "response/residual_scale",
  "satisfaction/scale",
  "scores/values",
  "leaving/softness",
)
_STATIC = {
  "feature_names": list,
  "num_candidates": int,
  "slate_size": int,
  "name": str,
  "leaving": str,
  "fingerprint": str,
}


def check_header(header: Any) -> None:
  """Checks what a world file says in words.

  Args:
    header: as JSON has it.

  Raises:
    InputError: it names the entry that is missing, unknown or wrong.
  """
  if not isinstance(header, dict):
    raise InputError(
      f"header: expected entries by name, found {type(header).__name__}."
    )
  _check_names("header", set(header), set(_STATIC))
  for name, kind in _STATIC.items():
    # `True` is an integer to Python.
    if type(header[name]) is not kind:
      raise InputError(
        f"{name}: expected a value of type {kind.__name__}, found"
        f" {header[name]!r:.60}."
      )
  if not all(type(name) is str for name in header["feature_names"]):
    raise InputError("feature_names: expected texts, found something else.")
  if header["leaving"] not in LEAVING_MODELS:
    raise InputError(
      f"leaving: expected one of {', '.join(LEAVING_MODELS)}, found"
      f" {header['leaving']!r:.60}."
    )


def check_arrays(found: Mapping[str, Laid], header: Mapping[str, Any]) -> None:
  """Checks types and shapes of a world's leaves, and its sizes.

  Args:
    found: leaves by path, such as "response/duration", or what a file says of
      them: nothing is read.
    header: checked.

  Raises:
    InputError: it names the leaf or the size.
  """
  leaving: Any = LEAVING_MODELS[header["leaving"]]
  fields = {
    **_FIELDS,
    **{f"leaving/{name}": (_F, "") for name in leaving._fields},
  }
  _check_names("arrays", set(found), set(fields))
  for name in fields:
    # One number for all tasks is a spec too.
    if name.startswith("fusion_spec/") and not found[name].shape:
      fields[name] = (_F, "")
  sizes = check_fields(
    found, fields, {**_SIZES, "F": len(header["feature_names"])}
  )
  candidates, slate = header["num_candidates"], header["slate_size"]
  if sizes["P"] & (sizes["P"] - 1):
    raise InputError(f"pool: expected a power of two, found P = {sizes['P']}.")
  most = min(sizes["P"], COUNTERS_PER_REQUEST - 1)
  if not 1 <= slate <= candidates <= most:
    raise InputError(
      "slate_size, num_candidates: expected 1 <= slate_size <= num_candidates"
      f" <= {most}, found {slate!s:.20} and {candidates!s:.20}."
    )


def check_values(flat: Mapping[str, np.ndarray]) -> None:
  """Checks the values of a world's leaves.

  Args:
    flat: leaves by path; checked by `check_arrays`.

  Raises:
    InputError: it names the leaf, how many of its values are wrong, and the
      first of them.
  """

  def refuse(name: str, bad: np.ndarray, expected: str) -> None:
    if bad.any():
      first = flat[name].reshape(-1)[np.argmax(bad.reshape(-1))]
      raise InputError(
        f"{name}: expected {expected}, found {first:.6g} ({int(bad.sum())} of"
        f" {bad.size} values)."
      )

  for name, array in flat.items():
    if name in _POSITIVE:
      refuse(name, ~(array > 0), "values above 0")
    # Pictures have no duration.
    if array.dtype == np.float32 and name != "response/duration":
      refuse(name, ~np.isfinite(array), "finite values")
  for name, (counted, axis) in _INDICES.items():
    size = flat[counted].shape[axis]
    outside = (flat[name] < 0) | (flat[name] >= size)
    refuse(name, outside, f"indices from 0 to {size - 1}")


def _check_names(what: str, found: set[str], expected: set[str]) -> None:
  if found != expected:
    missing = sorted(expected - found)[:10]
    unknown = [name[:60] for name in sorted(found - expected)[:10]]
    raise InputError(
      f"{what}: expected those of a world, found {missing} missing and"
      f" {unknown} unknown."
    )
