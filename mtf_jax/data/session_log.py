"""Logged sessions: schema, validation, files, and batches on the device.

A row is one request. Rows of a session are consecutive, so the next observation
and the next box are the next row and are not stored twice.

Letters: `N` rows, `S` state features, `A` action components, `G` reward groups,
`E` behaviours, `B` transitions of a batch; and those of `shown_items` and
`candidate_scores`.
"""

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import numpy as np

from mtf_jax.arrays import FieldType, check_fields
from mtf_jax.data import candidate_scores, shown_items
from mtf_jax.data.candidate_scores import CandidateScores
from mtf_jax.data.shown_items import ShownItems
from mtf_jax.io import (
  InputError,
  as_array,
  digest,
  json_text,
  replacing,
)
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.npz import Npz, open_npz, save_npz

# 2: `exploration_held`. 3: a digest of the whole. 4: `session_id` of 64 bits. 5:
# the columns of `shown_items`. 6: those of `candidate_scores` instead. A log with
# neither is written as version 4.
SCHEMA_VERSION = 6


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
  session_id: int32 or int64 `[N]` constant over the consecutive rows of a
    session.
  step: int32 `[N]` request of the session, from 0.
  items: the shown items one by one, or None where they were not logged.
  candidates: scores of candidates, where the request was ranked by monotone cells
    and `action` is that of the curve on top; else None. A log has these, the
    shown items, or neither.
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
  items: ShownItems | None = None
  candidates: CandidateScores | None = None


# Flat name -> (dtype, letters of the shape). The order is that of the file.
_FIELDS: dict[str, FieldType] = {
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
  "session_id": ((np.int32, np.int64), "N"),
  "step": (np.int32, "N"),
}
# Flat name -> (first schema version with it, value in files of earlier ones).
# Before version 2 no file said whether exploration was held.
_ADDED = {"exploration_held": (2, False)}
# Fields that are 0 where a row holds only an observation and a box.
_EMPTY_IN_EXTRA_ROWS = (
  "action",
  "log_prob",
  "exploration_held",
  "reward",
  "feedback",
)

_HEADER = "header"
_DIGEST = "digest"
_EXPECTED = "a session file (.npz)"


def _flatten(log: SessionLog) -> dict[str, np.ndarray]:
  for name, value, kind in (
    ("log", log, SessionLog),
    ("box", getattr(log, "box", None), ActionBox),
  ):
    if not isinstance(value, kind):
      raise InputError(
        f"{name}: expected a value of type {kind.__name__}, found"
        f" {type(value).__name__}."
      )
  flat = {**log._asdict(), "box_lower": log.box.lower}
  flat["box_upper"] = log.box.upper
  own = {name: as_array(flat[name], name) for name in _FIELDS}
  if log.items is not None and log.candidates is not None:
    raise InputError(
      "log: expected shown items or scores of candidates, found both."
    )
  return (
    own
    | shown_items.flatten(log.items)
    | candidate_scores.flatten(log.candidates)
  )


def _unflatten(flat: Mapping[str, np.ndarray]) -> SessionLog:
  fields = {name: flat[name] for name in SessionLog._fields if name in flat}
  box = ActionBox(lower=flat["box_lower"], upper=flat["box_upper"])
  return SessionLog(
    box=box,
    items=shown_items.unflatten(flat),
    candidates=candidate_scores.unflatten(flat),
    **fields,
  )


# Schema version -> the columns that it has beside those of version 4.
_OPTIONAL: dict[int, dict[str, FieldType]] = {
  5: shown_items.FIELDS,
  6: candidate_scores.FIELDS,
}


def _version_of(log: SessionLog) -> int:
  """As low as can be: the same log is the same bytes as ever."""
  if log.candidates is not None:
    return 6
  return 4 if log.items is None else 5


def _fields(version: int) -> dict[str, FieldType]:
  return _FIELDS | _OPTIONAL.get(version, {})


def validate(log: SessionLog) -> None:
  """Checks the values of a log; a learner must not meet what this refuses.

  Args:
    log: rows of logged sessions.

  Raises:
    InputError: a field that is no array, has a mask, a wrong dtype or shape,
      or rows that break the schema. All kinds of bad rows are named in one
      message, each with its count and first row: values that are not finite,
      inverted boxes, actions outside their own box, sessions whose rows are
      not consecutive, steps out of order, end flags before the end of a
      session, `bootstrap_only` rows with more than they may have, knots that do
      not rise, and increments below 0.
  """
  flat = _flatten(log)
  fields = _fields(_version_of(log))
  check_fields(flat, fields, {})
  num_rows = flat["terminal"].shape[0]
  found = []

  def note(what: str, bad: np.ndarray) -> None:
    # Asked of the whole first: sums over short axes are slow.
    if bad.any():
      rows = bad.reshape(num_rows, -1).any(axis=1)
      found.append(
        f"{what}: {int(rows.sum())} of {num_rows} rows, first row"
        f" {int(np.argmax(rows))}"
      )

  for name, (dtype, _) in fields.items():
    if dtype is np.float32:
      note(f"{name} not finite", ~np.isfinite(flat[name]))
  action, lower, upper = flat["action"], flat["box_lower"], flat["box_upper"]
  extra = flat["bootstrap_only"]
  note("box.lower above box.upper", lower > upper)
  outside = (action < lower) | (action > upper)
  note("action outside its own box", outside & ~extra[:, None])

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
  note("session_id of an earlier, closed session", reopened)
  expected = np.arange(num_rows) - block_row[np.cumsum(first) - 1]
  note("step not counting from 0 by 1", step != expected)
  note("terminal before the session's last row", flat["terminal"] & ~last)
  misplaced = ~last | first | flat["terminal"]
  note(
    "bootstrap_only not after a cut session's last request", extra & misplaced
  )
  (extra_row,) = np.nonzero(extra)
  for name in _EMPTY_IN_EXTRA_ROWS:
    values = flat[name][extra_row] != 0
    used = np.zeros(num_rows, bool)
    used[extra_row] = values.any(axis=tuple(range(1, values.ndim)))
    note(f"{name} not 0 beside bootstrap_only", used)
  optional = shown_items.bad_rows(flat, extra) | candidate_scores.bad_rows(flat)
  for what, bad in optional.items():
    note(what, bad)
  if found:
    raise InputError(f"log: expected valid rows, found {'; '.join(found)}.")


