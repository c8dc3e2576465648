"""The columns of a session log that a dataset of one reward has no place for.

Letters: `N` rows, `A` action components, `G` reward groups, `E` behaviours.
"""

import os
from typing import Any, NamedTuple

import chex
import jax
import numpy as np

from mtf_jax.arrays import as_numbers, check_fields
from mtf_jax.data.session_log import SessionLog, validate
from mtf_jax.io import InputError, as_array, replacing
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.npz import open_npz, save_npz


class SideRows(NamedTuple):
  """What must be kept beside a d3rlpy dataset for the way back; NumPy arrays.

  box, log_prob, exploration_held, reward, feedback, bootstrap_only, session_id:
    the fields of `SessionLog`.
  policy_round: int32 `[N]`, round of the policy that logged a row.
  reward_weights: float32 `[G]`, what made one reward of the groups.
  """

  box: ActionBox
  log_prob: np.ndarray
  exploration_held: np.ndarray
  reward: np.ndarray
  feedback: np.ndarray
  bootstrap_only: np.ndarray
  session_id: np.ndarray
  policy_round: np.ndarray
  reward_weights: np.ndarray


# Flat name -> (dtype, letters of the shape), in the order of the file.
_FIELDS = {
  "box_lower": (np.float32, "NA"),
  "box_upper": (np.float32, "NA"),
  "log_prob": (np.float32, "N"),
  "exploration_held": (np.bool_, "N"),
  "reward": (np.float32, "NG"),
  "feedback": (np.float32, "NE"),
  "bootstrap_only": (np.bool_, "N"),
  "session_id": ((np.int32, np.int64), "N"),
  "policy_round": (np.int32, "N"),
  "reward_weights": (np.float32, "G"),
}
_DIGEST = "digest"
_EXPECTED = "a file of side rows (.npz)"


def side_rows(
  log: SessionLog,
  reward_weights: chex.Array | None = None,
  policy_round: Any = 0,
) -> SideRows:
  """Checks a log and takes the columns out of it.

  Args:
    log: rows of logged sessions.
    reward_weights: `[G]` weight of each reward group; 1 each if omitted.
    policy_round: round of the policy that logged a row, an integer or `[N]`.

  Returns:
    The columns.

  Raises:
    InputError: the log is not valid, or one of the others does not fit it.
  """
  validate(log)
  log = jax.tree.map(np.asarray, log)
  num_rows, num_groups = log.reward.shape
  if reward_weights is None:
    reward_weights = np.ones(num_groups)
  weights = as_numbers(reward_weights, "reward_weights").astype(np.float32)
  if weights.shape != (num_groups,):
    raise InputError(
      f"reward_weights: expected shape ({num_groups},) as there are reward"
      f" groups, found {weights.shape}."
    )
  rounds = as_array(policy_round, "policy_round")
  if rounds.dtype.kind not in "iu" or rounds.shape not in ((), (num_rows,)):
    raise InputError(
      f"policy_round: expected an integer or {num_rows} of them, found"
      f" {rounds.dtype.name} of shape {rounds.shape}."
    )
  if np.any(rounds != rounds.astype(np.int32)):
    raise InputError("policy_round: expected 32-bit integers, found larger.")
  for name, what in (
    ("items", "shown items"),
    ("candidates", "candidates' scores"),
  ):
    if getattr(log, name) is not None:
      raise InputError(
        f"log: expected none of the columns of {what}, which neither a dataset"
        " of one reward nor its side rows have a place for, found them; go on"
        f" with log._replace({name}=None)."
      )
  columns = log._asdict()
  return SideRows(
    **{name: columns[name] for name in SideRows._fields if name in columns},
    policy_round=np.broadcast_to(rounds.astype(np.int32), num_rows).copy(),
    reward_weights=weights,
  )


def one_reward(side: SideRows) -> np.ndarray:
  """The weighted sum of the reward groups, float32 `[N]`."""
  groups, weights = (
    array.astype(np.float64) for array in (side.reward, side.reward_weights)
  )
  return (groups @ weights).astype(np.float32)


def check_reward(
  reward: np.ndarray, side: SideRows, served: np.ndarray | None = None
) -> None:
  """Refuses rewards that are not those of the side rows.

  Args:
    reward: float32 `[N]`.
    side: rows that it should belong to.
    served: bool `[N]`, rows to look at; all if omitted.

  Raises:
    InputError: they differ.
  """
  differs = np.asarray(reward, np.float32) != one_reward(side)
  if served is not None:
    differs &= served
  if differs.any():
    raise InputError(
      "reward: expected the weighted sums of the reward groups, found"
      f" {int(differs.sum())} of {differs.size} rows with others, first row"
      f" {int(np.argmax(differs))}."
    )


def log_of(
  side: SideRows,
  observation: np.ndarray,
  action: np.ndarray,
  terminal: np.ndarray,
) -> SessionLog:
  """Puts a log together and checks it.

  Args:
    side: its columns that a dataset has no place for.
    observation, action, terminal: the others.

  Returns:
    The log.

  Raises:
    InputError: it is not valid.
  """
  columns = side._asdict()
  columns = {n: v for n, v in columns.items() if n in SessionLog._fields}
  log = SessionLog(
    observation=np.asarray(observation),
    action=np.asarray(action),
    terminal=terminal,
    step=steps(side.session_id),
    **columns,
  )
  validate(log)
  return log


def last_rows(session_id: np.ndarray) -> np.ndarray:
  """Whether a row is its session's last one, bool `[N]`."""
  last = np.ones(session_id.shape, bool)
  last[:-1] = session_id[1:] != session_id[:-1]
  return last


def steps(session_id: np.ndarray) -> np.ndarray:
  """Place of a row in its session, int32 `[N]` from 0."""
  last = last_rows(session_id)
  first = np.flatnonzero(np.roll(last, 1))
  session = np.cumsum(last) - last
  return (np.arange(len(session_id)) - first[session]).astype(np.int32)


def _flatten(side: SideRows) -> dict[str, np.ndarray]:
  lower, upper = side.box
  flat = {**side._asdict(), "box_lower": lower, "box_upper": upper}
  return {name: as_array(flat[name], name) for name in _FIELDS}


def save_side_rows(path: str | os.PathLike[str], side: SideRows) -> None:
  """Writes the columns as one uncompressed `.npz`, all of it or nothing.

  Args:
    path: file to write or replace.
    side: the columns.

  Raises:
    InputError: a column has a wrong type or shape.
    OSError: the file could not be written; an earlier file is untouched.
  """
  flat = _flatten(side)
  check_fields(flat, _FIELDS, {})
  with replacing(path) as file:
    save_npz(file, flat, digest_name=_DIGEST)


def load_side_rows(path: str | os.PathLike[str]) -> SideRows:
  """Reads what `save_side_rows` wrote.

  Args:
    path: an `.npz` file.

  Returns:
    The columns.

  Raises:
    InputError: the file is missing, of another kind or damaged, lacks or adds a
      column, or one has a wrong type or shape.
  """
  with open_npz(path, _EXPECTED) as archive:
    if set(archive.names) != {*_FIELDS, _DIGEST}:
      raise archive.refusal(f"one with {', '.join(archive.names)[:200]}")
    check_fields({name: archive.layout(name) for name in _FIELDS}, _FIELDS, {})
    if archive.digest(_FIELDS) != archive.text(_DIGEST):
      raise archive.refusal("one whose digest is another's; it is damaged")
    flat = {name: archive.read(name) for name in _FIELDS}
  box = ActionBox(flat.pop("box_lower"), flat.pop("box_upper"))
  return SideRows(box=box, **flat)
