import hashlib
import io
import json
from typing import NamedTuple

import jax
import numpy as np
import pytest

from mtf_jax.io import InputError
from mtf_jax.worlds import io as world_io
from mtf_jax.worlds.leaving import SatisfactionFloor
from mtf_jax.worlds.world import fingerprint


@pytest.fixture(scope="module")
def saved(small_world, tmp_path_factory):
  path = tmp_path_factory.mktemp("world") / "small.world"
  return path, world_io.save_world(path, small_world)


def test_round_trip(small_world, saved):
  path, name = saved
  loaded = world_io.load_world(path)
  assert name == fingerprint(loaded) == fingerprint(small_world)
  assert jax.tree.structure(loaded) == jax.tree.structure(small_world)
  jax.tree.map(np.testing.assert_array_equal, loaded, small_world)
  assert [x.dtype for x in jax.tree.leaves(loaded)] == [
    x.dtype for x in jax.tree.leaves(small_world)
  ]
  assert list(path.parent.iterdir()) == [path]


def _refusal(path):
  with pytest.raises(InputError) as error:
    world_io.load_world(path)
  message = str(error.value)
  assert message.startswith(f"{path}: ") and "\n" not in message
  assert message.count(str(path)) == 1
  return message


def test_one_wrong_byte_anywhere_is_refused(saved, tmp_path):
  content = bytearray(saved[0].read_bytes())
  broken = tmp_path / "broken.world"
  rng = np.random.default_rng(0)
  for place in (0, 14, 30, len(content) - 1, *rng.integers(0, len(content), 5)):
    changed = content.copy()
    changed[place] ^= 1
    broken.write_bytes(changed)
    with pytest.raises(ValueError, match=r"broken\.world"):
      world_io.load_world(broken)
  broken.write_bytes(content[:-1000])
  with pytest.raises(ValueError, match="damaged"):
    world_io.load_world(broken)


def test_another_schema_version_is_refused(saved, tmp_path):
  content = saved[0].read_bytes().replace(b" 2 ", b" 3 ", 1)
  other = tmp_path / "other.world"
  other.write_bytes(content)
  assert "schema version 2, found 3" in _refusal(other)


def test_a_failed_write_leaves_the_earlier_file(small_world, saved, tmp_path):
  path = tmp_path / "kept.world"
  path.write_bytes(b"earlier")

  class Mine(NamedTuple):
    patience: float = 1.0

  with pytest.raises(ValueError, match="leaving"):
    world_io.save_world(path, small_world.replace(leaving=Mine()))
  assert path.read_bytes() == b"earlier"


@pytest.fixture(scope="module")
def content(saved):
  """Header and arrays of the file."""
  payload = saved[0].read_bytes().partition(b"\n")[2]
  with np.load(io.BytesIO(payload)) as archive:
    arrays = dict(archive)
  return json.loads(str(arrays.pop("header"))), arrays


def _write(path, header, arrays):
  """A world file of any content, its checksum right; None leaves out."""
  arrays = {**arrays, "header": header}
  if isinstance(header, dict):
    given = {n: value for n, value in header.items() if value is not None}
    arrays["header"] = json.dumps(given)
  buffer = io.BytesIO()
  np.savez(buffer, **{n: a for n, a in arrays.items() if a is not None})
  payload = buffer.getvalue()
  checksum = hashlib.sha256(payload).hexdigest()
  path.write_bytes(f"mtf_jax world 2 {checksum}\n".encode() + payload)


# What is changed of the header, and what the refusal says.
_WRONG_HEADERS = [
  ({"slate_size": None}, "header: expected those of a world, found ['slate_s"),
  ({"more": 1}, "[] missing and ['more'] unknown"),
  ({"slate_size": -6}, "1 <= slate_size <= num_candidates <= 256, found -6"),
  ({"slate_size": 10**400}, "<= 256, found 10000000000000000000 and 50."),
  ({"slate_size": 51}, "num_candidates <= 256, found 51 and 50."),
  (
    {"num_candidates": 10**30},
    "num_candidates <= 256, found 6 and 10000000000000000000",
  ),
  ({"num_candidates": 0}, "num_candidates <= 256, found 6 and 0."),
  ({"slate_size": 6.0}, "slate_size: expected a value of type int, found 6.0"),
  (
    {"slate_size": True},
    "slate_size: expected a value of type int, found True",
  ),
  ({"name": ["x"]}, "name: expected a value of type str, found ['x']"),
  ({"feature_names": "ab"}, "feature_names: expected a value of type list"),
  ({"feature_names": [1] * 10}, "feature_names: expected texts"),
  ({"feature_names": ["a"] * 9}, "shape [U, F] with F = 9, found (512, 10)"),
  ({"leaving": "never"}, "leaving: expected one of satisfaction_floor, "),
  (
    {"leaving": "net_exposure"},
    "arrays: expected those of a world, found ['le",
  ),
  ({"fingerprint": "0" * 16}, "expected the fingerprint 0000000000000000, "),
]


@pytest.mark.parametrize(("changed", "message"), _WRONG_HEADERS)
def test_wrong_headers_are_refused(changed, message, content, tmp_path):
  header, arrays = content
  path = tmp_path / "wrong.world"
  _write(path, {**header, **changed}, arrays)
  assert message in _refusal(path)


