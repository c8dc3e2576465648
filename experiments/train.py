"""Trains a learner on a file of logged sessions, or on a folder of them.

  python -m experiments.train --dataset=runs/log.npz --out_dir=runs/a \
    --preset=cpu
  python -m experiments.train --log=runs/log --out_dir=runs/a

A folder whose rows do not fit on the device is streamed: part of it is there at
a time. A learner with bounds on what a reward group may lose (`allowed_loss`) is
told first which losses the log's sessions could show.

Run again with the same flags, it goes on from the newest checkpoint that is whole,
on whatever devices there are; docs/many_devices.md has meshes and processes.
"""

import dataclasses
import json
import sys
from collections.abc import Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax.sharding import Mesh

from experiments import devices, joining, launch
from mtf_jax.data import (
  candidate_scores,
  session_log,
  sharded,
  shown_items,
  stream,
  transitions,
)
from mtf_jax.data.behaviours import BEHAVIOURS
from mtf_jax.data.log_strata import LogStrata
from mtf_jax.data.session_log import SessionLog
from mtf_jax.distributed import processes
from mtf_jax.evaluation import guardrails
from mtf_jax.evaluation.tables import text as table_text
from mtf_jax.io import InputError
from mtf_jax.learners.base import normalization_of
from mtf_jax.learners.registry import LEARNERS
from mtf_jax.training import machine
from mtf_jax.training.checkpoints import digest
from mtf_jax.training.config import ACTORS, CRITICS, PRESETS, TrainConfig
from mtf_jax.training.loop import TrainState
from mtf_jax.training.resumable import train_in_folder

_DATASET = launch.define_in_file(
  "dataset",
  None,
  "Logged sessions (.npz).",
  "a session file (.npz)",
  required=False,
)
_LOG = launch.define_in_dir(
  "log", None, "Logged sessions, a folder of experiments.import_log."
)
flags.mark_flags_as_mutual_exclusive(["dataset", "log"], required=True)
_DEVICE_GIB = flags.DEFINE_float(
  "device_gib",
  None,
  "Memory of the device for the rows of --log; one that takes more is streamed."
  " A quarter of the device's memory if omitted.",
  0.0,
)
_OUT_DIR = launch.define_out_dir(None)
_COMPILATION_CACHE_DIR = launch.define_compilation_cache_dir()
_PRESET = flags.DEFINE_enum("preset", "cpu", list(PRESETS), "Size of the run.")
_LEARNER = flags.DEFINE_enum(
  "learner", "integrated_rl", list(LEARNERS), "Algorithm."
)
_ACTOR = flags.DEFINE_enum("actor", None, list(ACTORS), "Policy network.")
_CRITIC = flags.DEFINE_enum("critic", None, list(CRITICS), "Critic network.")
_ENSEMBLE_SIZE = flags.DEFINE_integer(
  "ensemble_size", None, "Critics of a reward group.", 1
)
_NUM_UPDATES = flags.DEFINE_integer("num_updates", None, "Updates in all.", 1)
_CRITIC_UPDATES = flags.DEFINE_integer(
  "critic_updates", None, "Critic updates before an actor update.", 1
)
_NUM_STEPS = flags.DEFINE_integer(
  "num_steps", None, "Requests that a transition spans, for n-step returns.", 1
)
_NUM_STRATA = flags.DEFINE_integer(
  "num_strata",
  None,
  "Parts of the log that each batch has equally many transitions of; devices on"
  " data that divide them keep each row once.",
  1,
)
_SEED = launch.define_seed("seed", None, "Seed of networks and batches.")
_HYPERPARAM = flags.DEFINE_multi_string(
  "hyperparam",
  [],
  "A number of the learner, as penalty_scale=0.5 or group_weights=1,2;"
  " repeatable.",
)
_TENSORBOARD = flags.DEFINE_boolean(
  "tensorboard",
  False,
  "Write the folder tensorboard in --out_dir, too; needs the extra of that name.",
)
_KEEP = flags.DEFINE_integer("keep", 3, "Checkpoints to keep.", 1)


def _hyperparams(items: Sequence[str]) -> dict[str, float | tuple[float, ...]]:
  values = {}
  for item in items:
    name, _, text = item.partition("=")
    if not name or not text:
      raise InputError(
        f"--hyperparam: expected name=number[,number], found {item!r}."
      )
    if name in values:
      raise InputError(f"--hyperparam: expected {name} once, found it twice.")
    numbers = launch.numbers("hyperparam", text.split(","))
    values[name] = tuple(numbers) if len(numbers) > 1 else numbers[0]
  return values


def _config() -> TrainConfig:
  given = {
    "learner": _LEARNER.value,
    "actor": _ACTOR.value,
    "critic": _CRITIC.value,
    "ensemble_size": _ENSEMBLE_SIZE.value,
    "num_updates": _NUM_UPDATES.value,
    "critic_updates": _CRITIC_UPDATES.value,
    "num_steps": _NUM_STEPS.value,
    "num_strata": _NUM_STRATA.value,
    "seed": _SEED.value,
    "hyperparams": _hyperparams(_HYPERPARAM.value) or None,
  }
  given = {name: value for name, value in given.items() if value is not None}
  with launch.refusals():  # They name the field.
    return dataclasses.replace(PRESETS[_PRESET.value], **given)


