"""The world that a launcher's `--world` names, or a sentence why it is none."""

from absl import app

from mtf_jax.fitting import synthetic
from mtf_jax.worlds import io as world_io
from mtf_jax.worlds.world import World


def load(path: str) -> World:
  """Reads a world file.

  Args:
    path: of `--world`.

  Returns:
    The world.

  Raises:
    UsageError: the file cannot be read, or is no whole world file.
  """
  try:
    return world_io.load_world(path)
  except OSError as error:
    raise app.UsageError(
      f"--world: {path} cannot be read ({error.strerror})."
    ) from error
  except ValueError as error:  # It names the file.
    raise app.UsageError(f"--world: {error}") from error


def make_or_load(name: str, size: str, world_seed: int) -> World:
  """Makes the synthetic world or reads a world file.

  Args:
    name: `synthetic`, or the path of a file.
    size: of the synthetic world, one of `synthetic.SIZES`.
    world_seed: of the synthetic world.

  Returns:
    The world.

  Raises:
    UsageError: as `load`.
  """
  if name == "synthetic":
    return synthetic.synthetic_world(size, world_seed)
  return load(name)
