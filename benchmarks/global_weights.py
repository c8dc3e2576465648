"""What searches for global weights find, as a platform runs them and at best.

  python -m benchmarks.global_weights --seeds=0,1 --json_out=global_weights.json

Each search starts at uniform weights in the small synthetic world, 512 users,
sessions of 16 requests. The platform's see sampled rewards of sessions that are all
different: an evolution strategy (ES) at the deviation of the privileged search and
at its own, and the cross-entropy method (CEM). Gains are over uniform weights, on
32,768 sessions that no search has seen, with expected rewards.
"""

import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import harness
from experiments import launch
from mtf_jax.evaluation import global_weights
from mtf_jax.evaluation.statistics import relative_gain
from mtf_jax.fitting import synthetic
from mtf_jax.io import MAX_SEED
from mtf_jax.learners import cem
from mtf_jax.policies import fixed_action
from mtf_jax.worlds import returns as returns_lib
from mtf_jax.worlds.world import World, fingerprint

_SEEDS = launch.define_integers(
  "seeds", [0, 1], "Seeds of world and searches.", low=0, high=MAX_SEED
)
_USERS, _REQUESTS, _JUDGED = 512, 16, 32_768
_CONVERGED = global_weights.Effort()
_ES = {
  "es_small_deviation": global_weights.PLATFORM_ES._replace(
    noise=_CONVERGED.search.noise, learning_rate=_CONVERGED.search.learning_rate
  ),
  "es": global_weights.PLATFORM_ES,
}
_CEM = cem.Effort(iterations=20, population=64, sessions=64, elite=12)


def _world(seed: int) -> World:
  """The world with as many users as a progressive run keeps."""
  world = synthetic.synthetic_world("small", seed)
  users = np.unique(np.asarray(world.population))
  kept = np.random.default_rng(seed).choice(users, _USERS, replace=False)
  return world.replace(population=jnp.asarray(np.sort(kept), jnp.int32))


def measure(seed: int) -> list[dict[str, Any]]:
  """One row a search."""
  world = _world(seed)
  name = fingerprint(world)
  table = returns_lib.expected_rewards(world)
  uniform = jnp.zeros((world.num_actions,), jnp.float32)
  judge_key, converge_key, *keys = jax.random.split(jax.random.key(seed), 5)

  def reward(action) -> np.ndarray:
    returns = returns_lib.session_returns(
      judge_key, world, table, fixed_action, action, _JUDGED, _REQUESTS
    )
    return np.asarray(returns.expected, np.float64).sum(axis=1)

  base, rows = reward(uniform), []

  def add(search, action, sessions, seconds, **more):
    gain = relative_gain(reward(jnp.asarray(action)), base)
    rows.append(
      {
        "seed": seed,
        "world": name,
        "search": search,
        "gain_over_uniform_pct": gain.percent,
        "gain_over_uniform_ci95": [gain.low, gain.high],
        "sessions": sessions,
        "seconds": seconds,
        "action": np.asarray(action, np.float64).tolist(),
        **more,
      }
    )
    print(f"seed {seed}, {search}: {gain.percent:+.2f} %", file=sys.stderr)

  for key, (search, effort) in zip(keys, _ES.items(), strict=False):
    started = time.monotonic()
    action = jax.block_until_ready(
      global_weights.evolution(key, world, table, uniform, effort, _REQUESTS)
    )
    sessions = 2 * effort.iterations * effort.sessions
    add(search, action, sessions, time.monotonic() - started)
  started = time.monotonic()
  action = jax.block_until_ready(
    global_weights.cross_entropy(
      keys[-1], world, table, uniform, _CEM, _REQUESTS
    )
  )
  sessions = _CEM.iterations * _CEM.population * _CEM.sessions
  add("cem", action, sessions, time.monotonic() - started)
  started = time.monotonic()
  found = global_weights.converge(
    converge_key,
    world,
    table,
    jnp.stack([uniform, jnp.asarray(rows[1]["action"], jnp.float32)]),
    _CONVERGED,
    _REQUESTS,
  )
  add(
    "converged",
    found.action,
    found.sessions,
    time.monotonic() - started,
    converged=found.to_json(),
  )
  return rows


def main() -> None:
  """Measures, prints a table and writes the rows."""
  rows = [row for seed in _SEEDS.value for row in measure(seed)]
  print(
    harness.markdown_table(
      ["seed", "search", "over uniform % [95%]", "sessions", "seconds"],
      [
        [
          str(row["seed"]),
          row["search"],
          f"{row['gain_over_uniform_pct']:+.2f} [{{:+.2f}}, {{:+.2f}}]".format(
            *row["gain_over_uniform_ci95"]
          ),
          f"{row['sessions']:,}",
          f"{row['seconds']:.0f}",
        ]
        for row in rows
      ],
    )
  )
  if harness.JSON_OUT.value:
    harness.write_json(
      harness.JSON_OUT.value,
      {"environment": harness.environment(), "rows": rows},
    )


if __name__ == "__main__":
  launch.run(main)
