"""Installs the other trainers: an environment of its own, and checkouts.

  python -m benchmarks.peers.install --out_dir=PEERS

They share one environment, with our versions of jax, flax and optax, so that a
ratio is not one of compilers. What is there already is kept. Without a network
`--mirror` names a folder or address with the same `owner/name` below it.
"""

import importlib.metadata
import pathlib
import subprocess
import sys

from absl import flags

from benchmarks.peers import trainers
from experiments import launch
from mtf_jax.io import InputError

_OUT_DIR = launch.define_out_dir(None)
_MIRROR = flags.DEFINE_string(
  "mirror", "https://github.com/", "What stands before owner/name."
)
# Of the same versions as where this runs.
_SHARED = ("jax", "jaxlib", "flax", "optax")
_REQUIREMENTS = pathlib.Path(__file__).with_name("requirements.txt")


def _run(*command: str | pathlib.Path) -> None:
  words = [str(word) for word in command]
  print(" ".join(words), file=sys.stderr, flush=True)
  done = subprocess.run(words)
  if done.returncode:
    raise InputError(
      f"{' '.join(words)}: expected status 0, found {done.returncode}."
    )


def _install_environment(peers_dir: pathlib.Path) -> None:
  _run(sys.executable, "-m", "venv", trainers.environment(peers_dir))
  shared = (f"{name}=={importlib.metadata.version(name)}" for name in _SHARED)
  python = trainers.python(peers_dir)
  _run(python, *("-m", "pip", "install", "-r"), _REQUIREMENTS, *shared)


def _check_out(peers_dir: pathlib.Path, source: trainers.Source) -> None:
  folder = trainers.checkout(peers_dir, source)
  if trainers.commit_of(folder) == source.commit:
    return
  if not folder.exists():
    address = _MIRROR.value.removesuffix("/") + f"/{source.repository}"
    _run(
      *("git", "clone", "--no-checkout", "--filter=blob:none"), address, folder
    )
  git = ("git", "-C", folder)
  # The rest of a repository may be large.
  _run(*git, "sparse-checkout", "set", source.modules)
  _run(*git, "checkout", "--quiet", source.commit)


def main() -> None:
  """Installs what is missing."""
  peers_dir = pathlib.Path(_OUT_DIR.value)
  _install_environment(peers_dir)
  for trainer in trainers.TRAINERS.values():
    if trainer.source is not None:
      _check_out(peers_dir, trainer.source)
  absent = trainers.missing(peers_dir)
  if absent:
    raise InputError(f"{absent}.")


if __name__ == "__main__":
  launch.run(main)
