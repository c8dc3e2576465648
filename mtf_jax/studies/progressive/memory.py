"""Memory of a progressive run's programs, compiled but not run.

Left out are the privileged optimum's sessions, the critics held against the
world, and the small programs of the setup: what is added up is what the named
programs need, not a bound on a whole run.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mtf_jax.evaluation import oracle
from mtf_jax.kernels.exploration import HALF_WIDTH
from mtf_jax.studies.progressive import collect as collect_lib
from mtf_jax.studies.progressive import drift as drift_lib
from mtf_jax.studies.progressive import experiment as experiment_lib
from mtf_jax.training import loop
from mtf_jax.worlds import env
from mtf_jax.worlds import returns as returns_lib


def num_bytes(tree: Any) -> int:
  """Bytes of the arrays of a pytree, or of their shapes."""
  return sum(
    leaf.size * leaf.dtype.itemsize
    for leaf in jax.tree.leaves(tree)
    if not jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
  )


def _lower_search(experiment: experiment_lib.Experiment, table: Any) -> Any:
  """The search of ES and of the privileged optimum, the larger of the two."""
  config, observe_fn = experiment.config, env.privileged_observation
  effort = max(
    config.es_search, config.oracle_search, key=lambda search: search.sessions
  )
  num_groups = experiment.world.group_weights.shape[1]

  def start(world, action):
    return oracle.start_policy(world, observe_fn, action, 1.0)

  def search(rng_key, world, table, policy):
    # Without the outcomes that are judged but not searched for: a copy.
    own = table._replace(reward=table.reward[..., :num_groups])
    return oracle.optimise(
      rng_key, world, own, policy, effort, config.max_requests, observe_fn
    )

  policy = jax.eval_shape(
    jax.vmap(start), experiment.world, experiment.baseline_action
  )
  return jax.jit(jax.vmap(search)).lower(
    experiment.keys["search"], experiment.world, table, policy
  )


def programs(
  experiment: experiment_lib.Experiment,
) -> tuple[dict[str, Any], dict[str, int]]:
  """Lowers what a run executes at its size, from shapes.

  Args:
    experiment: of `experiment_lib.assemble`, with `start` set.

  Returns:
    Name -> lowered program, and name -> bytes of what stays on the device.
  """
  config, study_learner = experiment.config, experiment.study_learner
  key = experiment.keys["round"]
  params = jax.eval_shape(
    lambda state: experiment_lib.policy_params(
      study_learner, state, HALF_WIDTH
    ),
    experiment.start,
  )
  size = config.sessions_per_round // config.collect_parts
  parts = config.rounds * config.collect_parts
  collect = collect_lib.collect_part.lower(
    key,
    experiment.world,
    study_learner.act,
    params,
    size,
    config.max_requests,
    config.exploration,
  )
  part = collect.out_info
  room = jax.eval_shape(lambda part: collect_lib.empty_rows(part, parts), part)
  table = jax.eval_shape(
    jax.vmap(returns_lib.expected_rewards), experiment.evaluation_world
  )
  dataset = jax.eval_shape(collect_lib.as_dataset, room)
  train = config.train

  def made_anew(rows):
    made = collect_lib.as_dataset(rows, train.num_steps, train.discount)
    # The rest of the rows stays where it is.
    fields = (made.discount, made.next_row, made.start_row)
    return (*fields, made.reward) if train.num_steps > 1 else fields

  drift = functools.partial(drift_lib.drift, study_learner.learner)
  lowered = {
    "expected_rewards": jax.jit(jax.vmap(returns_lib.expected_rewards)).lower(
      experiment.evaluation_world
    ),
    "search": _lower_search(experiment, table),
    "collect_part": collect,
    "put_rows": collect_lib.put_rows.lower(
      room, part, jnp.zeros((), jnp.int32)
    ),
    "as_dataset": jax.jit(made_anew).lower(room),
    "update_chunk": loop.update_chunk_many.lower(
      study_learner.learner,
      jax.eval_shape(jax.vmap(loop.start), key, experiment.start),
      dataset,
      batch_size=train.batch_size,
      num_updates=train.chunk_size,
      freeze=False,
    ),
    "drift": jax.jit(jax.vmap(drift)).lower(
      experiment.start, experiment.start, dataset
    ),
    "evaluate": experiment_lib.evaluate_seeds.lower(
      key,
      experiment.evaluation_world,
      table,
      study_learner.act,
      params,
      config.evaluation_sessions,
      config.max_requests,
      jnp.asarray(False),
    ),
  }
  state = num_bytes(experiment.start)
  resident = {
    "worlds": num_bytes((experiment.world, experiment.evaluation_world)),
    "reward_table": num_bytes(table),
    # Before the first round, in service, in training, and at the start of the
    # chunk that is being trained.
    "learner_states": 4 * state,
    "rows": num_bytes(dataset),
    # Of the rows as logged; the dataset is without them, and they stay until
    # it is made.
    "row_flags": num_bytes(
      (room.terminal, room.bootstrap_only, room.step, room.valid)
    ),
  }
  return lowered, resident


def measure(experiment: experiment_lib.Experiment) -> dict[str, Any]:
  """Compiles the programs of a run and adds up what they need.

  Args:
    experiment: of `experiment_lib.assemble`, with `start` set.

  Returns:
    Ready for JSON: `programs`, `resident_bytes`, and `peak_bytes_of_these`:
    what stays on the device and what the hungriest of these programs needs
    beside it, as if all were resident while it runs.
  """
  lowered, resident = programs(experiment)
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
    "peak_bytes_of_these": sum(resident.values()) + fresh,
  }
