"""Trains a learner on a file of logged sessions.

  python -m experiments.train --dataset=runs/log.npz --out_dir=runs/a \
    --preset=cpu

Run again with the same flags, it goes on from the newest checkpoint that is whole.
"""

import dataclasses
import json
from collections.abc import Sequence

from absl import app, flags, logging

from mtf_jax.data import session_log, transitions
from mtf_jax.learners.registry import LEARNERS
from mtf_jax.training.checkpoints import CheckpointError, digest
from mtf_jax.training.config import ACTORS, CRITICS, PRESETS, TrainConfig
from mtf_jax.training.loop import TrainState
from mtf_jax.training.resumable import train_in_folder

_DATASET = flags.DEFINE_string(
  "dataset", None, "Logged sessions (.npz).", required=True
)
_OUT_DIR = flags.DEFINE_string(
  "out_dir", None, "Checkpoints and metrics go here.", required=True
)
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
_SEED = flags.DEFINE_integer("seed", None, "Seed of networks and batches.")
_HYPERPARAM = flags.DEFINE_multi_string(
  "hyperparam",
  [],
  "A number of the learner, as penalty_scale=0.5 or group_weights=1,2;"
  " repeatable.",
)
_KEEP = flags.DEFINE_integer("keep", 3, "Checkpoints to keep.", 1)


def _hyperparams(items: Sequence[str]) -> dict[str, float | tuple[float, ...]]:
  values = {}
  for item in items:
    name, _, text = item.partition("=")
    try:
      numbers = tuple(float(number) for number in text.split(","))
    except ValueError:
      raise ValueError(
        f"--hyperparam: expected name=number[,number], found {item!r}."
      ) from None
    values[name] = numbers if len(numbers) > 1 else numbers[0]
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
  return dataclasses.replace(PRESETS[_PRESET.value], **given)


def _load(path: str) -> tuple[session_log.SessionLog, dict[str, str]]:
  try:
    return session_log.load_sessions(path)
  except FileNotFoundError as error:
    raise app.UsageError(
      f"--dataset: {path} cannot be read ({error.strerror})."
    ) from error
  except ValueError as error:  # It names the file.
    raise app.UsageError(f"--dataset: {error}") from error


def _train() -> TrainState:
  config = _config()
  log, metadata = _load(_DATASET.value)
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
  )


def main(argv: Sequence[str]) -> None:
  """Trains, or goes on training."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  # Orbax reports every step of a save.
  logging.set_verbosity(logging.WARNING)
  try:
    state = _train()
  except (FileExistsError, NotADirectoryError, PermissionError) as error:
    raise app.UsageError(
      f"--out_dir: {_OUT_DIR.value} cannot be written to ({error.strerror})."
    ) from error
  except CheckpointError as error:
    raise app.UsageError(f"--out_dir: {error}") from error
  except ValueError as error:  # It names the flag or the field.
    raise app.UsageError(str(error)) from error
  print(json.dumps({"step": int(state.step), "sha256": digest(state)}))


if __name__ == "__main__":
  app.run(main)
