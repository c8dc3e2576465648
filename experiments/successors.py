"""Trains successors of the paper's method on one log, and judges them by A/B.

  python -m experiments.successors --preset=smoke --out_dir=runs/successors
  python -m experiments.successors --seeds=0,1 --exploration=session

A log is of sessions explored around global weights, with the shown items. Learners of
requests and of user-item pairs learn from it; learners of cells from one of the same
users, ranked by cells made from these weights. Each gain is over the policy that was
explored around, and over the first learner. `successors.json` has every figure.
"""

import pathlib
import sys
from typing import Any

import jax
from absl import flags

from experiments import launch, worlds
from mtf_jax import policies
from mtf_jax.evaluation.tables import text as table_text
from mtf_jax.io import write_json
from mtf_jax.studies.successors import config as config_lib
from mtf_jax.studies.successors import study
from mtf_jax.training import machine

_WORLD = worlds.define_world()
_PRESET = flags.DEFINE_enum(
  "preset", "cpu", list(config_lib.PRESETS), "Size of the study."
)
_SEEDS = launch.define_seeds()
_LEARNERS = flags.DEFINE_list(
  "learners",
  ["integrated_rl", "enhanced_rl", "xmtf"],
  "Learners of the registry.",
)
_SHARED = flags.DEFINE_list(
  "shared",
  list(policies.SHARINGS),
  f"What shares a deviation: {', '.join(policies.SHARINGS)}.",
)
_EXPLORATION = flags.DEFINE_list(
  "exploration",
  list(policies.EXPLORATIONS),
  f"How long a deviation lasts: {', '.join(policies.EXPLORATIONS)}.",
)
_FEATURES = flags.DEFINE_list(
  "features",
  list(config_lib.FEATURES),
  "What learners of pairs are told of an item:"
  f" {', '.join(config_lib.FEATURES)} (no scores).",
)
_OUT_DIR = launch.define_out_dir("runs/successors")


def main() -> None:
  """Plays all arms, writes the figures, prints the tables."""
  with launch.refusals("--"):  # They name the flag first.
    arms = config_lib.arms_of(
      _LEARNERS.value, _SHARED.value, _EXPLORATION.value, _FEATURES.value
    )
  config = config_lib.PRESETS[_PRESET.value]
  path = pathlib.Path(_OUT_DIR.value) / "successors.json"
  values = {"config": config.to_json(), "machine": machine.describe()}
  results: list[dict[str, Any]] = []
  for seed in _SEEDS.value:
    results.append(
      study.measure(
        worlds.make_or_load(_WORLD.value, "small", seed),
        config,
        arms,
        seed,
        lambda message: print(message, file=sys.stderr, flush=True),
      )
    )
    # After each seed: what is done survives a kill.
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {**values, "seeds": results})
    # Nothing of a seed is called again, and some 300 programs of each would soon
    # hold more mappings of memory than Linux allows a process (65,530).
    jax.clear_caches()
  print("\n".join(table_text(study.table(result)) for result in results))
  print(path)


if __name__ == "__main__":
  launch.run(main)
