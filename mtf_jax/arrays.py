"""Checks of arrays that a user, a file or another program gave.

What is not a number, infinite or masked passes through sums, sorts and
comparisons without a word and comes out as a figure; here it is refused in a
sentence.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from mtf_jax.io import InputError, as_array, type_name


class Laid(Protocol):
  """What has a type and a shape: an array, or what a file says of one."""

  @property
  def dtype(self) -> np.dtype:
    """Type of the values."""

  @property
  def shape(self) -> tuple[int, ...]:
    """Sizes of the axes."""


# The type of a field, or several, and the letters of its axes.
FieldType = tuple[Any, str]


def check_fields(
  found: Mapping[str, Laid],
  fields: Mapping[str, FieldType],
  sizes: Mapping[str, int],
) -> dict[str, int]:
  """Compares types and shapes with a schema, axes of one letter being equal.

  Args:
    found: arrays by name, all of `fields`.
    fields: schema.
    sizes: of letters that are known before.

  Returns:
    The sizes of all letters.

  Raises:
    InputError: it names the first field that is not as it should be. No axis
      may be empty.
  """
  known = dict(sizes)
  for name, (types, letters) in fields.items():
    array, described = found[name], f"[{', '.join(letters)}]"
    allowed = [
      np.dtype(t) for t in (types if type(types) is tuple else [types])
    ]
    if array.dtype not in allowed:
      raise InputError(
        f"{name}: expected {' or '.join(t.name for t in allowed)}, found"
        f" {type_name(array.dtype)}."
      )
    if len(array.shape) != len(letters):
      raise InputError(
        f"{name}: expected shape {described}, found {array.shape}."
      )
    for letter, size in zip(letters, array.shape, strict=True):
      if known.setdefault(letter, size) != size:
        raise InputError(
          f"{name}: expected shape {described} with {letter} ="
          f" {known[letter]}, found {array.shape}."
        )
      if not size:
        raise InputError(f"{name}: expected no empty axis, found {letter} = 0.")
  return known


def as_numbers(value: Any, name: str) -> np.ndarray:
  """What a user gave as a NumPy array of finite numbers.

  Args:
    value: an array, or what NumPy makes one of; flags count as numbers.
    name: what to call it.

  Returns:
    The array.

  Raises:
    InputError: it is no array of real numbers, has masked values, or values
      that are not finite.
  """
  array = as_array(value, name)
  if array.dtype.kind not in "biuf":
    raise InputError(
      f"{name}: expected numbers, found an array of {type_name(array.dtype)}."
    )
  bad = ~np.isfinite(array)
  if bad.any():
    raise InputError(
      f"{name}: expected finite values, found {int(bad.sum())} of {bad.size}"
      f" that are not, first at {int(np.argmax(bad.reshape(-1)))}."
    )
  return array


def as_columns(values: Mapping[str, Any]) -> list[np.ndarray]:
  """Arrays `[n]` of finite numbers, one value of each belonging together.

  Args:
    values: by name.

  Returns:
    The arrays, in this order.

  Raises:
    InputError: as `as_numbers`, or one is no vector, is empty, or has another
      length than the first.
  """
  columns = {name: as_numbers(value, name) for name, value in values.items()}
  size = None
  for name, column in columns.items():
    size = size or column.size
    if column.ndim != 1 or column.size != size or not size:
      expected = f"[{size}]" if size else "[n] with n above 0"
      raise InputError(
        f"{name}: expected shape {expected}, found {column.shape}."
      )
  return list(columns.values())
