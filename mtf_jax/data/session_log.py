"""Logged sessions: schema, validation, files, and batches on the device.

A row is one request. Rows of a session are consecutive, so the next observation
and the next box are the next row and are not stored twice.

Letters: `N` rows, `S` state features, `A` action components, `G` reward groups,
`E` behaviours, `B` transitions of a batch.
"""

import json
import os
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import numpy as np

from mtf_jax.io import digest, replacing
from mtf_jax.kernels.exploration import ActionBox

SCHEMA_VERSION = 2


class SessionLog(NamedTuple):
  """Rows of logged sessions, in order; NumPy or JAX arrays.

  A session ends in one of three ways. The user left: `terminal` on its last
  row. The log was cut and the observation after the cut is known: one more row
  with `bootstrap_only`, whose observation and box are what the row before
  bootstraps from; session and step go on, its other fields are 0. The log was
  cut and nothing after it is known: neither flag, and the last row is not a
  transition.

  observation: float32 `[N, S]` state features before the request.
  action: float32 `[N, A]` logged action, in normalised units, inside its box.
  box: float32 `[N, A]` bounds of the exploration policy at this request. A
    policy without a box (Gaussian noise) logs the limits of valid actions.
  log_prob: float32 `[N]` log density of the action under the policy that
    logged it.
  exploration_held: bool `[N]` whether the action's deviation was drawn once for
    the session and held, instead of at this request. The densities of such a
    session's rows are no longer independent: their sum is not its density.
  reward: float32 `[N, G]` reward of each group for the shown list.
  feedback: float32 `[N, E]` behaviours summed over the shown list.
  terminal: bool `[N]` whether the user left after this request (discount 0).
  bootstrap_only: bool `[N]` whether the row holds only the observation and the
    box after a cut session's last request.
  session_id: int32 `[N]` constant over the consecutive rows of a session.
  step: int32 `[N]` request of the session, from 0.
  """

  observation: chex.Array
  action: chex.Array
  box: ActionBox
  log_prob: chex.Array
  exploration_held: chex.Array
  reward: chex.Array
  feedback: chex.Array
  terminal: chex.Array
  bootstrap_only: chex.Array
  session_id: chex.Array
  step: chex.Array


# Flat name -> (dtype, letters of the shape). The order is that of the file.
_FIELDS = {
  "observation": (np.float32, "NS"),
  "action": (np.float32, "NA"),
  "box_lower": (np.float32, "NA"),
  "box_upper": (np.float32, "NA"),
  "log_prob": (np.float32, "N"),
  "exploration_held": (np.bool_, "N"),
  "reward": (np.float32, "NG"),
  "feedback": (np.float32, "NE"),
  "terminal": (np.bool_, "N"),
  "bootstrap_only": (np.bool_, "N"),
  "session_id": (np.int32, "N"),
  "step": (np.int32, "N"),
}
# Flat name -> (first schema version with it, value in files of earlier ones).
# Before version 2 no file said whether exploration was held.
_ADDED = {"exploration_held": (2, False)}


_HEADER = "header"


def _flatten(log: SessionLog) -> dict[str, np.ndarray]:
  flat = {**log._asdict(), "box_lower": log.box.lower}
  flat["box_upper"] = log.box.upper
  return {name: np.asarray(flat[name]) for name in _FIELDS}


def _unflatten(flat: Mapping[str, np.ndarray]) -> SessionLog:
  fields = {name: flat[name] for name in SessionLog._fields if name != "box"}
  box = ActionBox(lower=flat["box_lower"], upper=flat["box_upper"])
  return SessionLog(box=box, **fields)


def _check_shapes(flat: Mapping[str, np.ndarray]) -> None:
  sizes: dict[str, int] = {}
  for name, (dtype, letters) in _FIELDS.items():
    array, described = flat[name], f"[{', '.join(letters)}]"
    if array.dtype != dtype:
      raise ValueError(
        f"{name}: expected {np.dtype(dtype).name}, found {array.dtype.name}."
      )
    if array.ndim != len(letters):
      raise ValueError(
        f"{name}: expected shape {described}, found {array.shape}."
      )
    for letter, size in zip(letters, array.shape, strict=True):
      if sizes.setdefault(letter, size) != size:
        raise ValueError(
          f"{name}: expected shape {described} with {letter} ="
          f" {sizes[letter]}, found {array.shape}."
        )
      if not size:
        raise ValueError(f"{name}: expected no empty axis, found {letter} = 0.")


