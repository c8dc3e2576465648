"""A whole comparison: every cell of every seed and leaving model, and the report."""

import time
from collections.abc import Callable
from typing import Any

import jax

from mtf_jax.data.transitions import Rows
from mtf_jax.evaluation.mtf_gauc import day_auc, mtf_gauc
from mtf_jax.evaluation.tables import Table
from mtf_jax.fitting import synthetic
from mtf_jax.learners.base import Learner
from mtf_jax.policies import PolicyParams, explore_around
from mtf_jax.studies.compare import bench as bench_lib
from mtf_jax.studies.compare import offline, report, summary
from mtf_jax.studies.compare.bench import Bench
from mtf_jax.studies.compare.cells import (
  Learners,
  act_of,
  empty_chain,
  study_learner,
  train_cell,
)
from mtf_jax.studies.compare.plan import Clock, CompareDir, Plan
from mtf_jax.studies.log_gauc.held_out import HeldOut, policy_score
from mtf_jax.studies.progressive.experiment import (
  tree_index,
  with_study_learner,
)
from mtf_jax.studies.progressive.records import undefined_as_none
from mtf_jax.studies.progressive.rounds import NonFiniteSeedError
from mtf_jax.worlds.world import World, fingerprint

Say = Callable[[str], None]


class _Group:
  """One seed and leaving model; logs are made when the first cell needs them."""

  def __init__(
    self, plan: Plan, bench: Bench, fqe: Learner, held_out: HeldOut | None
  ):
    self.plan, self.bench, self.fqe = plan, bench, fqe
    self.held_out = held_out
    self._test: offline.TestLog | None = None
    self._log: tuple[str, Rows] | None = None

  def test(self) -> offline.TestLog:
    """The log that policies are estimated on."""
    if self._test is None:
      self._test = offline.collect_test(self.bench)
    return self._test

  def log(self, data: str) -> Rows | None:
    """The log of that kind, the last one kept; None for rounds."""
    if data == "progressive":
      return None
    if self._log is None or self._log[0] != data:
      self._log = data, bench_lib.collect_log(self.bench, data)
    return self._log[1]

  def judge(self, act: Any, params: Any) -> dict[str, Any]:
    """Truth and offline metrics of a policy."""
    served, decide = PolicyParams(params, 0.0, 0.0), explore_around(act)
    result = jax.device_get(bench_lib.judge(self.bench, decide, served))
    found = bench_lib.true_figures(self.bench, result)
    estimates = offline.offline_figures(
      self.bench, self.fqe, self.test(), act, params
    )
    if self.held_out is None:
      return {**found, **estimates}
    spec = tree_index(self.bench.experiment.world, 0).fusion_spec
    shown = self.held_out.impressions
    score = policy_score(self.held_out, decide, served, spec)
    of_log = mtf_gauc(day_auc(score, shown), shown)
    return {**found, **estimates, offline.LOG_GAUC: of_log}


def _judge_global(group: _Group, learners: Learners) -> dict[str, Any]:
  """Truth and offline metrics of global weights, by name.

  They are chains without a link, judged by the program of all policies.
  """
  plan, bench = group.plan, group.bench
  train = plan.config.sizes.train
  world = tree_index(bench.experiment.world, 0)
  learner = study_learner(learners, train, world)
  started = with_study_learner(bench.experiment, plan.config.sizes, learner)
  params = learner.learner.policy(tree_index(started.start, 0))
  return {
    name: group.judge(
      act_of(learner),
      empty_chain(bench.actions[name], params, plan.config.sizes.rounds, False),
    )
    for name in ("baseline", *bench_lib.GLOBAL)
  }


def _cell(
  group: _Group, learners: Learners, cell: tuple[str, str, str]
) -> dict[str, Any]:
  """What one cell found."""
  method, version, data = cell
  train = group.plan.config.train_of(method, version, group.plan.tuned)
  world = tree_index(group.bench.experiment.world, 0)
  learner = study_learner(learners, train, world)
  started = time.monotonic()
  try:
    trained = train_cell(group.bench, learner, train, group.log(data))
  except (NonFiniteSeedError, FloatingPointError) as error:
    return {"failed": str(error)}
  found = group.judge(trained.act, trained.params)
  return {
    **found,
    "updates_per_s": trained.updates_per_s,
    "train_s": trained.train_s,
    "collect_s": trained.collect_s,
    "state_mb": trained.state_mb,
    "seconds": time.monotonic() - started,
  }


