"""Session logs as datasets of d3rlpy and Minari, and back, row for row.

In both a session is an episode. A user who left is a terminal. A session that
the log cut is a timeout (truncation), and its last transition is there only
where the log knows what came after the cut (`bootstrap_only`). The one reward
of these datasets is the weighted sum of the reward groups.

The extras `d3rlpy` and `minari` bring the packages.

Letters: `N` rows, `S` state features, `A` action components, `G` reward groups,
`E` behaviours, `T` steps of an episode.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import chex
import numpy as np

from mtf_jax.data.session_log import SessionLog
from mtf_jax.interop._extras import missing
from mtf_jax.interop.side_rows import (
  SideRows,
  check_reward,
  last_rows,
  log_of,
  one_reward,
  side_rows,
)
from mtf_jax.io import InputError
from mtf_jax.kernels.exploration import ActionBox

# Columns that have their own names in the infos of an episode, too.
_SAME = (
  "session_id",
  "policy_round",
  "bootstrap_only",
  "exploration_held",
  "log_prob",
  "feedback",
)
_INFOS = (
  "step",
  *_SAME,
  "box_lower",
  "box_upper",
  "reward_groups",
  "last_action",
)
_METADATA = "mtf_jax"


def to_d3rlpy(
  log: SessionLog,
  *,
  reward_weights: chex.Array | None = None,
  policy_round: Any = 0,
) -> tuple[Any, SideRows]:
  """A log as d3rlpy's `MDPDataset`, and what that has no place for.

  A row of the log is a step of the dataset. The row after a cut
  (`bootstrap_only`) is a last step with action and reward 0, so that the
  request before it has a next observation; d3rlpy makes no transition of an
  episode's last step unless it is terminal. Algorithms that read the *next
  action* of a transition meet that 0 there.

  Args:
    log: rows of logged sessions.
    reward_weights: `[G]` weight of each reward group; 1 each if omitted.
    policy_round: round of the policy that logged a row, an integer or `[N]`.

  Returns:
    The dataset, and the columns that `from_d3rlpy` needs; `save_side_rows`
    keeps them in a file beside d3rlpy's own.

  Raises:
    InputError: the log is not valid, another argument does not fit it, or
      d3rlpy is not installed.
  """
  side = side_rows(log, reward_weights, policy_round)
  try:
    import d3rlpy
  except ModuleNotFoundError as error:
    raise missing("d3rlpy") from error
  terminal = np.asarray(log.terminal)
  dataset = d3rlpy.dataset.MDPDataset(
    observations=np.array(log.observation),
    actions=np.array(log.action),
    rewards=one_reward(side)[:, None],
    terminals=terminal.astype(np.float32),
    timeouts=(last_rows(side.session_id) & ~terminal).astype(np.float32),
    action_space=d3rlpy.ActionSpace.CONTINUOUS,
    action_size=side.box.lower.shape[1],
  )
  return dataset, side


def from_d3rlpy(dataset: Any, side: SideRows) -> SessionLog:
  """The log of a d3rlpy dataset, equal to the one it was made of.

  Args:
    dataset: `MDPDataset` or any other replay buffer, whose episodes are those
      of `to_d3rlpy`, in their order.
    side: what `to_d3rlpy` returned beside it.

  Returns:
    The log.

  Raises:
    InputError: the dataset has other episodes or rewards than the side rows
      belong to, or the rows together are no valid log.
  """
  episodes = dataset.episodes
  lengths = np.asarray([len(episode.actions) for episode in episodes])
  last = last_rows(side.session_id)
  expected = np.diff(np.flatnonzero(last), prepend=-1)
  if not np.array_equal(lengths, expected):
    raise InputError(
      f"dataset: expected {len(expected)} episodes of the side rows' lengths,"
      f" {len(last)} rows in all, found {len(lengths)} episodes of"
      f" {int(lengths.sum())} rows."
    )
  reward = np.concatenate([episode.rewards for episode in episodes])[:, 0]
  check_reward(reward, side)
  terminal = np.zeros(len(last), bool)
  terminal[last] = [episode.terminated for episode in episodes]
  return log_of(
    side,
    np.concatenate([episode.observations for episode in episodes]),
    np.concatenate([episode.actions for episode in episodes]),
    terminal,
  )


def to_minari(
  dataset_id: str,
  log: SessionLog,
  *,
  reward_weights: chex.Array | None = None,
  policy_round: Any = 0,
  metadata: Mapping[str, str] | None = None,
  **description: Any,
) -> Any:
  """Writes a log as a Minari dataset, into Minari's folder of datasets.

  An episode has `T` steps and `T + 1` observations; entry t of its infos
  belongs to row t of the session: `step` (-1 where there is no row), box, log
  density, held flag, reward groups, feedback, session id and policy round.

  Where the user left, all rows are steps, and the last observation, which
  nobody saw, repeats the one before. Where the session was cut and what came
  after is known, that row (`bootstrap_only`) gives the last observation. Where
  nothing is known, the last row gives it: its request is no step, and its
  action is in the info `last_action`.

  Args:
    dataset_id: as Minari wants it, such as `mtf_jax/log-v0`.
    log: rows of logged sessions.
    reward_weights: `[G]` weight of each reward group; 1 each if omitted.
    policy_round: round of the policy that logged a row, an integer or `[N]`.
    metadata: where the log comes from, texts by name.
    **description: more arguments of `minari.create_dataset_from_buffers`, such
      as `author`.

  Returns:
    The `MinariDataset`.

  Raises:
    InputError: the log is not valid, another argument does not fit it, Minari
      refuses the id, or is not installed.
  """
  side = side_rows(log, reward_weights, policy_round)
  try:
    import gymnasium
    import minari
  except ModuleNotFoundError as error:
    raise missing("minari") from error
  observation, action = np.asarray(log.observation), np.asarray(log.action)
  infos = {
    **{name: getattr(side, name) for name in _SAME},
    "step": np.asarray(log.step),
    "box_lower": side.box.lower,
    "box_upper": side.box.upper,
    "last_action": action,
    "reward_groups": side.reward,
  }
  terminal, reward = np.asarray(log.terminal), one_reward(side)
  ends = np.flatnonzero(last_rows(side.session_id)) + 1
  starts = np.append(0, ends[:-1])
  lost = (ends - starts == 1) & ~terminal[starts]
  if lost.any():
    raise InputError(
      "session_id: expected sessions of a step or more, found"
      f" {int(lost.sum())} cut after their only request with nothing known"
      f" after it, first row {int(starts[np.argmax(lost)])}; drop them."
    )
  buffers = [
    _episode(
      slice(start, end), observation, action, reward, infos, terminal[end - 1]
    )
    for start, end in zip(starts, ends, strict=True)
  ]
  limit = max(1.0, float(np.abs(action).max()))
  box = gymnasium.spaces.Box
  with warnings.catch_warnings():
    # Minari warns of every description that it is not given.
    warnings.simplefilter("ignore", UserWarning)
    try:
      dataset = minari.create_dataset_from_buffers(
        dataset_id,
        [minari.data_collector.EpisodeBuffer(**buffer) for buffer in buffers],
        observation_space=box(-np.inf, np.inf, observation.shape[1:]),
        action_space=box(-limit, limit, action.shape[1:]),
        data_format="hdf5",
        **description,
      )
    except ValueError as error:
      raise InputError(f"dataset_id: {dataset_id!r}: {error}") from error
  own = {
    "reward_weights": side.reward_weights.tolist(),
    "metadata": dict(metadata or {}),
  }
  dataset.storage.update_metadata({_METADATA: own})
  return dataset


def _episode(
  rows: slice,
  observation: np.ndarray,
  action: np.ndarray,
  reward: np.ndarray,
  infos: Mapping[str, np.ndarray],
  terminal: bool,
) -> dict[str, Any]:
  """The fields of Minari's buffer for the rows of one session."""
  num_rows = rows.stop - rows.start
  num_steps = num_rows if terminal else num_rows - 1
  served = slice(rows.start, rows.start + num_steps)
  seen = observation[rows]
  own = {name: values[rows].copy() for name, values in infos.items()}
  own["last_action"][:num_steps] = 0
  if terminal:
    seen = np.concatenate([seen, seen[-1:]])
    own = {
      name: np.concatenate([values, np.zeros_like(values[:1])])
      for name, values in own.items()
    }
    own["step"][-1] = -1
  ended = np.arange(num_steps) == num_steps - 1
  return {
    "observations": seen,
    "actions": action[served],
    "rewards": reward[served],
    "terminations": ended & terminal,
    "truncations": ended & (not terminal),
    "infos": own,
  }


