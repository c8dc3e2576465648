"""Checkpoints of a whole run, with Orbax.

A checkpoint is a directory that appears at once or not at all, holding the
state's arrays and a JSON record that says what they are: a schema version, what
wrote it, what the caller adds (configuration, fingerprints), and a SHA-256 over
all of these and the arrays.

Reading one has three outcomes. It is whole. Or it is proved damaged: what was
read differs from its digest, or a file is missing or cut; then it is set aside.
Or it cannot be used as asked (another precision, network or version, no
permission): that is refused in a sentence, and nothing is touched.
"""

import importlib.metadata
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from mtf_jax import io
from mtf_jax.training import state_leaves
from mtf_jax.training.quiet_orbax import quiet

# 1: a state held `coefficients`, not `hyperparams`. 2: the record was outside
# the digest; still read. 3: now.
SCHEMA_VERSION = 3

# What `save` adds to the caller's record.
OWN_KEYS = ("schema_version", "written_with", "key_impls", "sha256")


class CheckpointError(io.InputError):
  """No checkpoint could be used, or one could not be written."""


class _Damaged(Exception):
  """A checkpoint that is proved not to be as it was written."""


class Record(dict[str, Any]):
  """A checkpoint's record; a key that is asked for in vain is refused."""

  def __init__(self, path: pathlib.Path, values: Mapping[str, Any]):
    """Keeps the path for the refusal."""
    super().__init__(values)
    self._path = path

  def __missing__(self, key: str) -> Any:
    """Names the checkpoint; a bare KeyError says nothing to a user."""
    raise CheckpointError(
      f"{self._path}: expected {key!r} in its record, found"
      f" {', '.join(sorted(self))}; another version or another kind of run"
      " wrote it."
    )


def digest(state: Any) -> str:
  """SHA-256 over names, dtypes, shapes and bytes of a state's leaves."""
  stored = state_leaves.to_numpy(state)
  leaves = jax.tree_util.tree_leaves_with_path(stored)
  return io.digest((jax.tree_util.keystr(path), leaf) for path, leaf in leaves)


def _sha256(leaves: Mapping[str, np.ndarray], record: Mapping[str, Any]) -> str:
  """Over a whole checkpoint: arrays by name, and the record but the digest."""
  values = {k: v for k, v in record.items() if k != "sha256"}
  return io.digest(
    sorted(leaves.items()), after=json.dumps(values, sort_keys=True)
  )


def _check_schema_2(
  path: pathlib.Path,
  leaves: Mapping[str, np.ndarray],
  template: Any,
  record: Mapping[str, Any],
) -> None:
  """Holds a checkpoint of version 2 to its digest.

  It was over the arrays only, named and ordered as in the state that was saved.
  That it differs proves no damage: the state may be another.
  """
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(template)]
  named = [(jax.tree_util.keystr(p), state_leaves.name_of(p)) for p in paths]
  if set(leaves) - {name for _, name in named}:
    return  # Another structure, which is refused as such.
  found = io.digest(
    (key, leaves[name]) for key, name in named if name in leaves
  )
  if found != record.get("sha256"):
    raise CheckpointError(
      f"{path}: expected arrays of the SHA-256 in its record, found others; it"
      " is damaged or of another learner; move it out of the folder to go on"
      " from the checkpoint before."
    )


def _software() -> str:
  """What decodes a checkpoint's files."""
  return ", ".join(
    f"{name} {importlib.metadata.version(name)}"
    for name in ("orbax-checkpoint", "tensorstore")
  )


def _alone() -> dict[str, Any]:
  """Options for Orbax in one of several processes, which the others wait for.

  States are written whole, as arrays of the process that writes them.
  """
  if jax.process_count() == 1:
    return {}
  me = jax.process_index()
  alone = ocp.options.MultiprocessingOptions(
    primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"of{me}"
  )
  # Orbax makes no folder then.
  return {"multiprocessing_options": alone, "create": False}


def check_keep(keep: int) -> None:
  """Refuses to keep no checkpoint.

  Raises:
    InputError: `keep` is below 1.
  """
  if keep < 1:
    raise io.InputError(
      f"keep: expected 1 checkpoint or more to keep, found {keep}."
    )


