"""The other end of a worker: starts it, asks it for windows, ends it."""

import json
import pathlib
import subprocess
import tempfile
import threading
from collections.abc import Sequence

from benchmarks.peers import trainers, workload

_ROOT = pathlib.Path(__file__).parents[2]

# More than any of them takes to compile, or for a window, on two slow cores.
_LIMIT_S = 900.0


class PeerError(Exception):
  """A worker ended, or answered what is no answer."""


def command(
  peers_dir: pathlib.Path, name: str, size: workload.Size
) -> list[str]:
  """What starts the worker of one trainer at one size."""
  source = trainers.TRAINERS[name].source
  modules = ""
  if source is not None:
    # A worker runs in the repository, whatever the caller's folder is.
    folder = trainers.checkout(peers_dir.absolute(), source)
    modules = str(folder / source.modules)
  python = str(trainers.python(peers_dir.absolute()))
  arguments = (name, modules, json.dumps(size))
  return [python, "-m", "benchmarks.peers.worker", *arguments]


class Peer:
  """A worker that stays alive between its windows."""

  def __init__(
    self,
    name: str,
    args: Sequence[str],
    updates: int,
    limit_s: float = _LIMIT_S,
  ):
    """Starts it and waits until it is ready.

    Args:
      name: what messages call it.
      args: its command.
      updates: of a window.
      limit_s: seconds that it has for an answer; then it is killed.

    Raises:
      PeerError: it ended first, or hung.
    """
    self.name, self._updates, self._limit_s = name, updates, limit_s
    self._said = tempfile.TemporaryFile(  # noqa: SIM115 - closed by `close`
      "w+", errors="backslashreplace"
    )
    self._process = subprocess.Popen(
      args,
      cwd=_ROOT,
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._said,
      text=True,
      bufsize=1,
    )
    word, _, versions = self._answer().partition(" ")
    if word != "ready":
      self._fail(f"expected it to say ready, found {word!r}")
    self.versions: dict[str, str] = json.loads(versions)

  def window(self) -> workload.Window:
    """Runs one window.

    Raises:
      PeerError: it ended, hung, or did not answer with two numbers.
    """
    try:
      self._process.stdin.write(f"run {self._updates}\n")
    except BrokenPipeError:
      self._answer()
    answer = self._answer()
    try:
      wall_s, processor_s = map(float, answer.split())
      return workload.Window(wall_s, processor_s)
    except ValueError:
      self._fail(f"expected seconds, found {answer.strip()!r}")

  def close(self) -> None:
    """Ends it."""
    if self._said.closed:
      return
    self._process.kill()
    # Closes the pipes as well.
    self._process.communicate()
    self._said.close()

  def _answer(self) -> str:
    late = threading.Event()

    def give_up() -> None:
      late.set()
      self._process.kill()

    timer = threading.Timer(self._limit_s, give_up)
    timer.start()
    try:
      line = self._process.stdout.readline()
    finally:
      timer.cancel()
    if late.is_set():
      self._fail(f"no answer within {self._limit_s:g} s")
    if not line:
      status = self._process.wait()
      self._said.seek(0)
      said = [line for line in self._said.read().splitlines() if line.strip()]
      last = f", last line {said[-1]!r}" if said else ""
      self._fail(f"ended with status {status}{last}")
    return line

  def _fail(self, reason: str) -> None:
    self.close()
    raise PeerError(f"{self.name}: {reason}.")