def from_minari(dataset: Any) -> tuple[SessionLog, np.ndarray, dict[str, str]]:
  """The log of a Minari dataset, equal to the one it was made of.

  Args:
    dataset: a `MinariDataset` of `to_minari`; a selection of its episodes gives
      the log of these sessions.

  Returns:
    The log, the policy round of every row (int32 `[N]`), and the metadata.

  Raises:
    InputError: the dataset lacks infos or metadata of `to_minari`, has other
      rewards than its groups make, or its rows are no valid log.
  """
  own = dataset.storage.metadata.get(_METADATA)
  if own is None:
    raise InputError(
      f"dataset: expected the metadata {_METADATA!r} that to_minari writes,"
      " found none."
    )
  columns: dict[str, list[np.ndarray]] = {}
  for episode in dataset.iterate_episodes():
    for name, values in _rows(episode).items():
      columns.setdefault(name, []).append(values)
  if not columns:
    raise InputError("dataset: expected episodes, found none.")
  flat = {name: np.concatenate(parts) for name, parts in columns.items()}
  side = SideRows(
    box=ActionBox(flat["box_lower"], flat["box_upper"]),
    reward=flat["reward_groups"],
    reward_weights=np.asarray(own["reward_weights"], np.float32),
    **{name: flat[name] for name in _SAME},
  )
  check_reward(flat["reward"], side, flat["served"])
  log = log_of(side, flat["observation"], flat["action"], flat["terminal"])
  return log, side.policy_round, own["metadata"]


def _rows(episode: Any) -> dict[str, np.ndarray]:
  """The rows of a log that an episode of Minari was made of."""
  absent = sorted(set(_INFOS) - (episode.infos or {}).keys())
  if absent:
    raise InputError(
      f"infos: expected those of to_minari, found {', '.join(absent)} missing"
      f" in episode {episode.id}."
    )
  num_rows = int(np.sum(episode.infos["step"] >= 0))
  num_steps = len(episode.rewards)
  own = {name: episode.infos[name][:num_rows] for name in _INFOS}

  action = own.pop("last_action").copy()
  action[:num_steps] = episode.actions
  terminal = np.zeros(num_rows, bool)
  terminal[:num_steps] = episode.terminations
  reward = np.zeros(num_rows, np.float32)
  reward[:num_steps] = episode.rewards
  return {
    **own,
    "observation": episode.observations[:num_rows],
    "action": action,
    "terminal": terminal,
    "reward": reward,
    "served": np.arange(num_rows) < num_steps,
  }
