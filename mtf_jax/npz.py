"""Archives of arrays (`.npz`): written with a digest, read without trust.

NumPy's own reader believes what a file says of itself: it allocates what an
array's header asks for, leaves the rest of a member unread (and its checksum
with it) where the header asks for less, and answers a damaged file with some
ten kinds of exceptions. Here the zip directory and every array's header are
checked against each other before memory is taken, and a refusal is one
sentence.
"""

import contextlib
import hashlib
import io
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from typing import IO, NamedTuple

import numpy as np

from mtf_jax.io import InputError, kind_of, naming, require_file

# A deflated file may say that it unpacks to this many times its own size, or
# to the second number of bytes. Logs and worlds shrink to a third at best.
_MAX_RATIO = 100
_SMALL = 2**26

_MAX_HEADER = 10_000  # bytes of an array's header, NumPy's own limit
_MAX_DIMENSIONS = 32
_CHUNK = 2**20
_LOCAL_HEADER = struct.Struct("<4s22xHH")

# As NumPy writes it. Parsed by form, never evaluated: a literal may nest until
# Python's parser gives up.
_HEADER = re.compile(
  r"\{ *'descr' *: *'(?P<descr>[^']{1,40})' *,"
  r" *'fortran_order' *: *(?P<fortran>True|False) *,"
  r" *'shape' *: *\((?P<shape>[0-9, ]*)\) *,? *\} *\n?"
)
# Numbers and texts; no Python objects, records, times.
_PLAIN = re.compile(r"[<>|=]?[?biufcSU][0-9]{0,9}")

# Ways to compress that others use.
_METHODS = {
  9: "deflate64",
  zipfile.ZIP_BZIP2: "bzip2",
  zipfile.ZIP_LZMA: "LZMA",
}

# What `zipfile` raises for damaged archives, beside its own BadZipFile.
_UNREADABLE = (
  zipfile.BadZipFile,
  zlib.error,
  struct.error,
  EOFError,
  KeyError,
  MemoryError,
  OSError,
  OverflowError,
  RuntimeError,
  TypeError,
  ValueError,
)


class Layout(NamedTuple):
  """What a member's header says of its array.

  dtype: its type, of numbers or text.
  shape: its shape.
  """

  dtype: np.dtype
  shape: tuple[int, ...]


class _Member(NamedTuple):
  layout: Layout
  fortran_order: bool
  header: bytes  # of the array, magic included


