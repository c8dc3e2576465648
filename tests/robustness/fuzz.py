"""Damages every kind of input at random and judges what the package says.

  python -m tests.robustness.fuzz --cases=50000
  python -m tests.robustness.fuzz --kinds=sessions,worlds --cases=2000
  python -m tests.robustness.fuzz --replay=sessions:123 --keep_in=/tmp/case

A case is a kind and a seed. Verdicts:

- refused: an `InputError` of one sentence that names the file;
- harmless: what was read equals the original in everything that is used (what
  that means for files without a digest, each kind says);
- accepted though different: a defect;
- traceback: any other exception, a warning, a refusal that is no sentence or
  names no file, ten seconds without an answer, or files of the user's that
  changed: a defect.
"""

import argparse
import collections
import contextlib
import pathlib
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from mtf_jax import io
from tests.robustness.checkpoint_folders import CheckpointFolders
from tests.robustness.kinds import Files, Kind
from tests.robustness.kuairand_folders import KuaiRand
from tests.robustness.log_folders import LogFolders
from tests.robustness.metrics_files import Metrics
from tests.robustness.run_folders import Runs
from tests.robustness.session_files import Sessions
from tests.robustness.world_files import Worlds

KINDS: tuple[type, ...] = (
  Sessions,
  Worlds,
  KuaiRand,
  Runs,
  Metrics,
  CheckpointFolders,
  LogFolders,
)
VERDICTS = ("refused", "harmless", "accepted though different", "traceback")
_DEFECTS = VERDICTS[2:]
_SECONDS = 10
_MEMORY = 4 << 30  # of address space, more than the process has


class Outcome(NamedTuple):
  """Verdict of a case.

  kind, seed: the case.
  what: how the input was damaged.
  verdict: one of `VERDICTS`.
  told: the sentence, the difference or the exception.
  """

  kind: str
  seed: int
  what: str
  verdict: str
  told: str


class _Hanging(BaseException):
  """Reading took too long."""


class _Unraisable(Exception):
  """A callback failed, and Python printed a traceback and went on."""


@contextlib.contextmanager
def _guarded() -> Iterator[None]:
  """Time is bounded; warnings and exceptions that nobody gets are errors."""
  lost: list[str] = []

  def on_alarm(number, frame):
    raise _Hanging

  def on_unraisable(what):
    # Of Orbax, after a damaged array: pyproject.toml says why.
    if "Event loop is closed" not in str(what.exc_value):
      lost.append(f"{what.exc_value!r} in {what.object!r}")

  unraisable, sys.unraisablehook = sys.unraisablehook, on_unraisable
  before = signal.signal(signal.SIGALRM, on_alarm)
  signal.setitimer(signal.ITIMER_REAL, _SECONDS)
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("error")
      yield
  finally:
    sys.unraisablehook = unraisable
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    if lost:
      raise _Unraisable(lost[0])


def _write(folder: pathlib.Path, files: Files) -> None:
  shutil.rmtree(folder, ignore_errors=True)
  folder.mkdir(parents=True)
  for name, content in files.items():
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _no_sentence(text: str, names: Sequence[str]) -> str:
  """Why a refusal is no good one, nothing if it is."""
  if "\n" in text or not text.endswith("."):
    return "not one sentence"
  if len(text) > 1000:
    return f"a sentence of {len(text)} characters"
  if not any(name in text for name in names):
    return "no file is named"
  return ""


def judge(kind: Kind, seed: int, folder: pathlib.Path) -> Outcome:
  """Makes a case and reads it.

  Args:
    kind: of the input.
    seed: decides the case.
    folder: for its files; what was there goes.
  """
  # A kind's cases do not depend on the other kinds.
  rng = np.random.default_rng([zlib.crc32(kind.name.encode()), seed])
  what, files = kind.mutate(rng)
  _write(folder, files)

  def outcome(verdict: str, told: str) -> Outcome:
    return Outcome(kind.name, seed, what, verdict, told)

  try:
    with _guarded():
      found = kind.read(folder)
      differs = kind.difference(folder, found)
  except io.InputError as error:
    names = [str(folder), *(pathlib.PurePath(name).name for name in files)]
    fault = _no_sentence(str(error), names)
    if fault:
      return outcome("traceback", f"{fault}: {error}")
    if changed := kind.changed(folder, files, True):
      return outcome("traceback", f"refusing changed files: {changed}")
    return outcome("refused", str(error))
  except _Hanging:
    return outcome("traceback", f"no answer within {_SECONDS} seconds")
  except Exception:
    return outcome("traceback", traceback.format_exc())
  if changed := kind.changed(folder, files, False):
    return outcome("traceback", f"reading changed files: {changed}")
  if differs:
    return outcome("accepted though different", differs)
  return outcome("harmless", "")


