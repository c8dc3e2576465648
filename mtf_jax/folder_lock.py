"""One writer for the folder of a run: a lock that ends with its process.

Two processes that train in one folder would replace each other's checkpoints.
Whoever writes into such a folder holds it first. The lock is the kernel's
(`flock`) on a file in the folder, so that of a process that was killed is gone
with it, and what the file says of its holder is only there to be read.

What holds elsewhere: over NFS the lock is the server's and other machines see
it; a file system that has no locks is used without, after a warning; one that
keeps locks to each machine (NFS mounted with `local_lock`, some FUSE systems)
does not keep other machines out.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
import re
import socket
from collections.abc import Iterator
from typing import BinaryIO

from absl import logging

from mtf_jax.io import InputError

FILE_NAME = ".lock"

# As `io.replacing` calls what it has not yet put in its place.
_UNFINISHED = re.compile(r"\..+\.(json|jsonl|md|html|npz|records|keys)\.[0-9]+")

# What a file system without locks answers.
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)


@contextlib.contextmanager
def hold(folder: str | os.PathLike[str]) -> Iterator[None]:
  """Keeps other processes from writing into a folder while the block runs.

  A file `.lock` stays in the folder, empty while nobody holds it: to delete it
  would let two processes hold two files of one name. Files that a killed holder
  had not finished are removed.

  Args:
    folder: created if missing.

  Raises:
    InputError: another process, or another holder in this one, has the folder;
      or it is no folder, or cannot be written to.
  """
  folder = pathlib.Path(folder)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    # For appending, so that opening changes nothing of another holder's.
    file = (folder / FILE_NAME).open("a+b", buffering=0)
  except OSError as error:
    raise _unusable(folder, error) from error
  with file:
    locked = _lock(folder, file)
    try:
      _replace(file, _myself())
      # Nobody else writes here: whoever began them is dead.
      for path in folder.rglob(".*") if locked else ():
        if _UNFINISHED.fullmatch(path.name):
          path.unlink()
    except OSError as error:
      raise _unusable(folder, error) from error
    try:
      yield
    finally:
      _replace(file, b"")


def _unusable(folder: pathlib.Path, error: OSError) -> InputError:
  return InputError(
    f"{folder}: expected a folder that can be written to, found one that"
    f" cannot ({error.strerror})."
  )


def _lock(folder: pathlib.Path, file: BinaryIO) -> bool:
  """Takes the lock; False where the file system has none."""
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return True
  except BlockingIOError as error:
    raise InputError(
      f"{folder}: expected a folder that no other run writes into, found it"
      f" held by {_holder(file)}; wait for it, end it, or name another folder."
    ) from error
  except OSError as error:
    if error.errno not in _NO_LOCKS:
      raise _unusable(folder, error) from error
    logging.warning(
      "%s: its file system has no locks (%s); take care that no other process"
      " writes into it.",
      folder,
      error.strerror,
    )
    return False


def _myself() -> bytes:
  now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
  holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
  return json.dumps(holder).encode()


def _holder(file: BinaryIO) -> str:
  """Who holds the folder, in words; it may be writing its name just now."""
  file.seek(0)
  try:
    said = json.loads(file.read())
    return f"process {said['pid']} on {said['host']} since {said['since']}"
  except (ValueError, KeyError, TypeError):
    return "another process"


def _replace(file: BinaryIO, content: bytes) -> None:
  # In place: the lock is on this very file.
  file.truncate(0)
  file.write(content)
