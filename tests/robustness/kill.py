"""Kills runs at random moments, goes on with them, and counts what is lost.

  python -m tests.robustness.kill --target=train --kills=500
  python -m tests.robustness.kill --target=progressive --kills=500
  python -m tests.robustness.kill --target=train --kills=20 --saver=torn

A process that has imported the package, and has run nothing in JAX, forks a
child for each life of a run. The child says when a checkpoint or a file is being
written; after a pause drawn from a seed it is sent SIGKILL: half of the kills
fall anywhere in the life, half inside a write. Then the next child goes on in
the same folder. A run that reaches its end must hold what an uninterrupted one
holds: each saved state to the bit, each row of metrics, each result. In between,
a life must begin at the last checkpoint that was whole, or later. At the end
nothing may lie about: no temporary, nothing set aside as damaged.

With `--saver=torn` the files of a checkpoint are written where they are, as by a
careless saver: the harness must then fail.
"""

import argparse
import collections
import concurrent.futures
import json
import multiprocessing
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tests.robustness import kill_lives
from tests.robustness.kill_lives import Life, Moment, live

_SECONDS = 120  # of a life; none takes as long
# What differs between two runs of the same bits.
_VOLATILE = {"time", "updates_per_s", "seconds", "check_seconds", "wall_s"}
_VOLATILE |= {"sha256"}  # of a record with seconds in it


class Report(NamedTuple):
  """What came of many kills.

  kills: that met a living process.
  inside: of them, those that fell inside a write.
  lives: processes started.
  runs: that reached their end.
  lost: lives that began before the last whole checkpoint.
  faults: what must not be, in words.
  """

  kills: int
  inside: int
  lives: int
  runs: int
  lost: int
  faults: list[str]


def _lasting(value: Any) -> Any:
  """A JSON value without what differs between two runs of the same bits."""
  if isinstance(value, dict):
    return {n: _lasting(x) for n, x in value.items() if n not in _VOLATILE}
  return [_lasting(x) for x in value] if isinstance(value, list) else value


def outcome(folder: pathlib.Path) -> dict[str, Any]:
  """What a finished run's JSON files say, by their path."""
  found = {}
  for path in sorted(folder.rglob("*.json*")):
    inside = path.relative_to(folder)
    below = {"checkpoints", "single_batch"} & set(inside.parts)
    if below or path.suffix not in (".json", ".jsonl"):
      continue
    lines = [path.read_text()]
    if path.suffix == ".jsonl":
      lines = lines[0].splitlines()
    found[str(inside)] = [_lasting(json.loads(line)) for line in lines]
  return found


def left_over(folder: pathlib.Path) -> list[str]:
  """Temporaries, and what was set aside as damaged."""
  return [
    str(path.relative_to(folder))
    for path in folder.rglob("*")
    if (path.name.startswith(".") and path.name != ".lock")
    or path.name.startswith("damaged")
    or "tmp" in path.name
  ]


class _Reference(NamedTuple):
  """An uninterrupted run.

  life: how it went.
  outcome: of its folder.
  """

  life: Life
  outcome: dict[str, Any]


def reference(target: str, folder: pathlib.Path, saver: str) -> _Reference:
  """Two uninterrupted runs: the first compiles, the second is timed.

  Raises:
    RuntimeError: one fails, or they differ.
  """
  found = []
  for number in range(2):
    run = folder / f"whole_{number}"
    life = live(target, run, None, _SECONDS, saver)
    if life.failure or left_over(run):
      raise RuntimeError(f"{target}: {life.failure or left_over(run)}")
    found.append(_Reference(life, outcome(run)))
  before, after = found
  if (before.outcome, before.life.saved) != (after.outcome, after.life.saved):
    raise RuntimeError(f"{target}: two uninterrupted runs differ")
  return after


def _draw(rng: np.random.Generator, whole: Life) -> Moment:
  """A moment of a life: anywhere, or inside a write."""
  pause = float(rng.uniform(0, 1))
  if rng.integers(2):
    return Moment("life", 1, pause * whole.seconds)
  kind = "save" if rng.integers(3) else "write"
  # An uninterrupted run may rewrite no file; one that goes on does.
  spans = whole.spans[kind] or [0.005]
  number = 1 + int(rng.integers(min(4, len(spans))))
  return Moment(kind, number, pause * float(np.mean(spans)))


