"""Folders of session files, damaged: a manifest with a digest, and its shards.

The manifest's own digest covers every byte of it and the digests of the shards,
so that whatever is accepted must be the original.
"""

import pathlib
from typing import Any

import jax
import numpy as np

from mtf_jax.data import sharded
from tests.robustness import mutate
from tests.robustness.kinds import Files, ReadOnly, contents
from tests.sharded_logs import parts_of, write_log


class LogFolders(ReadOnly):
  """Folders of session files: what `open_log` and `load_all` give."""

  name = "logs"
  share = 5

  def __init__(self, folder: pathlib.Path):
    """Writes the original beside the cases."""
    self._log = write_log(folder / "original_log", parts_of(2))
    self._rows = self._log.load_all()
    self._files = contents(self._log.folder)

  def mutate(self, rng: np.random.Generator) -> tuple[str, Files]:
    files = dict(self._files)
    name = str(rng.choice(sorted(files)))
    way = int(rng.integers(8))
    if way == 0:
      del files[name]
      return f"{name} removed", files
    if way == 1:
      other = str(rng.choice(sorted(files)))
      files[name], files[other] = files[other], files[name]
      return f"{name} and {other} exchanged", files
    if way == 2:
      files["shard-99999.npz"] = files["shard-00000.npz"]
      return "another shard beside them", files
    what, files[name] = mutate.damage_bytes(rng, files[name])
    return f"{name}: {what}", files

  def read(self, folder: pathlib.Path) -> Any:
    log = sharded.open_log(folder)
    return log.manifest, log.load_all()

  def difference(self, folder: pathlib.Path, found: Any) -> str:
    del folder
    manifest, rows = found
    if manifest != self._log.manifest:
      return "another manifest"
    same = jax.tree.map(np.array_equal, rows, self._rows)
    return "" if all(jax.tree.leaves(same)) else "other rows"
