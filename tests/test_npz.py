"""Archives as an attacker, another program or a bad disk leaves them."""

import io
import tracemalloc
import zipfile

import numpy as np
import pytest

from mtf_jax.io import InputError
from mtf_jax.npz import open_npz, save_npz

_VALUES = np.arange(6, dtype=np.float32).reshape(2, 3)


def _npy(header, data=b"", version=1, size=None):
  """An array's bytes with any header."""
  text = header.encode("latin1")
  length = len(text) if size is None else size
  return (
    b"\x93NUMPY"
    + bytes([version, 0])
    + length.to_bytes(2 if version == 1 else 4, "little")
    + text
    + data
  )


def _like(descr="<f4", shape="(2, 3)", order="False", data=24):
  header = f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"
  return _npy(header.replace("<f4", "'<f4'"), bytes(data))


def _zip(path, members, compression=zipfile.ZIP_STORED):
  with zipfile.ZipFile(path, "w", compression) as archive:
    for name, content in members:
      archive.writestr(name, content)
  return path


def _npy_of(array):
  buffer = io.BytesIO()
  np.lib.format.write_array(buffer, array)
  return buffer.getvalue()


def _read(path):
  with open_npz(path, "a file of arrays (.npz)") as archive:
    return {name: archive.read(name) for name in archive.names}


def _refusal(path):
  """The refusal, which takes no memory for what the file asks for."""
  tracemalloc.start()
  try:
    with pytest.raises(InputError) as error:
      _read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**22
  finally:
    tracemalloc.stop()
  message = str(error.value)
  start = f"{path}: expected a file of arrays (.npz), found "
  assert message.startswith(start)
  assert "\n" not in message and len(message) < len(start) + 250
  return message.removeprefix(start)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_reads_what_numpy_writes(write, tmp_path):
  arrays = {
    "rows": np.random.default_rng(0).random((1000, 300)),  # over one chunk
    "columns": np.asfortranarray(_VALUES),
    "swapped": _VALUES.astype(">f4"),
    "none": np.zeros((0, 3), np.int8),
    "scalar": np.float32(3),
    "flag": np.array([True, False]),
    "half": np.zeros(2, np.float16),
    "complex": np.ones(2, np.complex64),
    "text": np.asarray("Größe"),
    "texts": np.asarray(["a", "bc"]),
    "part/field": np.arange(3),
  }
  path = tmp_path / "all.npz"
  write(path, **arrays)
  found = _read(path)
  assert list(found) == list(arrays)
  for name, array in arrays.items():
    np.testing.assert_array_equal(found[name], array)
    assert found[name].dtype == array.dtype
  assert found["columns"].flags.f_contiguous
  with open_npz(path, "arrays") as archive:
    assert archive.text("text") == "Größe"
    assert archive.layout("rows") == (np.float64, (1000, 300))
    with pytest.raises(InputError, match=r"scalar of type float32 and shape"):
      archive.text("scalar")


def test_what_is_saved_is_read_by_numpy_and_has_its_digest(tmp_path):
  arrays = {"a": _VALUES, "b": np.asarray("text")}
  prints = set()
  for name, changed in (
    ("same", arrays),
    ("again", arrays),
    ("value", {**arrays, "a": _VALUES + 1}),
    ("type", {**arrays, "a": _VALUES.astype(np.float64)}),
    ("shape", {**arrays, "a": _VALUES.reshape(3, 2)}),
    ("name", {"A": _VALUES, "b": arrays["b"]}),
  ):
    path = tmp_path / f"{name}.npz"
    with path.open("wb") as file:
      save_npz(file, changed, digest_name="digest")
    with np.load(path) as archive:
      np.testing.assert_array_equal(archive["b"], "text")
      assert archive.files == [*changed, "digest"]
      prints.add(str(archive["digest"]))
    with open_npz(path, "arrays") as archive:
      assert archive.digest(changed) == archive.text("digest")
  assert len(prints) == 5


_NESTED = "(" * 4000 + ")" * 4000

