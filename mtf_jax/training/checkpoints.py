"""Checkpoints of a whole run, with Orbax.

A checkpoint is a directory that appears at once or not at all, holding the
state's arrays and a JSON record that says what they are: a schema version, a
SHA-256 over the arrays, and what the caller adds (configuration, fingerprints).
"""

import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from mtf_jax import io

SCHEMA_VERSION = 2  # 1: a state held `coefficients`, not `hyperparams`.


class CheckpointError(RuntimeError):
  """No checkpoint could be used, or one could not be written."""


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _to_numpy(state: Any) -> Any:
  def convert(leaf):
    leaf = jnp.asarray(leaf)
    return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)

  return jax.tree.map(convert, state)


def _like(state: Any, template: Any) -> Any:
  def convert(leaf, like):
    if _is_key(like):
      impl = jax.random.key_impl(like)
      return jax.random.wrap_key_data(jnp.asarray(leaf), impl=impl)
    return jnp.asarray(leaf)

  return jax.tree.map(convert, state, template)


def digest(state: Any) -> str:
  """SHA-256 over names, dtypes, shapes and bytes of a state's leaves."""
  leaves = jax.tree_util.tree_leaves_with_path(_to_numpy(state))
  return io.digest((jax.tree_util.keystr(path), leaf) for path, leaf in leaves)


class Checkpoints:
  """The newest checkpoints of a run, in a directory of their own.

  Args:
    directory: created if missing.
    keep: how many to keep; older ones are deleted after a newer one is whole.
  """

  def __init__(self, directory: str | os.PathLike[str], keep: int = 3):
    """Opens the directory; whatever a killed process left half-written goes."""
    self._directory = pathlib.Path(directory).absolute()
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep,
      create=True,
      cleanup_tmp_directories=True,
      enable_async_checkpointing=False,
    )
    self._manager = ocp.CheckpointManager(self._directory, options=options)

  def save(self, step: int, state: Any, record: Mapping[str, Any]) -> None:
    """Writes a checkpoint; it counts only once all of it is on disk.

    Args:
      step: its name, the number of updates done.
      state: pytree of arrays; key arrays are allowed.
      record: JSON-serialisable description to keep beside it.

    Raises:
      CheckpointError: it could not be written, for a full disk for example;
        earlier checkpoints are untouched.
    """
    state = _to_numpy(state)
    record = {
      **record,
      "schema_version": SCHEMA_VERSION,
      "sha256": digest(state),
    }
    try:
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state), record=ocp.args.JsonSave(record)
        ),
        force=True,
      )
    except Exception as error:  # Orbax passes on what its storage layer raises.
      raise CheckpointError(
        f"{self._directory / str(step)}: could not be written ({error})."
      ) from error

  def read_record(self, step: int) -> dict[str, Any]:
    """The JSON record of one checkpoint."""
    restored = self._manager.restore(
      step, args=ocp.args.Composite(record=ocp.args.JsonRestore())
    )
    return restored.record

  def steps(self) -> list[int]:
    """Steps of the finished checkpoints, oldest first."""
    self._manager.reload()
    return sorted(self._manager.all_steps())

  def restore(
    self,
    template: Any,
    check: Callable[[dict[str, Any]], None] | None = None,
  ) -> tuple[Any, dict[str, Any]] | None:
    """Reads the newest checkpoint that is whole.

    A damaged one is named in the log, set aside (its directory is renamed), and
    the one before it is tried.

    Args:
      template: a state of the same structure, shapes and dtypes.
      check: called with the record before the arrays are read; what it raises
        is passed on.

    Returns:
      The state and its record, or None if there is no checkpoint at all.

    Raises:
      CheckpointError: there are checkpoints but none is whole.
      ValueError: the newest readable one has another schema version.
    """
    expected = _to_numpy(template)
    reasons: list[str] = []
    for step in reversed(self.steps()):
      path = self._directory / str(step)
      try:
        record = self.read_record(step)
        if record is None:
          raise ValueError("its record is missing")
      except Exception as error:
        self._set_aside(path, error, reasons)
        continue
      if record.get("schema_version") != SCHEMA_VERSION:
        raise ValueError(
          f"{path}: expected schema version {SCHEMA_VERSION}, found"
          f" {record.get('schema_version')}."
        )
      if check is not None:
        check(record)
      try:
        restored = self._manager.restore(
          step,
          args=ocp.args.Composite(state=ocp.args.StandardRestore(expected)),
        )
        if digest(restored.state) != record["sha256"]:
          raise ValueError("its arrays differ from their recorded SHA-256")
      except Exception as error:
        self._set_aside(path, error, reasons)
        continue
      return _like(restored.state, template), record
    if reasons:
      raise CheckpointError(
        "expected a whole checkpoint, found none: " + "; ".join(reasons)
      )
    return None

  def _set_aside(
    self, path: pathlib.Path, error: Exception, reasons: list[str]
  ) -> None:
    reason = " ".join(str(error).split())[:300] or type(error).__name__
    aside = path.with_name(f"damaged.{path.name}")
    reasons.append(f"{path}: {reason}")
    logging.warning(
      "%s is damaged (%s); set aside as %s.", path, reason, aside.name
    )
    path.rename(aside)

  def close(self) -> None:
    """Waits for what is under way."""
    self._manager.close()
