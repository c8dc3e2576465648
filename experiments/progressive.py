"""Progressive training: explore, train, redeploy, and tell what users gained.

  python -m experiments.progressive
  python -m experiments.progressive --preset=smoke --out_dir=runs/smoke
  python -m experiments.progressive --world=kuairand.world --seeds=0,1
  python -m experiments.progressive --seeds=10,11,12,13 --parallel_seeds=2
  python -m experiments.progressive --es_steps=240

Killed in any round, the same command with `--resume` goes on from there.
Matplotlib (the `plots` extra) adds `report.html`.
"""

import dataclasses
import importlib.metadata
import importlib.util
import itertools
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import app, flags, logging

from mtf_jax.evaluation import critic_check, segments
from mtf_jax.evaluation.tables import text as table_text
from mtf_jax.fitting import synthetic
from mtf_jax.io import write_json, write_text
from mtf_jax.learners.integrated_rl import State
from mtf_jax.studies.progressive import baselines
from mtf_jax.studies.progressive import config as config_lib
from mtf_jax.studies.progressive import report as progressive_report
from mtf_jax.studies.progressive import rounds as progressive
from mtf_jax.studies.progressive import run as run_lib
from mtf_jax.studies.progressive import service as service_lib
from mtf_jax.training.checkpoints import Checkpoints
from mtf_jax.training.config import CRITICS
from mtf_jax.training.metrics import (
  MetricsWriter,
  NegativeTargetWarning,
  Progress,
  summarize,
)
from mtf_jax.worlds import io as world_io
from mtf_jax.worlds.leaving import LEAVING_MODELS
from mtf_jax.worlds.world import World, fingerprint

_PACKAGES = ("jax", "jaxlib", "numpy", "flax", "optax", "orbax-checkpoint")

_WORLD = flags.DEFINE_string(
  "world", "synthetic", "`synthetic`, or a world file of fit_world."
)
_PRESET = flags.DEFINE_enum(
  "preset", "cpu", list(config_lib.PRESETS), "Size of the run."
)
_ROUNDS = flags.DEFINE_integer(
  "rounds", None, "Rounds, instead of the preset's.", lower_bound=1
)
_SEEDS = flags.DEFINE_list(
  "seeds", ["0"], "Seeds; each decides users, synthetic world and learner."
)
_PARALLEL_SEEDS = flags.DEFINE_integer(
  "parallel_seeds",
  1,
  "Seeds that run side by side as one program; divides the number of seeds. The"
  " worlds, logged rows and networks of all of them are then in memory at once:"
  " so many times what one seed needs.",
  lower_bound=1,
)
_CRITICS = flags.DEFINE_list(
  "critics",
  None,
  f"Critics, instead of the preset's: {', '.join(CRITICS)}. Each is trained on"
  " its own; the first is the one that summary.json speaks of.",
)
_EXPLORATION = flags.DEFINE_enum(
  "exploration",
  None,
  list(config_lib.EXPLORATIONS),
  "How often the deviation in the box is drawn, instead of the preset's.",
)
_ES_STEPS = flags.DEFINE_integer(
  "es_steps",
  None,
  "Steps of the evolution strategy (ES) that is in service first, instead of the"
  " preset's; 240 converge it in preset `cpu`.",
  lower_bound=2,
)
_LEAVING = flags.DEFINE_list(
  "leaving",
  [next(iter(LEAVING_MODELS))],
  f"Leaving models: {', '.join(LEAVING_MODELS)}.",
)
_OUT_DIR = flags.DEFINE_string(
  "out_dir", "runs/progressive", "Folder to write into."
)
_RESUME = flags.DEFINE_boolean(
  "resume", False, "Go on with the run in --out_dir."
)

flags.register_validator(
  "world",
  lambda value: value == "synthetic" or os.path.isfile(value),
  "expected `synthetic` or a file that exists.",
)
flags.register_validator(
  "seeds",
  lambda values: (
    bool(values)
    and all(value.isdecimal() for value in values)
    and len(set(map(int, values))) == len(values)
  ),
  "expected different non-negative integers, separated by commas.",
)
for _flag, _known in (("leaving", tuple(LEAVING_MODELS)), ("critics", CRITICS)):
  flags.register_validator(
    _flag,
    lambda values, known=_known: (
      values is None
      or (
        bool(values)
        and set(values) <= set(known)
        and len(set(values)) == len(values)
      )
    ),
    f"expected different names of {', '.join(_known)}.",
  )
flags.register_multi_flags_validator(
  ["seeds", "parallel_seeds"],
  lambda values: len(values["seeds"]) % values["parallel_seeds"] == 0,
  "--parallel_seeds: expected a number that divides the number of --seeds.",
)