def fingerprint(log: SessionLog) -> str:
  """Names the content of a log: a SHA-256 over shapes and values, 64 hex."""
  return digest(_flatten(log).items())


def save_sessions(
  path: str | os.PathLike[str],
  log: SessionLog,
  metadata: Mapping[str, str] | None = None,
) -> str:
  """Writes a log as one uncompressed `.npz`, all of it or nothing.

  Args:
    path: file to write or replace.
    log: rows; checked with `validate` first.
    metadata: where the log comes from, such as `{"world": fingerprint}`.

  Returns:
    The file's digest, see `load_sessions`.

  Raises:
    InputError: the log is not valid, or the metadata holds more than texts.
    OSError: the file could not be written; an earlier file is untouched.
  """
  validate(log)
  metadata = dict(metadata or {})
  _check_metadata(metadata)
  header = json_text({"schema_version": _version_of(log), "metadata": metadata})
  # A string is a plain unicode array: no pickle on either side.
  arrays = {**_flatten(log), _HEADER: np.asarray(header)}
  with replacing(path) as file:
    return save_npz(file, arrays, digest_name=_DIGEST)


def load_sessions(
  path: str | os.PathLike[str],
  expected_digest: str | None = None,
) -> tuple[SessionLog, dict[str, str]]:
  """Reads and checks a log that `save_sessions` wrote.

  A digest covers arrays and header, see `Npz.digest`. Files of earlier schema
  versions have none and are read too: what the archive says of sizes must
  agree, and every array's checksum hold. Version 1 does not know
  `exploration_held`, which is then False.

  Args:
    path: an `.npz` file.
    expected_digest: what `save_sessions` returned for the file, if it is known.
      Its rows were valid then and are not looked at once more.

  Returns:
    The log as NumPy arrays, and the metadata saved with it.

  Raises:
    InputError: the file is missing, of another kind, damaged, of an unknown
      schema version, not the file of `expected_digest`, lacks or adds a field, or its rows break the schema (see
      `validate`). Types, shapes and sizes are refused before memory is taken.
  """
  with open_npz(path, _EXPECTED) as archive:
    version, metadata = _read_header(archive)
    later = {name for name, (since, _) in _ADDED.items() if version < since}
    digested = version >= 3
    own = {_HEADER, _DIGEST} if digested else {_HEADER}
    fields = _fields(version)
    fields = {n: kind for n, kind in fields.items() if n not in later}
    _check_names(set(archive.names), fields.keys() | own)
    layouts = {name: archive.layout(name) for name in fields}
    check_fields(layouts, fields, {})
    candidate_scores.check_knots({n: x.shape for n, x in layouts.items()})
    if digested:
      found = archive.digest([*fields, _HEADER])
      expected = archive.text(_DIGEST)
      if found != expected:
        raise InputError(
          f"expected the digest {expected[:64]}, found {found}; the file is"
          " damaged."
        )
    if expected_digest is not None and (
      not digested or found != expected_digest
    ):
      raise InputError(
        f"expected the session file of digest {expected_digest}, found another"
        " one."
      )
    # Each must keep the checksum that the digest is of.
    flat = {name: archive.read(name) for name in fields}
    for name in later:
      flat[name] = np.full(flat["terminal"].shape, _ADDED[name][1])
    log = _unflatten(flat)
    if expected_digest is None:
      validate(log)
  return log, metadata


def _read_header(archive: Npz) -> tuple[int, dict[str, str]]:
  """Schema version and metadata."""
  what = "a header with schema_version and metadata"
  if _HEADER not in archive.names:
    raise InputError(f"expected {what}, found none.")
  text = archive.text(_HEADER)
  try:
    header = json.loads(text)
    version = header["schema_version"]
  except (KeyError, TypeError, ValueError, RecursionError) as error:
    raise InputError(f"expected {what}, found {text[:60]!r}.") from error
  # `True` is 1 to Python.
  if type(version) is not int or not 1 <= version <= SCHEMA_VERSION:
    raise InputError(
      f"expected schema version 1 to {SCHEMA_VERSION}, found"
      f" {str(version)[:60]}."
    )
  if header.keys() != {"schema_version", "metadata"}:
    raise InputError(f"expected {what}, found {text[:200]!r}.")
  _check_metadata(header["metadata"])
  return version, header["metadata"]


def _check_metadata(metadata: Any) -> None:
  if not isinstance(metadata, dict):
    raise InputError(
      "metadata: expected texts by name, found"
      f" {'null' if metadata is None else type(metadata).__name__}."
    )
  for name, value in metadata.items():
    if not isinstance(name, str) or not isinstance(value, str):
      raise InputError(
        f"metadata: expected texts by name, found {str(name)[:60]!r} with a"
        f" value of type {type(value).__name__}."
      )


def _check_names(found: set[str], expected: set[str]) -> None:
  if found != expected:
    missing = sorted(expected - found)
    # Anybody may have chosen the others.
    unknown = [name[:60] for name in sorted(found - expected)[:10]]
    raise InputError(
      f"expected the fields of SessionLog, found {missing} missing and"
      f" {unknown} unknown."
    )
