"""Windows of all trainers in turns, and what they say of each other."""

import contextlib
import math
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks import harness, learner
from benchmarks.peers import own, process, trainers, workload


def median_interval(values: Sequence[float]) -> dict[str, Any]:
  """Median and its interval of 95% or more, for values that are independent.

  The interval is of order statistics: as many values left out at either end as
  the binomial distribution allows. It needs 6 values.
  """
  ordered, count = sorted(values), len(values)
  # Probability that at most so many values lie beyond the median.
  tail, left_out = 0.5**count, 0
  while tail <= 0.025:
    left_out += 1
    tail += math.comb(count, left_out) * 0.5**count
  interval = None
  if left_out:
    interval = [ordered[left_out - 1], ordered[count - left_out]]
  return {"value": statistics.median(ordered), "ci95": interval}


def race(
  contestants: Mapping[str, Callable[[], Any]],
  rounds: int,
  say: Callable[[str], None],
) -> tuple[dict[str, list[Any]], dict[str, str]]:
  """Asks each contestant once a round, every second round backwards.

  Args:
    contestants: name -> a function that takes a window and returns what it saw.
    rounds: number of them.
    say: told of a contestant that fails; it is left out of the result.

  Returns:
    Name -> what it returned in each round, and name -> why it failed.
  """
  found: dict[str, list[Any]] = {name: [] for name in contestants}
  failed: dict[str, str] = {}
  for turn in range(rounds):
    for name in list(found)[:: -1 if turn % 2 else 1]:
      try:
        found[name].append(contestants[name]())
      except process.PeerError as error:
        failed[name] = str(error)
        del found[name]
        say(str(error))
  return found, failed


def _operations(size: workload.Size, critic: str) -> float:
  """Operations that the equations of an update need, in contractions."""
  # TD3+BC asks one critic for the actor's gradient.
  climbed = 1 if size.algorithm == "td3_bc" else size.critics
  kind = "box" if critic == "box" else "mlp"
  return workload.BATCH * learner.update_flops(
    kind, size.critics, climbed, size.actor_every
  )


def _speed_over(
  name: str, seconds: Mapping[str, Sequence[float]]
) -> dict[str, dict[str, Any]]:
  """How much faster a trainer is than each of the others, round by round."""
  return {
    other: median_interval(
      [theirs / mine for theirs, mine in zip(those, seconds[name], strict=True)]
    )
    for other, those in seconds.items()
    if other != name
  }


def _row(
  name: str,
  windows: Mapping[str, Sequence[workload.Window]],
  rates: Mapping[str, Sequence[float]],
  size: workload.Size,
) -> dict[str, Any]:
  critic = name.rpartition(", ")[2]
  operations = _operations(size, critic)
  wall, processor = (
    {
      key: [getattr(window, field) for window in of]
      for key, of in windows.items()
    }
    for field in workload.Window._fields
  )
  return {
    "trainer": name,
    "ours": critic in own.CRITICS,
    "updates_per_s": 1 / statistics.median(wall[name]),
    "updates_per_s_max": 1 / min(wall[name]),
    "gflop_per_update": operations / 1e9,
    "share_of": {
      ceiling: statistics.median(
        operations / seconds / rate
        for seconds, rate in zip(wall[name], of_round, strict=True)
      )
      for ceiling, of_round in rates.items()
    },
    "speed_over": _speed_over(name, wall),
    "processor_speed_over": _speed_over(name, processor),
    "wall_s": wall[name],
    "processor_s": processor[name],
  }


def measure(
  size: workload.Size,
  peers_dir: pathlib.Path | None,
  rounds: int,
  say: Callable[[str], None],
) -> dict[str, Any]:
  """Measures all trainers of one size.

  Args:
    size: what is trained.
    peers_dir: where the others are installed; None for our own alone.
    rounds: windows of each.
    say: told what happens.

  Returns:
    The size, the ceilings of the same rounds in FLOP/s, a row for each trainer,
    why others failed, and the versions of their packages.
  """
  dataset = learner.make_dataset(num_groups=1)
  contestants, failed, versions = {}, {}, {}
  with contextlib.ExitStack() as stack:
    for name, trainer in trainers.TRAINERS.items():
      if peers_dir is None or size.algorithm not in trainer.algorithms:
        continue
      try:
        peer = process.Peer(
          name, process.command(peers_dir, name, size), size.updates
        )
        stack.callback(peer.close)
        # Compiles.
        peer.window()
      except process.PeerError as error:
        failed[name] = str(error)
        say(str(error))
        continue
      contestants[name], versions[name] = peer.window, peer.versions
      say(f"{name}: ready")
    for algorithm in (size.algorithm, "integrated_rl"):
      for critic in own.CRITICS:
        one = own.Own(algorithm, critic, size, dataset)
        contestants[one.name] = one.window
        say(f"{one.name}: compiled")
    ceilings = {
      "matrix_product": lambda: harness.matmul_flops_per_s(2048, repeats=3),
      "batched_contraction": learner.contraction_timer(48),
    }
    for ceiling in ceilings.values():
      ceiling()
    found, later = race({**ceilings, **contestants}, rounds, say)
  rates = {name: found.pop(name) for name in ceilings}
  return {
    **size._asdict(),
    "ceilings": {
      name: {"median": statistics.median(of_round), "of_rounds": of_round}
      for name, of_round in rates.items()
    },
    "rows": [_row(name, found, rates, size) for name in found],
    "failed": failed | later,
    "versions": versions,
  }
