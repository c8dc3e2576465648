"""A function of one row, over rows that the devices of a mesh share.

Where meshes come from, and what their axes are: `distributed.mesh`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def over_data(
  function: Callable[..., Any], *rows: Any, mesh: Mesh | None
) -> Any:
  """`jax.vmap(function)(*rows)`, a part of the rows on each device of `data`.

  XLA divides the program. Rows know nothing of each other, so nothing crosses
  devices before the caller asks something of all of them. A row gives the same
  whatever the number of devices, up to rounding: loops of another length are
  vectorised otherwise.

  Where the devices do not divide the rows evenly, the last row is done again to
  fill up, and what comes of that is dropped.

  Args:
    function: of one row of each; what it closes over is on every device.
    *rows: pytrees of arrays with one leading axis, random keys among them.
    mesh: has the axis `data`; one device if None.

  Returns:
    What it returns, with this leading axis, divided likewise.
  """
  if mesh is None:
    return jax.vmap(function)(*rows)
  devices = mesh.shape["data"]
  count = jax.tree.leaves(rows)[0].shape[0]
  filled = -(-count // devices) * devices
  if filled > count:
    place = jnp.minimum(jnp.arange(filled), count - 1)
    rows = jax.tree.map(lambda leaf: leaf[place], rows)
  divided = NamedSharding(mesh, PartitionSpec("data"))
  rows = jax.lax.with_sharding_constraint(rows, divided)
  found = jax.vmap(function)(*rows)
  found = jax.lax.with_sharding_constraint(found, divided)
  return jax.tree.map(lambda leaf: leaf[:count], found)
