"""Trains a learner on a file of logged sessions.

  python -m experiments.train --dataset=log.npz --out_dir=runs/a --preset=cpu

Run again with the same flags, it goes on from the newest whole checkpoint.
"""

import dataclasses
import json
import pathlib
import sys
import time
from collections.abc import Sequence

import jax
from absl import app, flags, logging

from mtf_jax.data import session_log, transitions
from mtf_jax.learners.base import normalization_from
from mtf_jax.learners.registry import LEARNERS
from mtf_jax.training import loop
from mtf_jax.training.checkpoints import Checkpoints, digest
from mtf_jax.training.config import (
  PRESETS,
  TrainConfig,
  hyperparams_of,
  make_learner,
)
from mtf_jax.training.metrics import (
  MetricsWriter,
  NegativeTargetWarning,
  Progress,
  summarize,
)

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
_ACTOR = flags.DEFINE_enum("actor", None, ["mlp", "ple"], "Policy network.")
_CRITIC = flags.DEFINE_enum(
  "critic", None, ["mlp", "box", "box_quadratic"], "Critic network."
)
_ENSEMBLE_SIZE = flags.DEFINE_integer(
  "ensemble_size", None, "Critics of a reward group."
)
_NUM_UPDATES = flags.DEFINE_integer("num_updates", None, "Updates in all.")
_CRITIC_UPDATES = flags.DEFINE_integer(
  "critic_updates", None, "Critic updates before an actor update."
)
_NUM_STEPS = flags.DEFINE_integer(
  "num_steps", None, "Requests that a transition spans, for n-step returns."
)
_SEED = flags.DEFINE_integer("seed", None, "Seed of networks and batches.")
_HYPERPARAM = flags.DEFINE_multi_string(
  "hyperparam",
  [],
  "A number of the learner, as penalty_scale=0.5 or group_weights=1,2;"
  " repeatable.",
)
_ROUND = flags.DEFINE_integer("round", 0, "Round of progressive training.")
_KEEP = flags.DEFINE_integer("keep", 3, "Checkpoints to keep.")


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


def _say(message: str) -> None:
  print(message, file=sys.stderr, flush=True)


def _check_same_run(found: dict, expected: dict) -> None:
  """Refuses to go on from the checkpoint of another run."""
  for part in ("config", "dataset", "world", "round"):
    before, now = found[part], expected[part]
    if part == "config":
      before, now = (
        {k: v for k, v in values.items() if k != "num_updates"}
        for values in (before, now)
      )
      differ = {
        k: (before.get(k), now[k]) for k in now if before.get(k) != now[k]
      }
    else:
      differ = {part: (before, now)} if before != now else {}
    for name, (old, new) in differ.items():
      raise ValueError(
        f"{name}: expected {old!r} as in the checkpoint of --out_dir, found"
        f" {new!r}; use another --out_dir for another run."
      )


def main(argv: Sequence[str]) -> None:
  """Trains, or goes on training."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  # Orbax reports every step of a save.
  logging.set_verbosity(logging.WARNING)
  config = _config()
  log, metadata = session_log.load_sessions(_DATASET.value)
  record = {
    "config": config.to_json(),
    "dataset": session_log.fingerprint(log),
    "world": metadata.get("world", ""),
    "round": _ROUND.value,
  }
  dataset = transitions.device_dataset(
    log, num_steps=config.num_steps, discount=config.discount
  )
  learner = make_learner(config, dataset)
  network_key, batch_key, example_key = jax.random.split(
    jax.random.key(config.seed), 3
  )
  example = transitions.sample_transitions(example_key, dataset, 1)
  hyperparams = {
    name: jax.numpy.asarray(value) for name, value in config.hyperparams.items()
  }
  state = loop.start(
    batch_key,
    learner.init(
      network_key,
      jax.tree.map(lambda leaf: leaf[0], example),
      hyperparams_of(config.learner)(**hyperparams),
      normalization_from(dataset),
    ),
  )

  out_dir = pathlib.Path(_OUT_DIR.value)
  out_dir.mkdir(parents=True, exist_ok=True)
  checkpoints = Checkpoints(out_dir / "checkpoints", keep=_KEEP.value)
  restored = checkpoints.restore(
    state, check=lambda found: _check_same_run(found, record)
  )
  if restored is None:
    _say(f"No checkpoint in {out_dir}: starting at update 0.")
    checkpoints.save(0, state, record)
  else:
    state, _ = restored
    _say(f"Going on from update {state.step}.")
  first_step = int(state.step)
  writer = MetricsWriter(out_dir / "metrics.jsonl", first_step)
  progress = Progress(first_step, config.num_updates)
  negative_targets = NegativeTargetWarning()

  def on_chunk(state, metrics):
    step = int(state.step)
    row = summarize(metrics)
    negative_targets.check(row)
    rate = progress.update(step)
    writer.write(
      {"step": step, "time": time.time(), "updates_per_s": rate, **row}
    )
    if step % config.checkpoint_every == 0 or step == config.num_updates:
      checkpoints.save(step, state, record)

  try:
    state = loop.train(
      learner,
      state,
      dataset,
      config.num_updates,
      batch_size=config.batch_size,
      chunk_size=config.chunk_size,
      on_chunk=on_chunk,
    )
  except loop.NonFiniteError as error:
    if error.step not in checkpoints.steps():
      checkpoints.save(error.step, error.state, record)
    logging.error("%s The state before it is saved.", error)
    raise
  finally:
    checkpoints.close()
  print(json.dumps({"step": int(state.step), "sha256": digest(state)}))


if __name__ == "__main__":
  app.run(main)
