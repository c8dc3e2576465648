"""Files appear whole or not at all; digests name contents and never change."""

import errno
import os
import pathlib
import pickle
import socket

import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import io


def test_a_file_is_replaced_whole(tmp_path):
  path = tmp_path / "a.txt"
  io.write_text(path, "first\n")
  io.write_text(path, "sécond\n")
  assert path.read_bytes() == "sécond\n".encode()
  assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("before", [None, "before"])
def test_a_failure_leaves_what_was_there(tmp_path, before):
  path = tmp_path / "a.txt"
  if before:
    path.write_text(before)
  with pytest.raises(RuntimeError, match="halfway"), io.replacing(path) as file:
    file.write(b"half")
    raise RuntimeError("halfway")
  found = [(one.name, one.read_text()) for one in tmp_path.iterdir()]
  assert found == ([("a.txt", "before")] if before else [])


def test_nothing_shows_before_the_end(tmp_path):
  path = tmp_path / "a.txt"
  with io.replacing(path) as file:
    file.write(b"whole")
    assert not path.exists()
  assert path.read_bytes() == b"whole"


def test_a_missing_folder_is_an_error(tmp_path):
  with pytest.raises(FileNotFoundError):
    io.write_text(tmp_path / "none" / "a.txt", "text")


def test_json_has_no_nan(tmp_path):
  path = tmp_path / "a.json"
  io.write_json(path, {"a": [1.5, None]}, indent=None)
  assert path.read_text() == '{"a": [1.5, null]}\n'
  with pytest.raises(ValueError, match="not JSON compliant"):
    io.write_json(path, {"a": float("inf")})
  assert path.read_text() == '{"a": [1.5, null]}\n'


def _refused(path, found):
  with pytest.raises(io.InputError) as error:
    io.require_file(path, "a log (.npz)")
  assert str(error.value) == f"{path}: expected a log (.npz), found {found}."


def test_a_path_that_is_no_file_is_refused(tmp_path):
  path = tmp_path / "log.npz"
  _refused(path, "no such file")
  path.symlink_to(tmp_path / "gone")
  _refused(path, f"a link to {tmp_path / 'gone'}, which does not exist")
  path.unlink()
  path.symlink_to(path)
  _refused(path, f"one that cannot be read ({os.strerror(errno.ELOOP)})")
  path.unlink()
  path.mkdir()
  _refused(path, "a folder")
  path.rmdir()
  os.mkfifo(path)
  _refused(path, "a named pipe")
  path.unlink()
  with socket.socket(socket.AF_UNIX) as server:
    place = os.getcwd()
    os.chdir(tmp_path)  # a socket's path may have about 100 characters
    try:
      server.bind("log.npz")
    finally:
      os.chdir(place)
    _refused(path, "a socket")
  _refused("/dev/null", "a device")
  _refused(tmp_path / "log.npz" / "more", "no such file")
  _refused(
    tmp_path / ("x" * 300),
    f"one that cannot be read ({os.strerror(errno.ENAMETOOLONG)})",
  )
  with pytest.raises(
    io.InputError, match="expected a log, found an impossible"
  ):
    io.require_file("a\0b", "a log")
  with pytest.raises(io.InputError, match=r"^path: .* found an empty name"):
    io.require_file("", "a log (.npz)")


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
  path = tmp_path / "log.npz"
  path.write_bytes(b"x")
  path.chmod(0)
  if os.geteuid() == 0:  # who may read everything

    def denied(*args, **kwargs):
      raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr("builtins.open", denied)
  _refused(path, f"one that cannot be read ({os.strerror(errno.EACCES)})")


def test_a_file_and_a_link_to_one_are_welcome(tmp_path):
  path, link = tmp_path / "log.npz", tmp_path / "link.npz"
  path.write_bytes(b"")
  link.symlink_to(path)
  assert io.require_file(str(path), "a log") == pathlib.Path(path)
  assert io.require_file(link, "a log") == link


@pytest.mark.parametrize(
  ("head", "kind"),
  [
    (b"", "an empty file"),
    (b"PAR1\x15\x04", "a Parquet file"),
    (b"PK\x03\x04", "a zip archive (or .npz)"),
    (b"\x1f\x8b\x08", "a gzip file"),
    (b"\x93NUMPY\x01\x00", "a single NumPy array (.npy)"),
    (pickle.dumps({"a": 1}), "a pickle"),
    (b"mtf_jax world 1 0123\nPK", "a world file"),
    ("user_id\n1".encode("utf-16"), "UTF-16 text"),
    (b"user_id,video\n1,2\n", "text that begins with 'user_id,video'"),
    ("é".encode() * 50 + b"\xc3", f"text that begins with '{'é' * 40}'"),
    (b"\xef\xbb\xbfa\tb\n", r"text that begins with 'a\tb'"),
    (b"\n", "text that begins with ''"),
    (bytes(range(256)), "a file of an unknown kind"),
    (b"\x7fELF\x02\x01", "a file of an unknown kind"),
  ],
)
def test_a_file_is_known_by_its_first_bytes(head, kind):
  assert io.kind_of(head) == kind


_ARRAY = np.arange(6, dtype=np.float32).reshape(2, 3)


def test_digests_are_those_on_record():
  """Worlds, logs and checkpoints of earlier versions are known by these."""
  arrays = [
    ("a", _ARRAY),
    ("b", np.array(True)),
    ("c", np.zeros((0, 4), np.int32)),
    ("d", np.asarray(jnp.ones(3, jnp.bfloat16))),
  ]
  assert (
    io.digest(arrays)
    == "4945c1f2fa5c587c9a144a38808b41215e5c1b8df8adbc0480e8d08d26eb8d02"
  )
  assert (
    io.digest(arrays, before="x=1;", after="Y")
    == "ac1bbfa41342538e67586c8ee4d5bfc4ea013817626a99c021c7d466670210e7"
  )


def test_layout_does_not_count_and_all_else_does():
  own = io.digest([("a", _ARRAY)])
  assert io.digest([("a", np.asfortranarray(_ARRAY))]) == own
  others = [
    [("b", _ARRAY)],
    [("a", _ARRAY.T)],
    [("a", _ARRAY + 1)],
    [("a", _ARRAY.astype(np.float64))],
    [("a", _ARRAY), ("b", _ARRAY)],
  ]
  assert own not in {io.digest(arrays) for arrays in others}


def test_seeds_are_those_that_jax_keeps_apart():
  assert io.check_seed(0) == 0
  assert io.check_seed(np.uint32(2**32 - 1)) == 2**32 - 1


@pytest.mark.parametrize("seed", [-1, 2**32, 1e20, 1.0, True, "1", None])
def test_what_is_no_seed_is_refused(seed):
  with pytest.raises(
    io.InputError, match="world_seed: expected an integer from 0 to 4294967295"
  ):
    io.check_seed(seed, "world_seed")
