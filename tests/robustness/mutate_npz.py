"""Ways to damage the members of an `.npz`, drawn from a seed; see `mutate`.

The archive is packed anew around its changed members, so that every checksum in
it is right.
"""

import io
import struct
import zipfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from tests.robustness.mutate import Rng, damage_bytes, pick


class Member(NamedTuple):
  """A member of a zip archive, its content as it is before compression."""

  name: str
  content: bytes


def members_of(archive: bytes) -> list[Member]:
  with zipfile.ZipFile(io.BytesIO(archive)) as file:
    return [Member(name, file.read(name)) for name in file.namelist()]


def pack(
  members: Sequence[Member], compression: int = zipfile.ZIP_STORED
) -> bytes:
  """An archive with right checksums; equal members give equal bytes."""
  buffer = io.BytesIO()
  with zipfile.ZipFile(buffer, "w", compression) as file:
    names: set[str] = set()
    for name, content in members:
      info = zipfile.ZipInfo(name)
      info.compress_type = compression
      if name in names:  # zipfile warns of it, and writes it
        file.NameToInfo.pop(name)
      names.add(name)
      file.writestr(info, content)
  return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
  buffer = io.BytesIO()
  np.lib.format.write_array(buffer, np.asanyarray(array), allow_pickle=True)
  return buffer.getvalue()


def npy_with_header(header: str | bytes, data: bytes, version=(1, 0)) -> bytes:
  """An array file whose header says what is given, true or not."""
  text = header if isinstance(header, bytes) else header.encode("latin1")
  wide = version[0] != 1
  start = 12 if wide else 10
  text = text if wide else text[:65_000]
  text += b" " * (-(start + len(text) + 1) % 64) + b"\n"
  length = struct.pack("<I" if wide else "<H", len(text))
  return b"\x93NUMPY" + bytes(version) + length + text + data


def split_npy(content: bytes) -> tuple[dict[str, Any], bytes]:
  """Header and data of an array file of version 1."""
  stream = io.BytesIO(content)
  np.lib.format.read_magic(stream)
  shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
  header = {
    "descr": np.lib.format.dtype_to_descr(dtype),
    "fortran_order": fortran,
    "shape": shape,
  }
  return header, stream.read()


