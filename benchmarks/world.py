"""Times the session simulator, its parts, and a straightforward version.

  python -m benchmarks.world --sessions=1,1024,32768 --json_out=world.json

A workload is a fixed-action policy over the small synthetic world: `sessions`
side by side, `candidates` a request, a slate of 6, until `--requests` requests;
rates count the requests that the program computes. Beside it, in the same run:

- the straightforward version: the ranking model's errors and the user's noise
  are drawn afresh from JAX's generator for every candidate, the user responds
  to every candidate, the fused scores are sorted in full;
- the parts, each compiled alone over the same batch, once a request: sums differ
  from the whole, which fuses them;
- the ceilings of the random generator (uniforms a second, and the requests that
  would give at the numbers a request uses) and of memory (bytes that a request
  must gather and write).
"""

import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from benchmarks import harness, played
from experiments import launch
from mtf_jax.fitting import synthetic
from mtf_jax.kernels import fusion
from mtf_jax.worlds import env, noise
from mtf_jax.worlds import response as response_lib
from mtf_jax.worlds.scores import lookup_scores
from mtf_jax.worlds.world import World

_WORLD = synthetic.SIZES["small"]
_SESSIONS = launch.define_integers("sessions", [1, 1024, 32768], "Sizes.")
_CANDIDATES = launch.define_integers(
  "candidates",
  [20, 50, 200],
  "Sizes.",
  low=_WORLD.slate_size,
  high=_WORLD.pool_size,
)
_REQUESTS = flags.DEFINE_integer("requests", 16, "Requests of a session.", 1)


def _straightforward(
  world: World, key: jax.Array, num_sessions: int, requests: int
):
  """The same sessions with fresh draws for every candidate and a full sort."""
  action = jnp.zeros((world.num_actions,), jnp.float32)
  weights = fusion.weights_from_action(action, world.fusion_spec)
  uniforms = response_lib.NUM_UNIFORMS

  def one(key):
    def request(state, key):
      score_key, user_key, leave_key = jax.random.split(key, 3)
      slots = env.candidate_slots(world, state)
      offered = world.pool[state.user, slots].astype(jnp.int32)
      scores = lookup_scores(world.scores, state.user, slots)
      scores = scores * jnp.exp(
        0.3 * jax.random.normal(score_key, scores.shape)
      )
      order = jnp.argsort(-fusion.fused_log_score(scores, weights))
      draws = jax.random.uniform(user_key, (offered.shape[0], uniforms))
      feedback = response_lib.sample_responses(
        draws, world.response, state.user, offered
      )
      shown = order[: world.slate_size]
      items, feedback = offered[shown], feedback[shown]
      following, result = env.respond(world, state, items, feedback)
      leaves = jax.random.uniform(leave_key) < result.leave_prob
      following = following._replace(active=state.active & ~leaves)
      return following, (
        jnp.where(state.active, result.reward, 0.0),
        env.observe(world, state),
        state.active,
      )

    reset_key, key = jax.random.split(key)
    start = env.reset(reset_key, world)
    return jax.lax.scan(request, start, jax.random.split(key, requests))[1]

  return jax.vmap(one)(jax.random.split(key, num_sessions))


