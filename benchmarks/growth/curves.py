"""Cost against size: cases in turns, exponents between neighbouring sizes.

Letters: `K` sizes of a curve, `R` rounds.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from benchmarks import harness
from benchmarks.peers import measure, workload

# So far from the expected exponent is another regime.
TOLERANCE = 0.1


class Ceiling(NamedTuple):
  """A rate that the machine has at best, measured in the same rounds.

  name: of the program; cases that name the same one share its windows.
  window: takes a window of the program.
  operations: of a window's unit.
  """

  name: str
  window: Callable[[], workload.Window]
  operations: float


class Case(NamedTuple):
  """One size of one curve.

  curve: what is alike in all sizes of the curve.
  size: the number that varies.
  window: takes a window; its unit is one call, whose cost is compared.
  done: what a call does: updates of all runs, or sessions.
  shares: ceiling -> operations of a call, by the name of the column.
  facts: more that the result shall say.
  """

  curve: str
  size: int
  window: Callable[[], workload.Window]
  done: float
  shares: Mapping[str, tuple[Ceiling, float]] = {}
  facts: Mapping[str, Any] = {}


def matrix_product(size: int = 2048) -> Ceiling:
  """The product of two matrices `[size, size]`, float32."""
  product, args = harness.matmul(size)
  return Ceiling(
    "matrix_product",
    timer(lambda: jax.block_until_ready(product(*args))),
    2 * size**3,
  )


def timer(
  call: Callable[[], Any], calls: int = 1
) -> Callable[[], workload.Window]:
  """What takes a window of so many calls; each waits for its end."""

  def run(count: int) -> None:
    for _ in range(count):
      call()

  return lambda: workload.timed(run, calls)


def _step(
  sizes: Sequence[float], seconds: Sequence[Sequence[float]], n: int, m: int
) -> dict[str, Any]:
  """The exponent from one size to another, both ends of the same round."""
  width = math.log(sizes[m] / sizes[n])
  found = [
    math.log(after / before) / width
    for before, after in zip(seconds[n], seconds[m], strict=True)
  ]
  return {
    "from": sizes[n],
    "to": sizes[m],
    "exponent": measure.median_interval(found),
  }


def exponents(
  sizes: Sequence[float], seconds: Sequence[Sequence[float]]
) -> list[dict[str, Any]]:
  """By which power of the size the cost grows, from each size to the next.

  Args:
    sizes: `[K]`, increasing.
    seconds: `[K, R]`.

  Returns:
    `K - 1` steps: `from`, `to`, and the `exponent`, the median over the rounds
    with its interval.
  """
  return [_step(sizes, seconds, n, n + 1) for n in range(len(sizes) - 1)]


def regime(
  sizes: Sequence[float],
  seconds: Sequence[Sequence[float]],
  expected: float,
) -> dict[str, Any] | None:
  """The longest stretch where no step speaks against the expected power.

  A step does if its whole interval is more than 0.1 away, or its median where
  there is no interval.

  Args:
    sizes: `[K]`, increasing.
    seconds: `[K, R]`.
    expected: 1 where cost is in proportion, 0 where it does not grow.

  Returns:
    `from`, `to` and `exponent` of the stretch as a whole, the earliest of
    equally many steps; None if there is no such step.
  """
  best, start = (0, 0), 0
  for n, step in enumerate(exponents(sizes, seconds)):
    found = step["exponent"]
    low, high = found["ci95"] or [found["value"]] * 2
    if low > expected + TOLERANCE or high < expected - TOLERANCE:
      start = n + 1
    elif n + 1 - start > best[1] - best[0]:
      best = start, n + 1
  return _step(sizes, seconds, *best) if best[1] else None


def _point(
  case: Case,
  windows: Sequence[workload.Window],
  base: Sequence[workload.Window],
  rates: Mapping[str, Sequence[float]],
) -> dict[str, Any]:
  processor = [window.processor_s for window in windows]
  return {
    "size": case.size,
    "per_s": case.done / statistics.median(processor),
    "per_s_on_the_clock": case.done
    / statistics.median(window.wall_s for window in windows),
    "cost_over_first": measure.median_interval(
      [s / first.processor_s for s, first in zip(processor, base, strict=True)]
    ),
    "share_of": {
      column: measure.median_interval(
        [
          operations / seconds / rate
          for seconds, rate in zip(processor, rates[ceiling.name], strict=True)
        ]
      )
      for column, (ceiling, operations) in case.shares.items()
    },
    **case.facts,
    "processor_s": processor,
    "wall_s": [window.wall_s for window in windows],
  }


def measure_axis(
  cases: Sequence[Case], rounds: int, expected: float
) -> dict[str, Any]:
  """Runs all cases and their ceilings once a round, every second one backwards.

  Args:
    cases: of all curves, each curve's sizes in increasing order, compiled.
    rounds: windows of each; 6 or more for intervals.
    expected: exponent of the regime that is looked for.

  Returns:
    The ceilings' operations a second of the processor, and for each curve its
    points, exponents and regime. Costs are relative to the first case.
  """
  ceilings = {
    ceiling.name: ceiling
    for case in cases
    for ceiling, _ in case.shares.values()
  }
  named = {f"{case.curve}: {case.size}": case for case in cases}
  contestants = {
    **{name: ceiling.window for name, ceiling in ceilings.items()},
    **{name: case.window for name, case in named.items()},
  }
  found, _ = measure.race(contestants, rounds, harness.say)
  rates = {
    name: [ceiling.operations / window.processor_s for window in found[name]]
    for name, ceiling in ceilings.items()
  }
  base = found[next(iter(named))]
  curves = []
  for curve in dict.fromkeys(case.curve for case in cases):
    points = [
      _point(case, found[name], base, rates)
      for name, case in named.items()
      if case.curve == curve
    ]
    sizes = [point["size"] for point in points]
    seconds = [point["processor_s"] for point in points]
    curves.append(
      {
        "curve": curve,
        "points": points,
        "steps": exponents(sizes, seconds),
        "regime": regime(sizes, seconds, expected),
      }
    )
  return {
    "expected_exponent": expected,
    "ceilings_per_s": {
      name: statistics.median(of_round) for name, of_round in rates.items()
    },
    "curves": curves,
  }
