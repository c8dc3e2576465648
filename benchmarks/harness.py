"""Timing, measured ceilings and result files shared by the benchmarks.

A speed says little without the machine it was taken on, so every benchmark
measures in the same run what the machine can do at best, its copy bandwidth
and its matrix product, and reports shares of those.
"""

import datetime
import importlib.metadata
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import flags

from experiments import launch
from mtf_jax import io

# Here and not in each benchmark: absl refuses a flag that two modules define,
# and one process may import several of them.
JSON_OUT = launch.define_out_file("json_out", None, "File to write results to.")
REPEATS = flags.DEFINE_integer(
  "repeats", 9, "Timed repeats of each workload.", lower_bound=1
)

_PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax", "chex")


class Timing(NamedTuple):
  """Wall-clock seconds of one call of a compiled program.

  median_s: median over the repeats.
  min_s, max_s: fastest and slowest repeat.
  repeats: number of timed repeats; the warm-up is not among them.
  calls_per_repeat: calls averaged within a repeat.
  """

  median_s: float
  min_s: float
  max_s: float
  repeats: int
  calls_per_repeat: int


class Ceilings(NamedTuple):
  """What this machine does at best, measured in this run.

  copy_bytes_per_s: bytes read plus bytes written by a large in-place addition.
  matmul_flops_per_s: float32 matrix product at full float32 precision.
  """

  copy_bytes_per_s: float
  matmul_flops_per_s: float


def compile_ahead(
  function: Callable[..., Any], *args: Any, **jit_options: Any
) -> tuple[Callable[..., Any], float]:
  """Lowers and compiles for the arguments; returns `(compiled, seconds)`."""
  start = time.perf_counter()
  compiled = jax.jit(function, **jit_options).lower(*args).compile()
  return compiled, time.perf_counter() - start


def time_calls(
  compiled: Callable[..., Any],
  *args: Any,
  repeats: int = 9,
  min_repeat_s: float = 0.02,
) -> Timing:
  """Times a compiled program that leaves its arguments alone.

  One call is made to warm up, a second to size the repeats: short programs are
  called several times a repeat, waited for once, so that the clock's and the
  dispatch's own cost stay small.

  Args:
    compiled: a compiled function of `args`, donating none of them.
    *args: its arguments, on the device.
    repeats: number of timed repeats, 7 or more for a spread worth quoting.
    min_repeat_s: seconds that one repeat should last at least.

  Returns:
    The timing of one call.
  """
  jax.block_until_ready(compiled(*args))
  start = time.perf_counter()
  jax.block_until_ready(compiled(*args))
  calls = max(1, round(min_repeat_s / (time.perf_counter() - start)))
  samples = []
  for _ in range(repeats):
    start = time.perf_counter()
    for _ in range(calls):
      output = compiled(*args)
    jax.block_until_ready(output)
    samples.append((time.perf_counter() - start) / calls)
  return Timing(
    statistics.median(samples), min(samples), max(samples), repeats, calls
  )


class Ratio(NamedTuple):
  """How much faster a program is than another, from calls that take turns.

  median, lower, upper: median and quartiles of the ratio of a pair of calls.
  equals_lower, equals_upper: quartiles of the same ratio of one program to
    itself: what the run's noise makes of equals.
  """

  median: float
  lower: float
  upper: float
  equals_lower: float
  equals_upper: float


def time_ratio(
  base: Callable[..., Any],
  compiled: Callable[..., Any],
  *args: Any,
  repeats: int = 9,
) -> Ratio:
  """Times two programs of the same arguments in turns.

  Args:
    base: compiled; the one that the other is compared with.
    compiled: above 1 it takes less time.
    *args: arguments of both.
    repeats: calls of each are timed in twice as many rounds.

  Returns:
    Ratios of `base`'s seconds to those of `compiled`, and of `base` to itself.
  """

  def seconds(program, calls):
    start = time.perf_counter()
    for _ in range(calls):
      output = program(*args)
    jax.block_until_ready(output)
    return (time.perf_counter() - start) / calls

  for program in (base, compiled):
    seconds(program, 1)
  calls = max(1, round(0.01 / seconds(base, 1)))
  ratios, equals = [], []
  for number in range(2 * repeats):
    first = seconds(base, calls)
    # Each comes next as often as the other: what was called before has left the
    # caches full of its own.
    if number % 2:
      again = seconds(base, calls)
      other = seconds(compiled, calls)
    else:
      other = seconds(compiled, calls)
      again = seconds(base, calls)
    ratios.append(first / other)
    equals.append(first / again)
  lower, median, upper = statistics.quantiles(ratios, n=4)
  equals_lower, _, equals_upper = statistics.quantiles(equals, n=4)
  return Ratio(median, lower, upper, equals_lower, equals_upper)