def _say(message: str) -> None:
  print(message, file=sys.stderr, flush=True)


def _claim(out_dir: pathlib.Path, plan: dict[str, Any]) -> str | None:
  """Takes the folder for this run; a sentence if that cannot be."""
  path = out_dir / "run.json"
  if out_dir.exists() and not out_dir.is_dir():
    return f"--out_dir: expected a folder, found the file {out_dir}."
  if not _RESUME.value:
    if path.exists():
      return (
        f"--out_dir: {out_dir} holds a run; add --resume to go on with it, or"
        " name another folder."
      )
    try:
      out_dir.mkdir(parents=True, exist_ok=True)
      write_json(path, plan)
    except OSError as error:
      return f"--out_dir: {out_dir} cannot be written to ({error.strerror})."
    return None
  if not path.exists():
    return f"--resume: there is no run in {out_dir}."
  before = json.loads(path.read_text(encoding="utf-8"))
  for name, value in plan.items():
    if before.get(name) != value:
      return (
        f"--resume: the run in {out_dir} has another {name}; give the flags it"
        " was started with."
      )
  return None


def _same_run(expected: dict[str, Any]):
  def check(found: dict[str, Any]) -> None:
    for name, value in expected.items():
      if found[name] != value:
        raise ValueError(
          f"{name}: expected {value!r} as in this run, found {found[name]!r} in"
          " the checkpoint."
        )

  return check


class _Watch:
  """Counts the updates of all runs, and writes those of one to a file."""

  def __init__(self, total: int, chunk_size: int):
    self._progress = Progress(0, total)
    self._negative_targets = NegativeTargetWarning()
    self._done = 0
    self._chunk_size = chunk_size

  def skip(self, updates: int) -> None:
    self._done += updates

  def follow(
    self, seeds: Sequence[int], writer: MetricsWriter | None, before: int
  ):
    """`on_chunk` of a training run whose rows count from `before`."""

    def on_chunk(state, metrics):
      self._done += self._chunk_size
      self._progress.update(self._done)
      for n, seed in enumerate(seeds):
        row = summarize(run_lib.tree_index(metrics, n))
        self._negative_targets.check(row)
        if writer is not None:
          step = before + int(state.step[n])
          writer.write({"seed": seed, "step": step, **row})

    return on_chunk


def _check(run: run_lib.Run, new: State, old: State) -> list[dict[str, Any]]:
  """Critics of `new` against the world, around `old` in service, by seed.

  One key for the last round and the one round: both visit the same users.
  """
  config = run.config
  effort = critic_check.Effort(
    states=config.check_states,
    continuations=config.check_continuations,
    sessions=config.check_sessions,
    max_requests=config.max_requests,
    exploration=config.exploration,
  )
  width = config_lib.HALF_WIDTH
  found = []
  for n in range(len(run.seeds)):
    world, table, of_old, of_new = (
      run_lib.tree_index(x, n) for x in (run.world, run.table, old, new)
    )
    compared = critic_check.compare(
      run.keys["check"][n],
      world,
      table,
      run.algorithm.act,
      service_lib.service(of_old, width),
      service_lib.service(of_new),
      service_lib.service(of_old, width),
      run.algorithm.critic,
      of_new,
      effort,
    )
    found.append(critic_check.figures(jax.device_get(compared)))
  return found


