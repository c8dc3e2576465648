"""Policies of a finished progressive run, read from its folder."""

import json
import os
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.datasets.sessions import Transition
from mtf_jax.exploration import ActionBox
from mtf_jax.learners.integrated_rl import Coefficients, Normalization, State
from mtf_jax.training.checkpoints import Checkpoints
from mtf_jax.training.config import TrainConfig
from mtf_jax.training.progressive import Algorithm
from mtf_jax.worlds.world import World, fingerprint

CHECKPOINTS, ONE_ROUND = "checkpoints", "one_round"


class Plan(NamedTuple):
  """What a run was asked for.

  seeds: its seeds.
  leaving: its leaving models.
  train: networks and updates.
  """

  seeds: tuple[int, ...]
  leaving: tuple[str, ...]
  train: TrainConfig


def read_plan(run_dir: str | os.PathLike[str]) -> Plan:
  """Reads what the run in a folder was asked for.

  Raises:
    ValueError: there is no run.
  """
  path = pathlib.Path(run_dir) / "run.json"
  if not path.exists():
    raise ValueError(f"{run_dir}: expected a progressive run, found none.")
  plan = json.loads(path.read_text(encoding="utf-8"))
  train = dict(plan["config"]["train"])
  train["hidden_sizes"] = tuple(train["hidden_sizes"])
  train["coefficients"] = {
    name: tuple(value) if isinstance(value, list) else value
    for name, value in train["coefficients"].items()
  }
  return Plan(
    tuple(plan["seeds"]), tuple(plan["leaving"]), TrainConfig(**train)
  )


class Finished(NamedTuple):
  """The policies of one seed and leaving model.

  es: `[A]`, the action of ES.
  progressive: the learner's state after the last round.
  one_round: that of one round on the same data.
  """

  es: np.ndarray
  progressive: State
  one_round: State


def new_state(algorithm: Algorithm, world: World, train: TrainConfig) -> State:
  """An untrained state of a run: what its checkpoints are shaped like."""
  zero = jnp.zeros((world.num_actions,), jnp.float32)
  observation = jnp.zeros((len(world.observation_names),), jnp.float32)
  box = ActionBox(zero, zero)
  example = Transition(
    observation_tm1=observation,
    action_tm1=zero,
    box_tm1=box,
    r_t=jnp.zeros((world.group_weights.shape[0],), jnp.float32),
    discount_t=jnp.zeros((), jnp.float32),
    observation_t=observation,
    box_t=box,
  )
  return algorithm.learner.init(
    jax.random.key(0),
    example,
    Coefficients(**jax.tree.map(jnp.asarray, train.coefficients)),
    Normalization(observation, jnp.ones_like(observation)),
  )


def _restore(folder: pathlib.Path, template: State, world: str) -> State:
  def same_world(record: dict[str, Any]) -> None:
    if record["world"] != world:
      raise ValueError(
        f"{folder}: expected the world {world}, found a run in"
        f" {record['world']}."
      )

  if not folder.is_dir():
    raise ValueError(f"{folder}: expected checkpoints, found no folder.")
  checkpoints = Checkpoints(folder)
  try:
    restored = checkpoints.restore(template, check=same_world)
  finally:
    checkpoints.close()
  if restored is None:
    raise ValueError(f"{folder}: expected a checkpoint, found none.")
  return restored[0]


def read_policies(
  run_dir: str | os.PathLike[str],
  seed: int,
  leaving: str,
  world: World,
  algorithm: Algorithm,
  train: TrainConfig,
) -> Finished:
  """Reads the policies of one seed and leaving model.

  Args:
    run_dir: `--out_dir` of the run.
    seed: one of its seeds.
    leaving: one of its leaving models.
    world: the run's world, whole, under any leaving model.
    algorithm: `progressive.make_algorithm(train, world)`.
    train: of the run's plan.

  Returns:
    The policies.

  Raises:
    ValueError: a checkpoint is missing or of another world.
    CheckpointError: all are damaged.
  """
  folder = pathlib.Path(run_dir) / f"seed_{seed}_{leaving}"
  template = new_state(algorithm, world, train)
  name = fingerprint(world.with_leaving(leaving))
  progressive = _restore(folder / CHECKPOINTS, template, name)
  return Finished(
    es=np.asarray(progressive.actor_params["start"]),
    progressive=progressive,
    one_round=_restore(folder / ONE_ROUND, template, name),
  )
