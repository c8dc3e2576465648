"""Several processes as one run, on JAX's own engine (`jax.distributed`).

Every process runs the same program on the same arguments and holds a part of the
devices. The first one alone writes files and reports.
"""

from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

# Seconds without a sign of life after which a process counts as dead.
HEARTBEAT_SECONDS = 20


def join(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Joins the other processes of the run; before anything else asks JAX.

  Args:
    coordinator: `host:port` of the first process, or None where the cluster says
      where things are (SLURM, Open MPI, Kubernetes, TPU pods).
    num_processes, process_id: how many, and which of them this one is, from 0;
      None likewise.

  Raises:
    InputError: the others did not come, or no cluster is known here.
  """
  jax.distributed.initialize(
    coordinator_address=coordinator,
    num_processes=num_processes,
    process_id=process_id,
    heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
  )


def is_first() -> bool:
  """Whether this process writes files and reports."""
  return jax.process_index() == 0


def leave() -> None:
  """Waits for the others at the end of a run that went well."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices("the end of the run")


def whole(tree: Any) -> Any:
  """The same arrays, each whole in every process so that one can write it.

  Args:
    tree: pytree of arrays over the mesh; all processes call.

  Returns:
    The tree; arrays that this process can read already are left as they are.
  """

  def one(leaf: jax.Array) -> jax.Array:
    if leaf.is_fully_addressable or leaf.is_fully_replicated:
      return leaf
    assert isinstance(leaf.sharding, NamedSharding)
    everywhere = NamedSharding(leaf.sharding.mesh, PartitionSpec())
    return jax.jit(lambda value: value, out_shardings=everywhere)(leaf)

  return jax.tree.map(one, tree)
