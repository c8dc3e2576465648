"""Shards that take turns: all of them, as often, the same after a stop."""

import jax
import numpy as np
import pytest

from mtf_jax.data import session_log, stream, transitions
from mtf_jax.io import InputError
from tests.sharded_logs import parts_of, write_log


@pytest.fixture(scope="module")
def log(tmp_path_factory):
  parts = parts_of(7, num_rows=24)
  # Shards differ in size; the mark says which shard a row is of.
  parts = [
    jax.tree.map(lambda leaf, n=n: leaf[: 24 - 4 * (n % 2)], part)
    for n, part in enumerate(parts)
  ]
  parts = [
    part._replace(reward=np.full_like(part.reward, n))
    for n, part in enumerate(parts)
  ]
  return write_log(tmp_path_factory.mktemp("stream") / "log", parts)


def _pool(log, shards=3, batch_size=4, chunk_size=2, **keywords):
  config = stream.PoolConfig(shards, batch_size, chunk_size, seed=5)
  return stream.ShardPool(log, config, **keywords)


def _marks(dataset):
  rows = dataset.start_row[: int(dataset.num_transitions)]
  return np.asarray(dataset.reward[rows, 0])


def test_a_pass_takes_every_shard_and_none_is_favoured(log):
  pool = _pool(log)
  transitions_of = {
    n: shard.transitions for n, shard in enumerate(log.manifest.shards)
  }
  # Draws that every shard could expect over many passes.
  expected = dict.fromkeys(transitions_of, 0.0)
  steps = 2 * 7 * 400
  for step in range(0, steps, 2):
    marks = _marks(pool(step))
    shards, counts = np.unique(marks, return_counts=True)
    for shard, count in zip(shards.astype(int), counts, strict=True):
      expected[shard] += 2 * 4 * count / len(marks)
  visits = [expected[n] / transitions_of[n] for n in expected]
  passes = steps * 4 / log.manifest.transitions
  # Beside smaller shards a row is drawn a little more often: 3% where sizes
  # differ by a fifth.
  np.testing.assert_allclose(visits, passes, rtol=0.03)


def test_the_pool_is_a_function_of_the_step(log):
  went_through = _pool(log)
  for step in range(0, 62, 2):
    found = went_through(step)
  fresh = _pool(log)(60)
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(fresh), strict=True):
    np.testing.assert_array_equal(a, b)
  # In the middle of a chunk it is as at the chunk's beginning.
  assert went_through.position(61) == went_through.position(60)
  assert went_through.position(60) > 7


def test_no_shard_is_left_out_by_long_chunks(log):
  pool = _pool(log, batch_size=64, chunk_size=10)
  seen = [set(_marks(pool(10 * n)).astype(int)) for n in range(3)]
  assert len(set.union(*seen)) == 7
  assert pool.position(20) == 6  # K shards a chunk, no more.


def test_transitions_are_those_of_the_shards(log):
  pool = _pool(log, shards=7, num_steps=2, discount=0.5)
  found = pool(0)
  whole = transitions.device_dataset(log.load_all(), num_steps=2, discount=0.5)

  def rows(dataset):
    start = np.asarray(dataset.start_row[: int(dataset.num_transitions)])
    following = np.asarray(dataset.next_row)[start]
    columns = (
      np.asarray(dataset.observation)[start],
      np.asarray(dataset.observation)[following]
      * np.asarray(dataset.discount)[start, None],
      np.asarray(dataset.reward)[start],
      np.asarray(dataset.discount)[start, None],
    )
    table = np.concatenate(columns, axis=1)
    return table[np.lexsort(table.T)]

  np.testing.assert_array_equal(rows(found), rows(whole))
  assert int(found.num_transitions) == log.manifest.transitions


def test_what_fits_is_not_streamed(log):
  needed = stream.bytes_per_row(log) * log.manifest.rows
  assert stream.pool_shards(log, needed) is None
  shard = stream.bytes_per_row(log) * 24
  assert stream.pool_shards(log, 5 * shard) == 3
  with pytest.raises(InputError, match="for 4 shards of"):
    stream.pool_shards(log, 3 * shard)


def test_a_row_takes_what_is_said(log):
  rows = transitions.rows_from(log.load_all())
  dataset = transitions.dataset_from(rows, num_steps=2)
  # Many arrays are in both, and there once.
  arrays = {id(a): a for a in jax.tree.leaves((dataset, rows)) if a.ndim}
  found = sum(array.nbytes for array in arrays.values())
  assert stream.bytes_per_row(log) * log.manifest.rows == found


def test_a_log_without_transitions_is_refused(tmp_path):
  (part,) = parts_of(1, session_length=1)
  part = part._replace(terminal=np.zeros_like(part.terminal))
  session_log.validate(part)
  with pytest.raises(InputError, match="at least one transition, found none"):
    _pool(write_log(tmp_path / "log", [part]), shards=2)
