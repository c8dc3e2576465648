"""The other end of a worker: starts it, asks it for windows, ends it."""

import json
import pathlib
import subprocess
import tempfile
from collections.abc import Sequence

from benchmarks.peers import trainers, workload

_ROOT = pathlib.Path(__file__).parents[2]


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

  def __init__(self, name: str, args: Sequence[str], updates: int):
    """Starts it and waits until it is ready.

    Args:
      name: what messages call it.
      args: its command.
      updates: of a window.

    Raises:
      PeerError: it ended first.
    """
    self.name, self._updates = name, updates
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
      PeerError: it ended, or did not answer with two numbers.
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
    line = self._process.stdout.readline()
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