def seeds_of(kinds: Sequence[Kind], cases: int) -> Iterator[tuple[Kind, int]]:
  """Cases by the kinds' shares, seeds of each from 0."""
  total = sum(kind.share for kind in kinds)
  for kind in kinds:
    for seed in range(round(cases * kind.share / total)):
      yield kind, seed


def run(
  kinds: Sequence[Kind], cases: int, folder: pathlib.Path
) -> Iterator[Outcome]:
  """Judges so many cases in all."""
  for kind, seed in seeds_of(kinds, cases):
    yield judge(kind, seed, folder / "case")


def table(outcomes: Sequence[Outcome]) -> str:
  """Cases and verdicts by kind."""
  counts: dict[str, collections.Counter] = {}
  for one in outcomes:
    counts.setdefault(one.kind, collections.Counter())[one.verdict] += 1
  rows = [("kind", "cases", *VERDICTS)]
  all_counts = sum(counts.values(), collections.Counter())
  for name, count in (*counts.items(), ("all", all_counts)):
    rows.append((name, str(count.total()), *(str(count[v]) for v in VERDICTS)))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  return "\n".join(
    "  ".join(
      text.rjust(width) for text, width in zip(row, widths, strict=True)
    )
    for row in rows
  )


def _signature(one: Outcome) -> tuple[str, ...]:
  """Defects of one signature have one cause, as a rule."""
  if "Traceback" not in one.told:
    # Values and counts aside; of a bad refusal, what is wrong with it.
    alike = re.sub(r"'[^']*'|[0-9]+", "_", one.told.split(": /")[0])
    return (one.kind, one.verdict, alike[:80])
  lines = one.told.strip().splitlines()
  places = [line.strip() for line in lines if line.startswith("  File ")]
  ours = [line for line in places if "/mtf_jax/" in line]
  kind = lines[-1].split(":")[0]
  return (one.kind, one.verdict, kind, (ours or places or [""])[-1])


def defects(outcomes: Sequence[Outcome]) -> list[tuple[int, Outcome]]:
  """How often each defect was met, and its first case."""
  found: dict[tuple[str, ...], list[Outcome]] = {}
  for one in outcomes:
    if one.verdict in _DEFECTS:
      found.setdefault(_signature(one), []).append(one)
  return [(len(many), many[0]) for many in found.values()]


def describe(one: Outcome) -> str:
  return f"{one.kind}:{one.seed}: {one.what}\n  {one.verdict}: {one.told}"


def make_kinds(names: Sequence[str], folder: pathlib.Path) -> list[Kind]:
  made = []
  for kind in KINDS:
    if not names or kind.name in names:
      (folder / kind.name).mkdir(parents=True)
      made.append(kind(folder / kind.name))
  return made


def _bound_memory() -> None:
  pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
  limit = pages * resource.getpagesize() + _MEMORY
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def main(argv: Sequence[str] | None = None) -> int:
  """Runs cases, prints the table and the first of each defect."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--cases", type=int, default=2000)
  parser.add_argument("--kinds", default="", help="names, comma between")
  parser.add_argument("--replay", help="KIND:SEED of one case")
  parser.add_argument("--keep_in", help="folder for the replayed case's files")
  given = parser.parse_args(argv)
  with tempfile.TemporaryDirectory(prefix="fuzz_") as name:
    folder = pathlib.Path(name)
    if given.replay:
      kind_name, _, seed = given.replay.partition(":")
      (kind,) = make_kinds([kind_name], folder)
      _bound_memory()
      # A folder of its own: what is there goes.
      case = pathlib.Path(given.keep_in or folder, f"{kind.name}-{seed}")
      one = judge(kind, int(seed), case)
      print(describe(one))
      return int(one.verdict in _DEFECTS)
    kinds = make_kinds(given.kinds.split(",") if given.kinds else [], folder)
    _bound_memory()
    started = time.monotonic()
    outcomes = list(run(kinds, given.cases, folder))
    print(table(outcomes))
    print(f"{time.monotonic() - started:.1f} s")
    found = defects(outcomes)
    for count, one in found:
      print(f"\n{count} x {describe(one)}")
    return int(bool(found))


if __name__ == "__main__":
  sys.exit(main())
