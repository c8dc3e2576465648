"""Loads an exported policy, after its own test.

Letters: `B` requests of a batch, `C` candidates, `K` tasks, `L` slate positions,
`S` state features.
"""

import io
import os
import pathlib
from collections.abc import Callable
from typing import Any

import chex
import jax
import numpy as np
from jax import export

from mtf_jax.io import InputError, as_array, require_file
from mtf_jax.serving.manifest import (
  FILES,
  Manifest,
  file_digest,
  read_manifest,
  require_flatbuffers,
)

# Another platform or version rounds otherwise; actions are of order 1, and a
# logarithm of a density of order 10.
_TOLERANCE = 1e-4
# What JAX raises at a program of another version.
_UNREADABLE = (NotImplementedError, ValueError, jax.errors.JaxRuntimeError)


class LoadedPolicy:
  """An exported policy that has passed its self-test.

  manifest: what it says of itself.
  programs: `act` and `serve` without the checks below, for callers whose
    requests are known to be well formed.
  """

  def __init__(
    self, manifest: Manifest, act: jax.stages.Wrapped, serve: jax.stages.Wrapped
  ):
    """Of `load_policy`."""
    self.manifest = manifest
    self.programs = (act, serve)
    self._prepared: dict[tuple[int, ...], Callable] = {}

  def prepare(self, batch_size: int, num_candidates: int) -> None:
    """Compiles both programs for requests of one size, before the first comes.

    `act` and `serve` then call them directly: no request waits for the
    compiler, and none for the look-up of what was compiled. Requests of other
    sizes are answered as before.

    Args:
      batch_size: requests of a batch, `B`.
      num_candidates: candidates of a request, `C`.

    Raises:
      InputError: an empty batch, or fewer candidates than slate positions.
    """
    if batch_size < 1:
      raise InputError(f"batch_size: expected 1 or more, found {batch_size}.")
    slate_size = self.manifest.slate_size
    if num_candidates < slate_size:
      raise InputError(
        f"num_candidates: expected {slate_size} or more, a slate, found"
        f" {num_candidates}."
      )
    act, serve = self.programs
    spec = jax.ShapeDtypeStruct
    observation = spec((batch_size, len(self.manifest.features)), np.float32)
    scores = spec(
      (batch_size, num_candidates, len(self.manifest.tasks)), np.float32
    )
    mask = spec(scores.shape[:2], np.bool_)
    key = spec((batch_size, 2), np.uint32)
    self._prepared[observation.shape] = act.lower(observation).compile()
    self._prepared[scores.shape] = serve.lower(
      observation, scores, mask, key
    ).compile()

  def _observation(self, observation: chex.Array) -> np.ndarray:
    size = len(self.manifest.features)
    array = _floats("observation", observation, ("B", size))
    bad = ~np.isfinite(array)
    if bad.any():
      row, column = np.argwhere(bad)[0]
      raise InputError(
        "observation: expected finite features, found"
        f" {self.manifest.observation_names[column]} = {array[row, column]} in"
        f" request {row}."
      )
    return array

  def act(self, observation: chex.Array) -> dict[str, jax.Array]:
    """Fusion weights of requests, without exploration.

    Args:
      observation: `[B, S]`, `manifest.observation_names` in their order.

    Returns:
      `baseline_action`, `power` and `bias`, as in `export.served_functions`.

    Raises:
      InputError: an empty batch, another shape, or a value that is not finite.
    """
    observation = self._observation(observation)
    program = self._prepared.get(observation.shape, self.programs[0])
    return program(observation)

  def serve(
    self,
    observation: chex.Array,
    scores: chex.Array,
    mask: chex.Array,
    key: chex.Array,
  ) -> dict[str, jax.Array]:
    """Slates of requests, explored, with what a log needs.

    Args:
      observation: `[B, S]`.
      scores: `[B, C, K]`, positive, `manifest.tasks` in their order; what a
        masked candidate has does not matter.
      mask: bool `[B, C]`, False for candidates that must not be shown.
      key: uint32 `[B, 2]` random words; see `export.served_functions`.

    Returns:
      `slate`, `action`, `box_lower`, `box_upper` and `log_prob`.

    Raises:
      InputError: an empty batch, other shapes or types, fewer candidates than
        slate positions, a feature that is not finite, or a score of a valid
        candidate that is not positive and finite.
    """
    observation = self._observation(observation)
    num_tasks = len(self.manifest.tasks)
    scores = _floats("scores", scores, (observation.shape[0], "C", num_tasks))
    num_candidates = scores.shape[1]
    if num_candidates < self.manifest.slate_size:
      raise InputError(
        f"scores: expected {self.manifest.slate_size} candidates or more, a"
        f" slate, found {num_candidates}."
      )
    mask, key = as_array(mask, "mask"), as_array(key, "key")
    for name, array, shape, dtype in (
      ("mask", mask, scores.shape[:2], np.bool_),
      ("key", key, (observation.shape[0], 2), np.uint32),
    ):
      if array.shape != shape or array.dtype != dtype:
        raise InputError(
          f"{name}: expected {np.dtype(dtype).name} of shape {shape}, found"
          f" {array.dtype.name} of shape {array.shape}."
        )
    bad = ~(np.isfinite(scores) & (scores > 0)) & mask[:, :, None]
    if bad.any():
      row, candidate, task = np.argwhere(bad)[0]
      raise InputError(
        "scores: expected positive finite numbers, found"
        f" {self.manifest.tasks[task]} = {scores[row, candidate, task]} of"
        f" candidate {candidate} in request {row}."
      )
    program = self._prepared.get(scores.shape, self.programs[1])
    return program(observation, scores, mask, key)