def _say_detectable(
  config: TrainConfig,
  logs: Iterable[SessionLog],
  group_names: Sequence[str],
  behaviour_names: Sequence[str],
) -> None:
  """Before a run with bounds: which losses the sessions at hand could show."""
  allowed_loss = config.hyperparam("allowed_loss", None)
  if allowed_loss is not None and processes.is_first():
    sums = guardrails.session_sums(logs)
    found = guardrails.table(sums, group_names, behaviour_names, allowed_loss)
    print(table_text(found), file=sys.stderr)


def _names_of_file(
  log: SessionLog, of_world: bool
) -> tuple[Sequence[str], Sequence[str]]:
  """Of reward groups and behaviours; a file has none, worlds have theirs."""
  groups = [f"reward group {n}" for n in range(log.reward.shape[1])]
  num_behaviours = log.feedback.shape[1]
  if of_world and num_behaviours == len(BEHAVIOURS):
    return groups, BEHAVIOURS
  return groups, [f"behaviour {n}" for n in range(num_behaviours)]


def _train_on_file(config: TrainConfig) -> TrainState:
  mesh = devices.mesh()
  with launch.refusals("--dataset: "):  # They name the file.
    log, metadata = session_log.load_sessions(_DATASET.value)
    rows = log
    entry = LEARNERS[config.learner]
    if not entry.of_cells:
      candidate_scores.check_actions_of_formula(log.candidates)
    if not entry.of_pairs:
      shown_items.check_deviate_alike(log.items)
      rows = log._replace(items=None)  # Large, and of no use.
  _say_detectable(config, [log], *_names_of_file(log, "world" in metadata))
  with devices.load_on_host(mesh):
    dataset = transitions.device_dataset(
      rows, num_steps=config.num_steps, discount=config.discount
    )
    return train_in_folder(
      config,
      dataset,
      _OUT_DIR.value,
      {
        "dataset": session_log.fingerprint(log),
        "world": metadata.get("world", ""),
      },
      keep=_KEEP.value,
      mesh=mesh,
      tensorboard=_TENSORBOARD.value,
    )


def _bytes_for_rows(divided: Mesh | None) -> float:
  """Memory for the rows of a log; of all devices that the mesh divides them over."""
  if _DEVICE_GIB.value is not None:
    holders = 1 if divided is None else divided.shape["data"]
    return _DEVICE_GIB.value * 2**30 * holders
  holders = 1
  if divided is not None:
    # Devices of a CPU share the memory of their host.
    on_cpu = divided.devices.flat[0].platform == "cpu"
    holders = jax.process_count() if on_cpu else divided.shape["data"]
  return machine.device_bytes() / 4 * holders


def _train_on_folder(config: TrainConfig) -> TrainState:
  mesh = devices.mesh()
  with launch.refusals("--log: "):  # They name the file.
    log = sharded.open_log(_LOG.value)
    in_parts = mesh is not None and config.num_strata > 1
    num_shards = stream.pool_shards(
      log, _bytes_for_rows(mesh if in_parts else None)
    )
  _say_detectable(
    config,
    map(log.load, range(len(log.manifest.shards))),
    log.manifest.group_names,
    log.manifest.behaviour_names,
  )
  steps = {"num_steps": config.num_steps, "discount": config.discount}
  pool, pool_config, log_strata = None, None, None
  if num_shards is not None:
    pool_config = stream.PoolConfig(
      num_shards, config.batch_size, config.chunk_size, config.seed
    )
    pool = stream.ShardPool(log, pool_config, **steps)
    print(
      f"Streaming {log.manifest.rows} rows: {num_shards} of"
      f" {len(log.manifest.shards)} shards are on the device at a time.",
      file=sys.stderr,
    )
  with devices.load_on_host(mesh):
    if pool is None and not in_parts:
      example = log.load_all()
    else:
      # Of rows that come in parts a file is enough, if it has a transition.
      counts = [shard.transitions for shard in log.manifest.shards]
      example = log.load(int(np.argmax(np.asarray(counts) > 0)))
    dataset = transitions.device_dataset(example, **steps)
    if pool is None and in_parts:
      with launch.refusals("--"):  # It names num_strata.
        log_strata = LogStrata(log, config.num_strata, **steps)
    return train_in_folder(
      config,
      dataset,
      _OUT_DIR.value,
      {
        "dataset": log.fingerprint,
        "world": log.manifest.source.get("world", ""),
        "stream": None if pool_config is None else pool_config._asdict(),
      },
      keep=_KEEP.value,
      mesh=mesh,
      normalization=normalization_of(
        jnp.asarray(log.manifest.mean, jnp.float32),
        jnp.asarray(log.manifest.stddev, jnp.float32),
      ),
      stream=pool,
      log_strata=log_strata,
      tensorboard=_TENSORBOARD.value,
    )


def main() -> None:
  """Trains, or goes on training."""
  config = _config()
  devices.keep_compiled_programs(_COMPILATION_CACHE_DIR.value)
  with joining.joined():
    on = _train_on_file if _LOG.value is None else _train_on_folder
    state = processes.whole(on(config))
    if processes.is_first():
      print(json.dumps({"step": int(state.step), "sha256": digest(state)}))


if __name__ == "__main__":
  launch.run(main, resume=tuple)
