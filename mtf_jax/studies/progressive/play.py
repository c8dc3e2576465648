"""All rounds and the single batch of learners, from where they were left."""

import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mtf_jax.evaluation import critic_check, segments
from mtf_jax.evaluation.ab_test import EvalResult
from mtf_jax.kernels.exploration import HALF_WIDTH
from mtf_jax.steps import Steps
from mtf_jax.studies.progressive import baselines, comparisons
from mtf_jax.studies.progressive import rounds as rounds_lib
from mtf_jax.studies.progressive.config import ProgressiveConfig
from mtf_jax.studies.progressive.experiment import (
  Experiment,
  evaluate_state,
  on_one_device,
  policy_params,
  put_state,
  tree_index,
  with_study_learner,
)
from mtf_jax.studies.progressive.group_dir import (
  GroupDir,
  LearnerDir,
  check_same_run,
  made_of,
)
from mtf_jax.studies.progressive.records import RunDirError, undefined_as_none
from mtf_jax.studies.progressive.report import gain_cell
from mtf_jax.studies.progressive.study_learner import StudyLearner
from mtf_jax.studies.progressive.watch import Watch
from mtf_jax.training import machine
from mtf_jax.training.metrics import MetricsWriter, shown_steps
from mtf_jax.worlds.world import World, fingerprint

Say = Callable[[str], None]


def _same_run(folder: pathlib.Path, expected: Mapping[str, Any], part: str):
  """Refuses checkpoints of another run, or without the `part` they are for."""

  def check(found: dict[str, Any]) -> None:
    check_same_run(folder, expected, found)
    if part not in found:
      raise RunDirError(
        f"{folder}: expected checkpoints that hold {part}, found one without;"
        " move the folder away to play them anew."
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
  logged = policy_params(
    experiment.study_learner, old, HALF_WIDTH, draw=config.draw
  )
  target = policy_params(experiment.study_learner, new)
  keys, found = experiment.keys["check"], []
  for n in range(len(experiment.seeds)):
    key, world, table, behaviour, evaluated, of_new = (
      on_one_device(experiment, tree_index(x, n))
      for x in (keys, experiment.world, experiment.table, logged, target, new)
    )
    compared = critic_check.compare_with_returns(
      key,
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
  state, rounds, check, machines = experiment.start, [], None, []
  board = None
  checkpoints = folder.open_rounds(config.rounds)
  try:
    restored = checkpoints.restore(
      state, _same_run(folder.rounds, record, "rounds")
    )
    if restored is not None:
      state, found = restored
      state = put_state(experiment, state)
      rounds, check = found["rounds"], found["check"]
      # Versions before 3 of the checkpoints did not record them.
      machines = found.get("machines", [])
      watch.skip(len(rounds) * updates)
      say(f"{folder.path}: going on after round {len(rounds)}.")
    else:
      folder.check_no_round_is_lost(updates)
    board = watch.board(folder.path, len(rounds) * updates)
    writer = MetricsWriter(folder.metrics, len(rounds) * updates, board)
    if restored is not None:
      folder.check_metrics(found.get("metrics_sha256"))
    if len(rounds) < config.rounds:
      machines = machine.went_on(
        machines, len(rounds) * updates, experiment.mesh
      )
    for number in range(len(rounds), config.rounds):
      on_chunk = watch.follow(seeds, writer, number * updates)
      old = state
      state, figures = rounds_lib.play_round(experiment, old, number, on_chunk)
      rounds.append(figures)
      if number + 1 == config.rounds:
        started = time.monotonic()
        check = {"figures": _check(experiment, state, old)}
        check["seconds"] = time.monotonic() - started
      played = {
        "rounds": rounds,
        "check": check,
        "metrics_sha256": folder.metrics_sha256(),
        "machines": machines,
      }
      checkpoints.save(number + 1, state, {**record, **played})
      for seed, of_seed in zip(seeds, figures, strict=True):
        say(
          f"seed {seed}, {folder.path}, round {number + 1} of"
          f" {config.rounds}: reward {gain_cell(of_seed, 'reward')} % over the"
          " baseline policy"
        )
      if board is not None and number + 1 == config.rounds:
        board.finish(
          {**config.train.to_json(), "rounds": config.rounds},
          {
            f"seed_{seed}/{name}": value
            for seed, of_seed in zip(seeds, figures, strict=True)
            for name, value in of_seed.items()
            if isinstance(value, int | float)
          },
          config.rounds * updates,
        )
  finally:
    checkpoints.close()
    if board is not None:
      board.close()
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
    restored = checkpoints.restore(
      experiment.start, _same_run(folder.single_batch, record, "single_batch")
    )
    if restored is not None:
      watch.skip(experiment.config.rounds * updates)
      state, found = restored
      return put_state(experiment, state), found["single_batch"]
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
    machines = machine.went_on([], 0, experiment.mesh)
    played = {"single_batch": single, "machines": machines}
    checkpoints.save(1, state, {**record, **played})
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
      "metrics_sha256": folder.metrics_sha256(),
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
  mesh: Mesh | None = None,
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
    mesh: devices of the run; one if omitted.

  Returns:
    Ready for JSON: by seed `fingerprint`, `baseline_policy`, `seconds`, by name
    `rivals` and `learners`.
  """
  names = [fingerprint(world) for world in worlds]
  of = made_of(configs, names, seeds)
  done = folder.read_result(of)
  if done is not None:
    for config in configs.values():
      watch.skip(2 * config.rounds * config.train.num_updates)
    return done
  started = time.monotonic()
  first = next(iter(configs))
  steps = Steps(1 + len(baselines.RIVALS), shown_steps("baselines"))
  experiment = baselines.prepare(
    configs[first], worlds, seeds, study_learners[first], mesh
  )
  steps.count(1)
  results = {comparisons.BASELINE: experiment.base}
  rivals, seconds = {}, {"prepare": time.monotonic() - started}
  for name, evaluate in baselines.RIVALS.items():
    begun = time.monotonic()
    rivals[name] = jax.block_until_ready(evaluate(experiment))
    results[name] = rivals[name].results
    seconds[name] = time.monotonic() - begun
    steps.count(1)
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
  result = undefined_as_none(
    {
      str(seed): {
        "fingerprint": names[n],
        "baseline_policy": found[n],
        "rivals": {name: rival.figures[n] for name, rival in rivals.items()},
        "seconds": seconds,
        "learners": {name: of_seeds[n] for name, of_seeds in learners.items()},
      }
      for n, seed in enumerate(seeds)
    }
  )
  folder.write_result(of, result)
  return result
