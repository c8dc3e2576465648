"""Public trainers on the package's worlds and logs, as they are.

  python -m benchmarks.interop --parts=checker,ppo --json_out=interop.json
  python -m benchmarks.interop --parts=d3rlpy --json_out=interop.json

`checker` runs Gymnasium's checker and counts requests a second; `ppo` trains
rejax's PPO on the functional form, once on the whole range of actions and once
in a box around the default weights; `d3rlpy` trains TD3+BC, IQL and CQL on an
exported log. Policies are judged against the default weights (action 0) on the
same users and sessions. d3rlpy and Gymnasium's newer versions do not share an
environment, so a part adds to the JSON file what it found.
"""

import functools
import importlib.metadata
import json
import pathlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import harness
from experiments import launch
from mtf_jax import policies
from mtf_jax.evaluation import ab_test
from mtf_jax.fitting import synthetic
from mtf_jax.interop import datasets, functional
from mtf_jax.interop.host_policy import host_policy
from mtf_jax.io import InputError
from mtf_jax.worlds import returns as returns_lib
from mtf_jax.worlds import rollout as rollout_lib
from mtf_jax.worlds.world import World, fingerprint

_PARTS = flags.DEFINE_list("parts", ["checker"], "checker, ppo, d3rlpy.")
_SESSIONS = flags.DEFINE_integer("sessions", 20_000, "Logged, of d3rlpy.", 10)
_UPDATES = flags.DEFINE_integer("updates", 3000, "Of each learner.", 1)
_PPO_STEPS = flags.DEFINE_integer("ppo_steps", 2**21, "Requests of PPO.", 2**13)
_JUDGED = flags.DEFINE_integer("judged", 8192, "Sessions to judge on.", 10)
_MAX_REQUESTS = 16


class Judge:
  """Judges policies in one world against its default weights."""

  def __init__(self, world: World, num_sessions: int) -> None:
    """Judges the default weights.

    Args:
      world: the world.
      num_sessions: sessions to judge on, the same for all.
    """
    self._world = ab_test.evaluation_world(world)
    self._table = returns_lib.expected_rewards(self._world)
    self._num_sessions = num_sessions
    action = jnp.zeros((world.num_actions,), jnp.float32)
    self._base = self._evaluate(policies.fixed_action, action)

  def _evaluate(self, act: policies.Act, params: Any) -> ab_test.EvalResult:
    return ab_test.evaluate(
      jax.random.key(1),
      self._world,
      self._table,
      act,
      params,
      self._num_sessions,
      _MAX_REQUESTS,
    )

  def __call__(self, act: policies.Act, params: Any) -> dict[str, Any]:
    """Gains over the default weights, and the session's mean reward."""
    found = self._evaluate(act, params)
    return {
      "reward": float(np.mean(found.reward)),
      "reward_base": float(np.mean(self._base.reward)),
      **ab_test.figures(found, self._base, self._world.slate_size),
    }


def check_gymnasium(world: World) -> dict[str, Any]:
  """Gymnasium's checker on the environment, and requests a second of both."""
  import gymnasium
  from gymnasium.utils.env_checker import check_env

  from mtf_jax.interop.gymnasium import ID

  check_env(gymnasium.make(ID, world=world).unwrapped)
  result = {"check_env": "passed", "requests_per_s": {}}
  for num_envs in (1, 64, 1024):
    many = gymnasium.make_vec(ID, num_envs=num_envs, world=world)
    many.reset(seed=0)
    many.action_space.seed(0)
    actions = many.action_space.sample()
    many.step(actions)
    calls, start = 200, time.perf_counter()
    for _ in range(calls):
      many.step(actions)
    seconds = time.perf_counter() - start
    result["requests_per_s"][str(num_envs)] = calls * num_envs / seconds
  return result


