"""The MTF-GAUC table of held-out days: policies beside global weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mtf_jax.data.behaviours import TASKS
from mtf_jax.evaluation import mtf_gauc
from mtf_jax.evaluation.tables import Table
from mtf_jax.kernels import fusion
from mtf_jax.kernels.fusion import FusionSpec, FusionWeights
from mtf_jax.policies import Act
from mtf_jax.studies.log_gauc import held_out as held_out_lib
from mtf_jax.studies.log_gauc.held_out import HeldOut

BASE = "baseline policy"


def note(fit_before: int | None) -> str:
  """What the world of the policies had seen of the days.

  Args:
    fit_before: first day that its fit did not see, if there is one.
  """
  seen = "all days of the log, these included"
  if fit_before is not None:
    seen = f"the days before {fit_before}"
  return (
    "The days are held out from the ranker: all policies were trained in a world"
    f" whose response model was fitted to {seen}."
  )


# Powers of the free search: exp(+-4), so that a task can all but vanish.
_POWER_RATE = 4.0


def references(
  chosen_on: HeldOut, spec: FusionSpec
) -> dict[str, FusionWeights]:
  """Global weights to hold the policies against.

  Args:
    chosen_on: impressions of the days that the best weights are chosen on.
    spec: the world's.

  Returns:
    By name: all powers 1; the valid-consumption score alone; what action 0
    means; the best powers, free of the action's range, biases at their base;
    and the best weights that one action can give.
  """
  ones = np.ones(len(TASKS), np.float32)
  bias = np.broadcast_to(spec.bias_base, ones.shape)

  def powers(point):
    return FusionWeights(np.exp(_POWER_RATE * point), bias)

  def in_reach(point):
    return fusion.weights_from_action(np.asarray(point, np.float32), spec)

  only_valid = np.array([float(task == "valid") for task in TASKS])
  return {
    "uniform powers": FusionWeights(ones, bias),
    "valid consumption alone": FusionWeights(only_valid, bias),
    "action 0": in_reach(np.zeros(2 * len(TASKS))),
    "best powers chosen": held_out_lib.best_weights(
      chosen_on, powers, len(TASKS)
    ),
    "best action chosen": held_out_lib.best_weights(
      chosen_on, in_reach, 2 * len(TASKS)
    ),
  }


def evaluate(
  held_out: HeldOut,
  spec: FusionSpec,
  weights: Mapping[str, FusionWeights],
  policies: Mapping[str, Mapping[str, tuple[Act, Any]]],
) -> dict[str, Any]:
  """MTF-GAUC of global weights and of the policies of several runs.

  Args:
    held_out: impressions of the days to evaluate on.
    spec: the world's.
    weights: global weights by name.
    policies: by run (a seed), the policies by name as `(act, params)`, without
      exploration; one of them is `BASE`.

  Returns:
    Ready for JSON: `impressions`, `users` and `users_in_world` that count, and
    `mtf_gauc.compare_policies` of the policies' mean over runs (`mean`) and of each run
    (`runs`).
  """
  shown = held_out.impressions

  def of_policies(policies):
    return {
      name: mtf_gauc.day_auc(
        held_out_lib.policy_score(held_out, act, params, spec), shown
      )
      for name, (act, params) in policies.items()
    }

  fixed = {
    name: mtf_gauc.day_auc(held_out_lib.global_score(held_out, value), shown)
    for name, value in weights.items()
  }
  runs = {run: of_policies(found) for run, found in policies.items()}
  names = next(iter(runs.values()))
  mean = {
    name: np.mean([auc[name] for auc in runs.values()], axis=0)
    for name in names
  }
  counts = np.isfinite(mean[BASE])
  return {
    "impressions": int(counts[shown.day].sum()),
    "users": len(np.unique(shown.user[counts])),
    "users_in_world": len(np.unique(shown.user[counts & held_out.in_world])),
    "mean": mtf_gauc.compare_policies({**fixed, **mean}, shown, BASE),
    "runs": {
      run: mtf_gauc.compare_policies(auc, shown, BASE)
      for run, auc in runs.items()
    },
  }


def table(
  title: str, evaluated: Mapping[str, Any], fit_before: int | None = None
) -> Table:
  """`evaluate`'s figures for reading.

  Args:
    title: heading.
    evaluated: of `evaluate`.
    fit_before: as in `note`.
  """

  def cell(value, interval, form):
    low, high = interval
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"

  rows = [
    (
      name,
      cell(figures["gauc"], figures["ci95"], ".4f"),
      cell(figures["minus_base"], figures["minus_base_ci95"], "+.4f"),
    )
    for name, figures in evaluated["mean"].items()
  ]
  below = (
    f"{evaluated['users']} users with both labels ({evaluated['users_in_world']} of"
    f" them in the world), {evaluated['impressions']} impressions,"
    f" {len(evaluated['runs'])} seeds; 95% intervals over users, paired for"
    f" differences. {note(fit_before)}"
  )
  return Table(title, below, ("weights", "MTF-GAUC", f"minus {BASE}"), rows)
