"""Argument checks shared by the kernels; they run while JAX traces.

Shapes and dtypes are known at trace time, so these checks cost nothing in the
compiled program. Checks of *values* (an inverted box, a negative coefficient)
run only where the value is concrete and are skipped for tracers; they look at
the caller's own value, because a cast inside `jit` makes a tracer of it.
"""

import operator
from collections.abc import Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

# float16 and the 8-bit floats are refused: the constants that keep the kernels
# finite (`fusion.SCORE_FLOOR`, `relaxation.LINEAR_FROM`) do not fit them.
_DTYPES = ("bfloat16", "float32", "float64")


def _require_float(name: str, value: Any) -> jax.Array:
  array = jnp.asarray(value)
  if array.dtype.name not in _DTYPES:
    raise ValueError(
      f"{name}: expected a dtype of {', '.join(_DTYPES)},"
      f" found {array.dtype.name}."
    )
  return array


def _match(
  name: str,
  shape: tuple[int, ...],
  letters: str,
  sizes: dict[str, tuple[int, str]],
) -> None:
  """Binds the letters to the shape, or raises `ValueError`."""
  expected = letters.split()
  ellipsis = bool(expected) and expected[-1] == "..."
  if ellipsis:
    expected = expected[:-1]
  described = f"[{', '.join(letters.split())}]"
  rank_ok = (
    len(shape) >= len(expected) if ellipsis else len(shape) == len(expected)
  )
  if not rank_ok:
    raise ValueError(f"{name}: expected shape {described}, found {shape}.")
  for letter, size in zip(expected, shape, strict=False):
    if not size:
      raise ValueError(
        f"{name}: expected shape {described} with {letter} of 1 or more, found"
        f" {shape}."
      )
    known, source = sizes.setdefault(letter, (size, name))
    if known != size:
      raise ValueError(
        f"{name}: expected shape {described} with {letter} = {known} as in"
        f" {source}, found {shape}."
      )


def floats(
  arguments: Mapping[str, tuple[chex.Numeric, str]],
) -> tuple[list[jax.Array], jnp.dtype]:
  """Checks data arguments and prepares them for computing.

  Arithmetic is done in float32 at least and rounded to the result's dtype once:
  eight bits of bfloat16 do not survive a sum, a logarithm or a recursion.

  Args:
    arguments: argument name -> (value, shape letters such as `"C K"`; `""` is
      a scalar, a final `...` any further axes). A letter has one size.

  Returns:
    `(arrays, dtype)`: the arguments in order, in the dtype to compute in, and
    the dtype of the result, which is the arguments' widest (a Python number
    has none of its own).

  Raises:
    ValueError: a rank, a size or a dtype differs from what is expected, or an
      axis is empty.
  """
  sizes: dict[str, tuple[int, str]] = {}
  arrays = []
  for name, (value, letters) in arguments.items():
    array = _require_float(name, value)
    _match(name, array.shape, letters, sizes)
    arrays.append(array)
  # Mixing is allowed here also where the caller forbids implicit promotion:
  # it is explicit in the result's documented dtype.
  with jax.numpy_dtype_promotion("standard"):
    dtype = jnp.result_type(*arrays)
  computing = jnp.float32 if dtype == jnp.bfloat16 else dtype
  return [array.astype(computing) for array in arrays], dtype


def coefficient(
  name: str, value: chex.Numeric, like: jax.Array, *, per_element: bool = False
) -> jax.Array:
  """Checks a coefficient and casts it to the dtype that the data compute in.

  Coefficients have no say in the result's dtype: a float32 one in a training
  state must not turn bfloat16 data into float32.

  Args:
    name: the argument's name, for the error.
    value: a scalar or, if `per_element`, also an array of `like`'s shape.
    like: the data that the coefficient acts on.
    per_element: whether one value per element of `like` is allowed.

  Returns:
    The coefficient, of `like`'s shape if `per_element`, else a scalar.

  Raises:
    ValueError: wrong shape, or a dtype that is not a float. Integers are
      refused because `10` and `10.0` would be compiled as two programs.
  """
  array = _require_float(name, value)
  allowed = ((), like.shape) if per_element else ((),)
  if array.shape not in allowed:
    raise ValueError(
      f"{name}: expected shape {' or '.join(map(str, allowed))},"
      f" found {array.shape}."
    )
  array = array.astype(like.dtype)
  return jnp.broadcast_to(array, like.shape) if per_element else array


def count(name: str, value: Any, *, at_most: int, what: str) -> int:
  """Checks a static count: an integer from 1 to `at_most` (`what` it counts)."""
  try:
    number = operator.index(value)
  except (TypeError, jax.errors.JAXTypeError):
    raise ValueError(
      f"{name}: expected a static integer, found {value!r}."
    ) from None
  if not 1 <= number <= at_most:
    raise ValueError(
      f"{name}: expected 1 to {at_most} ({what}), found {number}."
    )
  return number


def _concrete(*values: chex.Numeric) -> bool:
  return not any(isinstance(value, jax.core.Tracer) for value in values)


def ordered(
  lower_name: str, lower: chex.Numeric, upper_name: str, upper: chex.Numeric
) -> None:
  """Raises `ValueError` where concrete `lower > upper` in some component."""
  if not _concrete(lower, upper):
    return
  inverted = np.asarray(lower) > np.asarray(upper)
  if np.any(inverted):
    raise ValueError(
      f"{lower_name}: expected at most {upper_name} in every component, found"
      f" {lower_name} = {np.asarray(lower)} and"
      f" {upper_name} = {np.asarray(upper)}."
    )


def nonnegative(name: str, value: chex.Numeric) -> None:
  """Raises `ValueError` where a concrete value is negative."""
  if _concrete(value) and np.any(np.asarray(value) < 0):
    raise ValueError(
      f"{name}: expected non-negative, found {np.asarray(value)}."
    )


def rising(name: str, value: chex.Numeric) -> None:
  """Raises `ValueError` where a concrete value does not rise along `[K, J]`."""
  if _concrete(value) and not np.all(np.diff(np.asarray(value), axis=1) > 0):
    raise ValueError(
      f"{name}: expected to rise along the last axis, found"
      f" {np.asarray(value)}."
    )
