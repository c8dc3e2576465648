"""Times an update of every learner at the reference shapes.

  python -m benchmarks.rivals --json_out=rivals.json

State 64, action 10, two reward groups, networks of 256-256, batches of 256 from
200,000 rows; two critics a group, or as many as a method is published with. The
dispatches of all learners take turns, and so does XLA's batched contraction, whose
rate in the same run is the ceiling. Operations are those that XLA counts in one
update before it optimises.
"""

import statistics
import sys
import time
from typing import Any

import jax
import numpy as np

from benchmarks import harness, learner
from experiments import launch
from mtf_jax import networks
from mtf_jax.data import transitions
from mtf_jax.learners.registry import LEARNERS
from mtf_jax.training import loop

_H, _G, _BATCH = 256, 2, 256
# As published; two where not said.
_NUM_CRITICS = {"sac_n": 10, "edac": 10}


class _Timed:
  """One learner, compiled, and the seconds of its dispatches."""

  def __init__(self, name: str, dataset: transitions.TransitionDataset):
    self.name, self._dataset = name, dataset
    self.num_critics = _NUM_CRITICS.get(name, 2)
    critic = networks.mlp_critic(_G, self.num_critics, (_H, _H))
    built = LEARNERS[name].build(networks.mlp_actor(10), critic)
    workload = learner.Workload(self.num_critics, _BATCH)
    self._state = learner.start_state(workload, built, dataset)
    batch = transitions.sample_transitions(jax.random.key(2), dataset, _BATCH)
    one = jax.jit(built.update).lower(self._state.learner, batch)
    self.flops = float(one.cost_analysis()["flops"])
    on_cpu = jax.default_backend() == "cpu"
    expected = 1e11 if on_cpu else 2e13
    self.num_updates = int(np.clip(expected / self.flops, 2, 500))
    self._run, self.compile_s = harness.compile_ahead(
      lambda state, dataset: loop.update_chunk(
        built,
        state,
        dataset,
        batch_size=_BATCH,
        num_updates=self.num_updates,
        freeze=False,
      ),
      self._state,
      dataset,
    )
    self.seconds: list[float] = []
    self.dispatch()
    self.seconds.clear()

  def dispatch(self) -> None:
    """Runs once and keeps the seconds of an update."""
    started = time.perf_counter()
    self._state, _ = self._run(self._state, self._dataset)
    jax.block_until_ready(self._state)
    passed = time.perf_counter() - started
    self.seconds.append(passed / self.num_updates)

  def row(self, base: "_Timed", ceiling: list[float]) -> dict[str, Any]:
    """What it took, beside another learner and the ceiling of the same run."""
    if not np.all(self._state.healthy):
      raise FloatingPointError(f"{self.name}: training did not stay finite")
    median_s = statistics.median(self.seconds)
    pairs = zip(base.seconds, self.seconds, strict=True)
    return {
      "learner": self.name,
      "critics": self.num_critics,
      "updates_per_s": 1 / median_s,
      "gflop_per_update": self.flops / 1e9,
      "gflops": self.flops / median_s / 1e9,
      "share_of_batched_contraction": self.flops
      / median_s
      / statistics.median(ceiling),
      "speed_of_integrated_rl": statistics.median(a / b for a, b in pairs),
      "compile_s": self.compile_s,
    }


def main() -> None:
  """Measures, prints a table and writes the rows."""
  dataset = learner.make_dataset()
  timed = []
  for name, entry in LEARNERS.items():
    if entry.needs:
      continue  # Its batches hold more: another workload.
    timed.append(_Timed(name, dataset))
    print(f"{name}: compiled", file=sys.stderr)
  contraction = learner.contraction_timer(2 * _G)
  ceiling = []
  for _ in range(harness.REPEATS.value):
    ceiling.append(contraction())
    for one in timed:
      one.dispatch()
  base = next(one for one in timed if one.name == "integrated_rl")
  rows = [one.row(base, ceiling) for one in timed]
  print(
    harness.markdown_table(
      [
        "learner",
        "critics",
        "updates/s",
        "speed of integrated_rl",
        "GFLOP an update",
        "of batched contraction",
        "compile s",
      ],
      [
        [
          row["learner"],
          str(row["critics"]),
          f"{row['updates_per_s']:.1f}",
          f"{row['speed_of_integrated_rl']:.2f}",
          f"{row['gflop_per_update']:.2f}",
          f"{row['share_of_batched_contraction']:.0%}",
          f"{row['compile_s']:.1f}",
        ]
        for row in rows
      ],
    )
  )
  if harness.JSON_OUT.value:
    harness.write_json(
      harness.JSON_OUT.value,
      {"environment": harness.environment(), "rows": rows},
    )


if __name__ == "__main__":
  launch.run(main)
