"""What one update sends between devices and keeps on each; speeds on paper.

  XLA_FLAGS=--xla_force_host_platform_device_count=8 \
    python -m benchmarks.scaling --json_out=benchmarks/results/scaling.json

Nothing is trained: collectives and memory are read from programs compiled for
simulated devices. What accelerators would do with them is arithmetic on published
speeds of links and memory; docs/results/scaling.md says which.

Letters: `N` devices.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import harness
from experiments import launch
from mtf_jax.data import strata, transitions
from mtf_jax.distributed import collectives
from mtf_jax.distributed import mesh as mesh_lib
from mtf_jax.io import json_text
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.training import loop, resumable
from mtf_jax.training.config import PRESETS, TrainConfig, make_learner

_FEATURES, _COMPONENTS, _GROUPS = 64, 10, 2
# Preset `paper`, and one of 100 times its parameters.
CONFIGS = {
  "paper": PRESETS["paper"],
  "paper_100x": dataclasses.replace(
    PRESETS["paper"], hidden_sizes=(2880, 2880)
  ),
}
MESHES = ({"data": 8}, {"data": 4, "critic": 2}, {"critic": 8})


class Machine(NamedTuple):
  """Speeds of an accelerator and its links; sources in docs/results/scaling.md.

  update_s: one update of 256 transitions on one device, assumed.
  memory_bytes_per_s: of the device's memory.
  node_size: devices that the fast links join.
  node_bytes_per_s, network_bytes_per_s: of a device's links, one way, within a
    node and between nodes.
  latency_s: of one collective, assumed.
  """

  update_s: float = 200e-6
  memory_bytes_per_s: float = 3.35e12
  node_size: int = 8
  node_bytes_per_s: float = 370e9
  network_bytes_per_s: float = 50e9
  latency_s: float = 20e-6


def _abstract_run(config: TrainConfig, num_rows: int = 4096) -> Any:
  """Learner, state and rows of a run, shapes only."""

  def rows_of():
    def zeros(*shape, dtype=jnp.float32):
      return jnp.zeros((num_rows, *shape), dtype)

    bound = zeros(_COMPONENTS)
    return transitions.TransitionDataset(
      observation=zeros(_FEATURES),
      action=bound,
      box=ActionBox(bound, bound),
      log_prob=zeros(),
      exploration_held=zeros(dtype=jnp.bool_),
      reward=zeros(_GROUPS),
      discount=zeros(),
      next_row=zeros(dtype=jnp.int32),
      next_is_request=zeros(dtype=jnp.bool_),
      start_row=zeros(dtype=jnp.int32),
      num_transitions=jnp.ones((), jnp.int32),
    )

  rows = jax.eval_shape(rows_of)
  learner = make_learner(config, rows)
  state = jax.eval_shape(
    functools.partial(resumable.initial_state, config, learner), rows
  )
  return learner, state, rows


def _in_strata(rows: Any, num_strata: int) -> strata.Strata:
  def divided(leaf):
    rest = (leaf.shape[0] // num_strata, *leaf.shape[1:]) if leaf.ndim else ()
    return jax.ShapeDtypeStruct((num_strata, *rest), leaf.dtype)

  return strata.Strata(jax.tree.map(divided, rows))


def measure(config: TrainConfig, sizes: dict[str, int]) -> dict[str, Any]:
  """Collectives of one update and bytes of each device, from the program."""
  mesh = mesh_lib.make_mesh(sizes)
  learner, state, rows = _abstract_run(config)
  divided = _in_strata(rows, 8)
  part = NamedSharding(mesh, PartitionSpec("data"))

  def placed(leaf, sharding):
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

  program = loop.update_chunk.lower(
    learner,
    jax.tree.map(placed, state, mesh_lib.state_shardings(mesh, state)),
    jax.tree.map(lambda leaf: placed(leaf, part), divided),
    batch_size=config.batch_size,
    num_updates=config.chunk_size,
    mesh=mesh,
    freeze=False,
  ).compile()
  found = collectives.collectives_of(program.as_text())
  memory = program.memory_analysis()
  params = state.learner.actor_params, state.learner.critic_params
  return {
    "mesh": sizes,
    "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
    "collectives": [item._asdict() for item in found],
    "bytes_of_update": sum(item.num_bytes for item in found),
    "state_and_rows_bytes": memory.argument_size_in_bytes,
    "temporary_bytes": memory.temp_size_in_bytes,
  }


def on_paper(
  machine: Machine, axis: str, devices: int, program: dict[str, Any]
) -> dict[str, Any]:
  """Updates a second over one axis of a mesh, by arithmetic.

  Adam and the soft updates read 5 arrays of the parameters' size (gradient,
  parameter, two moments, target) and write 4. Over `data` every device does that
  for all parameters, and the rest of `update_s`, the batch's, is divided; over
  `critic` both are. A sum over N devices moves `2 (N - 1) / N` of its bytes through
  each device's links; over several nodes it is summed within each first, so that a
  device sends its part alone over the network.

  Args:
    machine: its speeds.
    axis: "data" or "critic".
    devices: N.
    program: of `measure`, over that axis.

  Returns:
    Microseconds of communication; updates a second with 256 transitions in all
    (strong); over `data` also with 256 on each device (weak), and the share of N
    times one device's transitions a second.
  """
  num_bytes = program["bytes_of_update"]
  fixed = 0.0
  if axis == "data":
    fixed = 9 * 4 * program["parameters"] / machine.memory_bytes_per_s
  sent = 0.0
  if devices > 1:
    within = min(devices, machine.node_size)
    nodes = devices // within
    sent = 2 * (within - 1) / within * num_bytes / machine.node_bytes_per_s
    # Each device then sums its own part of the arrays with its like elsewhere.
    of_device = num_bytes / within / machine.network_bytes_per_s
    sent += 2 * (nodes - 1) / nodes * of_device
    sent += len(program["collectives"]) * machine.latency_s
  strong = fixed + (machine.update_s - fixed) / devices + sent
  found = {
    "axis": axis,
    "devices": devices,
    "communication_us": round(sent * 1e6, 1),
    "strong_updates_per_s": round(1 / strong),
    "strong_speedup": round(machine.update_s / strong, 2),
  }
  if axis == "data":
    weak = machine.update_s + sent
    found["weak_updates_per_s"] = round(1 / weak)
    found["weak_efficiency"] = round(machine.update_s / weak, 2)
  return found


def main() -> None:
  """Compiles, counts and calculates."""
  programs = {
    name: [measure(config, sizes) for sizes in MESHES]
    for name, config in CONFIGS.items()
  }
  # 100 times the parameters are 100 times the contractions.
  machines = {"paper": Machine(), "paper_100x": Machine(update_s=20e-3)}
  table = [
    {"preset": name, **on_paper(machine, axis, devices, programs[name][place])}
    for name, machine in machines.items()
    # 24 critics of a group are divided by 8, not by more powers of 2.
    for axis, place, most in (("data", 0, 64), ("critic", 2, 8))
    for devices in (1, 2, 4, 8, 16, 32, 64)
    if devices <= most
  ]
  for row in table:
    print(json_text(row), flush=True)
  if harness.JSON_OUT.value:
    harness.write_json(
      harness.JSON_OUT.value,
      {
        "environment": harness.environment(),
        "machines": {
          name: machine._asdict() for name, machine in machines.items()
        },
        "programs": programs,
        "table": table,
      },
    )


if __name__ == "__main__":
  launch.run(main)
