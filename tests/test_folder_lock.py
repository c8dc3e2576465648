"""One writer for a folder, by real processes."""

import errno
import fcntl
import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest

from mtf_jax import folder_lock
from mtf_jax.io import InputError

HOLDER = """
import sys
from mtf_jax import folder_lock
with folder_lock.hold(sys.argv[1]):
  print("held", flush=True)
  sys.stdin.read()
"""


def test_a_second_process_is_refused_and_a_dead_ones_lock_taken(tmp_path):
  folder = tmp_path / "run"
  with subprocess.Popen(
    [sys.executable, "-c", HOLDER, folder],
    cwd=pathlib.Path(__file__).parents[1],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
  ) as process:
    assert process.stdout.readline() == b"held\n"
    since = json.loads((folder / ".lock").read_text())["since"]
    with pytest.raises(InputError) as caught, folder_lock.hold(folder):
      pass
    assert str(caught.value) == (
      f"{folder}: expected a folder that no other run writes into, found it"
      f" held by process {process.pid} on {socket.gethostname()} since {since};"
      " wait for it, end it, or name another folder."
    )
    # Being refused takes nothing from the holder.
    assert json.loads((folder / ".lock").read_text())["pid"] == process.pid
    process.kill()
    process.wait()
  # What the dead process wrote is still there and keeps nobody out.
  assert json.loads((folder / ".lock").read_text())["pid"] == process.pid
  with folder_lock.hold(folder):
    assert json.loads((folder / ".lock").read_text())["pid"] == os.getpid()
  assert (folder / ".lock").read_bytes() == b""


def test_one_process_does_not_hold_a_folder_twice(tmp_path):
  with folder_lock.hold(tmp_path):
    with (
      pytest.raises(InputError, match=f"held by process {os.getpid()} on"),
      folder_lock.hold(tmp_path),
    ):
      pass
    # A holder that has not yet written its name.
    (tmp_path / ".lock").write_bytes(b'{"pid": 1')
    with (
      pytest.raises(InputError, match="held by another process; wait for it"),
      folder_lock.hold(tmp_path),
    ):
      pass


def test_the_lock_ends_with_its_block_however_it_ends(tmp_path):
  with pytest.raises(KeyboardInterrupt), folder_lock.hold(tmp_path):
    raise KeyboardInterrupt
  with folder_lock.hold(tmp_path):
    pass


@pytest.mark.parametrize("locks", [True, False])
def test_what_a_killed_holder_had_not_finished_goes(
  tmp_path, monkeypatch, locks
):
  """Without a lock it may be a living one's."""

  def flock(file, operation):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  if not locks:
    monkeypatch.setattr(fcntl, "flock", flock)
  unfinished = [".metrics.jsonl.17", "a/bc/.result.json.8", ".report.html.9"]
  others = [".notes.json", ".metrics.jsonl.17.bak", "metrics.jsonl.17"]
  for name in [*unfinished, *others]:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("half")
  with folder_lock.hold(tmp_path):
    there = {name: (tmp_path / name).exists() for name in unfinished}
    assert set(there.values()) == {not locks}
  assert all((tmp_path / name).exists() for name in others)


def test_a_folder_that_cannot_be_one_is_refused(tmp_path):
  (tmp_path / "file").write_text("mine")
  (tmp_path / "folder" / ".lock").mkdir(parents=True)
  for name, found in (
    ("file", "File exists"),
    ("file/below", "Not a directory"),
    ("folder", "Is a directory"),
  ):
    with (
      pytest.raises(InputError, match=rf"{name}: expected .* \({found}\)\."),
      folder_lock.hold(tmp_path / name),
    ):
      pass
  assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
  ("number", "outcome"),
  [(errno.ENOLCK, "warned"), (errno.EIO, "refused")],
)
def test_a_file_system_without_locks(
  tmp_path, monkeypatch, caplog, number, outcome
):
  def flock(file, operation):
    raise OSError(number, os.strerror(number))

  monkeypatch.setattr(fcntl, "flock", flock)
  if outcome == "refused":
    with (
      pytest.raises(InputError, match="Input/output error"),
      folder_lock.hold(tmp_path),
    ):
      pass
    return
  with folder_lock.hold(tmp_path):
    assert f"{tmp_path}: its file system has no locks" in caplog.text
