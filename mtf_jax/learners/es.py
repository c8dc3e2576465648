"""Evolution strategy: weights that climb a fitness by asking for it.

No learner of transitions: it sees no log, only what weights are worth. Who may
answer that decides what it is, a search on a platform or a privileged one.

References:
  [1] Salimans et al., "Evolution Strategies as a Scalable Alternative to
  Reinforcement Learning", arXiv 1703.03864: antithetic perturbations.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mtf_jax.kernels.exploration import HALF_WIDTH
from mtf_jax.over_mesh import over_data


class Search(NamedTuple):
  """Effort of a search.

  iterations: gradient steps.
  sessions: pairs of evaluations a step, each with a perturbation of its own.
  noise: standard deviation of the perturbation of what the weights decide;
    unless told, the half width of the exploration's box.
  learning_rate: of Adam, falling to a tenth.
  """

  iterations: int = 80
  sessions: int = 4096
  noise: float = HALF_WIDTH
  learning_rate: float = 0.03

  @property
  def num_sessions(self) -> int:
    """Evaluations of the whole search."""
    return self.iterations * 2 * self.sessions


# `(weights, key, key) -> scalar`: of what happens, and of the policy's draws.
# Positive on the mean; equal keys must give equal circumstances.
Fitness = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def ascend(
  rng_key: chex.PRNGKey,
  weights: chex.Array,
  fitness: Fitness,
  search: Search,
  stddev: chex.Array,
  project: Callable[[jax.Array], jax.Array],
  common: bool = True,
  mesh: Mesh | None = None,
) -> jax.Array:
  """Ascends a fitness with antithetic perturbations [1].

  Each evaluation is done with its own perturbation of the weights, forwards and
  backwards, so that a step costs `2 * sessions` evaluations and estimates the
  gradient of every weight.

  Args:
    rng_key: random number generator key, consumed.
    weights: `[...]` where to start.
    fitness: what is to be climbed, see `Fitness`.
    search: effort, static.
    stddev: of the perturbation, like `weights` or broadcast to it, non-negative.
      A weight with 0 stays where it is.
    project: applied to the weights after each step.
    common: whether the two of a pair have the same keys, static. Traffic cannot
      be seen twice: there each has its own.
    mesh: the evaluations of a step are divided over its axis `data`, static; one
      device if omitted.

  Returns:
    `[...]`, the mean of the weights over the last half of the steps.
  """
  moves = (stddev > 0).astype(weights.dtype)
  schedule = optax.cosine_decay_schedule(
    search.learning_rate, search.iterations, 0.1
  )
  optimizer = optax.adam(schedule, b1=0.8, b2=0.98)
  signs = jnp.asarray([1.0, -1.0], weights.dtype)

  def gradient(weights, key):
    def one(key):
      noise_key, *keys = jax.random.split(key, 3)
      delta = stddev * jax.random.normal(noise_key, weights.shape)

      def one_of_pair(sign, number):
        own = keys
        if not common:
          own = [jax.random.fold_in(key, number) for key in keys]
        return fitness(weights + sign * delta, *own)

      # One copy of the fitness in the program, not two.
      up, down = jax.vmap(one_of_pair)(signs, jnp.arange(2))
      return (up - down) * delta, up + down

    keys = jax.random.split(key, search.sessions)
    slope, level = over_data(one, keys, mesh=mesh)
    # In units of the deviation and of the mean fitness: Adam's epsilon and the
    # learning rate then mean the same everywhere.
    unit = jnp.where(stddev > 0, 1.0 / jnp.maximum(stddev, 1e-9), 0.0)
    return jnp.mean(slope, axis=0) * unit / jnp.mean(level)

  def update(carry, inputs):
    weights, state, total = carry
    key, late = inputs
    slope = gradient(weights, key)
    # Optax itself mixes types; a user's strict setting must not break it.
    with jax.numpy_dtype_promotion("standard"):
      change, state = optimizer.update(-slope, state)
    weights = project(weights + change * moves)
    return (weights, state, total + late * weights), None

  late = jnp.arange(search.iterations) >= search.iterations // 2
  late = late.astype(weights.dtype)
  start = (weights, optimizer.init(weights), jnp.zeros_like(weights))
  keys = jax.random.split(rng_key, search.iterations)
  (_, _, total), _ = jax.lax.scan(update, start, (keys, late))
  return total / jnp.sum(late)
