"""Small logs of sessions for the tests."""

import numpy as np

from mtf_jax.data.candidate_scores import CandidateScores
from mtf_jax.data.session_log import SessionLog
from mtf_jax.data.shown_items import ShownItems
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.kernels.monotone import MonotoneCells


def log_of(
  observation,
  action,
  reward,
  *,
  session_length=1,
  half_width=0.15,
  centre=0.0,
  terminal=None,
  bootstrap_only=None,
):
  """A log from `[N, S]`, `[N, A]`, `[N, G]`; sessions of one length."""
  observation, action, reward = (
    np.asarray(value, np.float32) for value in (observation, action, reward)
  )
  num_rows = observation.shape[0]
  row = np.arange(num_rows)
  step = row % session_length
  if terminal is None:
    terminal = step == session_length - 1
  if bootstrap_only is None:
    bootstrap_only = np.zeros(num_rows, bool)
  centre = np.broadcast_to(np.asarray(centre, np.float32), action.shape)
  width = np.float32(half_width)
  lower, upper = centre - width, centre + width
  log = SessionLog(
    observation=observation,
    action=action,
    box=ActionBox(lower=lower, upper=upper),
    log_prob=-np.log(upper - lower).sum(axis=1, dtype=np.float32),
    exploration_held=np.zeros(num_rows, bool),
    reward=reward,
    feedback=np.zeros((num_rows, 2), np.float32),
    terminal=np.asarray(terminal),
    bootstrap_only=np.zeros(num_rows, bool),
    session_id=(row // session_length).astype(np.int32),
    step=step.astype(np.int32),
  )
  return observation_only(log, np.asarray(bootstrap_only))


def observation_only(log, rows):
  """The log with `rows` bool `[N]` that hold what follows a cut, no more."""

  def emptied(array):
    return np.where(rows.reshape(-1, *[1] * (array.ndim - 1)), 0, array).astype(
      array.dtype
    )

  return log._replace(
    bootstrap_only=rows,
    action=emptied(log.action),
    log_prob=emptied(log.log_prob),
    exploration_held=emptied(log.exploration_held),
    reward=emptied(log.reward),
    feedback=emptied(log.feedback),
  )


def with_items(log, positions=3, features=2, seed=0):
  """The log with shown items; the first one has the request's action and box."""
  rng = np.random.default_rng(seed)
  shape = (log.step.size, positions)
  centre = (log.box.lower + log.box.upper)[:, None] / 2
  moved = rng.uniform(-0.2, 0.2, (*shape, centre.shape[2])).astype(np.float32)
  moved[:, 0] = 0
  inside = ~log.bootstrap_only[:, None, None]
  lower, upper = (bound[:, None] + moved for bound in log.box)
  action = np.clip(log.action[:, None] + moved, lower, upper) * inside
  return log._replace(
    items=ShownItems(
      features=rng.normal(size=(*shape, features)).astype(np.float32),
      action=action.astype(np.float32),
      box=ActionBox(lower, upper),
    )
  )


def with_candidates(log, candidates=6, knots=5, seed=0):
  """The log with scores in [0, 1] of candidates, on one cell for each task."""
  rng = np.random.default_rng(seed)
  num_rows, num_tasks = log.action.shape
  increments = rng.uniform(0.1, 1, (num_tasks, knots - 1))
  cells = MonotoneCells(
    np.tile(np.linspace(0, 1, knots), (num_tasks, 1)),
    -rng.uniform(0, 2, num_tasks),
    increments,
  )
  scores = rng.uniform(0, 1, (num_rows, candidates, num_tasks))
  return log._replace(
    candidates=CandidateScores(
      scores.astype(np.float32),
      MonotoneCells(
        *(
          np.tile(leaf, (num_rows, *[1] * leaf.ndim)).astype(np.float32)
          for leaf in cells
        )
      ),
    )
  )


def random_log(
  seed=0, num_rows=240, features=3, components=2, groups=2, session_length=4
):
  """Random rows, non-negative rewards, actions inside random boxes."""
  rng = np.random.default_rng(seed)
  shape = (num_rows, components)
  centre = rng.uniform(-0.5, 0.5, shape).astype(np.float32)
  deviation = rng.uniform(-0.14, 0.14, shape).astype(np.float32)
  return log_of(
    rng.normal(size=(num_rows, features)),
    centre + deviation,
    rng.uniform(0, 1, (num_rows, groups)),
    session_length=session_length,
    centre=centre,
  )
