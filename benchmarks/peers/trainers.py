"""The other trainers, the commits that are measured, and whether they are there.

Imported in every process: the standard library alone.
"""

import pathlib
import subprocess
import sys
from typing import NamedTuple

# What the other trainers import and an update does not need: empty modules.
STUBS = ("d4rl", "wandb")


class Source(NamedTuple):
  """Where a trainer that is no package comes from.

  repository: owner and name on GitHub.
  commit: the one that is measured.
  modules: folder of its modules within the checkout.
  """

  repository: str
  commit: str
  modules: str


class Trainer(NamedTuple):
  """One of the other trainers.

  adapter: module beside this one that builds it.
  algorithms: names of the adapter's functions.
  source: its checkout; None for a package of the environment.
  """

  adapter: str
  algorithms: tuple[str, ...]
  source: Source | None = None


TRAINERS = {
  "unifloral": Trainer(
    "unifloral_trainer",
    ("sac_n", "td3_bc"),
    Source(
      "EmptyJackson/unifloral",
      "f2dc1278eae18ed3e22c92255119c54885414d17",
      "algorithms",
    ),
  ),
  "JAX-CORL": Trainer(
    "jax_corl_trainer",
    ("td3_bc",),
    Source(
      "nissymori/JAX-CORL",
      "d747dd8ad4fcc088ff9f1ade49a6be43a60f6556",
      "algos",
    ),
  ),
  "CORL": Trainer(
    "corl_trainer",
    ("sac_n", "td3_bc"),
    Source(
      "tinkoff-ai/CORL",
      "6afec90484bbf47dee05fdf525e26a3ebe028e9b",
      "algorithms/offline",
    ),
  ),
  "d3rlpy": Trainer("d3rlpy_trainer", ("sac_n", "td3_bc")),
}


def environment(peers_dir: pathlib.Path) -> pathlib.Path:
  """Folder of the Python environment that all of them share."""
  return peers_dir / "env"


def python(peers_dir: pathlib.Path) -> pathlib.Path:
  """The interpreter of that environment."""
  return environment(peers_dir) / "bin" / "python"


def checkout(peers_dir: pathlib.Path, source: Source) -> pathlib.Path:
  """Folder of a trainer's checkout."""
  return peers_dir / source.repository.split("/")[1]


def commit_of(folder: pathlib.Path) -> str | None:
  """The commit that a folder is a checkout of; None if it is none."""
  if not (folder / ".git").exists():
    return None
  done = subprocess.run(
    ("git", "rev-parse", "HEAD"), cwd=folder, capture_output=True, text=True
  )
  return done.stdout.strip() if done.returncode == 0 else None


def missing(peers_dir: pathlib.Path | None) -> str | None:
  """One sentence on what is not installed, with the command; None if all is."""
  absent = []
  if peers_dir is not None:
    if not python(peers_dir).exists():
      absent.append(f"no {python(peers_dir)}")
    for trainer in TRAINERS.values():
      if trainer.source is not None:
        folder = checkout(peers_dir, trainer.source)
        if commit_of(folder) != trainer.source.commit:
          absent.append(f"no {folder} at {trainer.source.commit[:7]}")
    if not absent:
      return None
  found = ", ".join(absent) or "no --peers_dir"
  place = "PEERS" if peers_dir is None else peers_dir
  return (
    f"peers: expected {', '.join(TRAINERS)}, found {found}; install them with"
    f" {pathlib.Path(sys.executable).name} -m benchmarks.peers.install"
    f" --out_dir={place}"
  )