def _copy_bytes_per_s(num_bytes: int, repeats: int) -> float:
  """In place, so that the cost of fresh memory pages is not counted."""
  array = jnp.zeros(num_bytes // 4, jnp.float32)
  step, _ = compile_ahead(lambda x: x + 1.0, array, donate_argnums=0)
  array = jax.block_until_ready(step(array))
  best = float("inf")
  for _ in range(repeats):
    start = time.perf_counter()
    array = jax.block_until_ready(step(array))
    best = min(best, time.perf_counter() - start)
  return 2 * num_bytes / best


def matmul(
  size: int,
  dtype: Any = jnp.float32,
  precision: jax.lax.PrecisionLike = "highest",
) -> tuple[Callable[..., Any], tuple[jax.Array, jax.Array]]:
  """A compiled product of `2 size^3` operations, and two `[size, size]` for it."""
  keys = jax.random.split(jax.random.key(0))
  a, b = (jax.random.normal(key, (size, size), dtype) for key in keys)
  product, _ = compile_ahead(
    lambda a, b: jnp.matmul(a, b, precision=precision), a, b
  )
  return product, (a, b)


def matmul_flops_per_s(
  size: int = 2048,
  dtype: Any = jnp.float32,
  precision: jax.lax.PrecisionLike = "highest",
  repeats: int = 9,
) -> float:
  """Best rate of a `[size, size]` matrix product, in operations a second."""
  product, args = matmul(size, dtype, precision)
  return 2 * size**3 / time_calls(product, *args, repeats=repeats).min_s


def contraction(
  members: int, rows: int = 256, size: int = 256
) -> tuple[Callable[[], None], int]:
  """A scan of `members` products `[rows, size] x [size, size]`, batched.

  Returns:
    What runs it, compiled and warm, and its number of operations.
  """
  keys = jax.random.split(jax.random.key(0))
  a = jax.random.normal(keys[0], (members, rows, size))
  # Scaled so that repeated products stay finite.
  b = jax.random.normal(keys[1], (members, size, size)) / size**0.5
  length = 16

  def chain(a, b):
    body = lambda a, _: (jnp.einsum("eij,ejk->eik", a, b), None)  # noqa: E731
    return jax.lax.scan(body, a, length=length)[0]

  compiled, _ = compile_ahead(chain, a, b)

  def run() -> None:
    jax.block_until_ready(compiled(a, b))

  run()
  return run, length * 2 * members * rows * size**2


def measure_ceilings() -> Ceilings:
  """Measures the ceilings of the default device: the best of a few repeats."""
  on_cpu = jax.default_backend() == "cpu"
  return Ceilings(
    copy_bytes_per_s=_copy_bytes_per_s(2**28 if on_cpu else 2**31, 9),
    matmul_flops_per_s=matmul_flops_per_s(2048 if on_cpu else 8192),
  )


def free_memory_bytes() -> int:
  """Free memory of the default device, in bytes."""
  stats = jax.devices()[0].memory_stats()
  if stats and "bytes_limit" in stats:
    return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
  return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _git(*args: str) -> str | None:
  root = pathlib.Path(__file__).parent
  try:
    return subprocess.run(
      ("git", *args), cwd=root, capture_output=True, text=True, check=True
    ).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return None


def environment() -> dict[str, Any]:
  """Device, versions and commit that a result belongs to."""
  device = jax.devices()[0]
  versions = {}
  for package in _PACKAGES:
    try:
      versions[package] = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
      versions[package] = None
  return {
    "device_kind": device.device_kind,
    "platform": device.platform,
    "device_count": jax.device_count(),
    "machine": platform.machine(),
    "cpu_cores": os.cpu_count(),
    "load_average": round(os.getloadavg()[0], 1),
    "python": platform.python_version(),
    "versions": versions,
    "git_commit": _git("rev-parse", "HEAD"),
    "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
    "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
  }


def write_json(path: str | os.PathLike[str], result: Any) -> None:
  """Writes a result file, and its folder if that is missing."""
  pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
  io.write_json(path, result)


def say(message: str) -> None:
  """One line of progress, on stderr: the table alone is on stdout."""
  print(message, file=sys.stderr, flush=True)


def with_interval(
  value: float, ci95: Sequence[float] | None, spec: str = ".2f"
) -> str:
  """A number for a table, with its interval where it has one."""
  if ci95 is None:
    return format(value, spec)
  low, high = ci95
  return f"{value:{spec}} [{low:{spec}}, {high:{spec}}]"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table, for the terminal and for docs/results alike."""
  lines = [header, ["---"] * len(header), *rows]
  return "\n".join("| " + " | ".join(line) + " |" for line in lines)
