"""What watching costs in valid consumption, and the other way round.

Of some learners one log gives the policy of any weights of the groups without
training again: in closed form there are slopes of every group, and networks can have
learnt with the weights as an input. Each policy is judged on the sessions that the run
judged its policies on.

Letters: `P` policies, `N` users, `R` replicates.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.evaluation import pareto
from mtf_jax.evaluation.ab_test import OUTCOMES, EvalResult
from mtf_jax.evaluation.statistics import interval, paired_comparison, resample
from mtf_jax.evaluation.tables import Table
from mtf_jax.io import InputError
from mtf_jax.learners.registry import LEARNERS
from mtf_jax.steps import OnStep, Steps, nobody
from mtf_jax.studies.progressive import baselines
from mtf_jax.studies.progressive.experiment import (
  evaluate_policy,
  policy_params,
)
from mtf_jax.studies.progressive.served import SingleBatch
from mtf_jax.worlds import returns as returns_lib

# Outcome that a reward group stands for, in the order of the groups.
AXES = {"watch": "play_seconds", "valid": "valid"}
# Share of the first group; the middle one weighs both alike.
SHARES = tuple(n / 10 for n in range(11))
EQUAL = 0.5
_REPLICATES = 1000


class Sums(NamedTuple):
  """Sums over the sessions of each user, `[P, N]` and `[N]` of the baseline."""

  watch: np.ndarray
  valid: np.ndarray
  base_watch: np.ndarray
  base_valid: np.ndarray


def weighted(state: Any, share: float) -> Any:
  """A learner's state with other weights of two reward groups.

  Args:
    state: its `hyperparams` have `group_weights`, in any number of dimensions,
      groups last; the run's own are replaced.
    share: of the first group, 0 to 1; the weights' sum is 2.
  """
  pair = jnp.asarray([2 * share, 2 * (1 - share)])
  hyperparams = state.hyperparams
  weights = jnp.broadcast_to(pair, hyperparams.group_weights.shape)
  weights = weights.astype(hyperparams.group_weights.dtype)
  return state._replace(hyperparams=hyperparams._replace(group_weights=weights))


def _check(found: SingleBatch) -> None:
  learner = found.source["learner"].partition(":")[0]
  if not LEARNERS[learner].any_weights:
    known = [name for name, entry in LEARNERS.items() if entry.any_weights]
    raise InputError(
      "learner: expected one whose policy follows from the weights without"
      f" training, {', '.join(known)}, found {learner}."
    )
  groups = found.experiment.world.group_weights.shape[-2]
  if groups != len(AXES):
    raise InputError(
      f"world: expected {len(AXES)} reward groups, {' and '.join(AXES)}, found"
      f" {groups}."
    )


def _by_user(judged: EvalResult, outcome: str, unit: np.ndarray) -> np.ndarray:
  values = np.asarray(judged.outcome[0, :, OUTCOMES.index(outcome)], np.float64)
  return np.bincount(unit, values)


def _gains(sums: Sums, counts: np.ndarray) -> np.ndarray:
  """`[R, P, 2]` gains over the baseline, percent, `counts [R, N]` of the users."""
  return np.stack(
    [
      100 * (counts @ ours.T / (counts @ base)[:, None] - 1)
      for ours, base in (
        (sums.watch, sums.base_watch),
        (sums.valid, sums.base_valid),
      )
    ],
    axis=-1,
  )


def volume_interval(sums: Sums) -> list[Any]:
  """95% interval of the hypervolume over other users of the world.

  Users are drawn again, all policies on the same ones. The best of several
  policies is chosen in each draw, so the interval leans upwards by as much as
  the policies' differences are noise.
  """
  num_users = sums.base_watch.shape[0]
  counts = resample(num_users, _REPLICATES, seed=0).astype(np.float64)
  found = [pareto.hypervolume(x, np.zeros(2)) for x in _gains(sums, counts)]
  return interval(np.asarray(found))


def _rows(
  results: dict[float, EvalResult], base: EvalResult
) -> list[dict[str, Any]]:
  """A row a share: gains over the baseline and over equal weights."""

  def value(judged, name):
    if name == "reward":
      return judged.reward[0]
    return judged.outcome[0, :, OUTCOMES.index(AXES[name])]

  rows = []
  for share, judged in results.items():
    row: dict[str, Any] = {"share": share}
    for title, other in (("gain", base), ("over_equal", results[EQUAL])):
      for name in (*AXES, "reward"):
        gain = paired_comparison(
          value(judged, name), value(other, name), base.user[0]
        )
        row[f"{name}_{title}_pct"] = gain.gain
        row[f"{name}_{title}_ci95"] = list(gain.ci95)
    rows.append(row)
  points = np.array([[row[f"{n}_gain_pct"] for n in AXES] for row in rows])
  for row, kept in zip(rows, pareto.on_front(points), strict=True):
    row["on_front"] = bool(kept)
  return rows


def measure(
  found: SingleBatch,
  shares: Sequence[float] = SHARES,
  on_step: OnStep = nobody,
) -> dict[str, Any]:
  """The front of a run's single batch.

  Args:
    found: of `served.read_single_batch`.
    shares: weights of the first reward group, out of 1; `EQUAL` is added.
    on_step: told how many policies are judged.

  Returns:
    Ready for JSON: `source`, `axes`, `rows`, one a share (`share`; of `watch`,
    `valid` and `reward` `_gain_pct` over the baseline and `_over_equal_pct`
    over equal weights, each with `_ci95`; `on_front`), `hypervolume` in squared
    percent beyond the baseline and `hypervolume_ci95`.

  Raises:
    InputError: the learner has to be trained for other weights, or the world has
      other reward groups.
  """
  _check(found)
  judged_shares = sorted({*shares, EQUAL})
  steps = Steps(1 + len(judged_shares), on_step)
  experiment = found.experiment
  experiment = experiment._replace(
    table=jax.vmap(returns_lib.expected_rewards)(experiment.evaluation_world)
  )
  action = jnp.asarray(found.baseline_action)
  base = jax.device_get(baselines.evaluate_action(experiment, action))
  steps.count(1)
  results = {}
  for share in judged_shares:
    params = policy_params(
      experiment.study_learner, weighted(found.state, share)
    )
    results[share] = jax.device_get(
      evaluate_policy(experiment, experiment.study_learner.act, params)
    )
    steps.count(1)
  rows = _rows(results, base)
  _, unit = np.unique(base.user[0], return_inverse=True)
  watch, valid = (
    np.stack([_by_user(each, AXES[name], unit) for each in results.values()])
    for name in AXES
  )
  sums = Sums(
    watch,
    valid,
    _by_user(base, AXES["watch"], unit),
    _by_user(base, AXES["valid"], unit),
  )
  points = np.array([[row[f"{n}_gain_pct"] for n in AXES] for row in rows])
  return {
    "source": found.source,
    "axes": list(AXES),
    "rows": rows,
    "hypervolume": pareto.hypervolume(points, np.zeros(2)),
    "hypervolume_ci95": volume_interval(sums),
  }


def table(result: dict[str, Any]) -> Table:
  """The front as rows of text."""
  source = result["source"]
  low, high = result["hypervolume_ci95"]

  def cell(row, name):
    ends = row[f"{name}_ci95"]
    return f"{row[f'{name}_pct']:+.2f} [{ends[0]:+.2f}, {ends[1]:+.2f}]"

  return Table(
    title=(
      f"seed {source['seed']}, leaving {source['leaving']}, learner"
      f" {source['learner']}, single batch"
    ),
    note=(
      "Gains over the baseline policy, and over the policy of equal weights, %,"
      " same users and sessions; 95% intervals over users. Hypervolume"
      f" {result['hypervolume']:.1f} [{low:.1f}, {high:.1f}] squared percent."
    ),
    header=[
      *("share of watch", "watch %", "valid %", "reward %"),
      *("watch over equal %", "valid over equal %", "on the front"),
    ],
    rows=[
      [
        f"{row['share']:.1f}",
        *(cell(row, f"{name}_gain") for name in ("watch", "valid", "reward")),
        *(cell(row, f"{name}_over_equal") for name in ("watch", "valid")),
        "yes" if row["on_front"] else "no",
      ]
      for row in result["rows"]
    ],
  )