def train_ppo(
  world: World, judge: Judge, num_steps: int, boxed: bool
) -> dict[str, Any]:
  """rejax's PPO on the functional form.

  Args:
    world: the world.
    judge: of it.
    num_steps: requests to train on.
    boxed: whether actions deviate from the default weights within the box.

  Returns:
    Mean returns by rejax's own evaluation, and the judge's figures before and
    after.
  """
  import rejax

  settings: dict[str, Any] = {}
  if boxed:
    settings = {
      "baseline": _default_action,
      "baseline_params": jnp.zeros((world.num_actions,), jnp.float32),
    }
  environment, params = functional.make(
    world, max_requests=_MAX_REQUESTS, **settings
  )
  algorithm = rejax.get_algo("ppo").create(
    env=environment,
    env_params=params,
    total_timesteps=num_steps,
    eval_freq=max(num_steps // 8, 2**13),
    num_envs=512,
    num_steps=16,
    num_epochs=4,
    num_minibatches=8,
    learning_rate=3e-4,
    gamma=0.99,
    ent_coef=0.0,
    max_grad_norm=0.5,
    normalize_observations=True,
    normalize_rewards=True,
  )
  train = jax.jit(algorithm.train).lower(jax.random.key(0)).compile()
  start = time.perf_counter()
  state, (_, episodes) = jax.block_until_ready(train(jax.random.key(0)))
  seconds = time.perf_counter() - start

  def policy(own, observation, rng_key):
    return algorithm.make_act(own)(observation, rng_key)

  act = functional.act_in(environment, policy)
  return {
    # Of 128 sessions each, other ones every time: rejax's own evaluation.
    "return_curve": np.asarray(episodes).mean(axis=1).tolist(),
    "requests": num_steps,
    "seconds": seconds,
    "before": judge(act, (params, algorithm.init_state(jax.random.key(0)))),
    "after": judge(act, (params, state)),
  }


def _default_action(params, observation, rng_key):
  del observation, rng_key
  return params


def train_d3rlpy(
  world: World, judge: Judge, num_sessions: int, num_updates: int
) -> dict[str, Any]:
  """d3rlpy's TD3+BC, IQL and CQL on a log of exploring the default weights.

  Args:
    world: the world.
    judge: of it.
    num_sessions: sessions of the log.
    num_updates: of each learner.

  Returns:
    Figures by learner, and of the log.
  """
  import d3rlpy
  import torch

  d3rlpy.seed(0)
  # More than one fights with what JAX still runs.
  torch.set_num_threads(1)
  action = jnp.zeros((world.num_actions,), jnp.float32)
  log = rollout_lib.pack(
    rollout_lib.rollout(
      jax.random.key(0),
      world,
      policies.explore_in_box,
      action,
      num_sessions,
      _MAX_REQUESTS,
    )
  )
  dataset, side = datasets.to_d3rlpy(log)
  again = datasets.from_d3rlpy(dataset, side)
  same = jax.tree.map(np.array_equal, again, log)
  result: dict[str, Any] = {
    "rows": len(log.terminal),
    "transitions": dataset.transition_count,
    "equal_after_the_way_back": bool(jax.tree.all(same)),
    "learners": {},
  }
  scaling = {
    "observation_scaler": d3rlpy.preprocessing.StandardObservationScaler(),
    # The range of the log: the box around the default weights.
    "action_scaler": d3rlpy.preprocessing.MinMaxActionScaler(),
    "reward_scaler": d3rlpy.preprocessing.MultiplyRewardScaler(0.1),
    "batch_size": 256,
  }
  for name, config in {
    "td3_plus_bc": d3rlpy.algos.TD3PlusBCConfig,
    "iql": d3rlpy.algos.IQLConfig,
    "cql": d3rlpy.algos.CQLConfig,
  }.items():
    learner = config(**scaling).create()
    start = time.perf_counter()
    learner.fit(
      dataset,
      n_steps=num_updates,
      n_steps_per_epoch=num_updates,
      show_progress=False,
      logger_adapter=d3rlpy.logging.NoopAdapterFactory(),
    )
    seconds = time.perf_counter() - start
    result["learners"][name] = {
      "updates": num_updates,
      "seconds": seconds,
      **judge(host_policy(learner.predict), ()),
    }
  return result


def _packages(*names: str) -> dict[str, str]:
  return {name: importlib.metadata.version(name) for name in names}


def _table(rows: dict[str, dict[str, Any]]) -> str:
  return harness.markdown_table(
    ("policy", "reward", "reward % [95%]", "length %", "seconds"),
    [
      (
        name,
        f"{row['reward']:.2f}",
        f"{row['reward_gain_pct']:+.2f} [{row['reward_gain_ci95'][0]:+.2f},"
        f" {row['reward_gain_ci95'][1]:+.2f}]",
        f"{row['session_length_gain_pct']:+.2f}",
        f"{row['seconds']:.0f}",
      )
      for name, row in rows.items()
    ],
  )


def run(part: str, world: World, judge: Callable[[], Judge]) -> dict[str, Any]:
  """Runs one part and prints what it found.

  Args:
    part: its name.
    world: the world.
    judge: makes the judge.

  Returns:
    Ready for JSON.
  """
  if part == "checker":
    found = check_gymnasium(world)
    print(found)
    return {"versions": _packages("gymnasium"), **found}
  if part == "ppo":
    rows = {}
    for name, boxed in (("range", False), ("box", True)):
      rows[name] = train_ppo(world, judge(), _PPO_STEPS.value, boxed)
      curve = ", ".join(f"{value:.1f}" for value in rows[name]["return_curve"])
      print(f"ppo, {name}: mean return of rejax's own evaluations {curve}")
    print(
      _table(
        {
          f"ppo, {name}, {when}": {**row[when], "seconds": row["seconds"]}
          for name, row in rows.items()
          for when in ("before", "after")
        }
      )
    )
    return {"versions": _packages("rejax", "gymnax"), "policies": rows}
  found = train_d3rlpy(world, judge(), _SESSIONS.value, _UPDATES.value)
  print({name: found[name] for name in found if name != "learners"})
  print(_table(found["learners"]))
  return {"versions": _packages("d3rlpy", "torch", "gymnasium"), **found}


def main() -> None:
  """Runs the parts and adds them to the JSON file."""
  unknown = set(_PARTS.value) - {"checker", "ppo", "d3rlpy"}
  if unknown:
    raise InputError(
      "--parts: expected checker, ppo, d3rlpy, found"
      f" {', '.join(sorted(unknown))}."
    )
  world = synthetic.synthetic_world("small", 0)
  judge = functools.cache(lambda: Judge(world, _JUDGED.value))
  path = harness.JSON_OUT.value
  for part in _PARTS.value:
    found = {"environment": harness.environment(), **run(part, world, judge)}
    if path:
      file = pathlib.Path(path)
      before = json.loads(file.read_text()) if file.exists() else {}
      parts = {**before, "world": fingerprint(world), part: found}
      harness.write_json(path, parts)


if __name__ == "__main__":
  launch.run(main)
