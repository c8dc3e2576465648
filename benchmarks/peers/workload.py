"""The sizes that are measured, and the transitions that all are given.

Imported in every process: NumPy alone.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

STATE, ACTION, HIDDEN, BATCH = 64, 10, 256, 256
ROWS, SESSION = 200_000, 16


class Window(NamedTuple):
  """What one update took, mean over a window.

  wall_s: seconds on the clock.
  processor_s: seconds of all threads of the process together, which other jobs
    on the machine lengthen less.
  """

  wall_s: float
  processor_s: float


class Size(NamedTuple):
  """One size.

  algorithm: of the other trainers, "sac_n" or "td3_bc".
  critics: critics of a learner.
  actor_every: one update in so many has one of the actor besides.
  updates: updates of a window.
  """

  algorithm: str
  critics: int
  actor_every: int
  updates: int


SIZES = (
  Size("sac_n", critics=48, actor_every=1, updates=8),
  Size("sac_n", critics=24, actor_every=1, updates=16),
  Size("td3_bc", critics=2, actor_every=2, updates=160),
)


def transitions(rows: int = ROWS) -> dict[str, np.ndarray]:
  """Random transitions in the names of D4RL, sessions of 16 requests."""
  rng = np.random.default_rng(0)
  terminals = np.arange(rows) % SESSION == SESSION - 1
  return {
    "observations": rng.normal(size=(rows, STATE)).astype(np.float32),
    "actions": rng.uniform(-0.99, 0.99, (rows, ACTION)).astype(np.float32),
    "rewards": rng.uniform(size=rows).astype(np.float32),
    "next_observations": rng.normal(size=(rows, STATE)).astype(np.float32),
    "terminals": terminals.astype(np.float32),
  }


def timed(run: Callable[[int], None], updates: int) -> Window:
  """A window of so many updates."""
  processor, wall = time.process_time(), time.perf_counter()
  run(updates)
  passed = time.perf_counter() - wall
  return Window(passed / updates, (time.process_time() - processor) / updates)
