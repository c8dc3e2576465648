"""Policies of a finished progressive run, read from its folder."""

import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from mtf_jax import policies
from mtf_jax.evaluation.oracle import Search
from mtf_jax.learners.integrated_rl import State
from mtf_jax.studies.progressive import run as run_lib
from mtf_jax.studies.progressive import service as service_lib
from mtf_jax.studies.progressive.config import ProgressiveConfig
from mtf_jax.studies.progressive.service import Service
from mtf_jax.training.checkpoints import Checkpoints
from mtf_jax.training.config import TrainConfig
from mtf_jax.worlds.world import World, fingerprint


class Policies(NamedTuple):
  """What one seed, leaving model and critic put into service.

  seed, leaving, critic: which.
  act: the policy's function for `Service` parameters.
  es: `[A]`, the action of ES.
  progressive: the policy after the last round, not exploring.
  one_round: that of one round on the same data.
  """

  seed: int
  leaving: str
  critic: str
  act: policies.Act
  es: jax.Array
  progressive: Service
  one_round: Service


def _configs(plan: dict[str, Any]) -> dict[str, ProgressiveConfig]:
  """The configuration of each critic."""
  values = dict(plan["config"])
  for name in ("es_search", "headroom_search"):
    values[name] = Search(**values[name])
  values["train"] = TrainConfig.from_json(values["train"])
  config = ProgressiveConfig(**values)
  return {critic: config.with_critic(critic) for critic in plan["critics"]}


def _restore(
  folder: pathlib.Path, template: State, expected: dict[str, Any]
) -> State:
  """The newest whole checkpoint; it must be the one that is `expected`.

  A damaged one makes way for the one before it, whose policy is of an earlier
  round.
  """

  def check(record: dict[str, Any]) -> None:
    found = {
      "world": ", ".join(sorted(set(record["worlds"]))),
      "seeds": record["seeds"],
      "rounds": len(record.get("rounds", ())),
    }
    for name, value in expected.items():
      if found[name] != value:
        raise ValueError(
          f"{folder}: expected {name} {value}, found {found[name]} in the"
          " newest whole checkpoint."
        )

  if not folder.is_dir():
    raise ValueError(f"{folder}: expected checkpoints, found no folder.")
  checkpoints = Checkpoints(folder)
  try:
    restored = checkpoints.restore(template, check)
  finally:
    checkpoints.close()
  if restored is None:
    raise ValueError(f"{folder}: expected a checkpoint, found none.")
  return restored[0]


def read_policies(
  run_dir: str | os.PathLike[str], world: World
) -> Iterator[Policies]:
  """Reads the policies of a run whose seeds share one fitted world.

  Args:
    run_dir: `--out_dir` of `experiments.progressive`.
    world: the run's world, under any leaving model.

  Yields:
    The policies by leaving model, critic and seed.

  Raises:
    ValueError: there is no run, it is not finished, its last checkpoint is
      damaged, or it was in another world.
    CheckpointError: no checkpoint is whole.
  """
  run_dir = pathlib.Path(run_dir)
  path = run_dir / "run.json"
  if not path.exists():
    raise ValueError(f"{run_dir}: expected a progressive run, found none.")
  plan = json.loads(path.read_text(encoding="utf-8"))
  configs, size = _configs(plan), plan["parallel_seeds"]
  groups = [
    plan["seeds"][n : n + size] for n in range(0, len(plan["seeds"]), size)
  ]
  act = None
  for leaving in plan["leaving"]:
    left = world.with_leaving(leaving)
    name = fingerprint(left)
    for critic, config in configs.items():
      algorithm = run_lib.make_algorithm(config.train, left, act)
      act = algorithm.act
      for group in groups:
        run = run_lib.assemble(config, [left] * len(group), group, algorithm)
        template = run_lib.with_algorithm(run, config, algorithm).start
        joined = "_".join(map(str, group))
        folder = run_dir / f"{leaving}_seed_{joined}" / critic
        same = {"world": name, "seeds": group}
        last = _restore(
          folder / "checkpoints", template, {**same, "rounds": config.rounds}
        )
        once = _restore(folder / "one_round", template, same)
        for n, seed in enumerate(group):
          yield Policies(
            seed=seed,
            leaving=leaving,
            critic=critic,
            act=act,
            es=last.actor_params["start"][n],
            progressive=service_lib.service(run_lib.tree_index(last, n)),
            one_round=service_lib.service(run_lib.tree_index(once, n)),
          )
