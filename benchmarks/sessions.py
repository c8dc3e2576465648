"""What learners make of few and of many sessions: their share of what is there.

  python -m benchmarks.sessions --seeds=10,11 --json_out=sessions.json

`mtf_jax.studies.progressive.sessions` says what is measured. Results are written
after each row, so that a run that is stopped has those.
"""

import sys
from typing import Any

import jax
from absl import flags

from benchmarks import harness
from experiments import launch
from mtf_jax.io import MAX_SEED
from mtf_jax.studies.progressive import config as config_lib
from mtf_jax.studies.progressive import sessions
from mtf_jax.worlds.leaving import LEAVING_MODELS

_SEEDS = launch.define_integers(
  "seeds", [0], "Seeds of worlds and learners.", low=0, high=MAX_SEED
)
_SESSIONS = launch.define_integers(
  "sessions", [20_000, 80_000, 320_000], "Sessions a round.", low=1, high=2**31
)
_LEARNERS = flags.DEFINE_list(
  "learners", ["slope_regression"], "As `experiments.progressive` has them."
)
_LEAVING = flags.DEFINE_enum(
  "leaving", next(iter(LEAVING_MODELS)), list(LEAVING_MODELS), "Leaving model."
)
_PRESET = flags.DEFINE_enum(
  "preset", "cpu", ["smoke", "cpu"], "What is not the sessions' number."
)


def _share(row: dict[str, Any]) -> str:
  share = row["share_of_in_box_optimum"]
  return "undefined" if share is None else f"{share:.0%}"


def main() -> None:
  """Measures, writes after each row, prints a table."""
  config = config_lib.PRESETS[_PRESET.value]
  with launch.refusals("--"):
    config_lib.check_seeds(_SEEDS.value)
  with launch.refusals("--learners: "):
    for name in _LEARNERS.value:
      config.with_learner(name)
  rows: list[dict[str, Any]] = []
  for seed in _SEEDS.value:
    for row in sessions.measure(
      config, seed, _LEAVING.value, _SESSIONS.value, _LEARNERS.value
    ):
      rows.append(row)
      print(
        f"seed {seed}, {row['method']}, {row['sessions_per_round']} sessions:"
        f" {row['gain_pct']:+.2f} %, {_share(row)}",
        file=sys.stderr,
        flush=True,
      )
      if harness.JSON_OUT.value:
        harness.write_json(
          harness.JSON_OUT.value,
          {
            "environment": harness.environment(),
            "preset": _PRESET.value,
            "rounds": config.rounds,
            "over_seeds": sessions.summary(rows),
            "rows": rows,
          },
        )
    jax.clear_caches()
  print(
    harness.markdown_table(
      ["method", "sessions a round", "seeds", "gain %", "share"],
      [
        [
          row["method"],
          "-"
          if row["sessions_per_round"] is None
          else f"{row['sessions_per_round']:,}",
          str(row["seeds"]),
          f"{row['gain_pct']:+.2f}",
          _share(row),
        ]
        for row in sessions.summary(rows)
      ],
    )
  )


if __name__ == "__main__":
  launch.run(main)
