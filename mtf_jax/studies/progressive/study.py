"""A whole progressive run: its folder, its groups of seeds, its report."""

import importlib.metadata
import importlib.util
import platform
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from mtf_jax.distributed import mesh as mesh_lib
from mtf_jax.evaluation.tables import Table
from mtf_jax.fitting import synthetic
from mtf_jax.io import InputError, json_text
from mtf_jax.learners.registry import LEARNERS
from mtf_jax.studies.pages import markdown
from mtf_jax.studies.progressive import play, report, report_html
from mtf_jax.studies.progressive import study_learner as study_learner_lib
from mtf_jax.studies.progressive.run_dir import Plan, RunDir
from mtf_jax.studies.progressive.summary import learner_figures, seed_summary
from mtf_jax.studies.progressive.watch import Watch
from mtf_jax.training import machine
from mtf_jax.training.metrics import shown_steps
from mtf_jax.worlds.world import World

_PACKAGES = ("numpy", "flax", "optax", "orbax-checkpoint")


def _versions(mesh: Mesh | None) -> dict[str, Any]:
  return {
    **machine.describe(mesh),
    "devices": jax.device_count(),
    "python": platform.python_version(),
    **{name: importlib.metadata.version(name) for name in _PACKAGES},
  }


def check_fits(plan: Plan, mesh: Mesh | None) -> None:
  """Refuses, before any work, what the axes cannot be divided among evenly.

  Args:
    plan: what to run.
    mesh: devices of the run; one if None.

  Raises:
    InputError: an axis does not divide the seeds side by side, a batch or the
      critics.
  """
  if mesh is None:
    return
  shares = [("seed", plan.parallel_seeds, "seeds side by side")]
  for config in plan.configs.values():
    train = config.train
    if LEARNERS[train.learner].closed_form:
      continue
    mesh_lib.check_fits(
      mesh,
      batch_size=train.batch_size,
      critic_updates=train.critic_updates,
      num_strata=1,  # Every device has the rows of a round.
    )
    critics = (train.ensemble_size, "critics of a reward group")
    shares.append(("critic", *critics))
  for axis, size, what in shares:
    if size % mesh.shape[axis]:
      raise InputError(
        f"mesh: expected a number of devices on {axis} that divides the {size}"
        f" {what}, found {mesh.shape[axis]}."
      )


def run_study(
  plan: Plan,
  run_dir: RunDir,
  world: World | None,
  say: play.Say,
  *,
  mesh: Mesh | None = None,
  tensorboard: bool = False,
) -> Table:
  """Plays all rounds that are not yet played, and writes the report.

  No other process writes into the folder meanwhile.

  Args:
    plan: what to run.
    run_dir: its folder, claimed or resumed.
    world: the fitted world, None for a synthetic one of each seed.
    say: told of what happens.
    mesh: devices of the run, of this process, see `check_fits`; one if omitted.
      It may be another one when the run goes on.
    tensorboard: whether every learner's folder gets the metrics of its rounds
      as a folder `tensorboard`, too, and at the end the configuration and the
      last round's figures. Needs the extra of that name.

  Returns:
    The table to show: of the only learner, or over all.

  Raises:
    InputError: another process writes into the folder, it cannot be written
      to, or a file in it is damaged or of another run.
  """
  with run_dir.hold():
    run_dir.check(plan)
    return _run(plan, run_dir, world, say, mesh, tensorboard)


def _run(
  plan: Plan,
  run_dir: RunDir,
  world: World | None,
  say: play.Say,
  mesh: Mesh | None,
  tensorboard: bool,
) -> Table:
  started = time.monotonic()
  configs, config = plan.configs, plan.config
  groups = plan.groups
  runs = len(groups) * len(plan.leaving)
  updates = sum(of.train.num_updates for of in configs.values())
  watch = Watch(
    runs * 2 * config.rounds * updates,
    tensorboard,
  )
  study_learners: dict[str, study_learner_lib.StudyLearner] = {}
  results: dict[tuple[int, str], dict[str, Any]] = {}
  for seeds in groups:
    worlds = []
    for seed in seeds:
      if world is None:
        say(f"Building the synthetic world of seed {seed}.")
        worlds.append(
          synthetic.synthetic_world(
            config.world_size, seed, shown_steps("steps")
          )
        )
      else:
        worlds.append(world)
    study_learners = study_learners or {
      name: study_learner_lib.make_study_learner(of_learner.train, worlds[0])
      for name, of_learner in configs.items()
    }
    for leaving in plan.leaving:
      left = [one.with_leaving(leaving) for one in worlds]
      folder = run_dir.group(leaving, seeds)
      result = play.play_group(
        configs, study_learners, left, seeds, folder, watch, say, mesh
      )
      for seed in seeds:
        results[seed, leaving] = result[str(seed)]
  return _report(plan, run_dir, results, time.monotonic() - started, say, mesh)


def _seconds(
  plan: Plan, results: Mapping[tuple[int, str], Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
  """Seconds by seeds side by side, leaving model and learner."""
  seconds = {}
  for seeds in plan.groups:
    for leaving in plan.leaving:
      result = results[seeds[0], leaving]
      spent = dict(result["seconds"])
      for name in plan.learners:
        joined = ", ".join(map(str, seeds))
        title = f"seed {joined}, {leaving}, {name}"
        seconds[title] = {**spent, **result["learners"][name]["seconds"]}
        spent = {}  # What learners share counts once.
  return seconds


def _report(
  plan: Plan,
  run_dir: RunDir,
  results: Mapping[tuple[int, str], Mapping[str, Any]],
  wall_s: float,
  say: play.Say,
  mesh: Mesh | None,
) -> Table:
  """Writes the summary and the report."""
  summaries: dict[str, Any] = {}
  for (seed, leaving), result in results.items():
    summaries.setdefault(str(seed), {})[leaving] = seed_summary(result)
  names = list(dict.fromkeys(r["fingerprint"] for r in results.values()))
  summary = {
    "fingerprint": ",".join(names),
    "preset": plan.preset,
    "rounds": plan.config.rounds,
    "wall_s": wall_s,
    "seeds": summaries,
  }
  run_dir.write_json("summary.json", summary)
  columns = {
    (leaving, name): {
      seed: learner_figures(result["learners"][name])
      for (seed, of_leaving), result in results.items()
      if of_leaving == leaving
    }
    for leaving in plan.leaving
    for name in plan.learners
  }
  group_of = {seed: seeds for seeds in plan.groups for seed in seeds}
  pages = []
  for (seed, leaving), result in results.items():
    for name in plan.learners:
      folder = run_dir.group(leaving, group_of[seed]).learner(name)
      learner = result["learners"][name]
      pages.append(
        report.Page(
          title=f"seed {seed}, leaving {leaving}, learner {name}",
          result=learner,
          metrics=folder.read_metrics(seed, learner.get("metrics_sha256")),
        )
      )
  overview = report.overview_table(columns)
  split = report.seconds_table(_seconds(plan, results))
  configuration = json_text(
    {**plan.to_json(), "fingerprints": names, "versions": _versions(mesh)},
    indent=1,
  )
  tables = [overview, *(t for page in pages for t in page.tables()), split]
  run_dir.write(
    "report.md", markdown("Progressive training", tables, configuration)
  )
  if importlib.util.find_spec("matplotlib") is None:
    say("No report.html: matplotlib (the `plots` extra) is not installed.")
  else:
    page = report_html.html(columns, pages, split, configuration)
    run_dir.write("report.html", page)
  # Many seeds are an overview; what one of them did is in the report.
  return pages[0].tables()[0] if len(pages) == 1 else overview
