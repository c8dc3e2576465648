"""The log that the comparison's rivals and d3rlpy's are trained on.

Letters: `N` rows, `S` state features, `A` action components, `U` updates, `B`
transitions of an update.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.session_log import SessionLog
from mtf_jax.data.transitions import Rows, TransitionDataset
from mtf_jax.fitting import synthetic
from mtf_jax.interop import d3rlpy_learners, datasets
from mtf_jax.learners.base import Normalization
from mtf_jax.studies.compare import bench as bench_lib
from mtf_jax.studies.compare.bench import Bench
from mtf_jax.studies.compare.config import CompareConfig
from mtf_jax.studies.progressive.collect import as_dataset
from mtf_jax.studies.progressive.experiment import tree_index


def one_reward(rows: Rows) -> Rows:
  """The rows, their reward the sum over the groups, `[..., 1]`."""
  return rows._replace(reward=jnp.sum(rows.reward, axis=-1, keepdims=True))


def exported(rows: Rows, normalization: Normalization) -> SessionLog:
  """Rows as the log that d3rlpy is given.

  Observations are as our networks see them, and a session that was cut ends as
  if the user had left, as everywhere in the comparison. Rows have no feedback.

  Args:
    rows: `[N, ...]`, those that do not exist among them.
    normalization: of the observations, `[S]`.

  Returns:
    The log of the requests alone.
  """
  rows = jax.tree.map(np.asarray, rows)
  kept = rows.valid & ~rows.bootstrap_only
  rows = jax.tree.map(lambda values: values[kept], rows)
  terminal = np.append(rows.step[1:] == 0, True)
  mean, scale = (np.asarray(values)[None] for values in normalization)
  return SessionLog(
    observation=(rows.observation - mean) / scale,
    action=rows.action,
    box=rows.box,
    log_prob=rows.log_prob,
    exploration_held=rows.exploration_held,
    reward=rows.reward,
    feedback=np.zeros((len(terminal), 1), np.float32),
    terminal=terminal,
    bootstrap_only=rows.bootstrap_only,
    session_id=np.cumsum(rows.step == 0, dtype=np.int32),
    step=rows.step,
  )


@functools.partial(jax.jit, static_argnames=("num_updates", "batch_size"))
def draws_of(
  rng_key: chex.PRNGKey,
  num_transitions: chex.Array,
  num_updates: int,
  batch_size: int,
) -> jax.Array:
  """The transitions that `training.loop` draws from a key, int32 `[U, B]`."""

  def draw(rng_key, _):
    rng_key, batch_key = jax.random.split(rng_key)
    return rng_key, jax.random.randint(
      batch_key, (batch_size,), 0, num_transitions
    )

  return jax.lax.scan(draw, rng_key, length=num_updates)[1]


class Place(NamedTuple):
  """A seed's bench and its log in the forms that both packages take.

  bench: of the comparison, the baseline policy alone.
  rows: the box log, `[1, N, ...]`, reward groups apart.
  dataset: of one reward, `[N, ...]`.
  log: `exported`.
  arrays: the transitions of d3rlpy's dataset of it.
  """

  bench: Bench
  rows: Rows
  dataset: TransitionDataset
  log: SessionLog
  arrays: d3rlpy_learners.Arrays


def prepare(
  config: CompareConfig, seed: int, leaving: str, say: Callable[[str], None]
) -> Place:
  """Makes the world, the baseline policy and the log of a seed.

  Args:
    config: of the comparison.
    seed: as there.
    leaving: name of the leaving model.
    say: told of what happens.
  """
  world = synthetic.synthetic_world(config.sizes.world_size, seed)
  bench, _ = bench_lib.prepare(
    config, world.with_leaving(leaving), seed, None, say, baseline_only=True
  )
  rows = bench_lib.collect_log(bench, "box")
  single = one_reward(rows)
  log = exported(
    tree_index(single, 0), tree_index(bench.experiment.normalization, 0)
  )
  arrays = d3rlpy_learners.arrays_of(datasets.to_d3rlpy(log)[0])
  dataset = tree_index(as_dataset(single), 0)
  if len(arrays.reward) != int(dataset.num_transitions):
    raise AssertionError("the two packages have different transitions")
  say(f"seed {seed}: {len(arrays.reward)} transitions.")
  return Place(bench, rows, dataset, log, arrays)