_WRONG_TEXTS = [
  ("[]", "header: expected entries by name, found list"),
  ("{", "expected a world file, found one whose header is no JSON"),
  ("[" * 9999, "expected a world file, found one whose header is no JSON"),
  (np.zeros(3), "header of type float64 and shape (3,) instead of a text"),
  (None, "expected a world file, found one without header"),
]


@pytest.mark.parametrize(("text", "message"), _WRONG_TEXTS)
def test_what_is_no_header_is_refused(text, message, content, tmp_path):
  path = tmp_path / "wrong.world"
  _write(path, text, content[1])
  assert message in _refusal(path)


def _changed(array, index, value):
  array = np.array(array)
  array[index] = value
  return array


# Leaf, what is done to it, and what the refusal says.
_WRONG_ARRAYS = [
  ("pool", lambda a: None, "found ['pool'] missing and [] unknown"),
  ("spool", lambda a: np.zeros(3), "[] missing and ['spool'] unknown"),
  (
    "item_tag",
    lambda a: a.astype(np.int64),
    "item_tag: expected int32, found int64",
  ),
  (
    "pool",
    lambda a: a.astype(np.uint8),
    "pool: expected uint16 or int32, found uint8",
  ),
  (
    "user_features",
    lambda a: a.astype(">f4"),
    "user_features: expected float32, found float32 in the other byte order",
  ),
  (
    "user_features",
    lambda a: a[:9],
    "user_features: expected shape [U, F] with U = 512, found (9, 10)",
  ),
  (
    "scores/codes",
    lambda a: a[:, :, :4],
    "scores/codes: expected shape [U, P, K] with K = 5, found (512, 256, 4)",
  ),
  (
    "response/play_table",
    lambda a: a[:, :-1],
    "response/play_table: expected shape [H, Q] with Q = 161, found (13, 160)",
  ),
  (
    "leaving/softness",
    lambda a: a[None],
    "leaving/softness: expected shape [], found (1,)",
  ),
  ("population", lambda a: a[:0], "population: expected no empty axis"),
  (
    "population",
    lambda a: _changed(a, 3, 512),
    "population: expected indices from 0 to 511, found 512 (1 of 512 values)",
  ),
  (
    "population",
    lambda a: _changed(a, slice(2), -1),
    "population: expected indices from 0 to 511, found -1 (2 of 512 values)",
  ),
  (
    "pool",
    lambda a: _changed(a, (7, 7), 1024),
    "pool: expected indices from 0 to 1023, found 1024 (1 of 131072 values)",
  ),
  (
    "response/duration_bucket",
    lambda a: _changed(a, 0, 13),
    "response/duration_bucket: expected indices from 0 to 12, found 13",
  ),
  (
    "satisfaction/center",
    lambda a: _changed(a, 2, np.nan),
    "satisfaction/center: expected finite values, found nan (1 of 512 values)",
  ),
  (
    "response/duration",
    lambda a: _changed(a, 5, -3.0),
    "response/duration: expected values above 0, found -3 (1 of 1024 values)",
  ),
  (
    "satisfaction/scale",
    lambda a: a * 0,
    "satisfaction/scale: expected values above 0, found 0 (1 of 1 values)",
  ),
]


@pytest.mark.parametrize(("name", "change", "message"), _WRONG_ARRAYS)
def test_wrong_arrays_are_refused(name, change, message, content, tmp_path):
  header, arrays = content
  path = tmp_path / "wrong.world"
  _write(path, header, {**arrays, name: change(arrays.get(name))})
  assert message in _refusal(path)


def test_a_pool_is_a_ring_of_a_power_of_two(content, tmp_path):
  header, arrays = content
  path = tmp_path / "wrong.world"
  shorter = {name: arrays[name][:, :200] for name in ("pool", "scores/codes")}
  _write(path, header, {**arrays, **shorter})
  assert "pool: expected a power of two, found P = 200" in _refusal(path)


@pytest.mark.parametrize(
  ("content", "found"),
  [
    (b"PAR1" + bytes(100), "a Parquet file"),
    (b"PK\x03\x04" + bytes(100), "a zip archive (or .npz)"),
    (b"", "an empty file"),
    (b"\x1f\x8b" + bytes(20), "a gzip file"),
    (b"user,video\n1,2\n", "text that begins with 'user,video'"),
  ],
)
def test_other_kinds_of_files_are_named(content, found, tmp_path):
  path = tmp_path / "other.world"
  path.write_bytes(content)
  assert _refusal(path) == f"{path}: expected a world file, found {found}."


def test_a_world_that_could_not_be_read_is_not_written(small_world, tmp_path):
  """Python's numbers are float64 leaves: no file of them would be read."""
  for changed, message in (
    ({"leaving": SatisfactionFloor()}, "leaving/memory: expected float32"),
    ({"slate_size": 60}, "slate_size, num_candidates: expected"),
    ({"population": small_world.population + 1}, "population: expected indic"),
  ):
    with pytest.raises(InputError, match=message):
      world_io.save_world(tmp_path / "w", small_world.replace(**changed))
  assert not list(tmp_path.iterdir())


def test_fingerprint_follows_the_content(small_world):
  name = fingerprint(small_world)
  changed = small_world.replace(item_tag=small_world.item_tag.at[0].add(1))
  assert fingerprint(changed) != name
  assert fingerprint(small_world.with_leaving("temper_budget")) != name
  assert fingerprint(small_world.replace(slate_size=5)) != name
