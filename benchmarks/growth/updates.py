"""Updates of the learner against critics, batch, and runs trained at once."""

import functools
from collections.abc import Callable

import jax
import numpy as np

from benchmarks import harness, learner
from benchmarks.growth import curves
from mtf_jax.data import transitions

# Critics of a group; there are two groups.
ENSEMBLES = (1, 2, 4, 8, 16, 24, 48)
BATCHES = tuple(2**n for n in range(6, 15))
SEEDS = (1, 2, 4, 8, 16, 32)
# Few and many critics: those of TD3 and of the paper.
_BOTH = (1, 24)


def _budget() -> float:
  """Operations of the largest update that is measured."""
  return 5e10 if jax.default_backend() == "cpu" else 1e13


def _case(
  curve: str,
  size: int,
  workload: learner.Workload,
  dataset: transitions.TransitionDataset,
  ceilings: dict[str, curves.Ceiling],
) -> curves.Case:
  """Compiles one workload; its cost is that of an update of all its runs."""
  operations = learner.flops(workload)
  # Half a second or more, at least two: the start of a dispatch is shared.
  num_updates = int(np.clip(0.3 * _budget() / operations, 2, 200))
  harness.say(f"{workload.name()}: {num_updates} updates a window")
  compiled, state = learner.compile_updates(workload, dataset, num_updates)

  def call() -> None:
    nonlocal state
    state, _ = compiled(state, dataset)
    jax.block_until_ready(state)
    if not np.all(state.healthy):
      raise FloatingPointError(f"{workload.name()}: not finite any more")

  call()
  window = curves.timer(call)

  def of_an_update():
    taken = window()
    return taken._replace(
      wall_s=taken.wall_s / num_updates,
      processor_s=taken.processor_s / num_updates,
    )

  members = 2 * workload.ensemble_size * workload.seeds
  name = f"contraction {members} x {workload.batch_size}"
  if name not in ceilings:
    run, contracted = harness.contraction(members, workload.batch_size)
    ceilings[name] = curves.Ceiling(name, curves.timer(run), contracted)
  return curves.Case(
    curve,
    size,
    of_an_update,
    workload.seeds,
    {
      "matrix product": (ceilings["matrix_product"], operations),
      "contraction of its shape": (ceilings[name], operations),
    },
    {"gflop": operations / 1e9, "updates_of_a_window": num_updates},
  )


def _measure(
  workloads: list[tuple[str, int, learner.Workload]], rounds: int
) -> dict:
  dataset = learner.make_dataset()
  ceilings = {"matrix_product": curves.matrix_product()}
  cases = [
    _case(curve, size, workload, dataset, ceilings)
    for curve, size, workload in workloads
    if learner.flops(workload) <= _budget()
  ]
  return curves.measure_axis(cases, rounds, expected=1)


def critics(rounds: int) -> dict:
  """2 to 96 critics, batches of 256.

  Args:
    rounds: windows of each size.

  Returns:
    As `curves.measure_axis`; `batch` and `seeds` are alike.
  """
  return _measure(
    [
      ("free-form critics", 2 * each, learner.Workload(ensemble_size=each))
      for each in ENSEMBLES
    ],
    rounds,
  )


def _few_and_many(field: str, sizes: tuple[int, ...], rounds: int) -> dict:
  return _measure(
    [
      (
        f"{2 * ensemble} critics",
        size,
        learner.Workload(ensemble_size=ensemble)._replace(**{field: size}),
      )
      for ensemble in _BOTH
      for size in sizes
    ],
    rounds,
  )


batch: Callable[[int], dict] = functools.partial(
  _few_and_many, "batch_size", BATCHES
)
seeds: Callable[[int], dict] = functools.partial(_few_and_many, "seeds", SEEDS)
