"""Trains small learners on whatever devices there are; a process of its own.

  python -m tests.distributed.trained OUT RUNS [COORDINATOR COUNT ID]

RUNS are `learner/mesh/strata/critic_updates/seeds`, semicolons between them.

The ends of the runs, the batches that they begin with and the collectives of an
update go into the file OUT, which process 0 writes.
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mtf_jax import networks
from mtf_jax.data import strata, transitions
from mtf_jax.distributed import collectives, processes
from mtf_jax.distributed import mesh as mesh_lib
from mtf_jax.learners import registry
from mtf_jax.learners.base import normalization_from
from mtf_jax.training import loop, state_leaves
from tests.session_logs import random_log

UPDATES, BATCH_SIZE = 50, 32
GROUPS, CRITICS, HIDDEN = 2, 4, (8, 8)


def learner_of(name, critic_updates):
  return registry.LEARNERS[name].build(
    networks.mlp_actor(2, HIDDEN),
    networks.mlp_critic(GROUPS, CRITICS, HIDDEN),
    critic_updates=critic_updates,
  )


@functools.partial(jax.jit, static_argnames="learner")
def start(learner, dataset, seed=1):
  one = transitions.sample_transitions(jax.random.key(5), dataset, 1)
  state = learner.init(
    jax.random.key(seed),
    jax.tree.map(lambda leaf: leaf[0], one),
    None,
    normalization_from(dataset),
  )
  return loop.start(jax.random.key(2), state)


def first_batch(mesh, rows):
  def draw(key, rows):
    batch = strata.draw_batch(key, rows, BATCH_SIZE)
    batch = mesh_lib.constrain_batch(mesh, batch)
    return mesh_lib.constrain_whole(mesh, batch)

  key = mesh_lib.put(
    jax.random.key(2),
    NamedSharding(mesh, PartitionSpec()),
  )
  return jax.jit(draw)(key, rows)


def train(name, mesh, num_strata, critic_updates, num_seeds):
  """The end of a run by leaf, and the collectives of its updates."""
  dataset = transitions.device_dataset(random_log(num_rows=250))
  learner = learner_of(name, critic_updates)
  many = num_seeds > 1
  if many:
    state = jax.vmap(start, in_axes=(None, None, 0))(
      learner, dataset, jnp.arange(num_seeds)
    )
  else:
    state = start(learner, dataset)
  state = mesh_lib.put_state(mesh, state, many=many)
  rows = dataset if num_strata == 1 else strata.stratify(dataset, num_strata)
  rows = mesh_lib.put_dataset(mesh, rows)
  update = loop.update_chunk_many if many else loop.update_chunk
  program = update.lower(
    learner,
    state,
    rows,
    batch_size=BATCH_SIZE,
    num_updates=UPDATES,
    mesh=mesh,
  ).compile()
  batch = first_batch(mesh, rows)
  state, metrics = program(state, rows)
  ends = state_leaves.by_name(state_leaves.to_numpy(processes.whole(state)))
  draws = state_leaves.by_name(jax.tree.map(np.asarray, batch))
  found = collectives.collectives_of(program.as_text())
  return {
    **{f"end {leaf}": value for leaf, value in ends.items()},
    **{f"batch {leaf}": value for leaf, value in draws.items()},
    "collectives": np.asarray(json.dumps(found)),
    "losses": np.asarray(metrics.actor_loss),
  }


def main(out, runs, *place):
  with processes.together(bool(place)):
    if place:
      coordinator, count, number = place
      processes.join(coordinator, int(count), int(number))
    found = {}
    for run in runs.split(";"):
      name, mesh_text, *numbers = run.split("/")
      mesh = mesh_lib.make_mesh(mesh_lib.parse_axes(mesh_text))
      result = train(name, mesh, *map(int, numbers))
      found |= {f"{run} {key}": value for key, value in result.items()}
    if processes.is_first():
      np.savez(out, **found)


if __name__ == "__main__":
  main(*sys.argv[1:])
