"""Memory of a progressive run's programs, compiled but not run.

  python -m benchmarks.progressive_memory --preset=paper --json_out=memory.json

Only the world and the networks' first parameters are made; rows, batches and
sessions exist as shapes. Sizes are those that XLA plans for the default device:
another device's compiler needs other temporary memory, the arguments and results
are the same.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags

from benchmarks import harness
from mtf_jax.training import loop, progressive
from mtf_jax.worlds import session, synthetic

_PRESET = flags.DEFINE_enum(
  "preset", "paper", list(progressive.PRESETS), "Size of the run."
)
_PARALLEL_SEEDS = flags.DEFINE_integer(
  "parallel_seeds", 1, "Seeds side by side.", lower_bound=1
)


def num_bytes(tree: Any) -> int:
  """Bytes of the arrays of a pytree, or of their shapes."""
  return sum(
    leaf.size * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  )


def programs(run: progressive.Run) -> tuple[dict[str, Any], dict[str, int]]:
  """Lowers what a run executes at its size, from shapes.

  Args:
    run: of `progressive.assemble`, with `start` set.

  Returns:
    Name -> lowered program, and name -> bytes of what stays on the device.
  """
  config, algorithm = run.config, run.algorithm
  key = run.keys["round"]
  service = progressive.service(run.start, progressive.HALF_WIDTH)
  size = config.sessions_per_round // config.collect_parts
  parts = config.rounds * config.collect_parts
  collect = progressive.collect_part.lower(
    key, run.world, algorithm.act, service, size, config.max_requests
  )
  part = collect.out_info
  room = jax.eval_shape(lambda part: progressive.empty_rows(part, parts), part)
  table = jax.eval_shape(jax.vmap(session.expected_rewards), run.judging)
  dataset = jax.eval_shape(progressive.as_dataset, room)
  train = config.train
  lowered = {
    "collect_part": collect,
    "put_rows": progressive.put_rows.lower(
      room, part, jnp.zeros((), jnp.int32)
    ),
    "start_rows": jax.jit(jax.vmap(progressive.start_rows)).lower(room.start),
    "update_chunk": loop.update_chunk_many.lower(
      algorithm.learner,
      jax.eval_shape(jax.vmap(loop.start), key, run.start),
      dataset,
      batch_size=train.batch_size,
      num_updates=train.chunk_size,
    ),
    "judge": progressive.judge_service.lower(
      key,
      run.judging,
      table,
      algorithm.act,
      service,
      config.evaluation_sessions,
      config.max_requests,
    ),
  }
  state = num_bytes(run.start)
  resident = {
    "worlds": num_bytes((run.world, run.judging)),
    "reward_table": num_bytes(table),
    # Before the first round, in service, and in training.
    "learner_states": 3 * state,
    "rows": num_bytes(dataset),
  }
  return lowered, resident


def measure(run: progressive.Run) -> dict[str, Any]:
  """Compiles the programs of a run and adds up what they need."""
  lowered, resident = programs(run)
  found = {}
  for name, program in lowered.items():
    memory = program.compile().memory_analysis()
    found[name] = {
      "argument_bytes": memory.argument_size_in_bytes,
      "output_bytes": memory.output_size_in_bytes,
      # Of the output, written over arguments.
      "alias_bytes": memory.alias_size_in_bytes,
      "temp_bytes": memory.temp_size_in_bytes,
    }
  # The result of an update or of put_rows is the state or the rows themselves.
  fresh = max(
    x["output_bytes"] - x["alias_bytes"] + x["temp_bytes"]
    for x in found.values()
  )
  return {
    "programs": found,
    "resident_bytes": resident,
    "peak_bytes_at_most": sum(resident.values()) + fresh,
  }


def main(argv: Sequence[str]) -> None:
  """Prints the table, and writes the JSON if asked to."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  if harness.JSON_OUT.value is not None:
    harness.check_writable(harness.JSON_OUT.value)
  config = progressive.PRESETS[_PRESET.value]
  seeds = list(range(_PARALLEL_SEEDS.value))
  world = synthetic.synthetic_world(config.world_size)
  algorithm = progressive.make_algorithm(config.train, world)
  run = progressive.assemble(config, [world] * len(seeds), seeds, algorithm)
  result = measure(progressive.with_algorithm(run, config, algorithm))
  gigabyte = 1e9
  print(
    harness.markdown_table(
      (
        "program",
        "arguments GB",
        "output GB",
        "of it in place",
        "temporary GB",
      ),
      [
        (name, *(f"{value / gigabyte:.3f}" for value in sizes.values()))
        for name, sizes in result["programs"].items()
      ],
    )
  )
  for name, value in result["resident_bytes"].items():
    print(f"{name}: {value / gigabyte:.3f} GB")
  print(f"at most: {result['peak_bytes_at_most'] / gigabyte:.1f} GB")
  if harness.JSON_OUT.value is not None:
    harness.write_json(
      harness.JSON_OUT.value,
      {
        "environment": harness.environment(),
        "preset": _PRESET.value,
        "parallel_seeds": len(seeds),
        "config": config.to_json(),
        **result,
      },
    )


if __name__ == "__main__":
  app.run(main)