class Checkpoints:
  """The newest checkpoints of a run, in a directory of their own.

  Args:
    directory: created if missing, unless `read_only`.
    keep: how many to keep, at least 1; older ones are deleted after a newer one
      is whole.
    read_only: for a directory in which another process may be writing: nothing
      in it is made, removed or renamed.

  Raises:
    InputError: `keep` is below 1.
    CheckpointError: the directory cannot be used.
  """

  def __init__(
    self,
    directory: str | os.PathLike[str],
    keep: int = 3,
    *,
    read_only: bool = False,
  ):
    """Opens the directory; whatever a killed process left half-written goes."""
    check_keep(keep)
    self._directory = pathlib.Path(directory).absolute()
    self._read_only = read_only
    options = ocp.CheckpointManagerOptions(
      max_to_keep=None if read_only else keep,
      cleanup_tmp_directories=not read_only,
      enable_async_checkpointing=False,
      **({"create": not read_only} | _alone()),
    )
    if self._directory.exists() and not self._directory.is_dir():
      raise CheckpointError(
        f"{self._directory}: expected a folder of checkpoints, found a file."
      )
    try:
      self._manager = ocp.CheckpointManager(self._directory, options=options)
    except OSError as error:
      raise self._unusable(error) from error
    except Exception as error:  # Orbax passes on what its parsers raise.
      reason = " ".join(str(error).split())[:200]
      raise CheckpointError(
        f"{self._directory}: expected a folder of checkpoints, found one whose"
        f" _CHECKPOINT_METADATA is damaged in a checkpoint ({reason}); move that"
        " checkpoint away to go on from the one before."
      ) from error

  def _unusable(self, error: OSError) -> CheckpointError:
    return CheckpointError(
      f"{self._directory}: expected a folder of checkpoints, found one that"
      f" cannot be used ({error.strerror or error})."
    )

  def save(self, step: int, state: Any, record: Mapping[str, Any]) -> None:
    """Writes a checkpoint; it counts only once all of it is on disk.

    Args:
      step: its name, the number of updates done.
      state: pytree of arrays; key arrays are allowed.
      record: JSON-serialisable description to keep beside it.

    Raises:
      InputError: a leaf of the state is no array.
      CheckpointError: it could not be written, for a full disk for example;
        earlier checkpoints are untouched.
    """
    stored = state_leaves.to_numpy(state)
    values = {
      **record,
      "schema_version": SCHEMA_VERSION,
      "written_with": _software(),
      "key_impls": state_leaves.key_impls(state),
    }
    # As it will be read: with lists for tuples, and names that are text.
    values = json.loads(json.dumps(values))
    values["sha256"] = _sha256(state_leaves.by_name(stored), values)
    try:
      with quiet():
        self._manager.save(
          step,
          args=ocp.args.Composite(
            state=ocp.args.StandardSave(stored),
            record=ocp.args.JsonSave(values),
          ),
          force=True,
        )
    except Exception as error:  # Orbax passes on what its storage layer raises.
      raise CheckpointError(
        f"{self._directory / str(step)}: could not be written"
        f" ({_one_line(error)})."
      ) from error

  def steps(self) -> list[int]:
    """Steps of the finished checkpoints, oldest first."""
    try:
      self._manager.reload()
      return sorted(self._manager.all_steps())
    except OSError as error:
      raise self._unusable(error) from error

  def restore(
    self,
    template: Any,
    check: Callable[[Record], None] | None = None,
    step: int | None = None,
  ) -> tuple[Any, Record] | None:
    """Reads the newest checkpoint that is whole, or a certain one.

    A damaged one is named in the log, set aside (its directory is renamed to
    `damaged.` and its name), and the one before it is tried. A hyperparameter
    that the checkpoint does not have, because an earlier version wrote it, has
    the template's value.

    Args:
      template: a state of the same structure, shapes and dtypes.
      check: called with the record of the one that is whole; what it raises is
        passed on.
      step: of the only checkpoint that will do; the newest if omitted.

    Returns:
      The state and its record, or None if there never was a checkpoint (at the
      step that was asked for).

    Raises:
      CheckpointError: there are checkpoints but none is whole; or the newest
        that is not damaged cannot be read, or is of another version, network,
        precision or key implementation. Nothing is renamed on its account.
    """
    reasons: list[str] = []
    there = self.steps()
    wanted = there if step is None else sorted({step} & set(there))
    for found in reversed(wanted):
      path = self._directory / str(found)
      try:
        leaves, record = self._read(found, path, template, check)
      except _Damaged as error:
        reasons.append(f"{path}: {error}")
        self._set_aside(path, str(error))
        continue
      impls = {} if record["schema_version"] == 2 else record["key_impls"]
      try:
        state, filled = state_leaves.fit(leaves, template, impls)
      except io.InputError as error:
        raise CheckpointError(f"{path}: {error}") from error
      if filled:
        logging.warning(
          "%s was written before there was %s; going on with its default.",
          path,
          ", ".join(filled),
        )
      return state, record
    if step is None or reasons:
      self._refuse_to_start_anew(reasons)
    return None

  def _read(
    self,
    step: int,
    path: pathlib.Path,
    template: Any,
    check: Callable[[Record], None] | None,
  ) -> tuple[dict[str, np.ndarray], Record]:
    """Arrays by name and the record of a checkpoint that is whole."""
    record = _read_record(path)
    version = record.get("schema_version")
    if version not in (2, SCHEMA_VERSION):
      raise CheckpointError(
        f"{path}: expected schema version {SCHEMA_VERSION} or 2, found"
        f" {version}, which another version of the package wrote."
      )
    try:
      with quiet():
        # Without a template: Orbax would cast what it reads, and fail for a
        # leaf too many or too few.
        restored = self._manager.restore(
          step, args=ocp.args.Composite(state=ocp.args.StandardRestore())
        )
      leaves = state_leaves.by_name(restored.state)
    except Exception as error:
      _refuse_unless_damaged(path, error, record.get("written_with"))
      raise _Damaged(_one_line(error)) from error
    if version == SCHEMA_VERSION:
      if _sha256(leaves, record) != record.get("sha256"):
        raise _Damaged("its content differs from its recorded SHA-256")
      if check is not None:
        check(record)
    else:
      # Another run's arrays would be taken for damaged ones.
      if check is not None:
        check(record)
      _check_schema_2(path, leaves, template, record)
    return leaves, record

  def _set_aside(self, path: pathlib.Path, reason: str) -> None:
    if self._read_only:
      logging.warning("%s is damaged (%s).", path, reason)
      return
    first = aside = path.with_name(f"damaged.{path.name}")
    number = 0
    while aside.exists():
      number += 1
      aside = first.with_name(f"{first.name}.{number}")
    try:
      path.rename(aside)
    except OSError as error:
      raise CheckpointError(
        f"{path}: is damaged ({reason}) and could not be renamed"
        f" {aside.name} ({error.strerror})."
      ) from error
    # Otherwise a save at this step would find it there already.
    self._manager.reload()
    logging.warning(
      "%s is damaged (%s); set aside as %s.", path, reason, aside.name
    )

  def _refuse_to_start_anew(self, reasons: list[str]) -> None:
    """A folder of damaged checkpoints is no empty one."""
    damaged = sorted(p.name for p in self._directory.glob("damaged.*"))
    if reasons or damaged:
      what = "; ".join(reasons) or ", ".join(damaged)
      raise CheckpointError(
        f"{self._directory}: expected a whole checkpoint, found none but"
        f" damaged ones ({what}); restore one from a copy, or name another"
        " folder, or delete this one to start anew."
      )

  def close(self) -> None:
    """Waits for what is under way."""
    self._manager.close()


