"""Files appear whole or not at all; digests name contents and never change."""

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
