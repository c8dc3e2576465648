"""The flag of launchers that use many devices, and what they do with one.

Without it a launcher takes all devices that its process sees.
"""

import contextlib
import os
from collections.abc import Iterator

import jax
from absl import flags
from jax.sharding import Mesh

from mtf_jax.distributed import mesh as mesh_lib

flags.disclaim_key_flags()

_MESH = flags.DEFINE_string(
  "mesh",
  None,
  "Devices by axis, as data:4,critic:2; all on data if omitted.",
)


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