class Npz:
  """An open archive; nothing is read but its directory until it is asked for.

  Whoever opens it puts the file's name before its refusals, see `io.naming`.

  names: names of its arrays, in the order of the file.
  """

  def __init__(self, file: io.BufferedIOBase, expected: str) -> None:
    """Reads and checks the directory.

    Args:
      file: the archive, open for reading, which starts where it does.
      expected: what it should be, such as "a session file (.npz)".

    Raises:
      InputError: the file is no zip archive or its directory is damaged, a
        member is encrypted, compressed in another way than NumPy's, named
        twice or no array, or the members would unpack to absurd sizes.
    """
    self._file, self._expected = file, expected
    self._members: dict[str, _Member] = {}
    head = file.read(256)
    if not head.startswith(b"PK"):
      raise self.refusal(kind_of(head))
    with self._refusing("a zip archive that cannot be read"):
      self._size = file.seek(0, os.SEEK_END)
      self._zip = zipfile.ZipFile(file)
    self._infos: dict[str, zipfile.ZipInfo] = {}
    for info in self._zip.infolist():
      name = self._check_entry(info)
      if name in self._infos:
        raise self.refusal(f"an archive with two members {_short(name)}")
      self._infos[name] = info
    unpacked = sum(info.file_size for info in self._infos.values())
    if unpacked > max(_SMALL, _MAX_RATIO * self._size):
      raise self.refusal(
        f"a file of {_bytes(self._size)} that says that it unpacks to"
        f" {_bytes(unpacked)}"
      )
    self.names = tuple(self._infos)

  def refusal(self, found: str) -> InputError:
    """The sentence that refuses the file, without its name.

    Args:
      found: what it is instead.
    """
    return InputError(f"expected {self._expected}, found {found}.")

  def layout(self, name: str) -> Layout:
    """Type and shape of an array, without reading it.

    Args:
      name: one of `names`.

    Raises:
      InputError: the header is damaged, not of numbers or text, or does not
        agree with the size that the archive's directory has.
    """
    return self._member(name).layout

  def text(self, name: str) -> str:
    """A text, which NumPy keeps as an array without dimensions.

    Args:
      name: one of `names`.

    Raises:
      InputError: as `layout` and `read`, or it is no text.
    """
    dtype, shape = self.layout(name)
    if dtype.kind != "U" or shape:
      raise self.refusal(
        f"{_short(name)} of type {dtype.name} and shape {shape} instead of a"
        " text"
      )
    with self._refusing(f"a text {_short(name)} that cannot be read"):
      return str(self.read(name)[()])

  def digest(self, names: Iterable[str]) -> str:
    """Names the content of arrays: a SHA-256, 64 hexadecimal digits.

    It is taken over their names and the CRC-32 of their bytes, headers
    included, as the archive's directory has them; `read` refuses an array that
    has another one. So it costs nothing: a SHA-256 over the bytes themselves
    would double the time of reading.

    Args:
      names: some of `names`, in a fixed order.
    """
    return _digest((name, self._infos[name].CRC) for name in names)

  def read(self, name: str) -> np.ndarray:
    """Reads an array.

    Args:
      name: one of `names`.

    Raises:
      InputError: as `layout`, or the data is cut or damaged, or memory is
        short.
    """
    member = self._member(name)
    dtype, shape = member.layout
    with self._refusing(f"an array {_short(name)} that cannot be read"):
      flat = np.empty(math.prod(shape), dtype)
      data = flat.view(np.uint8).data
      self._fill(self._infos[name], member.header, data)
      if member.fortran_order:
        return flat.reshape(shape[::-1]).T
      return flat.reshape(shape)

  @contextlib.contextmanager
  def _refusing(self, found: str) -> Iterator[None]:
    try:
      yield
    except InputError:
      raise
    except _UNREADABLE as error:
      # zipfile quotes whatever stands where a name should be.
      reason = " ".join(str(error).split())[:160] or type(error).__name__
      raise self.refusal(f"{found} ({reason})") from error

  def _check_entry(self, info: zipfile.ZipInfo) -> str:
    """The array's name; refuses what must not be opened."""
    name = info.filename
    if not name.endswith(".npy"):
      raise self.refusal(
        f"an archive with a member {_short(name)}, which is no array (.npy)"
      )
    if info.flag_bits & 0x1:
      raise self.refusal(f"an archive whose member {_short(name)} is encrypted")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
      method = _METHODS.get(info.compress_type, f"method {info.compress_type}")
      raise self.refusal(
        f"an archive whose member {_short(name)} is compressed by {method},"
        " not stored or deflated as NumPy has them"
      )
    # What is stored takes its size in the file, so that a short file cannot
    # ask for much memory.
    packed = info.compress_size
    if packed > self._size or (
      info.compress_type == zipfile.ZIP_STORED and packed != info.file_size
    ):
      raise self.refusal(
        f"an archive of {_bytes(self._size)} whose member {_short(name)} is"
        f" said to take {_bytes(packed)} for {_bytes(info.file_size)}"
      )
    return name.removesuffix(".npy")

  def _member(self, name: str) -> _Member:
    if name not in self._members:
      info = self._infos[name]
      with (
        self._refusing(f"a damaged array {_short(name)}"),
        self._zip.open(info) as stream,
      ):
        header = _array_header(stream)
      self._members[name] = self._parsed(name, info, header)
    return self._members[name]

  def _parsed(self, name: str, info: zipfile.ZipInfo, header: bytes) -> _Member:
    text = header[header.find(b"{") :].decode("latin1")
    found = _HEADER.fullmatch(text)
    if not found:
      raise self.refusal(
        f"an array {_short(name)} whose header begins {text[:40]!r}"
      )
    try:
      if not _PLAIN.fullmatch(found["descr"]):
        raise TypeError
      dtype = np.dtype(found["descr"])
    except (TypeError, ValueError) as error:
      raise self.refusal(
        f"an array {_short(name)} of type {found['descr']!r}, neither numbers"
        " nor text"
      ) from error
    sizes = [part.strip() for part in found["shape"].split(",")]
    if sizes[-1] == "":
      del sizes[-1]
    if len(sizes) > _MAX_DIMENSIONS or not all(
      size.isdecimal() and len(size) < 20 for size in sizes
    ):
      raise self.refusal(
        f"an array {_short(name)} of shape ({found['shape'][:40]})"
      )
    shape = tuple(int(size) for size in sizes)
    there = info.file_size - len(header)
    asked = math.prod(shape) * dtype.itemsize
    if asked != there:
      raise self.refusal(
        f"an array {_short(name)} of {dtype.name} and shape {shape}, which is"
        f" {_bytes(asked)}, in {_bytes(there)}"
      )
    return _Member(Layout(dtype, shape), found["fortran"] == "True", header)

  def _fill(
    self, info: zipfile.ZipInfo, header: bytes, data: memoryview
  ) -> None:
    """Reads a member's bytes after its header; raises one of `_UNREADABLE`."""
    if info.compress_type == zipfile.ZIP_DEFLATED:
      with self._zip.open(info) as stream:
        stream.read(len(header))
        # It compares the checksum once it comes to the end.
        for start in range(0, len(data), _CHUNK):
          chunk = data[start : start + _CHUNK]
          chunk[:] = stream.read(len(chunk))
      return
    # Straight into place: `zipfile` would copy every byte twice.
    file, checksum = self._file, zlib.crc32(header)
    file.seek(info.header_offset)
    _, name_size, extra_size = _LOCAL_HEADER.unpack(
      file.read(_LOCAL_HEADER.size)
    )
    file.seek(name_size + extra_size + len(header), os.SEEK_CUR)
    for start in range(0, len(data), _CHUNK):
      chunk = data[start : start + _CHUNK]
      if file.readinto(chunk) != len(chunk):
        raise EOFError("it is cut")
      checksum = zlib.crc32(chunk, checksum)
    if checksum != info.CRC:
      raise EOFError("its checksum differs")