def run_study(
  plan: Plan,
  folder: CompareDir,
  world: World | None,
  say: Say,
  *,
  held_out: HeldOut | None = None,
  resume: bool = False,
) -> list[Table]:
  """Plays all cells that are not done yet, and writes the report.

  Args:
    plan: what to run.
    folder: where it goes.
    world: the fitted world, None for a synthetic one of each seed.
    say: told of what happens.
    held_out: held-out days of the log of the plan's `log_dir`.
    resume: whether to go on with what is in the folder.

  Returns:
    The tables.

  Raises:
    InputError: the folder cannot be what it is asked for.
  """
  with folder.hold(plan, resume):
    return _run(plan, folder, world, say, held_out)


def _run(
  plan: Plan,
  folder: CompareDir,
  world: World | None,
  say: Say,
  held_out: HeldOut | None,
) -> list[Table]:
  started = time.monotonic()
  clock = Clock(len(plan.cells) * len(plan.seeds) * len(plan.leaving))
  learners: Learners = {}
  fqe = None
  rows, searches = [], []
  for seed in plan.seeds:
    own = world
    if own is None:
      say(f"Building the synthetic world of seed {seed}.")
      own = synthetic.synthetic_world(plan.config.sizes.world_size, seed)
    fqe = fqe or offline.answering_fqe(plan.config.sizes.train, own)
    for leaving in plan.leaving:
      left = own.with_leaving(leaving)
      of = {"fingerprint": fingerprint(left), "seed": seed, "leaving": leaving}
      place = (seed, leaving)
      known = folder.read(*place, "global_weights", of)
      bench, kept = bench_lib.prepare(
        plan.config, left, seed, known and known["searches"], say
      )
      group = _Group(plan, bench, fqe, held_out)
      if known is None:
        judged = _judge_global(group, learners)
        known = undefined_as_none({"searches": kept, "judged": judged})
        folder.write(*place, "global_weights", of, known)
      searches.append({**of, **known["searches"]})
      for name, figures in known["judged"].items():
        row = {"learner": name, "version": "global", "data": "search"}
        rows.append({**row, "seed": seed, "leaving": leaving, **figures})
      for cell in plan.cells:
        name = "_".join(cell)
        found = folder.read(*place, name, of)
        if found is not None:
          clock.skip()
        else:
          begun = time.monotonic()
          found = undefined_as_none(_cell(group, learners, cell))
          folder.write(*place, name, of, found)
          gain = found.get("reward_gain_pct")
          shown = "failed" if gain is None else f"{gain:+.2f} %"
          say(
            f"seed {seed}, {leaving}, {' '.join(cell)}: reward {shown} over the"
            f" baseline policy; {clock.done(time.monotonic() - begun)}"
          )
        rows.append(
          {
            **dict(zip(("learner", "version", "data"), cell, strict=True)),
            "seed": seed,
            "leaving": leaving,
            **found,
          }
        )
  return _report(plan, folder, rows, searches, time.monotonic() - started, say)


def _report(
  plan: Plan,
  folder: CompareDir,
  rows: list[dict[str, Any]],
  searches: list[dict[str, Any]],
  wall_s: float,
  say: Say,
) -> list[Table]:
  metrics = summary.offline_against_truth(rows)
  names = list(dict.fromkeys(found["fingerprint"] for found in searches))
  result = {
    "fingerprint": ",".join(names),
    "preset": plan.preset,
    "wall_s": wall_s,
    "rows": rows,
    "metrics": metrics,
    "global_weights": searches,
    "tuning": plan.tuned,
    "plan": plan.to_json(),
  }
  folder.write_json("compare.json", result)
  tables = report.tables(rows, metrics)
  report.write(folder, tables, rows, plan, say)
  return tables
