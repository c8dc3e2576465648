from typing import NamedTuple

import jax
import numpy as np
import pytest

from mtf_jax.worlds import io as world_io
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
  content = saved[0].read_bytes().replace(b" 1 ", b" 2 ", 1)
  other = tmp_path / "other.world"
  other.write_bytes(content)
  with pytest.raises(ValueError, match="schema version 1, found 2"):
    world_io.load_world(other)


def test_a_failed_write_leaves_the_earlier_file(small_world, saved, tmp_path):
  path = tmp_path / "kept.world"
  path.write_bytes(b"earlier")

  class Mine(NamedTuple):
    patience: float = 1.0

  with pytest.raises(ValueError, match="leaving"):
    world_io.save_world(path, small_world.replace(leaving=Mine()))
  assert path.read_bytes() == b"earlier"


def test_fingerprint_follows_the_content(small_world):
  name = fingerprint(small_world)
  changed = small_world.replace(item_tag=small_world.item_tag.at[0].add(1))
  assert fingerprint(changed) != name
  assert fingerprint(small_world.with_leaving("temper_budget")) != name
  assert fingerprint(small_world.replace(slate_size=5)) != name