def _play(
  run: run_lib.Run,
  longer: baselines.LongerEs,
  record: dict[str, Any],
  folder: pathlib.Path,
  watch: _Watch,
) -> list[dict[str, Any]]:
  """All rounds and the one round of one critic, from where they were left."""
  config, seeds = run.config, run.seeds
  updates = config.train.num_updates
  folder.mkdir(parents=True, exist_ok=True)
  state, rounds, checks = run.start, [], None
  check = _same_run(record)
  checkpoints = Checkpoints(folder / "checkpoints", keep=config.rounds)
  try:
    restored = checkpoints.restore(state, check)
    if restored is not None:
      state, found = restored
      rounds, checks = found["rounds"], found["checks"]
      watch.skip(len(rounds) * updates)
      _say(f"{folder}: going on after round {len(rounds)}.")
    writer = MetricsWriter(folder / "metrics.jsonl", len(rounds) * updates)
    for number in range(len(rounds), config.rounds):
      on_chunk = watch.follow(seeds, writer, number * updates)
      old = state
      state, figures = progressive.play_round(run, old, number, on_chunk)
      rounds.append(figures)
      if number + 1 == config.rounds:
        started = time.monotonic()
        checks = {"figures": _check(run, state, old)}
        checks["seconds"] = time.monotonic() - started
      checkpoints.save(
        number + 1, state, {**record, "rounds": rounds, "checks": checks}
      )
      for seed, of_seed in zip(seeds, figures, strict=True):
        low, high = of_seed["reward_gain_ci95"]
        _say(
          f"seed {seed}, {folder}, round {number + 1} of {config.rounds}: reward"
          f" {of_seed['reward_gain_pct']:+.2f}% [{low:+.2f}, {high:+.2f}] over ES"
        )
  finally:
    checkpoints.close()
  judged = run_lib.judge_state(run, state)
  gains = [
    segments.gains(
      *(run_lib.tree_index(x, n) for x in (judged, run.base, run.world))
    )
    for n in range(len(seeds))
  ]
  uncut = baselines.uncut_figures(run, state)
  checkpoints = Checkpoints(folder / "one_round", keep=1)
  try:
    restored = checkpoints.restore(run.start, check)
    if restored is None:
      started = time.monotonic()
      state, figures = progressive.play_once(run, watch.follow(seeds, None, 0))
      seconds = time.monotonic() - started
      started = time.monotonic()
      one_round = {
        "figures": figures,
        "seconds": seconds,
        "checks": _check(run, state, run.start),
        "check_seconds": time.monotonic() - started,
      }
      checkpoints.save(1, state, {**record, "one_round": one_round})
    else:
      watch.skip(config.rounds * updates)
      state, found = restored
      one_round = found["one_round"]
  finally:
    checkpoints.close()
  over = run_lib.reward_gains(judged, run_lib.judge_state(run, state))
  over_es = run_lib.reward_gains(judged, longer.judged)
  spent = {
    name: sum(figures[0]["seconds"][name] for figures in rounds)
    for name in ("collect", "train", "judge")
  }
  return [
    {
      "rounds": [figures[n] for figures in rounds],
      "one_round": one_round["figures"][n],
      "over_one_round": over[n],
      "over_longer_es": over_es[n],
      "segments": gains[n],
      "uncut": uncut[n],
      "critic_check": {
        "last_round": checks["figures"][n],
        "one_round": one_round["checks"][n],
      },
      "seconds": {
        **spent,
        "one_round": one_round["seconds"],
        "critic_check": checks["seconds"] + one_round["check_seconds"],
      },
    }
    for n in range(len(seeds))
  ]


def _play_group(
  configs: dict[str, config_lib.ProgressiveConfig],
  algorithms: dict[str, run_lib.Algorithm],
  worlds: Sequence[World],
  seeds: Sequence[int],
  folder: pathlib.Path,
  watch: _Watch,
) -> dict[str, Any]:
  """What seeds side by side brought under one leaving model, by seed."""
  done = folder / "result.json"
  if done.exists():
    for config in configs.values():
      watch.skip(2 * config.rounds * config.train.num_updates)
    return json.loads(done.read_text(encoding="utf-8"))
  started = time.monotonic()
  first = next(iter(configs))
  run = baselines.prepare(configs[first], worlds, seeds, algorithms[first])
  names = [fingerprint(world) for world in worlds]
  prepared = time.monotonic() - started
  longer = baselines.longer_es(run)
  gains = run_lib.reward_gains(longer.judged, run.base)
  searched = time.monotonic() - started - prepared
  critics = {}
  for critic, config in configs.items():
    record = {"config": config.to_json(), "worlds": names, "seeds": list(seeds)}
    of_critic = run
    if critic != first:
      of_critic = run_lib.with_algorithm(run, config, algorithms[critic])
    critics[critic] = _play(of_critic, longer, record, folder / critic, watch)
  started = time.monotonic()
  bounds = baselines.headroom_figures(run)
  seconds = {
    "prepare": prepared,
    "longer_es": searched,
    "headroom": time.monotonic() - started,
  }
  es = baselines.es_figures(run)
  result = {
    str(seed): {
      "fingerprint": names[n],
      "es": es[n],
      "longer_es": {
        "sessions": longer.sessions,
        "action": np.asarray(longer.action[n], np.float64).tolist(),
        **gains[n],
      },
      "headroom": bounds[n],
      "seconds": seconds,
      "critics": {critic: found[n] for critic, found in critics.items()},
    }
    for n, seed in enumerate(seeds)
  }
  write_json(done, result)
  return result


def _critic_figures(check: dict[str, Any]) -> dict[str, Any]:
  """Correlations are those without the noise of the returns."""
  figures = {}
  for part in ("value", "advantage", "advantage_held"):
    for name, source in (
      ("correlation", "correlation_without_noise"),
      ("slope", "slope"),
    ):
      for end in ("", "_ci95"):
        figures[f"critic_{part}_{name}{end}"] = check[part][f"{source}{end}"]
  return figures


