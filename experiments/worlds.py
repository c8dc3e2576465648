"""The world that a launcher's `--world` names, or a sentence why it is none."""

import sys

from absl import flags

from experiments import launch
from mtf_jax.fitting import synthetic
from mtf_jax.training.metrics import shown_steps
from mtf_jax.worlds import io as world_io
from mtf_jax.worlds.world import World

EXPECTED = "a world file"

flags.disclaim_key_flags()


def define_world() -> flags.FlagHolder[str]:
  """The flag `--world`: a file, or a synthetic world."""
  return launch.define_in_file(
    "world",
    "synthetic",
    "`synthetic`, or a world file.",
    f"`synthetic` or {EXPECTED}",
    instead="synthetic",
  )


def load(path: str) -> World:
  """Reads a world file.

  Args:
    path: of `--world`.

  Returns:
    The world.

  Raises:
    InputError: the file is no whole world file.
  """
  with launch.refusals("--world: "):  # They name the file.
    return world_io.load_world(path)


def make_or_load(name: str, size: str, world_seed: int) -> World:
  """Makes the synthetic world or reads a world file.

  Args:
    name: `synthetic`, or the path of a file.
    size: of the synthetic world, one of `synthetic.SIZES`.
    world_seed: of the synthetic world.

  Returns:
    The world.

  Raises:
    InputError: as `load`.
  """
  if name == "synthetic":
    message = f"Building the synthetic world of seed {world_seed}."
    print(message, file=sys.stderr, flush=True)
    return synthetic.synthetic_world(size, world_seed, shown_steps("steps"))
  return load(name)