def _one_line(error: Exception) -> str:
  return " ".join(str(error).split())[:300] or type(error).__name__


def _read_record(path: pathlib.Path) -> Record:
  """The record of a checkpoint, where Orbax's JSON items lie."""
  file = path / "record" / "metadata"
  try:
    values = json.loads(file.read_bytes())
  except (FileNotFoundError, NotADirectoryError) as error:
    raise _Damaged("its record is missing") from error
  except OSError as error:
    raise CheckpointError(
      f"{file}: cannot be read ({error.strerror})."
    ) from error
  except (ValueError, RecursionError) as error:
    raise _Damaged(f"its record is no JSON: {_one_line(error)}") from error
  if not isinstance(values, dict):
    raise _Damaged("its record is no JSON object")
  return Record(path, values)


def _refuse_unless_damaged(
  path: pathlib.Path, error: Exception, written_with: Any
) -> None:
  """Whether a failure to decode is the files' fault, by exclusion.

  It is if all of them can be read, memory sufficed, and what decodes them is
  what wrote them.
  """
  try:
    for folder, _, names in os.walk(path, onerror=_raise):
      for name in names:
        with open(os.path.join(folder, name), "rb") as file:
          while file.read(1 << 20):
            pass
  except OSError as unreadable:
    raise CheckpointError(
      f"{unreadable.filename or path}: cannot be read ({unreadable.strerror})."
    ) from error
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
    raise CheckpointError(
      f"{path}: could not be read for want of memory or of open files"
      f" ({_one_line(error)})."
    ) from error
  if written_with != _software():
    raise CheckpointError(
      f"{path}: could not be decoded ({_one_line(error)}), which"
      f" {written_with or 'an earlier version'} wrote and {_software()} read;"
      " read it with what wrote it, or move it out of the folder to go on from"
      " the checkpoint before."
    ) from error


def _raise(error: OSError) -> None:
  raise error
