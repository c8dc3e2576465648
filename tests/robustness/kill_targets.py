"""Runs that are killed: small, quick to start, the same bits each time.

What is trained is a toy and what a round of progressive training computes is
simple arithmetic, so that a life takes a second. All that touches the folder is
the package's own: `train_in_folder` with its loop, `run_study` with its rounds,
single batch and result, checkpoints, metrics, locks.
"""

import contextlib
import dataclasses
import functools
import pathlib
import types
from collections.abc import Callable
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data import transitions
from mtf_jax.learners import registry
from mtf_jax.learners.base import Learner
from mtf_jax.studies.progressive import baselines, play, study
from mtf_jax.studies.progressive.experiment import Experiment
from mtf_jax.studies.progressive.run_dir import Plan, RunDir
from mtf_jax.training import loop, resumable
from mtf_jax.training.config import TrainConfig
from tests.session_logs import random_log
from tests.tiny_run import TINY, tiny_plan

_ROUNDS = 3
_SIZES = {"chunk_size": 2, "checkpoint_every": 4, "batch_size": 8}


class _Hyperparams(NamedTuple):
  rate: Any = 0.1


class _State(NamedTuple):
  """Weights `[S, A]` of a linear policy."""

  weights: Any


class _Metrics(NamedTuple):
  loss: Any


def _toy() -> Learner:
  """Least squares by gradient descent."""

  def update(state, batch):
    error = batch.observation_tm1 @ state.weights - batch.action_tm1
    slope = batch.observation_tm1.T @ error
    return _State(state.weights - 0.01 * slope), _Metrics(jnp.mean(error**2))

  return Learner(None, update, None, None, None)


def _initial_state(
  config, learner, dataset, normalization=None
) -> loop.TrainState:
  del learner, normalization
  shape = (dataset.observation.shape[1], dataset.action.shape[1])
  state = _State(jnp.asarray(np.zeros(shape, np.float32)))
  return loop.start(jax.random.key(config.seed), state)


def play_train(folder: pathlib.Path) -> None:
  """Trains the toy in a folder, from where it was left."""
  entry = registry.Entry(lambda actor, critic, **_: _toy(), _Hyperparams)
  with (
    mock.patch.dict(registry.LEARNERS, {"toy": entry}),
    mock.patch.object(resumable, "initial_state", _initial_state),
  ):
    config = TrainConfig(
      learner="toy", num_updates=32, hidden_sizes=(4,), **_SIZES
    )
    dataset = transitions.device_dataset(
      random_log(num_rows=32), num_steps=1, discount=1.0
    )
    resumable.train_in_folder(
      config, dataset, folder, {"dataset": "d", "world": "w"}
    )


class _World:
  """Stands where a world is, and counts for nothing."""

  def with_leaving(self, name: str) -> "_World":
    del name
    return self


def _prepare(config, worlds, seeds, study_learner, mesh) -> Experiment:
  del mesh
  fields = dict.fromkeys(Experiment._fields)
  start = {"weights": jnp.asarray(np.ones((len(seeds), 64), np.float32))}
  return Experiment(
    **{
      **fields,
      "config": config,
      "seeds": tuple(seeds),
      "start": start,
      "study_learner": types.SimpleNamespace(learner=None),
    }
  )


def _train(experiment, state, number, num_updates, on_chunk) -> Any:
  """Another state, each chunk of it told."""
  size = experiment.config.train.chunk_size
  weights = np.array(state["weights"])
  runs = len(weights)
  for done in range(size, num_updates + 1, size):
    weights = weights * np.float32(0.9) + np.float32(number + done)
    metrics = _Metrics(np.repeat(weights[:, :1], size, axis=1))
    step = np.full(runs, done)
    on_chunk(loop.TrainState(None, None, step, np.ones(runs, bool)), metrics)
  return {"weights": jnp.asarray(weights)}


def _figures(state) -> list[dict[str, Any]]:
  return [
    {
      "reward_gain_pct": float(row[0]),
      "reward_gain_ci95": [float(row[0]) - 1, float(row[0]) + 1],
      "seconds": {"collect": 0.0, "train": 0.0, "evaluate": 0.0},
    }
    for row in np.asarray(state["weights"])
  ]


def _play_round(experiment, state, number, on_chunk):
  updates = experiment.config.train.num_updates
  new = _train(experiment, state, number, updates, on_chunk)
  return new, _figures(new)


def _play_single_batch(experiment, on_chunk):
  updates = experiment.config.rounds * experiment.config.train.num_updates
  new = _train(experiment, experiment.start, 0, updates, on_chunk)
  return new, _figures(new)


def _report(plan, run_dir, results, wall_s, say, mesh):
  del plan, say
  gains = {f"{seed}, {name}": x for (seed, name), x in results.items()}
  run_dir.write_json("summary.json", {"wall_s": wall_s, "runs": gains})


def _by_seed(experiment, *_) -> list[dict[str, Any]]:
  return [{} for _ in experiment.seeds]


@functools.cache
def _plan() -> Plan:
  train = dataclasses.replace(TINY.train, num_updates=8, **_SIZES)
  return tiny_plan(
    leaving=("net_exposure",),
    learners=("bc", "td3_bc"),
    config=dataclasses.replace(TINY, rounds=_ROUNDS, train=train),
  )


def play_progressive(folder: pathlib.Path) -> None:
  """Plays a progressive run in a folder, from where it was left."""
  plan, run_dir = _plan(), RunDir(folder)
  seeds = types.SimpleNamespace(seeds=plan.seeds)
  patches: list[tuple[Any, str, Any]] = [
    (study.synthetic, "synthetic_world", lambda *_: _World()),
    (study.study_learner_lib, "make_study_learner", lambda *_: None),
    (study, "_report", _report),
    (baselines, "prepare", _prepare),
    (baselines, "RIVALS", {}),
    (baselines, "baseline_figures", _by_seed),
    (play, "fingerprint", lambda world: "0" * 16),
    (
      play,
      "with_study_learner",
      lambda experiment, config, learner: experiment._replace(config=config),
    ),
    (play, "_check", lambda *_: None),
    (play, "evaluate_state", lambda *_, **__: None),
    (play.comparisons, "contest_results", lambda _: _by_seed(seeds)),
    (play.segments, "gains", lambda *_: {}),
    (play.rounds_lib, "play_round", _play_round),
    (play.rounds_lib, "play_single_batch", _play_single_batch),
  ]
  with contextlib.ExitStack() as stack:
    for holder, name, value in patches:
      stack.enter_context(mock.patch.object(holder, name, value))
    # As with and without --resume.
    begun = (folder / "run.json").exists()
    (run_dir.resume if begun else run_dir.claim)(plan)
    study.run_study(plan, run_dir, None, lambda said: None)


TARGETS: dict[str, Callable[[pathlib.Path], None]] = {
  "train": play_train,
  "progressive": play_progressive,
}
