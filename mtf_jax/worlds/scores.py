"""What the ranking model says of an item: codes, read by a request's gathers.

A ranking network run for every candidate would make a simulator a hundred times
too slow, so a world holds the network's outputs for every item of every user's
pool, one byte each. 256 levels, equally wide in log odds (log seconds), leave
an error of half a level, some hundredths, far below the network's own.

Letters: `U` users, `P` pool, `C` candidates, `K` tasks.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.worlds.row_by_row import row_by_row

_LEVELS = 256
_BLOCK = 256  # users whose scores are held as floats at once


class ScoreTables(NamedTuple):
  """Scores of the pools.

  codes: uint8 `[U, P, K]`, by user and place in the user's pool.
  values: float32 `[K, 256]`, the score that each code stands for, positive:
    probabilities, seconds for the watch time.
  """

  codes: chex.Array
  values: chex.Array


def lookup_scores(
  tables: ScoreTables, user: chex.Numeric, slots: chex.Array
) -> jax.Array:
  """Scores of one user's candidates, as the fusion sees them.

  Args:
    tables: codes and their values.
    user: integer scalar.
    slots: integer `[C]`, places in the user's pool.

  Returns:
    float32 `[C, K]`, positive.
  """
  codes = tables.codes[user, slots].astype(jnp.int32)
  return row_by_row(
    lambda values, codes: values[codes], tables.values, codes.T
  ).T


def positive_scores(linear: np.ndarray, log_link: np.ndarray) -> np.ndarray:
  """Scores as the fusion takes them, from a ranking model's linear outputs.

  Args:
    linear: `[..., K]` log odds (log seconds where `log_link`).
    log_link: bool `[K]`, tasks whose score is `exp` of the output, not its
      logistic function.

  Returns:
    `[..., K]`, positive.
  """
  return np.where(log_link, np.exp(linear), 1 / (1 + np.exp(-linear)))


def encode_scores(
  linear_scores: Callable[[np.ndarray], np.ndarray],
  num_users: int,
  log_link: np.ndarray,
) -> ScoreTables:
  """Encodes the outputs of a ranking model.

  The range of the levels is taken from users spread over the whole: its 0.05%
  and 99.95% quantiles; what lies beyond is clipped.

  Args:
    linear_scores: `users [N] -> [N, P, K]` log odds (log seconds where
      `log_link`) of the items in the users' pools.
    num_users: `U`.
    log_link: bool `[K]`, see `positive_scores`.

  Returns:
    The tables.

  Raises:
    ValueError: an output is not finite.
  """
  sample = np.linspace(0, num_users - 1, min(_BLOCK, num_users)).astype(int)
  seen = np.asarray(linear_scores(sample))
  low, high = np.quantile(seen, [0.0005, 0.9995], axis=(0, 1))
  width = np.maximum(high - low, 1e-6) / (_LEVELS - 1)
  codes = np.empty((num_users, *seen.shape[1:]), np.uint8)
  for start in range(0, num_users, _BLOCK):
    # The last block is filled up with the last user: blocks of one size.
    users = np.minimum(np.arange(start, start + _BLOCK), num_users - 1)
    block = np.asarray(linear_scores(users))
    if not np.isfinite(block).all():
      raise ValueError(
        "linear_scores: expected finite outputs, found"
        f" {int((~np.isfinite(block)).sum())} others among users {start} to"
        f" {users[-1]}."
      )
    level = np.clip(np.rint((block - low) / width), 0, _LEVELS - 1)
    codes[start : start + _BLOCK] = level[: num_users - start]
  levels = low[:, None] + width[:, None] * np.arange(_LEVELS)
  values = positive_scores(levels.T, log_link).T
  return ScoreTables(jnp.asarray(codes), jnp.asarray(values, jnp.float32))