def _parts(
  world: World, num_sessions: int
) -> dict[str, tuple[Callable, tuple]]:
  """One request of every session, part by part: name -> (function, arguments)."""
  keys = jax.random.split(jax.random.key(1), num_sessions)
  state = jax.jit(jax.vmap(env.reset, in_axes=(0, None)))(keys, world)
  action = jnp.zeros((world.num_actions,), jnp.float32)
  counter = jnp.arange(world.slate_size * response_lib.NUM_UNIFORMS)
  counter = counter.reshape(world.slate_size, -1).astype(jnp.int32)
  slots = jax.vmap(env.candidate_slots, in_axes=(None, 0))(world, state)
  slate = slots[:, : world.slate_size]

  def numbers(state):
    return jax.vmap(noise.counter_uniforms, in_axes=(0, 0, None))(
      state.noise_key, state.step, counter
    )

  def respond(world, state, slate, uniforms):
    def one(user, slots, uniforms):
      items = world.pool[user, slots].astype(jnp.int32)
      return response_lib.sample_responses(
        uniforms, world.response, user, items
      )

    return jax.vmap(one)(state.user, slate, uniforms)

  def rank(world, state):
    def one(state):
      slots = env.candidate_slots(world, state)
      scores = lookup_scores(world.scores, state.user, slots)
      weights = fusion.weights_from_action(action, world.fusion_spec)
      fused = fusion.fused_log_score(scores, weights)
      return fusion.rank_slate(fused, world.slate_size)

    return jax.vmap(one)(state)

  def policy(world, state):
    observation = jax.vmap(env.observe, in_axes=(None, 0))(world, state)
    weights = jnp.ones((observation.shape[1], 64), jnp.float32)
    hidden = jnp.tanh(observation @ weights)
    return jnp.tanh(hidden @ jnp.ones((64, world.num_actions), jnp.float32))

  return {
    "random_numbers": (numbers, (state,)),
    "response": (respond, (world, state, slate, numbers(state))),
    "fusion_and_ranking": (rank, (world, state)),
    "policy_mlp_64": (policy, (world, state)),
  }


def _time(function: Callable, *args: Any) -> float:
  compiled, _ = harness.compile_ahead(function, *args)
  return harness.time_calls(
    compiled, *args, repeats=harness.REPEATS.value
  ).median_s


def main() -> None:
  """Runs every size, prints a table, writes the result file."""
  base = synthetic.synthetic_world("small")
  ceilings = harness.measure_ceilings()
  uniforms_per_s = (1 << 22) / _time(played.draw_uniforms, jax.random.key(0))
  key, requests = jax.random.key(2), _REQUESTS.value
  rows = []
  for candidates in _CANDIDATES.value:
    world = base.replace(num_candidates=candidates)
    # Gathered: codes, slate's items and responses; written: the row.
    gathered = candidates * 5 + world.slate_size * 4 * 64
    written = 4 * (2 + len(world.observation_names)) + 1
    used = played.uniforms_of_request(world)
    for num_sessions in _SESSIONS.value:
      print(f"{num_sessions} x {candidates}", file=sys.stderr)
      total = num_sessions * requests

      def run(version, world, key, num_sessions=num_sessions):
        return version(world, key, num_sessions, requests)

      ours = _time(functools.partial(run, played.play), world, key)
      plain = _time(functools.partial(run, _straightforward), world, key)
      row = {
        "workload": f"sessions={num_sessions} candidates={candidates}",
        "sessions": num_sessions,
        "candidates": candidates,
        "requests_per_s": total / ours,
        "straightforward_requests_per_s": total / plain,
        "times_straightforward": plain / ours,
        "share_of_random_ceiling": total / ours / (uniforms_per_s / used),
        "share_of_copy_ceiling": total
        / ours
        * (gathered + written)
        / ceilings.copy_bytes_per_s,
      }
      for name, (function, args) in _parts(world, num_sessions).items():
        row[f"us_per_request_{name}"] = (
          1e6 * _time(function, *args) / (num_sessions)
        )
      rows.append(row)
  columns = list(rows[0])[3:]
  print(
    harness.markdown_table(
      ["workload", *columns],
      [
        [row["workload"], *(f"{row[column]:,.3g}" for column in columns)]
        for row in rows
      ],
    )
  )
  result = {
    "benchmark": "world",
    "environment": harness.environment(),
    "ceilings": {**ceilings._asdict(), "uniforms_per_s": uniforms_per_s},
    "requests_of_a_session": requests,
    "rows": rows,
  }
  if harness.JSON_OUT.value is not None:
    harness.write_json(harness.JSON_OUT.value, result)


if __name__ == "__main__":
  launch.run(main)
