"""The leaves of a state by name: as they are stored, and back into place.

A leaf's name is its path with dots, such as `learner.hyperparams.discount`; a
checkpoint knows its leaves by these names alone, so that what is read can be
compared with what a run expects leaf by leaf.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax import io


def name_of(path: tuple[Any, ...]) -> str:
  """A leaf's name from its path in a pytree."""
  return jax.tree_util.keystr(path, simple=True, separator=".")


def is_hyperparam(path: tuple[Any, ...]) -> bool:
  """Whether a leaf is a number of the algorithm, by where states keep them."""
  return name_of(path[-2:-1]) == "hyperparams"


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _stored(name: str, leaf: Any) -> np.ndarray:
  if not hasattr(leaf, "dtype"):
    raise io.InputError(
      f"{name}: expected an array, found {leaf!r}, a Python"
      f" {type(leaf).__name__}, which would not come back as one; wrap it in"
      " jnp.asarray."
    )
  leaf = jnp.asarray(leaf)
  return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def to_numpy(state: Any) -> Any:
  """A state as it is stored: NumPy arrays, keys as their data.

  Raises:
    InputError: a leaf is no array, or two leaves have one name.
  """
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(state)]
  names = [name_of(path) for path in paths]
  twice = {name for name in names if names.count(name) > 1}
  if twice:
    raise io.InputError(
      f"{min(twice)}: expected one leaf of this name, found more."
    )
  return jax.tree_util.tree_map_with_path(
    lambda path, leaf: _stored(name_of(path), leaf), state
  )


def by_name(stored: Any) -> dict[str, np.ndarray]:
  """Name -> array of a stored state, whatever containers it has."""
  leaves = jax.tree_util.tree_leaves_with_path(stored)
  return {name_of(path): leaf for path, leaf in leaves}


def key_impls(state: Any) -> dict[str, str]:
  """Name -> implementation of a state's keys, which their data do not tell."""
  return {
    name_of(path): str(jax.random.key_impl(leaf))
    for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    if _is_key(leaf)
  }


def _described(leaf: np.ndarray) -> str:
  return f"{io.type_name(leaf.dtype)} {list(leaf.shape)}"


def fit(
  found: Mapping[str, np.ndarray],
  template: Any,
  found_impls: Mapping[str, str],
) -> tuple[Any, list[str]]:
  """Puts leaves that were read where a state of this run has them.

  Args:
    found: name -> array, as `to_numpy` stores them.
    template: a state of the same structure, shapes and dtypes.
    found_impls: name -> implementation of a key; one that is left out is known
      by its data's shape only.

  Returns:
    The state; and the names of hyperparameters that were not found, which an
    earlier version did not have: they have the template's value.

  Raises:
    InputError: a leaf is missing, has another shape or type or is of another
      key implementation, or there is one that the template has not.
  """
  paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(template)]
  unknown = sorted(set(found) - {name_of(path) for path in paths})
  if unknown:
    raise io.InputError(
      f"{unknown[0]}: expected no such array in this run's state, found one;"
      " another learner, network or version wrote it."
    )
  filled = []

  def place(path: tuple[Any, ...], like: Any) -> Any:
    name = name_of(path)
    if name not in found:
      if is_hyperparam(path):
        filled.append(name)
        return like
      raise io.InputError(
        f"{name}: expected an array of this name, found none; another learner,"
        " network or version wrote it."
      )
    leaf = found[name]
    expected = _stored(name, like)
    if _is_key(like):
      impl = str(jax.random.key_impl(like))
      _check_impl(name, impl, found_impls.get(name), leaf, expected)
      return jax.random.wrap_key_data(jnp.asarray(leaf), impl=impl)
    if (leaf.dtype, leaf.shape) != (expected.dtype, expected.shape):
      raise io.InputError(
        f"{name}: expected {_described(expected)} as this run has it, found"
        f" {_described(leaf)}; another "
        + (
          "network, log or number of runs wrote it."
          if leaf.shape != expected.shape
          else "precision wrote it (JAX_ENABLE_X64)."
        )
      )
    return jnp.asarray(leaf)

  return jax.tree_util.tree_map_with_path(place, template), filled


def _check_impl(
  name: str,
  impl: str,
  found_impl: str | None,
  leaf: np.ndarray,
  expected: np.ndarray,
) -> None:
  alike = (leaf.dtype, leaf.shape) == (expected.dtype, expected.shape)
  if found_impl is None and not alike and leaf.ndim:
    # By the length of its data, as far as that tells.
    found_impl = {2: "threefry2x32", 4: "rbg"}.get(leaf.shape[-1])
  if found_impl not in (None, impl):
    raise io.InputError(
      f"{name}: expected a key of the implementation {impl}, found one of"
      f" {found_impl}; set JAX_DEFAULT_PRNG_IMPL={found_impl} to go on."
    )
  if not alike:
    raise io.InputError(
      f"{name}: expected a key of {_described(expected)} as this run has it,"
      f" found {_described(leaf)}; another number of runs wrote it."
    )
