"""Logs sessions of a world under bounded exploration, as a training file.

  python -m experiments.collect --world=synthetic --sessions=20000 \
    --out=runs/log.npz

The policy explored around is the default weights (action 0) or `--action`. With
`--items` the shown items are logged one by one, for learners of user-item pairs. With
`--cells` requests are ranked by monotone cells made from these weights, the curve on
top is explored, and candidates' scores are logged, for learners of cells.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags
from jax.sharding import Mesh

from experiments import devices, launch, worlds
from mtf_jax import policies
from mtf_jax.data import session_log
from mtf_jax.data.behaviours import TASKS
from mtf_jax.fitting import synthetic
from mtf_jax.io import InputError
from mtf_jax.kernels.exploration import HALF_WIDTH
from mtf_jax.training.metrics import shown_steps
from mtf_jax.worlds import candidates, cells, env, log_parts
from mtf_jax.worlds.leaving import LEAVING_MODELS
from mtf_jax.worlds.rollout import ObserveFn
from mtf_jax.worlds.world import World, fingerprint

_WORLD = worlds.define_world()
_SIZE = flags.DEFINE_enum(
  "size", "small", list(synthetic.SIZES), "Size of the synthetic world."
)
_WORLD_SEED = launch.define_seed("world_seed", 0, "Of the synthetic world.")
_LEAVING = flags.DEFINE_enum(
  "leaving", None, sorted(LEAVING_MODELS), "Leaving model, if not the world's."
)
_ACTION = flags.DEFINE_list(
  "action", None, "Action explored around, 10 numbers in [-1, 1]."
)
_ITEMS = flags.DEFINE_enum(
  "items",
  None,
  list(policies.SHARINGS),
  "Log the shown items; all candidates of a request deviate alike (list), or each"
  " by itself (item).",
)
_CELLS = flags.DEFINE_boolean(
  "cells", None, "Rank by monotone cells, log scores of candidates."
)
flags.mark_flags_as_mutual_exclusive(["items", "cells"])
_SESSIONS = flags.DEFINE_integer("sessions", 20_000, "Sessions.", 1)
_MAX_REQUESTS = flags.DEFINE_integer(
  "max_requests", 20, "Requests after which a session is cut.", 1
)
_SEED = launch.define_seed("seed", 0, "Seed of users and exploration.")
_OUT = launch.define_out_file("out", "runs/log.npz", "File to write.")


def _action() -> jax.Array:
  num_components = 2 * len(TASKS)
  if _ACTION.value is None:
    return jnp.zeros(num_components)
  action = launch.numbers("action", _ACTION.value)
  if len(action) != num_components or not all(abs(a) <= 1 for a in action):
    raise InputError(
      f"--action: expected {num_components} numbers in [-1, 1], found"
      f" {','.join(_ACTION.value)}."
    )
  return jnp.array(action)


def _mesh() -> Mesh | None:
  mesh = devices.mesh()
  if mesh is not None and mesh.shape["data"] < mesh.size:
    raise InputError(
      "--mesh: expected devices on data alone, which sessions are divided over,"
      f" found {dict(mesh.shape)}."
    )
  return mesh


def _world() -> World:
  world = worlds.make_or_load(_WORLD.value, _SIZE.value, _WORLD_SEED.value)
  if _LEAVING.value is not None:
    world = world.with_leaving(_LEAVING.value)
  return world


def _policy(
  world: World, action: jax.Array
) -> tuple[policies.Act, Any, ObserveFn]:
  """What acts, its parameters, and what it sees."""
  if _CELLS.value:
    return (
      policies.explore_cells(policies.same_cells),
      policies.PolicyParams(
        cells.formula_cells(world, action), policies.CURVE_HALF_WIDTH, 0.0
      ),
      env.observe,
    )
  if _ITEMS.value is None:
    return policies.explore_in_box, action, env.observe
  return (
    policies.explore_each(policies.global_action, _ITEMS.value),
    policies.PolicyParams(action, HALF_WIDTH, 0.0),
    candidates.observe_candidates,
  )


def main() -> None:
  """Rolls out, packs, writes."""
  action, mesh = _action(), _mesh()
  world = _world()
  act, params, observe_fn = _policy(world, action)
  log = log_parts.log_sessions(
    jax.random.key(_SEED.value),
    world,
    act,
    params,
    _SESSIONS.value,
    _MAX_REQUESTS.value,
    mesh=mesh,
    observe_fn=observe_fn,
    on_step=shown_steps("sessions"),
  )
  world_fingerprint = fingerprint(world)
  pathlib.Path(_OUT.value).parent.mkdir(parents=True, exist_ok=True)
  session_log.save_sessions(_OUT.value, log, {"world": world_fingerprint})
  print(
    f"{_SESSIONS.value} sessions, {int((~log.bootstrap_only).sum())} requests"
    f" in world {world_fingerprint}, written to {_OUT.value}"
  )


if __name__ == "__main__":
  launch.run(main)
