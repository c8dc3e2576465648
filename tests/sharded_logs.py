"""Small folders of session files for the tests."""

import functools
import pathlib

import numpy as np

from mtf_jax.data import sharded
from mtf_jax.data.log_manifest import LogManifest, write_manifest
from tests.session_logs import log_of, random_log


def parts_of(num_parts=3, num_rows=40, **keywords):
  """Logs whose sessions differ."""
  parts = []
  for n in range(num_parts):
    part = random_log(seed=n, num_rows=num_rows, **keywords)
    ids = part.session_id.astype(np.int64) + n * 1000 + 2**40
    parts.append(part._replace(session_id=ids))
  return parts


def no_transition():
  """One session that the log cut at once: nothing starts from it."""
  part = log_of(
    np.zeros((1, 3)), np.zeros((1, 2)), np.zeros((1, 2)), terminal=[False]
  )
  return part._replace(session_id=np.asarray([7], np.int64))


def write_log(folder, parts):
  """A folder with a shard for each part, opened."""
  folder = pathlib.Path(folder)
  folder.mkdir(parents=True)
  moments = functools.reduce(
    sharded.Moments.merged,
    (sharded.Moments.of(part.observation) for part in parts),
  )
  shards = []
  for number, part in enumerate(parts):
    shards.append(sharded.write_shard(folder, number, part, "test"))

  def names(letter, array):
    return tuple(f"{letter}{n}" for n in range(array.shape[1]))

  write_manifest(
    folder,
    LogManifest(
      observation_names=names("s", parts[0].observation),
      action_names=names("a", parts[0].action),
      group_names=names("g", parts[0].reward),
      behaviour_names=names("e", parts[0].feedback),
      exploration="uniform",
      source={"world": "w1"},
      mean=moments.mean,
      stddev=moments.stddev,
      counts={"rows": sum(shard.rows for shard in shards)},
      shards=tuple(shards),
    ),
  )
  return sharded.open_log(folder)
