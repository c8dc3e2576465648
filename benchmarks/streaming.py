"""A log streamed through a pool of shards against one that is all there.

  python -m benchmarks.streaming --json_out=benchmarks/results/streaming_cpu.json

Three speeds: rows a second of the loader alone; of Grain with a record a row,
which is how it is commonly used; and updates a second of the reference workload
(`benchmarks/learner.py`), streamed and resident by turns in one run. Shards of
the last are small, so that one comes in at every chunk: that a row is drawn
once a pass is then kept.
"""

import pathlib
import statistics
import tempfile
import time
from typing import Any

import jax
import numpy as np
from absl import flags

from benchmarks import harness, learner
from experiments import launch
from mtf_jax.data import log_manifest, session_log, sharded, stream, transitions
from mtf_jax.io import InputError
from mtf_jax.kernels.exploration import HALF_WIDTH, ActionBox
from mtf_jax.learners.integrated_rl import integrated_rl
from mtf_jax.training import loop

_S, _A, _G = 64, 10, 2
_SHARD_ROWS = flags.DEFINE_integer(
  "shard_rows", 100_000, "Rows of a shard where the loader is alone.", 1
)
_UPDATES = flags.DEFINE_integer("updates", 10, "Updates of a chunk.", 1)
_BATCH = 256


def _part(seed: int, rows: int) -> session_log.SessionLog:
  """Sessions of ten requests."""
  rng = np.random.default_rng(seed)
  centre = rng.uniform(-0.5, 0.5, (rows, _A)).astype(np.float32)
  width = np.float32(HALF_WIDTH)
  step = np.arange(rows, dtype=np.int32) % 10
  last = (step == 9) | (np.arange(rows) == rows - 1)
  return session_log.SessionLog(
    observation=rng.standard_normal((rows, _S), np.float32),
    action=centre,
    box=ActionBox(centre - width, centre + width),
    log_prob=np.zeros(rows, np.float32),
    exploration_held=np.zeros(rows, bool),
    reward=rng.random((rows, _G), np.float32),
    feedback=np.zeros((rows, 1), np.float32),
    terminal=last,
    bootstrap_only=np.zeros(rows, bool),
    session_id=np.arange(rows, dtype=np.int64) // 10 + seed * rows,
    step=step,
  )


def grow_log(
  folder: pathlib.Path,
  parts: list[log_manifest.Shard],
  shards: int,
  rows: int,
) -> sharded.ShardedLog:
  """Writes shards until there are so many, and opens all of them as one log.

  Args:
    folder: made if missing.
    parts: the shards that are there; added to. Logs opened before stay as they
      were.
    shards: how many there shall be.
    rows: of a shard.
  """
  folder.mkdir(exist_ok=True)
  for number in range(len(parts), shards):
    part = _part(number, rows)
    parts.append(sharded.write_shard(folder, number, part, "benchmark"))
  log_manifest.write_manifest(
    folder,
    log_manifest.LogManifest(
      observation_names=tuple(f"s{n}" for n in range(_S)),
      action_names=tuple(f"a{n}" for n in range(_A)),
      group_names=tuple(f"g{n}" for n in range(_G)),
      behaviour_names=("e0",),
      exploration="uniform",
      source={},
      mean=(0.0,) * _S,
      stddev=(1.0,) * _S,
      counts={},
      shards=tuple(parts),
    ),
  )
  return sharded.open_log(folder)


def _loader_rows_per_s(log: sharded.ShardedLog, repeats: int) -> float:
  """Every call takes one shard more; the pool is full before the clock runs."""
  rows = stream.max_rows(log)
  config = stream.PoolConfig(4, batch_size=rows, chunk_size=1, seed=0)
  pool = stream.ShardPool(log, config)
  jax.block_until_ready(pool(1))
  start = time.perf_counter()
  for step in range(2, 2 + repeats):
    jax.block_until_ready(pool(step))
  return rows * repeats / (time.perf_counter() - start)


