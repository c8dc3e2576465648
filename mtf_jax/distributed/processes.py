"""Several processes as one run, on JAX's own engine (`jax.distributed`).

Every process runs the same program on the same arguments and holds a part of the
devices. The first one alone writes files and reports.
"""

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from mtf_jax.io import InputError

# Seconds to wait for the others at the start, and without a sign of life until a
# process counts as dead.
START_SECONDS, HEARTBEAT_SECONDS = 60, 20

# Status of a process whose collectives failed.
LEFT_ALONE = 3

_ENDED_BY_FORCE = (
  b"This process was killed, or stops because another one of the run did: see what"
  b" the others said, and start all again, as many as there are now, to go on from"
  b" the newest checkpoint.\n"
)


def join(
  coordinator: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
) -> None:
  """Joins the other processes of the run, before anything else asks JAX.

  Args:
    coordinator: `host:port` of the first process, or None where the cluster says
      where things are (SLURM, Open MPI, Kubernetes, TPU pods).
    num_processes, process_id: how many, and which of them this one is, from 0;
      None likewise.

  Raises:
    InputError: no cluster is known here, or the others did not come.
  """
  try:
    jax.distributed.initialize(
      coordinator_address=coordinator,
      num_processes=num_processes,
      process_id=process_id,
      initialization_timeout=START_SECONDS,
      heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
    )
  except (ValueError, RuntimeError) as error:
    reason = " ".join(str(error).split())[:200]
    if coordinator is None:
      raise InputError(
        "processes: expected SLURM, Open MPI, Kubernetes or a TPU pod to say"
        f" where the processes are, found none ({reason}); name the coordinator."
      ) from error
    raise InputError(
      f"coordinator: expected {num_processes} processes at {coordinator} within"
      f" {START_SECONDS} s, found not all ({reason})."
    ) from error


def is_first() -> bool:
  """Whether this process writes files and reports."""
  return jax.process_index() == 0


@contextlib.contextmanager
def together(begun: bool) -> Iterator[None]:
  """Around all that several processes do: one that ends early ends them all.

  When another one is gone, a collective fails, or JAX ends the process by force
  and with words of its own: at once if that was the first, else after
  `HEARTBEAT_SECONDS`. What to do then is said last, in a sentence.

  Args:
    begun: whether the process is to join others in the block; if not, nothing
      is done.
  """
  if not begun:
    yield
    return
  farewell = _announcer()
  try:
    yield
    multihost_utils.sync_global_devices("the end of the run")
  except jax.errors.JaxRuntimeError as error:
    # A collective failed before the loss was noticed. Not the way out that waits
    # for the others; closing `farewell` has the sentence said.
    reason = " ".join(str(error).split())[:200]
    print(f"A program over all processes failed: {reason}", file=sys.stderr)
    sys.stderr.flush()
    os._exit(LEFT_ALONE)
  except BaseException as error:
    os.write(farewell, b".")  # It says itself why it ends.
    # Handlers run last in, first out: this one is before JAX's own, which waits
    # for the others for minutes while they wait for this process.
    atexit.register(os._exit, 2 if isinstance(error, InputError) else 1)
    raise
  os.write(farewell, b".")


def _announcer() -> int:
  """A process beside this one that speaks if this one is ended by force.

  Nothing in a process runs when another part of it calls `abort`, hence this.

  Returns:
    A file to write a byte into, so that nothing is said.
  """
  read_end, write_end = os.pipe()
  if os.fork():
    os.close(read_end)
    return write_end
  os.close(write_end)
  # Ctrl-C goes to both; this one ends with the other.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  if not os.read(read_end, 1):
    os.write(sys.stderr.fileno(), _ENDED_BY_FORCE)
  os._exit(0)


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


def from_first(tree: Any) -> Any:
  """What the first process has, in all of them.

  Args:
    tree: pytree of arrays of this process, random keys among them; of the others
      only shapes and dtypes count.

  Returns:
    The tree; with one process the very same.
  """
  if jax.process_count() == 1:
    return tree

  def is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)

  data = jax.tree.map(
    lambda leaf: np.asarray(
      jax.random.key_data(leaf) if is_key(leaf) else leaf
    ),
    tree,
  )
  found = multihost_utils.broadcast_one_to_all(data)
  return jax.tree.map(
    lambda leaf, like: (
      jax.random.wrap_key_data(
        jnp.asarray(leaf), impl=jax.random.key_impl(like)
      )
      if is_key(like)
      else jnp.asarray(leaf)
    ),
    found,
    tree,
  )
