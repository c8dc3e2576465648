"""What every learner is made of: the interface, normalisation, and one step.

Letters: `B` transitions of a batch, `S` state features, `A` action components,
`G` reward groups.

References:
  [1] Kingma and Ba, "Adam: A Method for Stochastic Optimization", ICLR 2015.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtf_jax.data.transitions import Transition, TransitionDataset
from mtf_jax.io import InputError
from mtf_jax.kernels.monotone import MonotoneCells

_ADAM = optax.scale_by_adam()


class Learner(NamedTuple):
  """An algorithm as pure functions.

  init: `(rng_key, example, hyperparams, normalization) -> state`, `example` one
    `Transition` without a batch axis; the last two may be left out.
  update: `(state, batch) -> (state, metrics)`, `batch` a `Transition` with a
    leading axis `B`.
  policy: `state -> params`, the small part of a state that acts: a `Policy`, or
    another NamedTuple that has its `normalization`.
  act: `(params, observation [S], rng_key) -> action [A]`, in [-1, 1]; a
    deterministic policy ignores the key.
  value: `(state, observation [S], action [A], box [A]) -> [G]` in units of the
    return, or None for an algorithm that learns no value.
  fit: `(state, dataset) -> (state, metrics)`, a round in closed form: each
    transition of a `TransitionDataset` once, in place of updates. None for an
    algorithm that climbs. `update` then adds a batch to the round.
  cells: `(params, observation [S]) -> MonotoneCells`, what is served of an
    algorithm that learns to rank by cells; its `act` is the action on top of those
    that it learnt from. None for one whose action is served.
  """

  init: Callable[..., Any]
  update: Callable[[Any, Transition], tuple[Any, Any]]
  policy: Callable[[Any], Any]
  act: Callable[[Any, chex.Array, chex.PRNGKey], jax.Array]
  value: Callable[..., jax.Array] | None
  fit: Callable[[Any, TransitionDataset], tuple[Any, Any]] | None = None
  cells: Callable[[Any, chex.Array], MonotoneCells] | None = None


class Normalization(NamedTuple):
  """Affine map of the observations that the networks see.

  mean: `[S]` subtracted first.
  scale: `[S]` divided by, positive.
  """

  mean: chex.Array
  scale: chex.Array


class Policy(NamedTuple):
  """What acts: an actor and the observations that it is used to.

  actor_params: as the network's `init` made them.
  normalization: of the observations.
  """

  actor_params: Any
  normalization: Normalization


def normalization_from(
  dataset: TransitionDataset, floor: float = 1e-6
) -> Normalization:
  """Mean and standard deviation of a dataset's observations.

  Args:
    dataset: rows on the device.
    floor: smallest deviation that counts; a feature below it is constant and
      is only centred.
  """
  mean = jnp.mean(dataset.observation, axis=0)
  stddev = jnp.std(dataset.observation, axis=0)
  return normalization_of(mean, stddev, floor)


def normalization_of(
  mean: chex.Array, stddev: chex.Array, floor: float = 1e-6
) -> Normalization:
  """What subtracts a mean and divides by a deviation, `[S]` each.

  Args:
    mean: of the observations.
    stddev: of the observations.
    floor: smallest deviation that counts; a feature below it is constant and
      is only centred.
  """
  return Normalization(mean, jnp.where(stddev > floor, stddev, 1))


def own_normalization(
  normalization: Normalization | None, observation: chex.Array
) -> Normalization:
  """A copy for a new state, or the identity where there is none.

  Args:
    normalization: of the caller, who may use it again: a state is donated.
    observation: `[S]` example; its dtype is the copy's.
  """
  if normalization is None:
    normalization = Normalization(
      jnp.zeros_like(observation), jnp.ones_like(observation)
    )
  return jax.tree.map(
    lambda value: jnp.array(value, observation.dtype), normalization
  )


def normalize_batch(
  normalization: Normalization, batch: Transition
) -> Transition:
  """`(s - mean) / scale` for both observations of a batch `[B, ...]`."""

  def normalize(observation):
    centred = observation - normalization.mean[None, :]
    return centred / normalization.scale[None, :]

  return batch._replace(
    observation_tm1=normalize(batch.observation_tm1),
    observation_t=normalize(batch.observation_t),
  )


def normalize_one(
  normalization: Normalization, observation: chex.Array
) -> jax.Array:
  """`(s - mean) / scale` for one observation `[S]`."""
  return (observation - normalization.mean) / normalization.scale


def check_ranges(
  hyperparams: Any, bounds: Mapping[str, tuple[float, float]]
) -> None:
  """Checks numbers that are known; one that jax traces is let through.

  Args:
    hyperparams: a NamedTuple of numbers or arrays.
    bounds: field -> (lowest, highest), both allowed.

  Raises:
    InputError: a value outside its bounds; NaN is outside.
  """
  for name, (low, high) in bounds.items():
    value = getattr(hyperparams, name)
    if isinstance(value, jax.core.Tracer):
      continue
    inside = (np.asarray(value) >= low) & (np.asarray(value) <= high)
    if not np.all(inside):
      raise InputError(
        f"{name}: expected a value in [{low}, {high}], found {value}."
      )


def start_optimizer(params: Any) -> Any:
  """Moments of Adam for `descend`, all 0."""
  return _ADAM.init(params)


def descend(
  gradient: Any,
  params: Any,
  optimizer: Any,
  learning_rate: chex.Numeric,
  max_norm: chex.Numeric,
) -> tuple[Any, Any, jax.Array]:
  """One step of Adam [1] along a gradient clipped by its global norm.

  Args:
    gradient: of the loss, like `params`.
    params: where to step from.
    optimizer: moments, from `start_optimizer` or an earlier step.
    learning_rate: scalar step size.
    max_norm: scalar norm to which the gradient is clipped; `inf` never.

  Returns:
    The new parameters, the new moments, and the norm before clipping.
  """
  norm = optax.tree.norm(gradient)
  clip = jnp.where(norm > max_norm, max_norm / norm, 1)
  gradient = jax.tree.map(lambda leaf: leaf * clip, gradient)
  # Adam mixes its int32 count with floats, which a caller may have forbidden.
  with jax.numpy_dtype_promotion("standard"):
    direction, optimizer = _ADAM.update(gradient, optimizer)
  params = jax.tree.map(
    lambda value, step: value - learning_rate * step, params, direction
  )
  return params, optimizer, norm
