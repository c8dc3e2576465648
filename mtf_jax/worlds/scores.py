"""What the ranking model says of an item: low-rank tables, a request's gathers.

A ranking network run for every candidate would make a simulator a hundred times
too slow, so a world holds the network's outputs distilled into factors.

Letters: `U` users, `I` items, `C` candidates, `K` tasks, `D` factors.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class ScoreTables(NamedTuple):
  """Low-rank factors of the ranking model's outputs.

  user_factors: bfloat16 or float32 `[U, K, D]`.
  item_factors: `[I, K, D]`, the same type.
  log_link: bool `[K]`, tasks whose link is exp (seconds); the others' is the
    logistic function (probabilities).
  """

  user_factors: chex.Array
  item_factors: chex.Array
  log_link: chex.Array


def lookup_scores(
  tables: ScoreTables, user: chex.Numeric, items: chex.Array
) -> jax.Array:
  """Scores of one user's candidates, as the fusion sees them.

  Args:
    tables: factors.
    user: integer scalar.
    items: integer `[C]`.

  Returns:
    float32 `[C, K]`, positive: probabilities, or seconds where `log_link`.
  """
  factors = tables.item_factors[items].astype(jnp.float32)
  own = tables.user_factors[user].astype(jnp.float32)
  # A product and a sum, not a contraction: XLA's batched one is slower here.
  linear = jnp.sum(factors * own[None], axis=-1)
  raised = jnp.exp(jnp.where(tables.log_link[None], linear, -linear))
  return jnp.where(tables.log_link[None], raised, 1.0 / (1.0 + raised))
