"""Ranking by monotone cells: what is in service first, and what is logged.

Letters: `C` candidates, `A` action components, `K` tasks, `J` knots of a cell.
"""

import chex
import jax.numpy as jnp

from mtf_jax.data.candidate_scores import CandidateScores
from mtf_jax.kernels import fusion
from mtf_jax.kernels.monotone import MonotoneCells, cells_from_weights
from mtf_jax.worlds import env
from mtf_jax.worlds.scores import lookup_scores
from mtf_jax.worlds.world import World

# Candidates of a request whose scores are logged.
NUM_LOGGED = 16
_NUM_KNOTS = 16


def formula_cells(
  world: World, action: chex.Array, num_knots: int = _NUM_KNOTS
) -> MonotoneCells:
  """The formula that an action stands for, as cells.

  Knots are where `log(score + bias_k)` has equal steps, from the lowest to the
  highest score of the world: there the chords are all as near to the logarithm,
  and no score is beyond the knots.

  Args:
    world: the world.
    action: `[A]` normalised action, see `fusion.weights_from_action`.
    num_knots: `J`, static, two or more.

  Returns:
    Cells of a request, `[K, J]`, `[K]` and `[K, J-1]`.

  Raises:
    ValueError: all scores of a task are equal, so that there is no room for knots.
      Under a transformation of JAX's that is not seen.
  """
  weights = fusion.weights_from_action(action, world.fusion_spec)
  bias = weights.bias[:, None]
  low = jnp.min(world.scores.values, axis=1, keepdims=True)
  high = jnp.max(world.scores.values, axis=1, keepdims=True)
  share = jnp.linspace(0.0, 1.0, num_knots, dtype=bias.dtype)[None, :]
  ratio = jnp.log((high + bias) / (low + bias))
  # From the low end: what is added to it is positive, and so it rises.
  knots = low + (low + bias) * jnp.expm1(share * ratio)
  return cells_from_weights(weights, knots)


def as_logged(
  world: World, state: env.SessionState, cells: MonotoneCells
) -> CandidateScores:
  """What a log has of a request that was ranked by cells.

  The first `NUM_LOGGED` candidates, or all where there are fewer: retrieval finds
  items in random order, so that which ones these are hangs on no score.

  Args:
    world: the world.
    state: the session before the request.
    cells: that the request was ranked by.

  Returns:
    Scores `[min(C, NUM_LOGGED), K]`, and the cells.
  """
  slots = env.candidate_slots(world, state)[:NUM_LOGGED]
  return CandidateScores(lookup_scores(world.scores, state.user, slots), cells)
