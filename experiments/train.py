"""Trains a learner on a file of logged sessions.

  python -m experiments.train --dataset=runs/log.npz --out_dir=runs/a \
    --preset=cpu

Run again with the same flags, it goes on from the newest checkpoint that is whole.
"""

import dataclasses
import json
from collections.abc import Sequence

from absl import flags

from experiments import launch
from mtf_jax.data import session_log, transitions
from mtf_jax.io import InputError
from mtf_jax.learners.registry import LEARNERS
from mtf_jax.training.checkpoints import digest
from mtf_jax.training.config import ACTORS, CRITICS, PRESETS, TrainConfig
from mtf_jax.training.loop import TrainState
from mtf_jax.training.resumable import train_in_folder

_DATASET = launch.define_in_file(
  "dataset", None, "Logged sessions (.npz).", "a session file (.npz)"
)
_OUT_DIR = launch.define_out_dir(None)
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
    "seed": _SEED.value,
    "hyperparams": _hyperparams(_HYPERPARAM.value) or None,
  }
  given = {name: value for name, value in given.items() if value is not None}
  with launch.refusals():  # They name the field.
    return dataclasses.replace(PRESETS[_PRESET.value], **given)


def _train() -> TrainState:
  config = _config()
  with launch.refusals("--dataset: "):  # They name the file.
    log, metadata = session_log.load_sessions(_DATASET.value)
  dataset = transitions.device_dataset(
    log, num_steps=config.num_steps, discount=config.discount
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
    tensorboard=_TENSORBOARD.value,
  )


def main() -> None:
  """Trains, or goes on training."""
  state = _train()
  print(json.dumps({"step": int(state.step), "sha256": digest(state)}))


if __name__ == "__main__":
  launch.run(main, resume=tuple)
