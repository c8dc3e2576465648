"""Scores of a request's candidates: optional columns of a session log.

A log has them whose policy ranked by monotone cells [1]. The request's `action`
is then that of the curve on top, one component a task, and means something only
on the cells that it was on, which the row has besides.

Letters: `N` rows, `C` logged candidates, `K` tasks, `J` knots of a cell.

References:
  [1] Cao et al., "xMTF: A Formula-Free Model for Reinforcement-Learning-Based
  Multi-Task Fusion in Recommender Systems", arXiv 2504.05669.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import numpy as np

from mtf_jax.io import InputError, as_array
from mtf_jax.kernels.monotone import MonotoneCells


class CandidateScores(NamedTuple):
  """What an order of candidates is learnt from.

  Of a `bootstrap_only` row it is what the next request would have had.

  scores: float32 `[N, C, K]` the ranking model's scores of some of the request's
    candidates, in the tasks' own units. Which ones must not hang on their scores,
    or the order is learnt of some heights alone.
  cells: float32 `[N, K, J]`, `[N, K]` and `[N, K, J-1]`, those in service at the
    request.
  """

  scores: chex.Array
  cells: MonotoneCells


# Flat name -> (dtype, letters of the shape), as in `session_log`: a task for each
# component of the action, I intervals between J knots.
FIELDS = {
  "candidate_scores": (np.float32, "NCA"),
  "cell_knots": (np.float32, "NAJ"),
  "cell_start": (np.float32, "NA"),
  "cell_increments": (np.float32, "NAI"),
}


def flatten(candidates: CandidateScores | None) -> dict[str, np.ndarray]:
  """The columns by flat name; none of a log without them.

  Args:
    candidates: of a log.

  Returns:
    NumPy arrays.

  Raises:
    InputError: it is of another type, a column is no array, or there is not one
      increment less than there are knots.
  """
  if candidates is None:
    return {}
  for name, value, kind in (
    ("candidates", candidates, CandidateScores),
    ("candidates.cells", getattr(candidates, "cells", None), MonotoneCells),
  ):
    if not isinstance(value, kind):
      raise InputError(
        f"{name}: expected a value of type {kind.__name__}, found"
        f" {type(value).__name__}."
      )
  columns = (candidates.scores, *candidates.cells)
  flat = {
    name: as_array(column, name)
    for name, column in zip(FIELDS, columns, strict=True)
  }
  check_knots({name: array.shape for name, array in flat.items()})
  return flat


def check_knots(shapes: Mapping[str, tuple[int, ...]]) -> None:
  """Checks what letters of shapes do not say.

  Args:
    shapes: of the columns by flat name, among others or not.

  Raises:
    InputError: there is not one increment less than there are knots, or one
      candidate alone.
  """
  if "cell_knots" not in shapes:
    return
  knots, increments = shapes["cell_knots"], shapes["cell_increments"]
  scores = shapes["candidate_scores"]
  if len(scores) == 3 and scores[1] < 2:
    raise InputError(
      "candidate_scores: expected two candidates or more, whose order can be"
      f" learnt, found shape {scores}."
    )
  if increments[-1:] != tuple(size - 1 for size in knots[-1:]):
    raise InputError(
      "cell_increments: expected shape [N, A, J-1] with J as in cell_knots"
      f" {knots}, found {increments}."
    )


def unflatten(flat: Mapping[str, np.ndarray]) -> CandidateScores | None:
  """What `flatten` was given."""
  if "candidate_scores" not in flat:
    return None
  scores, *cells = (flat[name] for name in FIELDS)
  return CandidateScores(scores, MonotoneCells(*cells))


def bad_rows(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """What is wrong with the columns, beside values that are not finite.

  Args:
    flat: the log's columns by flat name, those of `flatten` among them or not, of
      the right types and shapes.

  Returns:
    By what is wrong, where it is: bool `[N, ...]`.
  """
  if "cell_knots" not in flat:
    return {}
  knots = flat["cell_knots"]
  return {
    "cell_knots not rising": knots[..., 1:] <= knots[..., :-1],
    "cell_increments below 0": flat["cell_increments"] < 0,
  }


def check_actions_of_formula(candidates: CandidateScores | None) -> None:
  """Checks that actions are those of Eq. 1, for who takes them for that.

  Args:
    candidates: of a log, or None.

  Raises:
    InputError: there are some, so that actions are those of a curve on cells.
  """
  if candidates is not None:
    raise InputError(
      "action: expected powers and biases of Eq. 1, found actions on monotone"
      " cells (candidate_scores, cell_knots, cell_start and cell_increments)."
    )


def require(candidates: Any, what: str) -> CandidateScores:
  """The scores, where something cannot do without.

  Args:
    candidates: of a transition.
    what: who asks, a noun.

  Raises:
    InputError: there are none.
  """
  if candidates is None:
    raise InputError(
      "candidates: expected a log with scores of candidates (candidate_scores,"
      " cell_knots, cell_start and cell_increments), which"
      f" {what} learns from, found none."
    )
  return candidates
