"""Flags of launchers that use many devices and many processes.

Without them a launcher takes all devices that its process sees.
"""

import contextlib
import os
from collections.abc import Iterator

import jax
from absl import flags
from jax.sharding import Mesh

from mtf_jax.distributed import mesh as mesh_lib
from mtf_jax.distributed import processes
from mtf_jax.io import InputError

flags.disclaim_key_flags()

_MESH = flags.DEFINE_string(
  "mesh",
  None,
  "Devices by axis, as data:4,critic:2; all on data if omitted.",
)
_PROCESSES = flags.DEFINE_enum(
  "processes",
  None,
  ["auto"],
  "auto joins the processes that SLURM, Open MPI, Kubernetes or a TPU pod has"
  " started.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "host:port of process 0, to join by hand."
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "Processes that join by hand.", 1
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "Which of them this one is, from 0.", 0
)


def _by_hand() -> bool:
  given = {
    "coordinator": _COORDINATOR.value,
    "num_processes": _NUM_PROCESSES.value,
    "process_id": _PROCESS_ID.value,
  }
  missing = [f"--{name}" for name, value in given.items() if value is None]
  if len(missing) == len(given):
    return False
  if missing or _PROCESSES.value:
    raise InputError(
      "processes: expected --processes=auto, or --coordinator, --num_processes"
      f" and --process_id together, found {', '.join(missing) or 'both'}"
      f"{' missing' if missing else ''}."
    )
  if _PROCESS_ID.value >= _NUM_PROCESSES.value:
    raise InputError(
      f"--process_id: expected less than --num_processes ="
      f" {_NUM_PROCESSES.value}, found {_PROCESS_ID.value}."
    )
  return True


@contextlib.contextmanager
def joined() -> Iterator[None]:
  """Joins the other processes, if flags name any, while the block runs.

  Raises:
    InputError: flags contradict each other, or the others are not to be found.
  """
  by_hand = _by_hand()
  with processes.together(by_hand or _PROCESSES.value is not None):
    if by_hand:
      processes.join(
        _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
      )
    elif _PROCESSES.value:
      processes.join()
    yield


def mesh() -> Mesh | None:
  """The mesh of the flags; None for one device, which needs none.

  Raises:
    InputError: `--mesh` cannot be laid over the devices.
  """
  sizes = None if _MESH.value is None else mesh_lib.parse_axes(_MESH.value)
  found = mesh_lib.make_mesh(sizes)
  return None if found.size == 1 else found


def keep_compiled_programs(folder: str | None) -> None:
  """Has JAX read compiled programs from a folder, and write them into it.

  Args:
    folder: made if it is missing; None leaves JAX as it is set up.
  """
  if folder is None:
    return
  jax.config.update("jax_compilation_cache_dir", os.path.abspath(folder))
  # A launcher's many small programs take as long as its few large ones.
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@contextlib.contextmanager
def load_on_host(mesh: Mesh | None) -> Iterator[None]:
  """Rows that are divided over a mesh are made in the host's memory."""
  if mesh is None:
    yield
    return
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    yield