class _Records:
  """Rows of a log in memory, one by one."""

  def __init__(self, log: session_log.SessionLog):
    self._columns = {
      "observation": log.observation,
      "action": log.action,
      "lower": log.box.lower,
      "upper": log.box.upper,
      "reward": log.reward,
      "terminal": log.terminal,
    }

  def __len__(self) -> int:
    return len(self._columns["terminal"])

  def __getitem__(self, row: int) -> dict[str, np.ndarray]:
    return {name: column[row] for name, column in self._columns.items()}


def _records_rows_per_s(log: session_log.SessionLog, batches: int) -> float:
  """Grain with a record a row: shuffled, batched, read ahead by threads."""
  try:
    import grain
  except ImportError as error:
    raise InputError(
      "grain: expected an installed package, found none; pip install"
      " 'mtf-jax[stream]'."
    ) from error
  pipeline = (
    grain.MapDataset.source(_Records(log))
    .seed(0)
    .shuffle()
    .repeat()
    .batch(_BATCH)
    .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=8))
  )
  reader = iter(pipeline)
  next(reader)
  start = time.perf_counter()
  for _ in range(batches):
    next(reader)
  return _BATCH * batches / (time.perf_counter() - start)


def _updates_per_s(log: sharded.ShardedLog, repeats: int) -> dict[str, float]:
  """Medians over chunks, resident and streamed in turns."""
  workload = learner.Workload()
  algorithm = integrated_rl(
    learner.networks.mlp_actor(_A), learner._critic(workload)
  )
  resident = transitions.device_dataset(log.load_all())
  config = stream.PoolConfig(8, _BATCH, _UPDATES.value, seed=0)
  pool = stream.ShardPool(log, config)
  state = learner.start_state(workload, algorithm, resident)
  seconds: dict[str, list[float]] = {"resident": [], "streamed": []}
  taken = 0
  for turn in range(2 * (repeats + 1)):
    name = ("resident", "streamed")[turn % 2]
    start = time.perf_counter()
    step = turn // 2 * _UPDATES.value
    rows = resident if name == "resident" else pool(step)
    state, metrics = loop.update_chunk(
      algorithm,
      state,
      rows,
      batch_size=_BATCH,
      num_updates=_UPDATES.value,
      freeze=False,
    )
    jax.device_get(metrics)
    # The first of each compiles, and fills the pool.
    if turn > 1:
      seconds[name].append(time.perf_counter() - start)
      taken = pool.position(step)
  found: dict[str, float] = {
    name: _UPDATES.value / statistics.median(values)
    for name, values in seconds.items()
  }
  return {
    **found,
    "ratio": found["streamed"] / found["resident"],
    "shards_per_chunk": taken / repeats,
  }


def main() -> None:
  """Measures the three, prints a table."""
  repeats = harness.REPEATS.value
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    large = grow_log(folder / "large", [], 12, _SHARD_ROWS.value)
    loader = _loader_rows_per_s(large, max(12, repeats))
    records = _records_rows_per_s(large.load(0), 100)
    small = grow_log(folder / "small", [], 32, _UPDATES.value * _BATCH)
    updates = _updates_per_s(small, repeats)
  result: dict[str, Any] = {
    "loader_rows_per_s": loader,
    "record_a_row_rows_per_s": records,
    "bytes_per_row": stream.bytes_per_row(large),
    "updates_per_s": updates,
  }
  print(
    harness.markdown_table(
      ("what", "figure"),
      [
        ("loader alone, rows/s", f"{loader:,.0f}"),
        ("Grain, a record a row, rows/s", f"{records:,.0f}"),
        ("resident, updates/s", f"{updates['resident']:.2f}"),
        ("streamed, updates/s", f"{updates['streamed']:.2f}"),
        ("streamed over resident", f"{updates['ratio']:.3f}"),
        ("shards taken in a chunk", f"{updates['shards_per_chunk']:.2f}"),
      ],
    )
  )
  if harness.JSON_OUT.value:
    harness.write_json(
      harness.JSON_OUT.value, {"environment": harness.environment(), **result}
    )


if __name__ == "__main__":
  launch.run(main)