def _figures(result: dict[str, Any], critic: str) -> dict[str, Any]:
  """What a reader wants first of one seed, leaving model and critic."""
  found = result["critics"][critic]
  rounds, last = found["rounds"], found["rounds"][-1]

  def over_rounds(name):
    return sum(row[name] for row in rounds) / len(rounds)

  gain, bound = last["reward_gain_pct"], result["headroom"]["headroom_pct"]
  return {
    **{
      name: last[name]
      for name in (
        "reward_gain_pct",
        "reward_gain_ci95",
        "reward_p_value",
        "uvc_gain_pct",
        "udt_gain_pct",
        "session_length_gain_pct",
        "hate_rate",
        "hate_rate_base",
      )
    },
    "reward_gain_uncut_pct": found["uncut"]["reward_gain_pct"],
    "reward_gain_uncut_ci95": found["uncut"]["reward_gain_ci95"],
    **_critic_figures(found["critic_check"]["last_round"]),
    "one_round_gain_pct": found["one_round"]["reward_gain_pct"],
    "one_round_gain_ci95": found["one_round"]["reward_gain_ci95"],
    "over_one_round_pct": found["over_one_round"]["reward_gain_pct"],
    "over_one_round_ci95": found["over_one_round"]["reward_gain_ci95"],
    "longer_es_gain_pct": result["longer_es"]["reward_gain_pct"],
    "over_longer_es_pct": found["over_longer_es"]["reward_gain_pct"],
    "over_longer_es_ci95": found["over_longer_es"]["reward_gain_ci95"],
    "headroom_reached": gain / bound if bound > 0 else None,
    "exploration_cost_pct": over_rounds("exploration_cost_pct"),
    "gaussian_cost_pct": over_rounds("gaussian_cost_pct"),
    "outside_share": over_rounds("outside_share"),
  }


def _summary(result: dict[str, Any]) -> dict[str, Any]:
  """One seed and leaving model: the first critic's figures, then the others'."""
  first, *others = result["critics"]
  return {
    "fingerprint": result["fingerprint"],
    "critic": first,
    **_figures(result, first),
    "headroom_pct": result["headroom"]["headroom_pct"],
    "other_critics": {critic: _figures(result, critic) for critic in others},
  }


def _metrics(path: pathlib.Path, seed: int) -> list[dict[str, Any]]:
  lines = path.read_text(encoding="utf-8").splitlines()
  return [row for row in map(json.loads, lines) if row["seed"] == seed]


def _versions() -> dict[str, str]:
  device = jax.devices()[0]
  return {
    "python": platform.python_version(),
    **{name: importlib.metadata.version(name) for name in _PACKAGES},
    "device": f"{jax.device_count()} x {device.device_kind}",
    "cores": str(os.cpu_count()),
  }


