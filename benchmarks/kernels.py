"""Times every kernel, vmapped over sessions, against the machine's ceilings.

  python -m benchmarks.kernels --sizes=1024,32768 --json_out=kernels.json

What is timed is in `benchmarks.workloads`. Bytes are the inputs read once and the
outputs written once. The ceilings are a large copy and a large matrix product of
the same run. At small sizes the data stay in the cache, and a share of the copy
ceiling can exceed 1. Where `benchmarks.plain` has the lines that one would write by
hand, both take turns; above 1 the kernel is the faster one.
"""

import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks import harness
from benchmarks.plain import PLAIN
from benchmarks.workloads import WORKLOADS
from experiments import launch
from mtf_jax.io import InputError

_KERNELS = flags.DEFINE_list(
  "kernels", None, "Workloads to time, by name; all if omitted."
)
_SIZES = launch.define_integers(
  "sizes",
  [1024, 32768, 1048576],
  "Numbers of sessions. One that does not fit memory is left out, by name.",
)


def num_bytes(tree: Any) -> int:
  """Bytes of all leaves; the words of a key are counted as it stores them."""
  total = 0
  for leaf in jax.tree.leaves(tree):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    total += 8 * leaf.size if is_key else leaf.size * leaf.dtype.itemsize
  return total


def time_workload(
  name: str, size: int, ceilings: harness.Ceilings, repeats: int
) -> dict[str, Any]:
  """Times one workload at one number of sessions; returns a result row."""
  workload = WORKLOADS[name]
  keys = jax.random.split(jax.random.key(0), size)
  args = jax.block_until_ready(jax.jit(workload.batch)(keys))
  batched = workload.batched()
  moved = num_bytes(args) + num_bytes(jax.eval_shape(batched, *args))
  compiled, compile_s = harness.compile_ahead(batched, *args)
  timing = harness.time_calls(compiled, *args, repeats=repeats)
  flops = workload.flops * size
  ratios = None
  if name in PLAIN:
    plain, _ = harness.compile_ahead(PLAIN[name], *args)
    ratios = harness.time_ratio(plain, compiled, *args, repeats=repeats)
  return {
    "kernel": name,
    "sessions": size,
    "compile_s": compile_s,
    **timing._asdict(),
    "bytes": moved,
    "flops": flops,
    "sessions_per_s": size / timing.median_s,
    "share_of_copy_ceiling": moved
    / timing.median_s
    / ceilings.copy_bytes_per_s,
    "share_of_matmul_ceiling": flops
    / timing.median_s
    / ceilings.matmul_flops_per_s,
    "speed_of_plain": ratios and ratios._asdict(),
  }


def fits(name: str, size: int) -> bool:
  """Whether what is timed fits the free memory, once over.

  Inputs, outputs, and what the compiled programs want besides; as much again, for
  what is not theirs.
  """
  workload = WORKLOADS[name]
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size))
  args = jax.eval_shape(workload.batch, keys)
  output = jax.eval_shape(workload.batched(), *args)
  programs = [(workload.batch, (keys,)), (workload.batched(), args)]
  if name in PLAIN:
    programs.append((PLAIN[name], args))
  scratch = [
    jax.jit(function).lower(*given).compile().memory_analysis()
    for function, given in programs
  ]
  needed = num_bytes((args, output)) + max(
    one.temp_size_in_bytes for one in scratch
  )
  return 2 * needed < harness.free_memory_bytes()


def ratio_text(ratio: dict[str, float] | None) -> str:
  """A ratio with its quartiles, and what noise makes of equals."""
  if ratio is None:
    return ""
  return (
    f"{ratio['median']:.2f} [{ratio['lower']:.2f}, {ratio['upper']:.2f}],"
    f" equals {ratio['equals_lower']:.2f} to {ratio['equals_upper']:.2f}"
  )


def table(rows: Sequence[dict[str, Any]]) -> str:
  """The rows as Markdown."""
  return harness.markdown_table(
    (
      "kernel",
      "sessions",
      "compile s",
      "median ms",
      "min to max ms",
      "share of copy",
      "share of matmul",
      "speed of plain",
    ),
    [
      (
        row["kernel"],
        f"{row['sessions']:,}",
        f"{row['compile_s']:.2f}",
        f"{1e3 * row['median_s']:.3g}",
        f"{1e3 * row['min_s']:.3g} to {1e3 * row['max_s']:.3g}",
        f"{row['share_of_copy_ceiling']:.2f}",
        f"{row['share_of_matmul_ceiling']:.3f}",
        ratio_text(row["speed_of_plain"]),
      )
      for row in rows
    ],
  )


def main() -> None:
  """Runs the workloads that the flags name."""
  names = _KERNELS.value or list(WORKLOADS)
  unknown = sorted(set(names) - set(WORKLOADS))
  if unknown:
    raise InputError(
      f"--kernels: expected some of {', '.join(WORKLOADS)}, found"
      f" {', '.join(unknown)}."
    )
  ceilings = harness.measure_ceilings()
  rows, left_out = [], []
  for size in _SIZES.value:
    for name in names:
      if not fits(name, size):
        left_out.append({"kernel": name, "sessions": size})
        print(f"{name} at {size:,} sessions: left out, not enough memory")
        continue
      print(f"{name} at {size:,} sessions", file=sys.stderr)
      rows.append(time_workload(name, size, ceilings, harness.REPEATS.value))
  print(
    f"copy {ceilings.copy_bytes_per_s / 1e9:.1f} GB/s, float32 matrix product"
    f" {ceilings.matmul_flops_per_s / 1e9:.0f} GFLOP/s,"
    f" {jax.devices()[0].device_kind}"
  )
  print(table(rows))
  if harness.JSON_OUT.value:
    harness.write_json(
      harness.JSON_OUT.value,
      {
        "environment": harness.environment(),
        "ceilings": ceilings._asdict(),
        "rows": rows,
        "left_out": left_out,
      },
    )


if __name__ == "__main__":
  launch.run(main)
