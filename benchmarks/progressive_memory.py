"""Memory of a progressive run's programs, compiled but not run.

  python -m benchmarks.progressive_memory --preset=paper --json_out=memory.json

Only the world and the networks' first parameters are made; rows, batches and
sessions exist as shapes. Sizes are those that XLA plans for the default device:
another device's compiler needs other temporary memory, the arguments and
results are the same. What a run does beside the programs of the table is not
counted, see `mtf_jax.studies.progressive.memory`.
"""

from absl import flags

from benchmarks import harness
from experiments import launch
from mtf_jax.fitting import synthetic
from mtf_jax.studies.progressive import config as config_lib
from mtf_jax.studies.progressive import experiment as experiment_lib
from mtf_jax.studies.progressive import memory as progressive_memory
from mtf_jax.studies.progressive import study_learner as study_learner_lib

_PRESET = flags.DEFINE_enum(
  "preset", "paper", list(config_lib.PRESETS), "Size of the run."
)
_PARALLEL_SEEDS = flags.DEFINE_integer(
  "parallel_seeds", 1, "Seeds side by side.", lower_bound=1
)


def main() -> None:
  """Prints the table, and writes the JSON if asked to."""
  config = config_lib.PRESETS[_PRESET.value]
  seeds = list(range(_PARALLEL_SEEDS.value))
  world = synthetic.synthetic_world(config.world_size)
  study_learner = study_learner_lib.make_study_learner(config.train, world)
  experiment = experiment_lib.assemble(
    config, [world] * len(seeds), seeds, study_learner
  )
  experiment = experiment_lib.with_study_learner(
    experiment, config, study_learner
  )
  result = progressive_memory.measure(experiment)
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
  peak = result["peak_bytes_of_these"] / gigabyte
  print(f"peak of the programs above: {peak:.1f} GB")
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
  launch.run(main)
