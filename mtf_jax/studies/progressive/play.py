"""All rounds and the single batch of learners, from where they were left."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mtf_jax.evaluation import critic_check, segments
from mtf_jax.evaluation.ab_test import EvalResult
from mtf_jax.kernels.exploration import HALF_WIDTH
from mtf_jax.studies.progressive import baselines, comparisons
from mtf_jax.studies.progressive import rounds as rounds_lib
from mtf_jax.studies.progressive.config import ProgressiveConfig
from mtf_jax.studies.progressive.experiment import (
  Experiment,
  evaluate_state,
  policy_params,
  tree_index,
  with_study_learner,
)
from mtf_jax.studies.progressive.run_dir import GroupDir, LearnerDir
from mtf_jax.studies.progressive.study_learner import StudyLearner
from mtf_jax.training.metrics import (
  MetricsWriter,
  NegativeTargetWarning,
  Progress,
  summarize,
)
from mtf_jax.worlds.world import World, fingerprint

Say = Callable[[str], None]


class Watch:
  """Counts the updates of all runs, and writes those of one to a file.

  Args:
    total: updates in all.
    chunk_size: updates of a chunk.
  """

  def __init__(self, total: int, chunk_size: int):
    """Nothing is done yet."""
    self._progress = Progress(0, total)
    self._negative_targets = NegativeTargetWarning()
    self._done = 0
    self._chunk_size = chunk_size

  def skip(self, updates: int) -> None:
    """Counts updates that an earlier run did."""
    self._done += updates

  def follow(
    self, seeds: Sequence[int], writer: MetricsWriter | None, before: int
  ) -> rounds_lib.OnChunk:
    """`on_chunk` of a training run whose rows count from `before`."""

    def on_chunk(state, metrics):
      self._done += self._chunk_size
      self._progress.update(self._done)
      for n, seed in enumerate(seeds):
        row = summarize(tree_index(metrics, n))
        self._negative_targets.check(row)
        if writer is not None:
          step = before + int(state.step[n])
          writer.write({"seed": seed, "step": step, **row})

    return on_chunk


def _same_run(expected: Mapping[str, Any]):
  def check(found: dict[str, Any]) -> None:
    for name, value in expected.items():
      if found.get(name) != value:
        raise ValueError(
          f"{name}: expected {value!r} as in this run, found"
          f" {found.get(name)!r} in the checkpoint."
        )

  return check


def _check(
  experiment: Experiment, new: Any, old: Any
) -> list[dict[str, Any]] | None:
  """Values of `new` against the world, around `old` in service, by seed.

  None for a learner without values. One key for the last round and the single
  batch: both visit the same users.
  """
  config, learner = experiment.config, experiment.study_learner.learner
  if learner.value is None:
    return None
  effort = critic_check.Effort(
    states=config.check_states,
    continuations=config.check_continuations,
    sessions=config.check_sessions,
    max_requests=config.max_requests,
    exploration=config.exploration,
  )
  objective = critic_check.Objective(
    *(
      jnp.asarray(number, jnp.float32)
      for number in (
        config.train.hyperparam("discount", 1.0),
        config.train.hyperparam("group_weights", 1.0),
        config.train.hyperparam("reward_shift", 0.0),
      )
    )
  )
  logged = policy_params(experiment.study_learner, old, HALF_WIDTH)
  target = policy_params(experiment.study_learner, new)
  found = []
  for n in range(len(experiment.seeds)):
    world, table, behaviour, evaluated, of_new = (
      tree_index(x, n)
      for x in (experiment.world, experiment.table, logged, target, new)
    )
    compared = critic_check.compare_with_returns(
      experiment.keys["check"][n],
      world,
      table,
      experiment.study_learner.act,
      behaviour,
      evaluated,
      behaviour,
      learner.value,
      of_new,
      objective,
      effort,
    )
    found.append(critic_check.figures(jax.device_get(compared)))
  return found


def _play_rounds(
  experiment: Experiment,
  record: dict[str, Any],
  folder: LearnerDir,
  watch: Watch,
  say: Say,
) -> tuple[Any, list[list[dict[str, Any]]], dict[str, Any]]:
  """The state after all rounds, the rounds' figures, the last one's check."""
  config, seeds = experiment.config, experiment.seeds
  updates = config.train.num_updates
  state, rounds, check = experiment.start, [], None
  checkpoints = folder.open_rounds(config.rounds)
  try:
    restored = checkpoints.restore(state, _same_run(record))
    if restored is not None:
      state, found = restored
      rounds, check = found["rounds"], found["check"]
      watch.skip(len(rounds) * updates)
      say(f"{folder.path}: going on after round {len(rounds)}.")
    writer = MetricsWriter(folder.metrics, len(rounds) * updates)
    for number in range(len(rounds), config.rounds):
      on_chunk = watch.follow(seeds, writer, number * updates)
      old = state
      state, figures = rounds_lib.play_round(experiment, old, number, on_chunk)
      rounds.append(figures)
      if number + 1 == config.rounds:
        started = time.monotonic()
        check = {"figures": _check(experiment, state, old)}
        check["seconds"] = time.monotonic() - started
      checkpoints.save(
        number + 1, state, {**record, "rounds": rounds, "check": check}
      )
      for seed, of_seed in zip(seeds, figures, strict=True):
        low, high = of_seed["reward_gain_ci95"]
        say(
          f"seed {seed}, {folder.path}, round {number + 1} of"
          f" {config.rounds}: reward {of_seed['reward_gain_pct']:+.2f}%"
          f" [{low:+.2f}, {high:+.2f}] over the baseline policy"
        )
  finally:
    checkpoints.close()
  return state, rounds, check


def _play_single_batch(
  experiment: Experiment,
  record: dict[str, Any],
  folder: LearnerDir,
  watch: Watch,
) -> tuple[Any, dict[str, Any]]:
  """The state after the single batch, and its figures, check and seconds."""
  updates = experiment.config.train.num_updates
  checkpoints = folder.open_single_batch()
  try:
    restored = checkpoints.restore(experiment.start, _same_run(record))
    if restored is not None:
      watch.skip(experiment.config.rounds * updates)
      state, found = restored
      return state, found["single_batch"]
    started = time.monotonic()
    on_chunk = watch.follow(experiment.seeds, None, 0)
    state, figures = rounds_lib.play_single_batch(experiment, on_chunk)
    seconds = time.monotonic() - started
    started = time.monotonic()
    single = {
      "figures": figures,
      "seconds": seconds,
      "check": _check(experiment, state, experiment.start),
      "check_seconds": time.monotonic() - started,
    }
    checkpoints.save(1, state, {**record, "single_batch": single})
    return state, single
  finally:
    checkpoints.close()


def _play(
  experiment: Experiment,
  results: Mapping[str, EvalResult],
  record: dict[str, Any],
  folder: LearnerDir,
  watch: Watch,
  say: Say,
) -> list[dict[str, Any]]:
  """What one learner brought, by seed."""
  folder.path.mkdir(parents=True, exist_ok=True)
  last, rounds, check = _play_rounds(experiment, record, folder, watch, say)
  alone, single = _play_single_batch(experiment, record, folder, watch)
  of_last = evaluate_state(experiment, last)
  results = {
    **results,
    comparisons.LAST_ROUND: of_last,
    "single_batch": evaluate_state(experiment, alone),
    "last_round_uncut": evaluate_state(
      experiment, last, max_requests=experiment.config.uncut_requests
    ),
  }
  contests = comparisons.contest_results(results)
  spent = {
    name: sum(figures[0]["seconds"][name] for figures in rounds)
    for name in ("collect", "train", "evaluate")
  }
  checks = {"last_round": check["figures"], "single_batch": single["check"]}
  return [
    {
      "rounds": [figures[n] for figures in rounds],
      "single_batch": single["figures"][n],
      "contests": contests[n],
      "segments": segments.gains(
        *(
          tree_index(x, n) for x in (of_last, experiment.base, experiment.world)
        )
      ),
      "critic_check": {
        name: by_seed[n]
        for name, by_seed in checks.items()
        if by_seed is not None
      },
      "seconds": {
        **spent,
        "single_batch": single["seconds"],
        "critic_check": check["seconds"] + single["check_seconds"],
      },
    }
    for n in range(len(experiment.seeds))
  ]


def play_group(
  configs: Mapping[str, ProgressiveConfig],
  study_learners: Mapping[str, StudyLearner],
  worlds: Sequence[World],
  seeds: Sequence[int],
  folder: GroupDir,
  watch: Watch,
  say: Say,
) -> dict[str, Any]:
  """What seeds side by side brought under one leaving model, by seed.

  Args:
    configs: of each learner, by its name in the run.
    study_learners: likewise.
    worlds: one for each seed.
    seeds: theirs.
    folder: where it goes, and what is done already is read.
    watch: counts updates.
    say: told of each round.

  Returns:
    Ready for JSON: by seed `fingerprint`, `baseline_policy`, `seconds`, by name
    `rivals` and `learners`.
  """
  done = folder.read_result()
  if done is not None:
    for config in configs.values():
      watch.skip(2 * config.rounds * config.train.num_updates)
    return done
  started = time.monotonic()
  first = next(iter(configs))
  experiment = baselines.prepare(
    configs[first], worlds, seeds, study_learners[first]
  )
  names = [fingerprint(world) for world in worlds]
  results = {comparisons.BASELINE: experiment.base}
  rivals, seconds = {}, {"prepare": time.monotonic() - started}
  for name, evaluate in baselines.RIVALS.items():
    begun = time.monotonic()
    rivals[name] = jax.block_until_ready(evaluate(experiment))
    results[name] = rivals[name].results
    seconds[name] = time.monotonic() - begun
  learners = {}
  for name, config in configs.items():
    record = {"config": config.to_json(), "worlds": names, "seeds": list(seeds)}
    of_learner = experiment
    if name != first:
      of_learner = with_study_learner(experiment, config, study_learners[name])
    learners[name] = _play(
      of_learner, results, record, folder.learner(name), watch, say
    )
  found = baselines.baseline_figures(experiment)
  result = {
    str(seed): {
      "fingerprint": names[n],
      "baseline_policy": found[n],
      "rivals": {name: rival.figures[n] for name, rival in rivals.items()},
      "seconds": seconds,
      "learners": {name: of_seeds[n] for name, of_seeds in learners.items()},
    }
    for n, seed in enumerate(seeds)
  }
  folder.write_result(result)
  return result
