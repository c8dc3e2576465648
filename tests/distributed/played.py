"""Plays and judges sessions on whatever devices there are; a process of its own.

  python -m tests.distributed.played OUT WORLD RUN_DIR MESH

Sessions, what they brought, and the collectives of the programs go into the file
OUT. A progressive run in RUN_DIR begins, or goes on if there is one, on MESH; it
leaves a copy of its folder after the first round, RUN_DIR_begun.
"""

import dataclasses
import functools
import json
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import NamedSharding, PartitionSpec

from experiments import progressive as launcher
from mtf_jax import networks, policies
from mtf_jax.distributed import collectives
from mtf_jax.distributed import mesh as mesh_lib
from mtf_jax.evaluation import ab_test, known_weights
from mtf_jax.evaluation.global_weights import Converged
from mtf_jax.evaluation.statistics import Gain
from mtf_jax.learners import es
from mtf_jax.studies.progressive import baselines, collect, experiment, play
from mtf_jax.training import state_leaves
from mtf_jax.worlds import io as world_io
from mtf_jax.worlds import returns as returns_lib
from mtf_jax.worlds import rollout as rollout_lib
from tests.tiny_run import TINY

SESSIONS, ODD_SESSIONS, REQUESTS, SEEDS = 64, 30, 6, 2


@functools.cache
def _policy(num_features):
  """A network that explores, and its parameters."""
  actor = networks.mlp_actor(10, (16,))
  params = actor.init(jax.random.key(1), jnp.zeros(num_features))

  def act(params, observation, rng_key):
    del rng_key
    return actor.apply(params, observation[None])[0]

  # Far enough from 0 that users get different lists.
  params = jax.tree.map(lambda leaf: 3 * leaf, params)
  in_service = policies.PolicyParams(params, 0.15, 0.0, 0.0)
  in_service = jax.tree.map(
    lambda leaf: jnp.asarray(leaf, jnp.float32), in_service
  )
  return policies.explore_around(act), in_service


def _run(found, name, function, *args, **static):
  """Adds a program's result, its collectives, and where the result is."""
  program = jax.jit(functools.partial(function, **static)).lower(*args)
  program = program.compile()
  result = program(*args)
  for leaf, value in state_leaves.by_name({"": result}).items():
    found[f"{name} {leaf}"] = np.asarray(value)
  kinds = collectives.collectives_of(program.as_text())
  found[f"{name} collectives"] = np.asarray(json.dumps(kinds))
  on = jax.tree.leaves(result)[0].sharding
  found[f"{name} devices"] = np.asarray(len(on.device_set))
  found[f"{name} whole"] = np.asarray(on.is_fully_replicated)


def sessions(world, mesh):
  """What sessions are and brought, and what a search finds."""
  world = world.replace(population=world.population[:32])
  judged = ab_test.evaluation_world(world)
  table = returns_lib.expected_rewards(judged)
  act, params = _policy(len(world.observation_names))
  key, world, judged, table, params = mesh_lib.put(
    (jax.random.key(0), world, judged, table, params),
    NamedSharding(mesh, PartitionSpec()),
  )
  found = {}
  _run(
    found,
    "rows",
    lambda k, w, p: rollout_lib.rollout(
      k, w, act, p, ODD_SESSIONS, REQUESTS, "session", mesh=mesh
    ),
    *(key, world, params),
  )
  _run(
    found,
    "judged",
    lambda k, w, t, p: ab_test.evaluate(
      k, w, t, act, p, SESSIONS, REQUESTS, mesh=mesh
    ),
    *(key, judged, table, params),
  )
  _run(
    found,
    "search",
    lambda k, start: {
      "weights": es.ascend(
        k,
        start,
        lambda weights, key, _: (
          10 - jnp.sum(jnp.square(weights - jax.random.normal(key)))
        ),
        es.Search(20, SESSIONS),
        jnp.asarray(0.1),
        lambda weights: weights,
        mesh=mesh,
      )
    },
    *(key, mesh_lib.put(jnp.zeros(3), NamedSharding(mesh, PartitionSpec()))),
  )
  return found


def part(world, mesh):
  """A part of a round, of seeds side by side on an axis of their own."""
  act, params = _policy(len(world.observation_names))
  of_seeds = experiment.tree_stack([(world, params)] * SEEDS)
  keys, (world, params) = mesh_lib.put(
    (jax.random.split(jax.random.key(2), SEEDS), of_seeds),
    NamedSharding(mesh, PartitionSpec("seed")),
  )
  found = {}
  _run(
    found,
    "part",
    lambda k, w, p: collect.collect_part(
      k, w, act, p, SESSIONS, REQUESTS, "session", mesh
    ),
    *(keys, world, params),
  )
  return found


def _known(world, max_requests, effort):
  """In place of a search for the baseline policy, which one device does."""
  del max_requests, effort
  nothing = Gain(0.0, 0.0)
  action = np.full(world.num_actions, 0.1)
  return Converged(action, True, nothing, [], [], 1, 0).to_json()


def progressive(world_file, run_dir, mesh):
  """The launcher, on a tiny run with what a round and a judgement need."""
  launcher.config_lib.PRESETS["smoke"] = dataclasses.replace(
    TINY, uncut_requests=TINY.max_requests
  )
  known_weights.find = _known
  # Compiling searches, and critics held against the world on one device, takes
  # longer than all the rest.
  for name in ("platform_es", "in_box_optimum", "oracle"):
    baselines.RIVALS[name] = baselines.uncut_baseline
  play._check = lambda *_: None
  play_round = play.rounds_lib.play_round

  def copied(experiment, state, number, on_chunk):
    begun = pathlib.Path(f"{run_dir}_begun")
    if number and not begun.exists():
      shutil.copytree(run_dir, begun)
    return play_round(experiment, state, number, on_chunk)

  play.rounds_lib.play_round = copied
  goes_on = pathlib.Path(run_dir).exists()
  flags.FLAGS(
    [
      "progressive",
      "--preset=smoke",
      f"--world={world_file}",
      "--seeds=0,1",
      "--parallel_seeds=2",
      "--learners=integrated_rl:box,slope_regression",
      f"--out_dir={run_dir}",
      f"--mesh={mesh}",
      *(["--resume"] if goes_on else []),
    ]
  )
  launcher.main()


def main(out, world_file, run_dir, mesh):
  world = world_io.load_world(world_file)
  found = sessions(world, mesh_lib.make_mesh())
  sizes = mesh_lib.parse_axes(mesh)
  if "seed" in sizes:
    found |= part(world, mesh_lib.make_mesh(sizes))
  np.savez(out, **found)
  progressive(world_file, run_dir, mesh)


if __name__ == "__main__":
  main(*sys.argv[1:])
