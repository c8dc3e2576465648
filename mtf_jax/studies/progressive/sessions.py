"""Few and many sessions a round: a learner's share of what is there to gain.

The rounds of the study with other numbers of sessions a round, judged on the same
sessions as the privileged search within the rounds' boxes, which has the true
return to climb and is the same for all sizes. Beside the learners an evolution
strategy as a platform could run it, with as many sessions.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mtf_jax.evaluation.ab_test import EvalResult
from mtf_jax.evaluation.statistics import mean_interval
from mtf_jax.fitting import synthetic
from mtf_jax.studies.progressive import baselines
from mtf_jax.studies.progressive.comparisons import compare_sessions
from mtf_jax.studies.progressive.config import PRESETS, ProgressiveConfig
from mtf_jax.studies.progressive.experiment import (
  Experiment,
  evaluate_state,
  with_study_learner,
)
from mtf_jax.studies.progressive.rounds import play_round
from mtf_jax.studies.progressive.study_learner import (
  StudyLearner,
  make_study_learner,
)
from mtf_jax.worlds.world import fingerprint

_ES = "es"


def _gain(
  experiment: Experiment, judged: EvalResult
) -> tuple[float, list[float]]:
  (found,) = compare_sessions(judged, experiment.base, "reward")
  return found.gain, list(found.ci95)


def parts_of(size: int) -> int:
  """Parts of one size that a round is logged in, none above preset `cpu`'s."""
  least = -(-size // PRESETS["cpu"].sessions_per_round)
  return next(n for n in range(least, size + 1) if size % n == 0)


def _last_round(
  config: ProgressiveConfig, experiment: Experiment, learner: StudyLearner
) -> EvalResult:
  """The policy of a learner after all rounds, judged."""
  # Room for the rows of one round: there is no batch of all of them.
  room = dataclasses.replace(config, rounds=1)
  played = with_study_learner(experiment, room, learner)
  state = played.start
  for number in range(config.rounds):
    state, _ = play_round(played, state, number)
  return evaluate_state(played, state)


def measure(
  config: ProgressiveConfig,
  seed: int,
  leaving: str,
  sizes: Sequence[int],
  learners: Sequence[str],
) -> Iterator[dict[str, Any]]:
  """Rows of one seed, the privileged search first.

  Args:
    config: of the rounds, but for `sessions_per_round`.
    seed: of world and learner.
    leaving: the leaving model.
    sizes: sessions a round.
    learners: names as `ProgressiveConfig.with_learner` takes them.

  Yields:
    `method`, `sessions_per_round` (None for the search), `gain_pct` over
    converged global weights with its interval over users, and
    `share_of_in_box_optimum`, None where the search gained nothing.
  """
  world = synthetic.synthetic_world(config.world_size, seed)
  world = world.with_leaving(leaving)
  # Made once: other functions would compile every program anew.
  study_learners = {
    name: make_study_learner(config.with_learner(name).train, world)
    for name in learners
  }
  experiment = baselines.prepare(
    config.with_learner(learners[0]),
    [world],
    [seed],
    study_learners[learners[0]],
  )
  about = {"seed": seed, "leaving": leaving, "world": fingerprint(world)}
  started = time.monotonic()
  best = baselines.in_box_optimum(experiment).results
  bound, _ = _gain(experiment, best)

  def row(method, size, judged, started):
    gain, ci95 = _gain(experiment, judged)
    return {
      **about,
      "method": method,
      "sessions_per_round": size,
      "gain_pct": gain,
      "gain_ci95": ci95,
      "share_of_in_box_optimum": gain / bound if bound > 0 else None,
      "seconds": time.monotonic() - started,
    }

  yield row("in_box_optimum", None, best, started)
  for size in sizes:
    sized = dataclasses.replace(
      config, sessions_per_round=size, collect_parts=parts_of(size)
    )
    for name, learner in study_learners.items():
      started = time.monotonic()
      judged = _last_round(sized.with_learner(name), experiment, learner)
      yield row(name, size, judged, started)
    started = time.monotonic()
    judged = baselines.platform_es(experiment._replace(config=sized)).results
    yield row(_ES, size, judged, started)


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Over the seeds, by method and sessions: means, and intervals of two or more.

  None where a seed has no share.
  """
  found: dict[Any, list[dict[str, Any]]] = {}
  for row in rows:
    found.setdefault((row["method"], row["sessions_per_round"]), []).append(row)
  result = []
  for (method, size), of_seeds in found.items():
    means = {}
    for name in ("gain_pct", "share_of_in_box_optimum"):
      values = [row[name] for row in of_seeds]
      known = None not in values
      means[name] = float(np.mean(values)) if known else None
      means[name.removesuffix("_pct") + "_ci95_over_seeds"] = (
        list(mean_interval(values)) if known and len(values) > 1 else None
      )
    result.append(
      {
        "method": method,
        "sessions_per_round": size,
        "seeds": len(of_seeds),
        **means,
      }
    )
  return result