class Run:
  """A run on its way: where it stands, and what is wrong with it."""

  def __init__(self, path: pathlib.Path, whole: _Reference):
    """Nothing has happened."""
    self.path = path
    self._whole = whole
    self._newest: dict[str, int] = {}
    self.lost = 0
    self.faults: list[str] = []

  def judge(self, life: Life) -> None:
    """Takes a life's events; a finished run is compared."""
    for place, step in life.restored:
      if (self._newest.get(place) or -1) > (-1 if step is None else step):
        self.lost += 1
        self.faults.append(
          f"{place}: went on from {step} after {self._newest[place]} was whole"
        )
    for (place, step), sha256 in life.saved.items():
      self._newest[place] = max(step, self._newest.get(place, step))
      if self._whole.life.saved.get((place, step)) != sha256:
        self.faults.append(f"{place}: another state at {step}")
    if life.failure:
      self.faults.append(f"did not go on: {life.failure}")
    elif life.finished:
      found = outcome(self.path)
      for name in sorted(self._whole.outcome.keys() | found.keys()):
        if found.get(name) != self._whole.outcome.get(name):
          self.faults.append(f"{name} is not that of an uninterrupted run")
      self.faults += [f"left over: {name}" for name in left_over(self.path)]


def kill_many(
  target: str,
  whole: _Reference,
  kills: int,
  seed: int,
  folder: pathlib.Path,
  saver: str,
) -> Report:
  """Kills one run after the other until so many kills are done.

  Args:
    target: of `kill_targets.TARGETS`.
    whole: of `reference`.
    kills: to do.
    seed: of the moments.
    folder: for the runs.
    saver: of `kill_lives.SAVERS`.
  """
  rng = np.random.default_rng(seed)
  count: collections.Counter = collections.Counter()
  faults: list[str] = []
  run = Run(folder / "run_0", whole)
  while count["kills"] < kills or count["open"]:
    moment = _draw(rng, whole.life) if count["kills"] < kills else None
    life = live(target, run.path, moment, _SECONDS, saver)
    count["lives"] += 1
    count["kills"] += life.killed
    count["inside"] += life.killed and life.inside
    run.judge(life)
    count["open"] = not (life.finished or life.failure)
    if not count["open"]:
      count["runs"] += life.finished
      count["lost"] += run.lost
      faults += [f"{run.path.name}: {fault}" for fault in run.faults]
      run = Run(folder / f"run_{count['lives']}", whole)
  return Report(
    *(count[n] for n in ("kills", "inside", "lives", "runs", "lost")), faults
  )


def _share(job: tuple[str, _Reference, int, int, str]) -> Report:
  target, whole, kills, seed, saver = job
  with tempfile.TemporaryDirectory(prefix="kill_") as name:
    return kill_many(target, whole, kills, seed, pathlib.Path(name), saver)


def main(argv: Sequence[str] | None = None) -> int:
  """Kills, prints the table and the faults."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--target", choices=kill_lives.TARGETS, required=True)
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1))
  parser.add_argument("--saver", choices=kill_lives.SAVERS, default="whole")
  given = parser.parse_args(argv)
  started = time.monotonic()
  with tempfile.TemporaryDirectory(prefix="kill_") as name:
    folder = pathlib.Path(name)
    kill_lives.compile_into(str(folder / "compiled"))
    whole = reference(given.target, folder, given.saver)
    jobs = [
      (
        given.target,
        whole,
        given.kills // given.jobs + (n < given.kills % given.jobs),
        given.seed * given.jobs + n,
        given.saver,
      )
      for n in range(given.jobs)
    ]
    # Forked, so that each has imported already; none of them runs JAX.
    context = multiprocessing.get_context("fork")
    with concurrent.futures.ProcessPoolExecutor(given.jobs, context) as pool:
      reports = list(pool.map(_share, jobs))
  total = Report(*map(sum, zip(*(r[:-1] for r in reports), strict=True)), [])
  faults = [fault for report in reports for fault in report.faults]
  rows = {"target": given.target, **total._asdict()}
  rows["faults"] = len(faults)
  rows["seconds"] = f"{time.monotonic() - started:.1f}"
  for line in (rows, rows.values()):
    print("  ".join(f"{x!s:>11}" for x in line))
  for fault in faults[:20]:
    print(fault)
  return int(bool(faults) or total.kills < given.kills)


if __name__ == "__main__":
  sys.exit(main())
