"""Searches for the converged global weights that are kept on record.

  python -m benchmarks.known_weights --seeds=0,1,2,3,4

Of the synthetic worlds of `experiments.progressive --preset=cpu`, under the
leaving models asked for; what is on record already stays. A run that finds its
world on record does not search.
"""

import json
import sys
import time

import jax
import jax.numpy as jnp
from absl import flags

from experiments import launch
from mtf_jax.evaluation import global_weights, known_weights
from mtf_jax.fitting import synthetic
from mtf_jax.io import MAX_SEED
from mtf_jax.studies.progressive import config as config_lib
from mtf_jax.studies.progressive.experiment import assemble, tree_index
from mtf_jax.studies.progressive.study_learner import make_study_learner
from mtf_jax.worlds import returns
from mtf_jax.worlds.leaving import LEAVING_MODELS

_SEEDS = launch.define_integers(
  "seeds", [0], "Seeds of the worlds.", low=0, high=MAX_SEED
)
_LEAVING = flags.DEFINE_list("leaving", list(LEAVING_MODELS), "Leaving models.")


def main() -> None:
  """Searches and writes, one world after another."""
  config = config_lib.PRESETS["cpu"]
  effort = config.global_search
  entries = json.loads(known_weights.PATH.read_text(encoding="utf-8"))
  for seed in _SEEDS.value:
    built = synthetic.synthetic_world(config.world_size, seed)
    study_learner = make_study_learner(config.train, built)
    table = None
    for leaving in _LEAVING.value:
      worlds = [built.with_leaving(leaving)]
      experiment = assemble(config, worlds, [seed], study_learner)
      world = tree_index(experiment.world, 0)
      if known_weights.find(world, config.max_requests, effort) is not None:
        continue
      started = time.monotonic()
      # The leaving model does not matter to it.
      table = returns.expected_rewards(world) if table is None else table
      found = global_weights.converge(
        experiment.keys["search"][0],
        world,
        table,
        jnp.zeros((1, world.num_actions), jnp.float32),
        effort,
        config.max_requests,
      )
      entries |= known_weights.entry(
        world, config.max_requests, effort, found.to_json()
      )
      known_weights.write(entries)
      seconds = time.monotonic() - started
      gains = ", ".join(f"{gain.percent:+.2f}" for gain in found.from_start)
      print(
        f"seed {seed}, {leaving}: over its starts {gains} %, stopped"
        f" {found.stopped}, {seconds:.0f} s",
        file=sys.stderr,
        flush=True,
      )
    jax.clear_caches()


if __name__ == "__main__":
  launch.run(main)
