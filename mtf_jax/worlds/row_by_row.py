"""Functions of one row, over rows: as the device at hand runs them fast.

XLA fuses a lookup in a table into what follows. On a CPU the loop around both is
then not vectorised, and a logarithm in it costs six times as much. The body of a
loop over rows is a program of its own: lookups stay outside of it, and the other
axes, sessions once the caller has vmapped, are what it is vectorised over.
"""

from collections.abc import Callable
from typing import Any

import jax


def row_by_row(function: Callable[..., Any], *rows: Any) -> Any:
  """`jax.vmap(function)(*rows)`, on a CPU one row after the other.

  What `rows` need is computed before.

  Args:
    function: of one row of each, any pytrees.
    *rows: pytrees of arrays with one leading axis.

  Returns:
    What it returns, with this leading axis.
  """
  return jax.lax.platform_dependent(
    *rows,
    cpu=lambda *rows: jax.lax.map(lambda row: function(*row), rows),
    default=jax.vmap(function),
  )