@contextlib.contextmanager
def open_npz(path: str | os.PathLike[str], expected: str) -> Iterator[Npz]:
  """Opens an archive of arrays that a user named.

  Args:
    path: the file.
    expected: what it should be, such as "a session file (.npz)".

  Yields:
    The archive, to be used until the block ends.

  Raises:
    InputError: the file is missing or of another kind, see `require_file` and
      `Npz`. Every refusal raised in the block is given the file's name.
  """
  with require_file(path, expected).open("rb") as file, naming(path):
    yield Npz(file, expected)


def save_npz(
  file: IO[bytes], arrays: Mapping[str, np.ndarray], digest_name: str
) -> str:
  """Writes arrays as an uncompressed archive, with their digest.

  Args:
    file: open for writing.
    arrays: by name, of numbers or text.
    digest_name: name of the last array, the text of `Npz.digest` over all
      others in their order.

  Returns:
    The digest.
  """
  with zipfile.ZipFile(file, "w") as archive:

    def write(name: str, array: np.ndarray) -> int:
      entry = f"{name}.npy"
      with archive.open(entry, "w", force_zip64=True) as stream:
        np.lib.format.write_array(stream, array, allow_pickle=False)
      return archive.getinfo(entry).CRC

    checksums = [(name, write(name, array)) for name, array in arrays.items()]
    name = _digest(checksums)
    write(digest_name, np.asarray(name))
  return name


def _digest(checksums: Iterable[tuple[str, int]]) -> str:
  text = "".join(f"{name} {checksum:08x}\n" for name, checksum in checksums)
  return hashlib.sha256(text.encode()).hexdigest()


def _array_header(stream: IO[bytes]) -> bytes:
  """Magic, version, length and header of an array; ValueError if damaged."""
  start = stream.read(8)
  if not start.startswith(b"\x93NUMPY"):
    raise ValueError("it does not begin as arrays do")
  size_bytes = {1: 2, 2: 4, 3: 4}.get(start[6])
  if size_bytes is None:
    raise ValueError(f"its format is {start[6]}")
  start += stream.read(size_bytes)
  size = int.from_bytes(start[8:], "little")
  if size > _MAX_HEADER:
    raise ValueError(f"its header has {size} bytes")
  header = start + stream.read(size)
  if len(header) != 8 + size_bytes + size:
    raise ValueError("it is cut")
  return header


def _short(name: str) -> str:
  """A member's name as messages have it: it may be anything, of any length."""
  return name if name.isidentifier() and len(name) < 60 else repr(name[:60])


def _bytes(size: int) -> str:
  """A size for reading."""
  value, units = float(size), ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")
  if size < 1024:
    return f"{size} bytes"
  for unit in units:
    value /= 1024
    if value < 1024 or unit == units[-1]:
      break
  return f"{value:.4g} {unit}"
