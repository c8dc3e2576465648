"""XLA's share of building a world, in float64.

XLA rounds by the kind of processor: in float32 the last place of a result hangs
on the width of the vectors, and with it, once in a while, which candidates are
picked, and so the whole world. In float64 that is eight places behind what a
world keeps, float32: a seed's world is the same on every processor, but for a
chance too small to meet.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np


def _widen(leaf: Any) -> Any:
  if getattr(leaf, "dtype", None) == np.float32:
    return np.asarray(leaf, np.float64)
  return leaf


def in_float64(function: Callable[..., Any]) -> Callable[..., Any]:
  """Lets a function compute in float64 whatever mode JAX is in.

  Args:
    function: of pytrees of arrays; may be jitted. Float32 leaves of its
      arguments, keyword arguments excepted, reach it as float64.

  Returns:
    The function. Its results are NumPy arrays, so that no array of a mode that
    has ended is about.
  """

  @functools.wraps(function)
  def call(*args, **kwargs):
    # Standard: a world's uniforms are float32 whatever it computes in.
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
      return jax.tree.map(
        np.asarray, function(*jax.tree.map(_widen, args), **kwargs)
      )

  return call
