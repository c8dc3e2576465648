"""Many sessions of a policy, logged a part after the other.

Letters: `B` sessions, `N` rows.
"""

from typing import Any

import chex
import jax
import numpy as np
from jax.sharding import Mesh

from mtf_jax.data.session_log import SessionLog
from mtf_jax.policies import Act
from mtf_jax.steps import OnStep, Steps, nobody
from mtf_jax.worlds import rollout as rollout_lib
from mtf_jax.worlds.env import observe
from mtf_jax.worlds.world import World

_PART = 2048  # sessions whose padded rows are in memory at a time


def log_sessions(
  rng_key: chex.PRNGKey,
  world: World,
  act: Act,
  params: Any,
  num_sessions: int,
  max_requests: int,
  *,
  part: int = _PART,
  mesh: Mesh | None = None,
  exploration: str = "request",
  observe_fn: rollout_lib.ObserveFn = observe,
  on_step: OnStep = nobody,
) -> SessionLog:
  """The log of `rollout.rollout`, with the padding of one part at a time.

  Args:
    rng_key, world, act, params, num_sessions, max_requests: as in `rollout`.
    part: sessions of a part.
    exploration, observe_fn: as in `rollout`.
    mesh: a part's sessions are divided over its axis `data`; one device if omitted.
    on_step: told how many sessions are logged.

  Returns:
    The log, `[N]` rows as NumPy arrays, sessions one after another.
  """
  part = min(part, num_sessions)
  keys = rollout_lib.session_keys(rng_key, num_sessions)
  steps = Steps(num_sessions, on_step)
  logs = []
  for first in range(0, num_sessions, part):
    wanted = np.arange(first, first + part)
    # The last part is filled up with the last session: one compiled program.
    place = np.minimum(wanted, num_sessions - 1)
    rows = rollout_lib.rollout_of(
      (keys[0][place], keys[1][place]),
      world,
      act,
      params,
      max_requests,
      exploration,
      mesh,
      observe_fn,
    )
    kept = (wanted < num_sessions)[:, None]
    log = rollout_lib.pack(rows._replace(valid=np.asarray(rows.valid) & kept))
    logs.append(log._replace(session_id=log.session_id + np.int32(first)))
    steps.count(int(kept.sum()))
  return jax.tree.map(lambda *columns: np.concatenate(columns), *logs)
