"""The batches of sessions that are timed, and the numbers that they draw."""

import jax
import jax.numpy as jnp

from mtf_jax import policies
from mtf_jax.worlds import response as response_lib
from mtf_jax.worlds import rollout as rollout_lib
from mtf_jax.worlds.world import World


def play(world: World, key: jax.Array, num_sessions: int, requests: int):
  """Plays sessions of a fixed action, all side by side.

  Args:
    world: with its candidates and its slate.
    key: of the sessions.
    num_sessions: `B`.
    requests: `T`, at most, of each.

  Returns:
    Rewards, observations and whether there was such a request: all the rows
    that `rollout` gives for `B` times `T`.
  """
  action = jnp.zeros((world.num_actions,), jnp.float32)
  rows = rollout_lib.rollout(
    key, world, policies.fixed_action, action, num_sessions, requests
  )
  return rows.log.reward, rows.log.observation, rows.valid


def uniforms_of_request(world: World) -> int:
  """Random numbers that a request uses: the slate's responses, and leaving."""
  return world.slate_size * response_lib.NUM_UNIFORMS + 1


def draw_uniforms(key: jax.Array) -> jax.Array:
  """As many as show the generator's rate: `[4194304]`."""
  return jax.random.uniform(key, (1 << 22,))
