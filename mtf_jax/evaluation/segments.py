"""Who gains: a policy against the base, by what is known of the users.

Letters: `B` sessions.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtf_jax.arrays import as_columns, as_numbers
from mtf_jax.evaluation.ab_test import EvalResult, check_paired
from mtf_jax.evaluation.statistics import paired_comparison
from mtf_jax.evaluation.tables import Table
from mtf_jax.io import InputError
from mtf_jax.worlds.world import World

# User features of the fitted and of the synthetic world that users are divided
# by: activity, past consumption, past interactions. All are known before the
# sessions, so that no segment is chosen by its own outcome.
FEATURES = (
  "user_log_count",
  "user_valid",
  "user_interaction",
  "activity",
  "history_play",
  "history_interaction",
)
_TERCILES = ("low", "middle", "high")


def gains(
  policy: EvalResult, base: EvalResult, world: World
) -> list[dict[str, Any]]:
  """Reward gains by tercile of the users, for each feature of `FEATURES`.

  Intervals are those of `statistics.paired_comparison`; they are not corrected
  for the number of segments. The gains of a feature's segments, weighted with
  `base_share`, add up to the gain of all.

  Args:
    policy, base: judged with the same key.
    world: the world that they were judged in.

  Returns:
    For all users, and for each feature and tercile that has users: `feature`,
    `segment`, `users`, `sessions`, `base_share` (of the base's reward, NaN if
    that is 0), `reward_gain_pct`, `reward_gain_ci95` (None, None for a single user) and
    `reward_p_value`.

  Raises:
    InputError: the two were judged on different sessions, hold values that are
      masked or not finite, or the world has none of the features or such values
      in one.
  """
  check_paired(policy, base)
  features = [name for name in FEATURES if name in world.feature_names]
  if not features:
    raise InputError(
      f"world: expected a user feature of {', '.join(FEATURES)}, found"
      f" {', '.join(world.feature_names)}."
    )
  better, worse, user = as_columns(
    {"policy": policy.reward, "base": base.reward, "user": base.user}
  )
  total = worse.sum(dtype=np.float64)

  def row(feature, segment, mine):
    gain = paired_comparison(better[mine], worse[mine], user[mine])
    users = len(np.unique(user[mine]))
    return {
      "feature": feature,
      "segment": segment,
      "users": users,
      "sessions": int(mine.sum()),
      "base_share": float(worse[mine].sum(dtype=np.float64) / total)
      if total
      else math.nan,
      "reward_gain_pct": gain.gain,
      "reward_gain_ci95": list(gain.ci95) if users > 1 else [None, None],
      "reward_p_value": gain.p_value if users > 1 else None,
    }

  result = [row("all", "all", np.ones(len(user), bool))]
  users = np.unique(user)
  for name in features:
    value = world.user_features[:, world.feature_names.index(name)]
    value = as_numbers(value, f"user feature {name}")
    edges = np.quantile(value[users], [1 / 3, 2 / 3])
    tercile = np.searchsorted(edges, value[user], side="right")
    for number, segment in enumerate(_TERCILES):
      mine = tercile == number
      if mine.any():
        result.append(row(name, segment, mine))
  return result


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
  """`gains` for reading.

  Args:
    title: heading.
    rows: of `gains`.
  """
  body = []
  for row in rows:
    low, high = row["reward_gain_ci95"]
    known = low is not None
    interval = f" [{low:+.2f}, {high:+.2f}]" if known else ""
    body.append(
      (
        f"{row['feature']}: {row['segment']}",
        str(row["users"]),
        f"{row['base_share']:.0%}",
        f"{row['reward_gain_pct']:+.2f}{interval}",
        f"{row['reward_p_value']:.1g}" if known else "",
      )
    )
  note = (
    "Users by tercile of what is known of them before the sessions; gains over"
    " the baseline policy, intervals over users, not corrected for the number"
    " of segments."
  )
  header = ("users", "number", "share of reward", "reward % [95%]", "p")
  return Table(title, note, header, body)