def main(argv: Sequence[str]) -> None:
  """Plays all rounds, writes the report, prints the table."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  # Orbax reports every step of a save.
  logging.set_verbosity(logging.WARNING)
  started = time.monotonic()
  config = config_lib.PRESETS[_PRESET.value]
  if _ROUNDS.value is not None:
    config = dataclasses.replace(config, rounds=_ROUNDS.value)
  if _EXPLORATION.value is not None:
    config = dataclasses.replace(config, exploration=_EXPLORATION.value)
  if _ES_STEPS.value is not None:
    search = config.es_search._replace(iterations=_ES_STEPS.value)
    config = dataclasses.replace(config, es_search=search)
  critics = _CRITICS.value or [config.train.critic]
  configs = {critic: config.with_critic(critic) for critic in critics}
  out_dir = pathlib.Path(_OUT_DIR.value)
  seeds = [int(value) for value in _SEEDS.value]
  plan = {
    "world": _WORLD.value,
    "preset": _PRESET.value,
    "rounds": config.rounds,
    "seeds": seeds,
    "parallel_seeds": _PARALLEL_SEEDS.value,
    "leaving": _LEAVING.value,
    "critics": critics,
    "config": config.to_json(),
  }
  fitted = None
  if _WORLD.value != "synthetic":
    try:
      fitted = world_io.load_world(_WORLD.value)
    except ValueError as error:
      raise app.UsageError(f"--world: {error}") from error
  problem = _claim(out_dir, plan)
  if problem is not None:
    raise app.UsageError(problem)

  groups = [
    seeds[n : n + _PARALLEL_SEEDS.value]
    for n in range(0, len(seeds), _PARALLEL_SEEDS.value)
  ]
  total = len(groups) * len(_LEAVING.value) * len(critics) * 2 * config.rounds
  updates = config.train.num_updates
  watch = _Watch(total * updates, config.train.chunk_size)
  algorithms: dict[str, run_lib.Algorithm] = {}
  found: dict[tuple[int, str], dict[str, Any]] = {}
  pages, seconds = {}, {}
  for group in groups:
    worlds = [fitted or _synthetic(config, seed) for seed in group]
    algorithms = algorithms or _algorithms(configs, worlds[0])
    for leaving in _LEAVING.value:
      folder = out_dir / f"{leaving}_seed_{'_'.join(map(str, group))}"
      left = [world.with_leaving(leaving) for world in worlds]
      result = _play_group(configs, algorithms, left, group, folder, watch)
      spent = dict(result[str(group[0])]["seconds"])
      for critic in critics:
        of_critic = result[str(group[0])]["critics"][critic]
        seconds[f"{folder.name}/{critic}"] = {**spent, **of_critic["seconds"]}
        spent = {}  # What critics share counts once.
      for seed in group:
        found[seed, leaving] = result[str(seed)]
        for critic in critics:
          title = f"seed {seed}, leaving {leaving}, critic {critic}"
          of_critic = result[str(seed)]["critics"][critic]
          pages[title] = {
            **result[str(seed)],
            **of_critic,
            "metrics": _metrics(folder / critic / "metrics.jsonl", seed),
          }
  _report(out_dir, plan, found, pages, seconds, time.monotonic() - started)


def _synthetic(config: config_lib.ProgressiveConfig, seed: int) -> World:
  _say(f"Building the synthetic world of seed {seed}.")
  return synthetic.synthetic_world(config.world_size, seed)


def _algorithms(
  configs: dict[str, config_lib.ProgressiveConfig], world: World
) -> dict[str, run_lib.Algorithm]:
  """By critic; all of them have one policy, whose programs they share."""
  algorithms: dict[str, run_lib.Algorithm] = {}
  for critic, config in configs.items():
    first = next(iter(algorithms.values()), None)
    algorithms[critic] = run_lib.make_algorithm(
      config.train, world, None if first is None else first.act
    )
  return algorithms


def _report(
  out_dir: pathlib.Path,
  plan: dict[str, Any],
  found: dict[tuple[int, str], dict[str, Any]],
  pages: dict[str, dict[str, Any]],
  seconds: dict[str, dict[str, float]],
  wall_s: float,
) -> None:
  """Writes the summary and the report, prints the table."""
  summaries: dict[str, Any] = {}
  for (seed, leaving), result in found.items():
    summaries.setdefault(str(seed), {})[leaving] = _summary(result)
  names = list(dict.fromkeys(r["fingerprint"] for r in found.values()))
  summary = {
    "fingerprint": ",".join(names),
    "preset": plan["preset"],
    "rounds": plan["rounds"],
    "wall_s": wall_s,
    "seeds": summaries,
  }
  write_json(out_dir / "summary.json", summary)
  columns = {
    (leaving, critic): {
      seed: _figures(result, critic)
      for (seed, of_leaving), result in found.items()
      if of_leaving == leaving
    }
    for leaving in plan["leaving"]
    for critic in plan["critics"]
  }
  overview = progressive_report.overview_table(columns)
  tables = {
    title: [
      progressive_report.result_table(title, page),
      segments.table(f"Users, {title}", page["segments"]),
      *(
        critic_check.table(
          f"Critics against the world, {name.replace('_', ' ')}, {title}", found
        )
        for name, found in page["critic_check"].items()
      ),
    ]
    for title, page in pages.items()
  }
  split = progressive_report.seconds_table(seconds)
  configuration = json.dumps(
    {**plan, "fingerprints": names, "versions": _versions()}, indent=1
  )
  written = ["summary.json", "report.md"]
  report = progressive_report.markdown(
    [overview, *itertools.chain(*tables.values()), split], configuration
  )
  write_text(out_dir / "report.md", report)
  if importlib.util.find_spec("matplotlib") is None:
    _say("No report.html: matplotlib (the `plots` extra) is not installed.")
  else:
    page = progressive_report.html(columns, tables, pages, split, configuration)
    write_text(out_dir / "report.html", page)
    written.append("report.html")
  # Many seeds are an overview; what one of them did is in the report.
  shown = next(iter(tables.values()))[0] if len(tables) == 1 else overview
  print(table_text(shown))
  written += ["*/*/metrics.jsonl", "*/*/checkpoints", "*/*/one_round"]
  print("\n".join(str(out_dir / name) for name in written))


if __name__ == "__main__":
  app.run(main)