# Content of an array's member, and what its refusal says.
_BAD_ARRAYS = {
  "91 TiB": (
    _like(shape="(100000000000000,)"),
    "an array x of float32 and shape (100000000000000,), which is 363.8 TiB, in"
    " 24 bytes.",
  ),
  "beyond 64 bits": (
    _like(shape="(9999999999999999999, 9999999999999999999)"),
    "which is 3.469e+20 EiB, in 24 bytes.",
  ),
  "fewer columns": (
    _like(shape="(2, 2)"),
    "an array x of float32 and shape (2, 2), which is 16 bytes, in 24 bytes.",
  ),
  "empty and absurd": (
    _like(shape="(0, 9999999999999999999)", data=0),
    "an array x that cannot be read",
  ),
  "a digit too many": (
    _like(shape="(99999999999999999999,)"),
    "an array x of shape (99999999999999999999,).",
  ),
  "33 dimensions": (
    _like(shape=f"({'1, ' * 33})", data=4),
    "an array x of shape (1, 1, ",
  ),
  "two commas": (_like(shape="(2,, 3)"), "an array x of shape (2,, 3)."),
  "negative": (_like(shape="(-2, -3)"), "an array x whose header begins"),
  "nested": (_like(shape=_NESTED), "an array x whose header begins"),
  "code": (_like(shape="(2 and 3,)"), "an array x whose header begins"),
  "objects": (
    _like(descr="'|O'", shape="(3,)"),
    "an array x of type '|O', neither numbers nor text.",
  ),
  "records": (
    _like(descr="[('a', <f4)]", shape="(6,)"),
    "an array x whose header begins",
  ),
  "times": (_like(descr="'<M8[s]'", shape="(3,)"), "of type '<M8[s]', neither"),
  "no type": (_like(descr="'<f3'", shape="(8,)"), "of type '<f3', neither"),
  "wide text": (_like(descr="'<U999999999'", shape="()"), "x of "),
  "no array": (b"hello", "a damaged array x (it does not begin as arrays do)."),
  "empty": (b"", "a damaged array x (it does not begin as arrays do)."),
  "format 9": (_npy("{}", version=9), "a damaged array x (its format is 9)."),
  "header of 4 GiB": (
    _npy("{}", version=2, size=2**32 - 1),
    "a damaged array x (its header has 4294967295 bytes).",
  ),
  "header cut": (_npy("{}", size=900), "a damaged array x (it is cut)."),
}


@pytest.mark.parametrize("case", _BAD_ARRAYS)
@pytest.mark.parametrize(
  "compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]
)
def test_bad_arrays_are_refused(case, compression, tmp_path):
  content, message = _BAD_ARRAYS[case]
  path = _zip(tmp_path / "bad.npz", [("x.npy", content)], compression)
  assert message in _refusal(path)


def test_bombs_are_refused_by_what_they_say(tmp_path):
  """128 MiB of zeros in 130 KB, refused before one of them is unpacked."""
  path = tmp_path / "bomb.npz"
  np.savez_compressed(path, x=np.zeros(2**27, np.uint8))
  assert "that says that it unpacks to 128 MiB" in _refusal(path)
  # A small one is an array like any other.
  np.savez_compressed(path, x=np.zeros(2**20, np.uint8))
  assert _read(path)["x"].size == 2**20


def test_a_member_that_unpacks_to_more_than_it_says_is_refused(tmp_path):
  path = tmp_path / "liar.npz"
  content = _npy_of(np.zeros(50_000, np.uint8))
  _zip(path, [("x.npy", content)], zipfile.ZIP_DEFLATED)
  size, claimed = (
    number.to_bytes(4, "little") for number in (len(content), 128 + 24)
  )
  whole = path.read_bytes()
  assert whole.count(size) == 2
  path.write_bytes(whole.replace(size, claimed))
  assert _refusal(path).startswith("a damaged array x (Bad CRC-32")


def _flagged(path, place, value):
  """Sets a two-byte number of the directory's first entry."""
  content = bytearray(path.read_bytes())
  start = content.index(b"PK\x01\x02") + place
  content[start : start + 2] = value.to_bytes(2, "little")
  path.write_bytes(content)
  return path


def test_other_archives_are_refused(tmp_path):
  content = _npy_of(_VALUES)
  path = tmp_path / "archive.npz"
  _zip(path, [("x.npy", content)], zipfile.ZIP_BZIP2)
  assert "whose member x.npy is compressed by bzip2, not" in _refusal(
    path
  ).replace("'", "")
  _zip(path, [("x.npy", content)], zipfile.ZIP_LZMA)
  assert "is compressed by LZMA" in _refusal(path)
  _flagged(_zip(path, [("x.npy", content)]), 10, 93)
  assert "is compressed by method 93" in _refusal(path)
  _flagged(_zip(path, [("x.npy", content)]), 8, 1)
  assert "'x.npy' is encrypted" in _refusal(path)
  _zip(path, [("readme.txt", b"hello")])
  assert "a member 'readme.txt', which is no array (.npy)" in _refusal(path)
  with pytest.warns(UserWarning, match="Duplicate name"):
    _zip(path, [("x.npy", content), ("x.npy", content)])
  assert _refusal(path) == "an archive with two members x."
  _zip(path, [("\N{BELL}\n" * 100 + ".npy", b"hello")])
  assert "a damaged array" in _refusal(path)


def test_a_changed_byte_of_the_data_is_refused(tmp_path):
  path = tmp_path / "changed.npz"
  for write in (np.savez, np.savez_compressed):
    write(path, x=np.random.default_rng(0).random(1000))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert "an array x that cannot be read (" in _refusal(path)


@pytest.mark.parametrize("kept", [0, 3, 10, 120, 200, -5, -22, -60])
def test_a_cut_archive_is_refused(kept, tmp_path):
  path = tmp_path / "cut.npz"
  np.savez(path, x=_VALUES)
  path.write_bytes(path.read_bytes()[:kept])
  assert _refusal(path)


def test_what_cannot_be_opened_is_refused(tmp_path):
  assert _refusal(tmp_path / "none.npz") == "no such file."
  assert _refusal(tmp_path) == "a folder."
  np.save(tmp_path / "x.npy", _VALUES)
  assert _refusal(tmp_path / "x.npy") == "a single NumPy array (.npy)."
