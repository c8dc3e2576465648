"""Updates of the learner against the rows of its log, resident and streamed."""

import pathlib
import resource
import shutil
import tempfile

import jax
import numpy as np

from benchmarks import harness, learner, streaming
from benchmarks.growth import curves
from benchmarks.peers import workload
from mtf_jax.data import log_manifest, stream, transitions

SIZES = (10**5, 10**6, 10**7, 10**8)
_SHARD_ROWS, _POOL, _BATCH = 100_000, 8, 256
# About one shard comes in while so many updates are made.
_UPDATES = 400
# Share of the free disk that a log may take, and the copies of its rows that
# there are for a moment when they go from a folder to the device.
_DISK, _COPIES = 0.6, 2.5


class _Updates:
  """Two critics trained on a log; a window is a dispatch of the loop."""

  def __init__(
    self,
    rows: transitions.TransitionDataset | stream.ShardPool,
    num_updates: int,
  ):
    """Compiles and runs once, twice where rows come in."""
    self._rows, self._updates, self._step = rows, num_updates, 0
    dataset = self._dataset()
    self._run, self._state = learner.compile_updates(
      learner.Workload(ensemble_size=1, batch_size=_BATCH), dataset, num_updates
    )
    self.bytes_read: list[int] = []
    self._dispatch(num_updates)
    self._dispatch(num_updates)

  def _dataset(self) -> transitions.TransitionDataset:
    return self._rows(self._step) if callable(self._rows) else self._rows

  def _dispatch(self, updates: int) -> None:
    self._state, _ = self._run(self._state, self._dataset())
    self._step += updates
    jax.block_until_ready(self._state)

  def window(self) -> workload.Window:
    """Takes a window and notes what the process read from the disk in it.

    Raises:
      FloatingPointError: training did not stay finite.
    """
    before = resource.getrusage(resource.RUSAGE_SELF).ru_inblock
    window = workload.timed(self._dispatch, self._updates)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_inblock
    self.bytes_read.append(512 * (after - before))
    if not np.all(self._state.healthy):
      raise FloatingPointError("rows: training did not stay finite")
    return window


def _cases(
  folder: pathlib.Path,
  sizes: tuple[int, ...],
  shard_rows: int,
  num_updates: int,
) -> tuple[list[curves.Case], dict[str, str]]:
  """One folder that grows; what does not fit is named with the reason."""
  parts: list[log_manifest.Shard] = []
  cases: dict[str, list[curves.Case]] = {"resident": [], "streamed": []}
  left_out: dict[str, str] = {}

  def add(curve, size, rows):
    harness.say(f"{size} rows, {curve}")
    updates = _Updates(rows, num_updates)
    # A list that the windows fill.
    facts = {"bytes_read": updates.bytes_read}
    cases[curve].append(curves.Case(curve, size, updates.window, 1, {}, facts))

  for size in sizes:
    # As much a row as in the shards that are there; at first a guess.
    row = parts[0].bytes / shard_rows if parts else 400
    needed = row * (size - shard_rows * len(parts))
    free = shutil.disk_usage(folder).free
    if needed > _DISK * free:
      left_out[f"{size}"] = (
        f"{needed / 2**30:.0f} GiB of files, {free / 2**30:.0f} GiB free"
      )
      continue
    memory = harness.free_memory_bytes()
    log = streaming.grow_log(folder, parts, size // shard_rows, shard_rows)
    needed = _COPIES * stream.bytes_per_row(log) * size
    if needed <= memory:
      add("resident", size, transitions.device_dataset(log.load_all()))
    else:
      left_out[f"{size} resident"] = (
        f"{needed / 2**30:.0f} GiB for a moment, {memory / 2**30:.0f} GiB free"
      )
    if len(log.manifest.shards) > _POOL:
      config = stream.PoolConfig(_POOL, _BATCH, num_updates, seed=0)
      add("streamed", size, stream.ShardPool(log, config))
  return [*cases["resident"], *cases["streamed"]], left_out


def measure(
  rounds: int,
  sizes: tuple[int, ...] = SIZES,
  shard_rows: int = _SHARD_ROWS,
  num_updates: int = _UPDATES,
) -> dict:
  """Resident and streamed logs of the same files, in turns.

  Args:
    rounds: windows of each.
    sizes: rows of a log, multiples of `shard_rows`, increasing.
    shard_rows: rows of a file.
    num_updates: updates of a window.

  Returns:
    As `curves.measure_axis`, and what was left out and why.
  """
  with tempfile.TemporaryDirectory() as name:
    cases, left_out = _cases(pathlib.Path(name), sizes, shard_rows, num_updates)
    result = curves.measure_axis(cases, rounds, expected=0)
  return {
    **result,
    "shard_rows": shard_rows,
    "pool_shards": _POOL,
    "updates_of_a_window": num_updates,
    "left_out": left_out,
  }
