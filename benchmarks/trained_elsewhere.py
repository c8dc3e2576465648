"""TD3+BC, IQL and CQL of this package and of d3rlpy, on one log, in one world.

  python -m benchmarks.trained_elsewhere --seeds=20,21 --json_out=elsewhere.json

`mtf_jax.studies.compare.elsewhere` says what is trained and measured. Results are
written after each row, so that a run that is stopped has those. The extra
`d3rlpy` brings d3rlpy; it needs an environment of its own.
"""

import importlib.metadata
from typing import Any

import jax
from absl import flags

from benchmarks import harness
from experiments import launch
from mtf_jax.interop import d3rlpy_learners
from mtf_jax.io import MAX_SEED
from mtf_jax.studies.compare import config as config_lib
from mtf_jax.studies.compare import elsewhere, elsewhere_log
from mtf_jax.studies.progressive.config import check_seeds
from mtf_jax.worlds.leaving import LEAVING_MODELS

_SEEDS = launch.define_integers(
  "seeds", [0], "Seeds of worlds, logs and learners.", low=0, high=MAX_SEED
)
_TRAININGS = flags.DEFINE_integer(
  "trainings", 2, "Trainings of each learner on a seed's log.", 1
)
_LEARNERS = flags.DEFINE_list(
  "learners", list(elsewhere.SETTINGS), ", ".join(elsewhere.SETTINGS)
)
_PRESET = flags.DEFINE_enum(
  "preset", "cpu", ["smoke", "cpu"], "Size of the comparison."
)
_PACKAGES = ("d3rlpy", "torch", "gymnasium")


def _with_interval(found: dict[str, Any]) -> str:
  return harness.with_interval(found["pct"], found["ci95"], "+.2f")


def _table(summary: list[dict[str, Any]]) -> str:
  names = ("d3rlpy", "ours", "ours_other_batches")
  return harness.markdown_table(
    [
      *("learner", "rows", *(f"gain %, {name}" for name in names)),
      *("ours over d3rlpy %", "ours over other batches %"),
      *("RMS to d3rlpy", "to other batches", "to the baseline", "at limit"),
    ],
    [
      [
        row["learner"],
        str(row["rows"]),
        *(_with_interval(row[f"gain_{name}"]) for name in names),
        _with_interval(row["ours_over_d3rlpy"]),
        _with_interval(row["ours_over_other_batches"]),
        *(f"{distance:.4f}" for distance in row["rms"].values()),
        f"{row['at_limit']:.0%}",
      ]
      for row in summary
    ],
  )


def main() -> None:
  """Measures, writes after each row, prints a table."""
  config = config_lib.PRESETS[_PRESET.value]
  with launch.refusals("--"):
    check_seeds(_SEEDS.value)
    config_lib.check_names("learners", _LEARNERS.value, elsewhere.SETTINGS)
  d3rlpy_learners.require()
  leaving = next(iter(LEAVING_MODELS))
  rows: list[dict[str, Any]] = []
  versions: list[dict[str, Any]] = []

  def write() -> None:
    if harness.JSON_OUT.value:
      harness.write_json(
        harness.JSON_OUT.value,
        {
          "environment": harness.environment(),
          "packages": {n: importlib.metadata.version(n) for n in _PACKAGES},
          "preset": _PRESET.value,
          "leaving": leaving,
          "summary": elsewhere.summary(rows),
          "as_compared": versions,
          "rows": rows,
        },
      )

  for seed in _SEEDS.value:
    place = elsewhere_log.prepare(config, seed, leaving, harness.say)
    for training in range(_TRAININGS.value):
      for name in _LEARNERS.value:
        row = elsewhere.measure(config, place, seed, training, name)
        rows.append(row)
        write()
        gains = ", ".join(
          f"{label} {_with_interval(found)}"
          for label, found in row["gain"].items()
        )
        harness.say(
          f"seed {seed}, training {training}, {name}: {gains};"
          f" ours over d3rlpy {_with_interval(row['ours_over_d3rlpy'])}"
        )
    for name in _LEARNERS.value:
      found = elsewhere.compared(config, place, name)
      versions.append({"learner": name, "seed": seed, **found})
      write()
      harness.say(f"seed {seed}, {name} as compared: {_with_interval(found)}")
    jax.clear_caches()
  print(_table(elsewhere.summary(rows)))


if __name__ == "__main__":
  launch.run(main)
