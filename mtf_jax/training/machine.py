"""What a run's bits hang on besides its configuration, and a record of it.

The same bits are promised for the same versions, kind of device and number of
threads: on a CPU, XLA splits a sum among its threads, and another order rounds
differently. A run that goes on elsewhere is a good run all the same, but not
the one that it would have been; its record says where it went on.
"""

import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from absl import logging
from jax.sharding import Mesh

import mtf_jax


def num_threads() -> int:
  """Threads that XLA splits a CPU's work among.

  It is the number of cores that this process may use, not that of the machine;
  the variable NPROC lowers it.
  """
  if hasattr(os, "sched_getaffinity"):
    cores = len(os.sched_getaffinity(0))
  else:  # not on Linux
    cores = os.cpu_count() or 1
  limit = os.environ.get("NPROC", "")
  return min(cores, int(limit)) if limit.isdecimal() and int(limit) else cores


def device_bytes() -> int:
  """Memory of a device of this process, bytes: what JAX may use, else the host's.

  It is the same whatever else runs, so that a run that goes on divides it as
  before.
  """
  stats = jax.local_devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return stats["bytes_limit"]
  return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def describe(mesh: Mesh | None = None) -> dict[str, Any]:
  """Versions, kind of device and threads of this process, as JSON has them.

  Args:
    mesh: the devices of the run and its processes, if it has several.
  """
  found: dict[str, Any] = {
    "mtf_jax": mtf_jax.__version__,
    "jax": jax.__version__,
    "jaxlib": importlib.metadata.version("jaxlib"),
    "device_kind": jax.devices()[0].device_kind,
    "threads": num_threads(),
  }
  if mesh is not None:
    found |= {"mesh": dict(mesh.shape), "processes": jax.process_count()}
  return found


def went_on(
  machines: Sequence[Mapping[str, Any]], step: int, mesh: Mesh | None = None
) -> list[dict[str, Any]]:
  """The machines of a run that now goes on, or begins, in this process.

  A warning says what is different from where the run was before.

  Args:
    machines: where it was, each as `describe` has it with `from_update`, oldest
      first; none for a run that begins, or if that was not recorded.
    step: updates done.
    mesh: as in `describe`.

  Returns:
    The same, and this one if it differs from the last.
  """
  here = describe(mesh)
  before = [dict(machine) for machine in machines]
  if before:
    last = {k: v for k, v in before[-1].items() if k != "from_update"}
    if last == here:
      return before
    changes = (
      f"{name} {last.get(name)} before, {here.get(name)} now"
      for name in {**here, **last}
      if last.get(name) != here.get(name)
    )
    logging.warning(
      "The run goes on elsewhere (%s): it will differ in bits from one that was"
      " not moved.",
      "; ".join(changes),
    )
  return [*before, {"from_update": step, **here}]


def runs_once() -> dict[str, int] | None:
  """Compiler options of a program that runs once, such as a first state's.

  LLVM at its higher levels takes seconds for each shape of random numbers on a
  CPU, and the numbers have the same bits.
  """
  if jax.default_backend() != "cpu":
    return None
  return {"xla_backend_optimization_level": 1}
