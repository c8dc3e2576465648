"""One life of a run: a forked process that says what it does and is killed."""

import contextlib
import json
import os
import pathlib
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
from absl import logging
from jax._src import xla_bridge

from mtf_jax import io
from mtf_jax.training import checkpoints as checkpoints_lib
from mtf_jax.training.checkpoints import Checkpoints
from tests.robustness.kill_targets import TARGETS

Event = dict[str, Any]


class Moment(NamedTuple):
  """When a life ends.

  kind: after the start of what: "life", "save" (of a checkpoint), "write" (of a
    file that appears whole), "tear" (of a checkpoint by the careless saver).
  number: which of them, from 1.
  pause: seconds after it.
  """

  kind: str
  number: int
  pause: float


class Life(NamedTuple):
  """What one process did.

  killed, finished: how it ended; neither, if it failed.
  inside: whether it was killed inside a save or a write.
  failure: the end of what it printed, if it failed.
  seconds: that it lived.
  saved: (folder, step) -> digest, of checkpoints that were whole.
  restored: (folder, step), of checkpoints gone on from; step None for none.
  spans: kind -> seconds of each that was whole.
  """

  killed: bool
  finished: bool
  inside: bool
  failure: str
  seconds: float
  saved: dict[tuple[str, int], str]
  restored: list[tuple[str, int | None]]
  spans: dict[str, list[float]]


def compile_into(folder: str) -> None:
  """Children read from here what the first one compiled."""
  logging.set_verbosity(logging.WARNING)
  jax.config.update("jax_compilation_cache_dir", folder)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def _whole_saver(tell: Callable[..., None]) -> Callable[..., None]:
  del tell
  return Checkpoints.save


def _torn_saver(tell: Callable[..., None]) -> Callable[..., None]:
  """A careless saver: it writes the files of a checkpoint where they are."""
  whole = Checkpoints.save

  def save(self, step, state, record):
    whole(self, step, state, record)
    tell("tear")
    paths = sorted((self._directory / str(step)).rglob("*"))
    contents = {path: path.read_bytes() for path in paths if path.is_file()}
    for path in contents:
      path.write_bytes(b"")
    for path, content in contents.items():
      time.sleep(0.02)
      path.write_bytes(content)

  return save


SAVERS: dict[str, Callable[..., Callable[..., None]]] = {
  "whole": _whole_saver,
  "torn": _torn_saver,
}


@contextlib.contextmanager
def _telling(
  folder: pathlib.Path, saver: str, tell: Callable[..., None]
) -> Iterator[None]:
  """Tells of saves, restores and writes, their start and their end."""
  save = SAVERS[saver](tell)
  restore, replacing = Checkpoints.restore, io.replacing

  def place(checkpoints: Checkpoints) -> str:
    return str(checkpoints._directory.relative_to(folder.absolute()))

  def telling_save(self, step, state, record):
    tell("save")
    save(self, step, state, record)
    sha256 = checkpoints_lib.digest(state)
    tell("saved", place=place(self), step=step, sha256=sha256)

  def telling_restore(self, *args, **kwargs):
    found = restore(self, *args, **kwargs)
    step = None if found is None else max(self.steps())
    tell("restored", place=place(self), step=step)
    return found

  @contextlib.contextmanager
  def telling_replacing(path):
    tell("write")
    with replacing(path) as file:
      yield file
    tell("written")

  with (
    mock.patch.object(Checkpoints, "save", telling_save),
    mock.patch.object(Checkpoints, "restore", telling_restore),
    mock.patch.object(io, "replacing", telling_replacing),
  ):
    yield


def _child(
  target: str, folder: pathlib.Path, saver: str, pipe: int, printed: str
) -> None:
  """Plays the target, tells of it through the pipe, and never returns."""
  status = 1
  try:
    out = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)

    def tell(kind: str, **more: Any) -> None:
      event = {"kind": kind, "at": time.monotonic(), **more}
      os.write(pipe, json.dumps(event).encode() + b"\n")

    tell("life")
    with _telling(folder, saver, tell):
      TARGETS[target](folder)
    tell("lived")
    status = 0
  except BaseException:
    traceback.print_exc()
    sys.stderr.flush()
  finally:
    # Neither the parent's buffers nor what it wants done at its exit.
    os._exit(status)


def _follow(
  pid: int, pipe: int, moment: Moment | None, seconds: float
) -> tuple[list[Event], bool]:
  """Reads events until the child is dead; kills it at the moment.

  Returns:
    The events, and whether it was this that ended it.
  """
  events: list[Event] = []
  kill_at, by_us, rest = time.monotonic() + seconds, False, b""
  while True:
    left = kill_at - time.monotonic()
    if left <= 0 and not by_us:
      with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
      by_us = True
    ready, _, _ = select.select([pipe], [], [], None if by_us else left)
    if not ready:
      continue
    content = os.read(pipe, 1 << 16)
    if not content:
      return events, by_us
    *lines, rest = (rest + content).split(b"\n")
    for event in map(json.loads, lines):
      events.append(event)
      if moment is not None and event["kind"] == moment.kind:
        number = sum(e["kind"] == moment.kind for e in events)
        if number == moment.number:
          kill_at = min(kill_at, event["at"] + moment.pause)


_ENDS = {"life": "lived", "save": "saved", "write": "written"}


def _spans(events: list[Event]) -> tuple[dict[str, list[float]], bool]:
  """Seconds of each save and write, and whether one was not ended."""
  spans: dict[str, list[float]] = {kind: [] for kind in _ENDS}
  begun: dict[str, float] = {}
  for event in events:
    for kind, end in _ENDS.items():
      if event["kind"] == kind:
        begun[kind] = event["at"]
      elif event["kind"] == end:
        spans[kind].append(event["at"] - begun.pop(kind))
  return spans, bool(begun.keys() - {"life"})


def live(
  target: str,
  folder: pathlib.Path,
  moment: Moment | None,
  seconds: float,
  saver: str = "whole",
) -> Life:
  """Starts or goes on with a run in a process of its own.

  Args:
    target: of `TARGETS`.
    folder: of the run.
    moment: when it is killed; it may end before.
    seconds: after which it counts as hanging.
    saver: of `SAVERS`.

  Returns:
    What happened.
  """
  if xla_bridge.backends_are_initialized():
    raise RuntimeError("a process that has run JAX cannot be forked")
  reading, writing = os.pipe()
  printed = f"{folder}.printed"
  started = time.monotonic()
  pid = os.fork()
  if pid == 0:
    os.close(reading)
    _child(target, folder, saver, writing, printed)
  os.close(writing)
  try:
    events, by_us = _follow(pid, reading, moment, seconds)
  finally:
    os.close(reading)
  _, status = os.waitpid(pid, 0)
  lived = time.monotonic() - started
  killed = os.WIFSIGNALED(status) and by_us
  failure = ""
  if (killed and lived >= seconds) or (status and not killed):
    said = pathlib.Path(printed).read_text(errors="replace").strip()
    failure = f"status {status} after {lived:.1f} s: {said[-2000:]}"
  spans, inside = _spans(events)
  told = [e for e in events if e["kind"] in ("saved", "restored")]
  return Life(
    killed=killed,
    finished=not status,
    inside=inside,
    failure=failure,
    seconds=lived,
    saved={
      (e["place"], e["step"]): e["sha256"] for e in told if e["kind"] == "saved"
    },
    restored=[(e["place"], e["step"]) for e in told if e["kind"] == "restored"],
    spans=spans,
  )
