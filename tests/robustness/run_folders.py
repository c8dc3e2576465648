"""The files of a progressive run, damaged: its plan, metrics and result.

A plan and a result are under checksums, metrics under one in the record of a
checkpoint: each is refused, or equals the original. A plan of the layout before
has no checksum; it is held against the flags that the run is resumed with, so
there too nothing but the original is gone on with.
"""

import json
import pathlib
from typing import Any

import numpy as np

from mtf_jax.studies.progressive.group_dir import made_of
from mtf_jax.studies.progressive.run_dir import RunDir
from tests.robustness import mutate
from tests.robustness.kinds import Files, contents, difference_of
from tests.tiny_run import tiny_plan

_PLAN = tiny_plan(
  seeds=(3, 5), leaving=("net_exposure",), learners=("integrated_rl", "bc")
)
_WORLDS = ("0123456789abcdef", "fedcba9876543210")
_RESULT = {
  str(seed): {"fingerprint": world, "learners": {"bc": {"gain": 1.25}}}
  for seed, world in zip(_PLAN.seeds, _WORLDS, strict=True)
}


class Runs:
  """Folders of progressive runs: what `RunDir` and its parts give."""

  name = "runs"
  share = 8

  def __init__(self, folder: pathlib.Path):
    """Writes a folder, as the package writes it, and one of the layout before."""
    run_dir = RunDir(folder)
    run_dir.claim(_PLAN)
    group = run_dir.group(_PLAN.leaving[0], _PLAN.seeds)
    metrics = group.learner("bc").metrics
    metrics.parent.mkdir(parents=True)
    rows = [
      {"seed": seed, "step": step, "actor_loss": 0.5 / step}
      for step in range(1, 5)
      for seed in _PLAN.seeds
    ]
    metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
    self._sha256 = group.learner("bc").metrics_sha256()
    self._made_of = made_of(_PLAN.configs, _WORLDS, _PLAN.seeds)
    group.write_result(self._made_of, _RESULT)
    self._files = contents(folder)
    self._files.pop(".lock", None)
    before = {"layout_version": 2, **_PLAN.to_json()}
    self._before = {"run.json": json.dumps(before, indent=1).encode()}
    self._original = self.read(folder)

  def mutate(self, rng: np.random.Generator) -> tuple[str, Files]:
    files = dict(self._files if rng.integers(3) else self._before)
    name = mutate.pick(rng, sorted(files))
    if rng.integers(2) or name.endswith("l"):
      what, files[name] = mutate.damage_bytes(rng, files[name])
    else:
      what, text = mutate.damage_json_text(rng, json.loads(files[name]))
      files[name] = text.encode()
    return f"{name}: {what}", files

  def read(self, folder: pathlib.Path) -> Any:
    run_dir = RunDir(folder)
    run_dir.resume(_PLAN)
    group = run_dir.group(_PLAN.leaving[0], _PLAN.seeds)
    learner = group.learner("bc")
    return {
      "plan": run_dir.plan().to_json(),
      "result": group.read_result(self._made_of),
      "metrics": [
        learner.read_metrics(seed, self._sha256)
        for seed in _PLAN.seeds
        if learner.metrics.exists()
      ],
    }

  def difference(self, folder: pathlib.Path, found: Any) -> str:
    whole = len(contents(folder)) > 2  # The layout before had a plan alone.
    names = found if whole else ("plan",)
    # As text: JSON tells true from 1.
    wrong = [
      name
      for name in names
      if json.dumps(found[name]) != json.dumps(self._original[name])
    ]
    return f"another {', '.join(wrong)}" if wrong else ""

  def changed(self, folder: pathlib.Path, files: Files, refused: bool) -> str:
    found = contents(folder)
    found.pop(".lock", None)
    if not refused:  # A plan of the layout before is brought up to date.
      found.pop("run.json")
      files = {n: x for n, x in files.items() if n != "run.json"}
    return difference_of(found, files)