def _floats(
  name: str, value: chex.Array, shape: tuple[int | str, ...]
) -> np.ndarray:
  """A float32 array of a shape; a letter stands for any size from 1 on."""
  array = as_array(value, name)
  described = f"[{', '.join(map(str, shape))}]"
  fits = array.ndim == len(shape) and all(
    size >= 1 if isinstance(expected, str) else size == expected
    for size, expected in zip(array.shape, shape, strict=True)
  )
  if not fits or array.dtype != np.float32:
    raise InputError(
      f"{name}: expected float32 of shape {described}, no axis empty, found"
      f" {array.dtype.name} of shape {array.shape}."
    )
  return array


def _check_outputs(
  folder: pathlib.Path, found: dict[str, Any], test: dict[str, np.ndarray]
) -> None:
  for name, value in found.items():
    expected = test[f"expected_{name}"]
    value = np.asarray(value)
    if value.shape != expected.shape or value.dtype != expected.dtype:
      worst = "another shape"
    elif np.issubdtype(value.dtype, np.integer):
      worst = "another slate" if (value != expected).any() else ""
    else:
      # Written so that NaN does not pass.
      close = np.abs(value - expected) <= _TOLERANCE * (1 + np.abs(expected))
      worst = "" if close.all() else f"{value[~close][0]}"
    if worst:
      raise InputError(
        f"{folder}: expected {name} of its self-test, found {worst} on"
        f" {jax.default_backend()}; the policy must not be served here."
      )


def load_policy(folder: str | os.PathLike[str]) -> LoadedPolicy:
  """Loads a policy that `export.export_policy` wrote, and tests it.

  Args:
    folder: the policy's.

  Returns:
    The policy, on the default device.

  Raises:
    InputError: a file is missing or differs from its digest in the manifest,
      the manifest is of another format or damaged, the programs are of a JAX
      that this one does not read or not for this platform, the self-test fails,
      or `flatbuffers` is missing.
  """
  folder = pathlib.Path(folder)
  require_flatbuffers()
  manifest = read_manifest(folder)
  contents = {}
  for name in FILES:
    path = require_file(folder / name, "a part of an exported policy")
    contents[name] = path.read_bytes()
    found = file_digest(contents[name])
    if found != manifest.sha256.get(name):
      raise InputError(
        f"{path}: expected the digest {manifest.sha256.get(name)} of the"
        f" manifest, found {found}; the file is damaged."
      )
  programs = []
  for name in FILES[:2]:
    try:
      exported = export.deserialize(bytearray(contents[name]))
      # What JAX wraps is not looked at before, and is of a version of its own.
      exported.mlir_module()
    except _UNREADABLE as error:
      # The bytes are those that were written, so it is their version.
      raise InputError(
        f"{folder / name}: expected a program that JAX {jax.__version__} reads,"
        f" found one of JAX {manifest.versions.get('jax')}, which is too new for"
        " it or more than six months older; export the policy anew."
      ) from error
    platform = export.default_export_platform()
    if platform not in exported.platforms:
      raise InputError(
        f"{folder / name}: expected one of the platforms"
        f" {', '.join(exported.platforms)}, found {platform}."
      )
    programs.append(jax.jit(exported.call))
  with np.load(io.BytesIO(contents["self_test.npz"])) as archive:
    test = dict(archive)
  policy = LoadedPolicy(manifest, *programs)
  _check_outputs(folder, policy.act(test["observation"]), test)
  inputs = ("observation", "scores", "mask", "key")
  _check_outputs(folder, policy.serve(*(test[name] for name in inputs)), test)
  return policy
