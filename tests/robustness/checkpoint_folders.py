"""Folders of two checkpoints, damaged in one or many of their files.

The newest checkpoint is given as it was, or it is set aside, with a warning that
names it, and the one before is given as it was, or all is refused. What is set
aside keeps its content; nothing is deleted.
"""

import collections
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.training.checkpoints import Checkpoints, digest
from tests.robustness import mutate
from tests.robustness.kinds import Files, contents, warnings_told

_STEPS = (4, 8)


def _state(step: int) -> dict[str, Any]:
  rng = np.random.default_rng(step)
  return {
    "params": jnp.asarray(rng.normal(size=(4, 3)), jnp.float32),
    "rng_key": jax.random.key(step),
    "step": jnp.asarray(step, jnp.int32),
    "healthy": jnp.asarray(True),
  }


def _record(step: int) -> dict[str, Any]:
  return {
    "config": {"seed": 0, "sizes": [8, 8], "rate": 0.1},
    "dataset": "0" * 16,
    "rounds": [{"round": n, "gain": 1.5 * n} for n in range(step)],
  }


class CheckpointFolders:
  """Folders of checkpoints: what `Checkpoints.restore` gives."""

  name = "checkpoints"
  share = 2

  def __init__(self, folder: pathlib.Path):
    """Writes two checkpoints."""
    checkpoints = Checkpoints(folder / "run")
    for step in _STEPS:
      checkpoints.save(step, _state(step), _record(step))
    checkpoints.close()
    self._files = contents(folder)

  def mutate(self, rng: np.random.Generator) -> tuple[str, Files]:
    files = dict(self._files)
    # Orbax names some files at random: by their sizes the order is the same.
    names = sorted(files, key=lambda n: (len(files[n]), n))
    name = mutate.pick(rng, [n for n in names if f"run/{_STEPS[-1]}/" in n])
    if rng.integers(8) == 0:
      name = mutate.pick(rng, names)
    kind = int(rng.integers(8))
    if kind < 3:
      what, files[name] = mutate.damage_bytes(rng, files[name])
    elif kind < 6:
      # The record, or what Orbax says of the checkpoint.
      part = mutate.pick(rng, ("record/metadata", "_CHECKPOINT_METADATA"))
      name = f"run/{_STEPS[-1]}/{part}"
      what, text = mutate.damage_json_text(rng, json.loads(files[name]))
      files[name] = text.encode()
    elif kind == 6:
      what, content = "removed", files.pop(name)
      if rng.integers(2):
        what = "renamed"
        files[f"{name}x"] = content
    else:
      what, name = self._mixed(rng, files)
    if rng.integers(4) == 0:  # The one before is no way out then.
      older = f"run/{_STEPS[0]}/record/metadata"
      files[older] = files[older][: int(rng.integers(len(files[older])))]
      what += f"; {older} cut"
    return f"{name}: {what}", files

  def _mixed(self, rng, files: Files) -> tuple[str, str]:
    """Parts of one checkpoint in the other's place."""
    old, new = (f"run/{step}/" for step in _STEPS)
    part = mutate.pick(
      rng, ("record/", "state/", "state/d/", "state/_METADATA")
    )
    for name in [n for n in files if n.startswith(new + part)]:
      del files[name]
    for name in [n for n in files if n.startswith(old + part)]:
      files[new + name.removeprefix(old)] = files[name]
    return f"its {part} is that of {old}", new

  def read(self, folder: pathlib.Path) -> Any:
    with warnings_told() as told:
      checkpoints = Checkpoints(folder / "run")
      try:
        return checkpoints.restore(_state(0)), told
      finally:
        checkpoints.close()

  def difference(self, folder: pathlib.Path, found: Any) -> str:
    restored, told = found
    if restored is None:
      return "no checkpoint, so the run would start anew"
    state, record = restored
    for step in reversed(_STEPS):
      if digest(state) == digest(_state(step)):
        expected = _record(step)
        mine = {name: record.get(name) for name in expected}
        if json.dumps(mine) != json.dumps(expected):
          return f"another record beside the state of step {step}"
        if step == _STEPS[-1] or any(f"run/{_STEPS[-1]}" in x for x in told):
          return ""
        return "the checkpoint before the newest, without a word"
    return "another state"

  def changed(self, folder: pathlib.Path, files: Files, refused: bool) -> str:
    del refused
    before = collections.Counter(files.values())
    lost = before - collections.Counter(contents(folder).values())
    return f"{lost.total()} contents are gone" if lost else ""