def damage_npy(rng: Rng, content: bytes) -> tuple[str, bytes]:
  """Another shape, type, order or version in the header; data cut or longer."""
  header, data = split_npy(content)
  shape = header["shape"]
  what = pick(
    rng, ("shape", "shape", "descr", "order", "version", "text", "data", "raw")
  )
  if what == "shape":
    first = shape[0] if shape else 1
    shapes: list[Any] = [
      (*shape[:-1], max(0, shape[-1] - 1) if shape else 0),
      (*shape[:-1], shape[-1] + 1 if shape else 2),
      (max(0, first - 1), *shape[1:]),
      (first + 1, *shape[1:]),
      (-1, *shape[1:]),
      (0, *shape[1:]),
      (2**43, *shape[1:]),
      (2**63, *shape[1:]),
      (first, 2**60, 2**60),
      shape[::-1],
      (*shape, 1),
      (1, *shape),
      shape[:-1],
      (True, *shape[1:]),
      list(shape),
      None,
    ]
    header["shape"] = pick(rng, shapes)
  elif what == "descr":
    header["descr"] = pick(
      rng,
      (
        *(">f4", "<f4", "<f8", "<f2", "<i4", ">i4", "<i8", "<u4", "|b1", "|u1"),
        *("|O", "<U4", "|S4", "<c8", "<M8[s]", "|V4", "x", "", None, 5),
        *("<f4,<f4", "<f999999999", [("a", "<f4")], [("a", "|O")], "0<f4"),
      ),
    )
  elif what == "order":
    header["fortran_order"] = pick(rng, (True, 1, None, "True"))
  elif what == "text":
    repeated = pick(rng, ("(", "[", "-", "{1:", "(" * 100))
    texts = (
      "",
      repeated * int(pick(rng, (10, 500, 5000))),
      "{'descr': '<f4', 'fortran_order': False}",
      "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 1}",
      "__import__('os').getpid()",
      "{}",
      "{'descr': ",
      "\xff\xfe",
      f"{header}" + "#" * 9000,
      "[1, 2]",
      f"{{{'1' * 6000}: 1}}",
    )
    text = pick(rng, texts)
    return f"array header {text[:40]!r}", npy_with_header(text, data)
  elif what == "version":
    version = pick(rng, ((2, 0), (3, 0), (1, 1), (4, 0), (0, 0), (255, 255)))
    return (
      f"array version {version}",
      npy_with_header(repr(header), data, version),
    )
  elif what == "data":
    size = max(header["shape"][0] if header["shape"] else 1, 1)
    row = max(len(data) // size, 1)
    cut = int(pick(rng, (1, row, len(data))))
    if rng.integers(2):
      return f"{cut} bytes of data cut", npy_with_header(
        repr(header), data[: max(len(data) - cut, 0)]
      )
    return f"{cut} bytes more data", npy_with_header(
      repr(header), data + rng.bytes(cut)
    )
  else:
    return damage_bytes(rng, content)
  return f"array header {header}", npy_with_header(repr(header), data)


def damage_array(rng: Rng, array: np.ndarray) -> tuple[str, np.ndarray]:
  """Other values, rows or types, in an array that is whole."""
  array = np.array(array)
  changes: list[Callable[[], tuple[str, np.ndarray]]] = []

  def put(value):
    def change():
      changed = array.copy()
      if changed.size:
        changed.reshape(-1)[int(rng.integers(changed.size))] = value
      return f"a value replaced by {value}", changed

    return change

  if array.dtype.kind == "f":
    changes += map(put, (np.nan, np.inf, -np.inf, 1e30, -1e30, -1.0, 0.5))
  elif array.dtype.kind in "iu":
    limits = np.iinfo(array.dtype)
    changes += map(put, (limits.min, limits.max, 0, 1))
  elif array.dtype.kind == "b":
    changes += [lambda: ("flags inverted", ~array)]
  if array.ndim and array.shape[0] > 1:
    row = int(rng.integers(array.shape[0]))
    changes += [
      lambda: ("rows reversed", array[::-1]),
      lambda: (f"row {row} removed", np.delete(array, row, axis=0)),
      lambda: (f"row {row} twice", np.insert(array, row, array[row], axis=0)),
      lambda: ("no rows", array[:0]),
    ]
  if array.ndim > 1:
    changes += [
      lambda: ("a column removed", array[:, 1:]),
      lambda: ("columns reversed", array[:, ::-1]),
      lambda: ("transposed", array.T),
      lambda: ("column-major", np.asfortranarray(array)),
    ]
  if array.dtype.kind in "fiub":
    for dtype in ("<f8", ">f4", "<i8", "<i4", "<f2", "|u1", "|O", "<U3"):
      changes.append(
        lambda dtype=dtype: (f"as {dtype}", _as_type(array, dtype))
      )
  changes.append(lambda: ("one more axis", array[..., None]))
  changes.append(lambda: ("a single value", array.reshape(-1)[:1].copy()))
  what, changed = pick(rng, changes)()
  return what, changed


def _as_type(array: np.ndarray, dtype: str) -> np.ndarray:
  with np.errstate(all="ignore"):
    return array.astype(dtype)


def _declare(archive: bytes, rng: Rng) -> tuple[str, bytes]:
  """Sizes, method, flags and checksum as the archive's directory declares."""
  at = archive.rfind(b"PK\x01\x02", 0, archive.rfind(b"PK\x05\x06"))
  entries = [
    n for n in range(len(archive) - 3) if archive[n : n + 4] == b"PK\x01\x02"
  ] or [at]
  at = pick(rng, entries)
  field, offset, form = pick(
    rng,
    (
      ("flags", 8, "<H"),
      ("method", 10, "<H"),
      ("checksum", 16, "<I"),
      ("packed size", 20, "<I"),
      ("size", 24, "<I"),
      ("name length", 28, "<H"),
      ("extra length", 30, "<H"),
      ("place", 42, "<I"),
    ),
  )
  value = int(
    pick(rng, (0, 1, 8, 12, 14, 93, 95, 99, 0x41, 0xFFFF, 2**30, 2**32 - 1))
  ) % (1 << (8 * struct.calcsize(form)))
  changed = bytearray(archive)
  struct.pack_into(form, changed, at + offset, value)
  return f"directory says {field} {value}", bytes(changed)


def damage_archive(rng: Rng, archive: bytes) -> tuple[str, bytes]:
  """Members removed, repeated, renamed, exchanged, damaged, packed otherwise."""
  members = members_of(archive)
  n, m = (int(x) for x in rng.integers(len(members), size=2))
  name, content = members[n]
  what = pick(
    rng,
    (
      *("npy", "npy", "npy", "array", "array", "remove", "repeat", "rename"),
      *("exchange", "add", "packing", "declare", "long", "order"),
    ),
  )
  if what == "npy":
    done, content = damage_npy(rng, content)
    members[n] = Member(name, content)
    what = f"{name}: {done}"
  elif what == "array":
    with np.errstate(all="ignore"):
      array = np.load(io.BytesIO(content), allow_pickle=False)
      done, array = damage_array(rng, array)
    members[n] = Member(name, npy(array))
    what = f"{name}: {done}"
  elif what == "remove":
    del members[n]
    what = f"{name} removed"
  elif what == "repeat":
    done, content = damage_npy(rng, content)
    members.insert(int(rng.integers(len(members) + 1)), Member(name, content))
    what = f"{name} twice, one with {done}"
  elif what == "rename":
    new = pick(
      rng,
      (
        *(
          name.upper(),
          name[:-4],
          f"{name}.npy",
          f"../{name}",
          "",
          "/",
          "x" * 999,
        ),
        *(f"{name[:-4]}\x00.npy", f"a/{name}", "é.npy", f" {name}"),
      ),
    )
    members[n] = Member(new, content)
    what = f"{name} renamed {new[:30]!r}"
  elif what == "exchange":
    members[n], members[m] = (
      Member(name, members[m].content),
      Member(members[m].name, content),
    )
    what = f"{name} and {members[m].name} exchanged"
  elif what == "add":
    extra = pick(rng, ("extra.npy", "extra.txt", "extra/", "header"))
    members.append(Member(extra, pick(rng, (content, b"", b"x" * 100))))
    what = f"{extra} added"
  elif what == "packing":
    method = pick(
      rng, (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    )
    return f"packed by method {method}", pack(members, method)
  elif what == "declare":
    return _declare(archive, rng)
  elif what == "long":
    # Zeros that pack a thousandfold: what must not be read to the end.
    members[n] = Member(name, content + bytes(1 << 24))
    return f"{name}: 16 MiB of zeros behind", pack(
      members, zipfile.ZIP_DEFLATED
    )
  else:
    order = rng.permutation(len(members))
    members = [members[int(k)] for k in order]
    what = "members in another order"
  return what, pack(members)