def validate(log: SessionLog) -> None:
  """Checks the values of a log; a learner must not meet what this refuses.

  Args:
    log: rows of logged sessions.

  Raises:
    ValueError: a wrong dtype or shape, or rows that break the schema. All
      kinds of bad rows are named in one message, each with its count and first
      row: values that are not finite, inverted boxes, actions outside their
      own box, sessions whose rows are not consecutive, steps out of order, and
      end flags before the end of a session.
  """
  flat = _flatten(log)
  _check_shapes(flat)
  num_rows = flat["terminal"].shape[0]
  bad: dict[str, np.ndarray] = {}
  for name, (dtype, _) in _FIELDS.items():
    if dtype is np.float32:
      finite = np.isfinite(flat[name]).reshape(num_rows, -1)
      bad[f"{name} not finite"] = ~finite.all(axis=1)
  action, lower, upper = flat["action"], flat["box_lower"], flat["box_upper"]
  logged = ~flat["bootstrap_only"]
  bad["box.lower above box.upper"] = np.any(lower > upper, axis=1)
  outside = (action < lower) | (action > upper)
  bad["action outside its own box"] = outside.any(axis=1) & logged

  session_id, step = flat["session_id"], flat["step"]
  first = np.ones(num_rows, bool)
  first[1:] = session_id[1:] != session_id[:-1]
  last = np.ones(num_rows, bool)
  last[:-1] = first[1:]
  block_row = np.flatnonzero(first)
  _, seen_first = np.unique(session_id[block_row], return_index=True)
  again = np.ones(block_row.size, bool)
  again[seen_first] = False
  reopened = np.zeros(num_rows, bool)
  reopened[block_row[again]] = True
  bad["session_id of an earlier, closed session"] = reopened
  expected = np.arange(num_rows) - block_row[np.cumsum(first) - 1]
  bad["step not counting from 0 by 1"] = step != expected
  bad["terminal before the session's last row"] = flat["terminal"] & ~last
  misplaced = ~last | first | flat["terminal"]
  bad["bootstrap_only not after a cut session's last request"] = (
    flat["bootstrap_only"] & misplaced
  )
  found = [
    f"{what}: {int(rows.sum())} of {num_rows} rows, first row"
    f" {int(np.argmax(rows))}"
    for what, rows in bad.items()
    if rows.any()
  ]
  if found:
    raise ValueError(f"log: expected valid rows, found {'; '.join(found)}.")


def fingerprint(log: SessionLog) -> str:
  """Names the content of a log: a SHA-256 over shapes and values, 64 hex."""
  return digest(_flatten(log).items())


def save_sessions(
  path: str | os.PathLike[str],
  log: SessionLog,
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes a log as one uncompressed `.npz`, all of it or nothing.

  Args:
    path: file to write or replace.
    log: rows; checked with `validate` first.
    metadata: where the log comes from, such as `{"world": fingerprint}`.

  Raises:
    ValueError: the log is not valid.
    OSError: the file could not be written; an earlier file is untouched.
  """
  validate(log)
  header = {"schema_version": SCHEMA_VERSION, "metadata": dict(metadata or {})}
  # A JSON string is a plain unicode array: no pickle on either side.
  arrays: dict[str, Any] = {**_flatten(log), _HEADER: json.dumps(header)}
  with replacing(path) as file:
    np.savez(file, **arrays)


def load_sessions(
  path: str | os.PathLike[str],
) -> tuple[SessionLog, dict[str, str]]:
  """Reads and checks a log that `save_sessions` wrote.

  Files of earlier schema versions are read too: version 1 does not know
  `exploration_held`, which is then False.

  Args:
    path: an `.npz` file.

  Returns:
    The log as NumPy arrays, and the metadata saved with it.

  Raises:
    FileNotFoundError: there is no such file.
    ValueError: the file is damaged, of an unknown schema version, lacks or adds
      a field, or its rows break the schema (see `validate`).
  """
  try:
    # Opened here: NumPy leaves its own file open when it cannot read it.
    with (
      open(path, "rb") as file,
      np.load(file, allow_pickle=False) as archive,
    ):
      flat = {name: archive[name] for name in archive.files}
  except FileNotFoundError:
    raise
  except (
    # TypeError: an .npy file gives an array, which is no archive.
    TypeError,
    ValueError,
    EOFError,
    zipfile.BadZipFile,
    OSError,
  ) as error:
    raise ValueError(
      f"{path}: expected an .npz file of logged sessions, found a file that"
      f" cannot be read ({error})."
    ) from error
  try:
    header = json.loads(str(flat.pop(_HEADER)))
    version, metadata = header["schema_version"], header["metadata"]
  except (KeyError, TypeError, ValueError) as error:
    raise ValueError(
      f"{path}: expected a header with schema_version and metadata, found none."
    ) from error
  if version not in range(1, SCHEMA_VERSION + 1):
    raise ValueError(
      f"{path}: expected schema version 1 to {SCHEMA_VERSION}, found {version}."
    )
  later = {name for name, (since, _) in _ADDED.items() if version < since}
  expected = _FIELDS.keys() - later
  if flat.keys() != expected:
    missing = sorted(expected - flat.keys())
    unknown = sorted(flat.keys() - expected)
    raise ValueError(
      f"{path}: expected the fields of SessionLog, found {missing} missing and"
      f" {unknown} unknown."
    )
  for name in later:
    flat[name] = np.full(flat["terminal"].shape, _ADDED[name][1])
  log = _unflatten(flat)
  try:
    validate(log)
  except ValueError as error:
    raise ValueError(f"{path}: {error}") from error
  return log, metadata
