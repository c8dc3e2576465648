"""Cross-entropy method: a Gaussian that moves to the best of its draws.

No learner of transitions, as `es`: it sees no log, only what weights are worth.

References:
  [1] De Boer, Kroese, Mannor and Rubinstein, "A Tutorial on the Cross-Entropy
  Method", Annals of Operations Research 134, 2005: the elite's moments, smoothed.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from mtf_jax.learners.es import Fitness


class Effort(NamedTuple):
  """Effort of a search; static.

  iterations: generations.
  population: draws of a generation.
  sessions: evaluations of each draw.
  elite: draws that the next Gaussian is made of.
  stddev: of the first Gaussian, in each component.
  min_stddev: below it the Gaussian would freeze before it has arrived.
  smoothing: share of the elite's moments in the next ones, in (0, 1].
  """

  iterations: int = 20
  population: int = 32
  sessions: int = 256
  elite: int = 6
  stddev: float = 0.3
  min_stddev: float = 0.02
  smoothing: float = 0.7


def search(
  rng_key: chex.PRNGKey,
  weights: chex.Array,
  fitness: Fitness,
  effort: Effort,
  project: Callable[[jax.Array], jax.Array],
) -> jax.Array:
  """The mean of the last Gaussian [1].

  A draw's worth is the mean of its own evaluations, which no other draw shares:
  what a platform can do. The mean of the Gaussian is answered, not the best draw,
  which is the luckiest.

  Args:
    rng_key: random number generator key, consumed.
    weights: `[A]`, mean of the first Gaussian.
    fitness: what is to be climbed, see `es.Fitness`.
    effort: static.
    project: applied to draws before they are evaluated, and to the means.

  Returns:
    `[A]`.

  Raises:
    ValueError: counts that do not fit.
  """
  if not 1 < effort.elite <= effort.population or effort.sessions < 1:
    raise ValueError(
      "elite: expected from 2 to population draws, each evaluated in 1 session"
      f" or more, found {effort}."
    )

  def worth(draw, key):
    keys = jax.random.split(key, (effort.sessions, 2))
    found = jax.vmap(lambda pair: fitness(draw, pair[0], pair[1]))(keys)
    return jnp.mean(found)

  def generation(carry, key):
    mean, stddev = carry
    noise_key, own_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (effort.population, *mean.shape))
    draws = jax.vmap(project)(mean[None] + stddev[None] * noise)
    keys = jax.random.split(own_key, effort.population)
    _, best = jax.lax.top_k(jax.vmap(worth)(draws, keys), effort.elite)
    elite = draws[best]
    step = effort.smoothing
    mean = project(mean + step * (jnp.mean(elite, axis=0) - mean))
    spread = jnp.maximum(jnp.std(elite, axis=0), effort.min_stddev)
    return (mean, stddev + step * (spread - stddev)), None

  start = (weights, jnp.full_like(weights, effort.stddev))
  keys = jax.random.split(rng_key, effort.iterations)
  (mean, _), _ = jax.lax.scan(generation, start, keys)
  return mean
