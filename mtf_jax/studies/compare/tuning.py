"""Tuning: every method and version with as many trials, judged by the truth.

Trials run on box logs of tuning seeds, whose worlds no reported seed has, and are
judged by the true gain there: that is more than a platform knows, and the same for
all. What wins goes into `tuned.json`; every trial is kept.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from mtf_jax.evaluation.tables import Table
from mtf_jax.fitting import synthetic
from mtf_jax.policies import PolicyParams, explore_around
from mtf_jax.studies.compare import bench as bench_lib
from mtf_jax.studies.compare.cells import Learners, study_learner, train_cell
from mtf_jax.studies.compare.config import cells
from mtf_jax.studies.compare.methods import METHODS
from mtf_jax.studies.compare.plan import Clock, CompareDir, Plan
from mtf_jax.studies.progressive.experiment import tree_index
from mtf_jax.studies.progressive.records import undefined_as_none
from mtf_jax.worlds.world import World, fingerprint

DATA = "box"


def best_trials(
  trials: Sequence[Mapping[str, Any]],
) -> dict[str, dict[str, float]]:
  """`method:version` -> the numbers with the largest mean gain over seeds.

  Args:
    trials: `learner, version, numbers, seed, reward_gain_pct`; the gain is None
      where training failed, which rules the numbers out.
  """
  found: dict[str, dict[tuple[Any, ...], list[float | None]]] = {}
  for trial in trials:
    numbers = tuple(sorted(trial["numbers"].items()))
    of_method = found.setdefault(f"{trial['learner']}:{trial['version']}", {})
    of_method.setdefault(numbers, []).append(trial["reward_gain_pct"])
  picks = {}
  for name, gains in found.items():
    known = {n: x for n, x in gains.items() if None not in x}
    if known:
      picks[name] = dict(max(known, key=lambda n: statistics.fmean(known[n])))
  return picks


def _play(
  plan: Plan, bench: Any, learners: Learners, rows: Any, cell: tuple[str, str]
) -> Callable[[Mapping[str, float]], dict[str, Any]]:
  """What one trial of a method and version found."""
  method, version = cell
  world = tree_index(bench.experiment.world, 0)

  def play(numbers: Mapping[str, float]) -> dict[str, Any]:
    train = plan.config.train_of(
      method, version, {f"{method}:{version}": dict(numbers)}
    )
    learner = study_learner(learners, train, world)
    try:
      trained = train_cell(bench, learner, train, rows)
    except FloatingPointError as error:
      return {"reward_gain_pct": None, "failed": str(error)}
    served = PolicyParams(trained.params, 0.0, 0.0)
    result = bench_lib.judge(bench, explore_around(trained.act), served)
    found = bench_lib.true_figures(bench, jax.device_get(result))
    return {
      name: found[name]
      for name in ("reward_gain_pct", "reward_gain_ci95", "over_global_pct")
    }

  return play


def run_tuning(
  plan: Plan,
  folder: CompareDir,
  world: World | None,
  say: Callable[[str], None],
  *,
  resume: bool = False,
) -> Table:
  """Plays all trials that are not done yet, and writes `tuning.json`.

  Args:
    plan: methods, versions, seeds and the leaving model, the first; its `data`
      and `tuned` play no part.
    folder: where it goes.
    world: the fitted world, None for a synthetic one of each seed.
    say: told of what happens.
    resume: whether to go on with what is in the folder.

  Returns:
    The table of what won.

  Raises:
    InputError: the folder cannot be what it is asked for.
  """
  with folder.hold(plan, resume):
    started = time.monotonic()
    trials = _run(plan, folder, world, say)
    picks = best_trials(trials)
    folder.write_json(
      "tuning.json",
      {
        "plan": plan.to_json(),
        "wall_s": time.monotonic() - started,
        "trials": trials,
        "tuned": picks,
      },
    )
  return _table(trials, picks)


def _run(
  plan: Plan, folder: CompareDir, world: World | None, say: Any
) -> list[dict[str, Any]]:
  (leaving, *_) = plan.leaving
  wanted = [
    (*cell[:2], number, numbers)
    for cell in cells(plan.methods, plan.versions, (DATA,))
    for number, numbers in enumerate(METHODS[cell[0]].trials())
  ]
  clock, learners = Clock(len(wanted) * len(plan.seeds)), {}
  trials = []
  for seed in plan.seeds:
    own = world
    if own is None:
      own = synthetic.synthetic_world(plan.config.sizes.world_size, seed)
    own = own.with_leaving(leaving)
    of = {"fingerprint": fingerprint(own), "seed": seed, "leaving": leaving}
    place = (seed, leaving)
    known = folder.read(*place, "global_weights", of)
    bench, kept = bench_lib.prepare(plan.config, own, seed, known, say)
    if known is None:
      folder.write(*place, "global_weights", of, undefined_as_none(kept))
    rows = None
    for method, version, number, numbers in wanted:
      name = f"trial_{method}_{version}_{number}"
      found = folder.read(*place, name, of)
      if found is not None:
        clock.skip()
      else:
        begun = time.monotonic()
        if rows is None:
          rows = bench_lib.collect_log(bench, DATA)
        play = _play(plan, bench, learners, rows, (method, version))
        found = undefined_as_none({"numbers": numbers, **play(numbers)})
        folder.write(*place, name, of, found)
        say(f"seed {seed}, {name}: {clock.done(time.monotonic() - begun)}")
      trials.append(
        {"learner": method, "version": version, "seed": seed, **found}
      )
  return trials


def _table(
  trials: Sequence[Mapping[str, Any]], picks: Mapping[str, Mapping[str, float]]
) -> Table:
  """What won, and how far the trials were apart."""
  rows = []
  for name, numbers in picks.items():
    method, version = name.split(":")
    by_numbers: dict[tuple[Any, ...], list[float]] = {}
    for trial in trials:
      if (trial["learner"], trial["version"]) == (method, version):
        gain = trial["reward_gain_pct"]
        key = tuple(sorted(trial["numbers"].items()))
        by_numbers.setdefault(key, []).append(
          float("nan") if gain is None else gain
        )
    means = [statistics.fmean(gains) for gains in by_numbers.values()]
    best = statistics.fmean(by_numbers[tuple(sorted(numbers.items()))])
    settings = ", ".join(f"{n} {x:g}" for n, x in numbers.items())
    rows.append(
      (name, settings, f"{best:+.2f}", f"{min(means):+.2f}", str(len(means)))
    )
  return Table(
    "Tuning",
    "Gain over ES in service, %, mean over the tuning seeds, on box logs.",
    ("method:version", "numbers", "best", "worst", "trials"),
    rows,
  )
