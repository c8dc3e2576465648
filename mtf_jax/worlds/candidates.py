"""What a policy that answers each candidate by itself sees, and what is logged.

Letters: `C` candidates, `L` slate positions, `S` state features, `F` item features,
`A` action components, `K` tasks.
"""

import chex
import jax
import jax.numpy as jnp

from mtf_jax.data.behaviours import TASKS
from mtf_jax.data.shown_items import ShownItems
from mtf_jax.policies import CandidateObservation, Decision
from mtf_jax.worlds import env
from mtf_jax.worlds.world import World

# Features lie in [-_RANGE, _RANGE], as networks take them.
_RANGE = 2.0

FEATURE_NAMES = (*(f"score_{task}" for task in TASKS), "duration")


def item_features(
  world: World, user: chex.Numeric, slots: chex.Array
) -> jax.Array:
  """What a platform knows of items before it shows them to a user.

  Args:
    world: the world.
    user: integer scalar.
    slots: integer `[C]`, places in the user's pool.

  Returns:
    float32 `[C, F]` in [-2, 2], named by `FEATURE_NAMES`: each score's log odds
    (log seconds of the watch time) between the world's lowest and highest, and
    the bucket of the duration.
  """
  codes = world.scores.codes[user, slots].astype(jnp.float32)
  highest = world.scores.values.shape[1] - 1
  bucket = world.response.duration_bucket[world.pool[user, slots]]
  buckets = max(world.response.play_table.shape[0] - 1, 1)
  share = jnp.concatenate(
    [codes / highest, (bucket.astype(jnp.float32) / buckets)[:, None]], axis=1
  )
  return _RANGE * (2 * share - 1)


def observe_candidates(
  world: World, state: env.SessionState
) -> CandidateObservation:
  """`env.observe`, and the features of the candidates of the request.

  Args:
    world: the world.
    state: the session.

  Returns:
    The observation `[S]` and the candidates' features `[C, F]`.
  """
  slots = env.candidate_slots(world, state)
  return CandidateObservation(
    env.observe(world, state), item_features(world, state.user, slots)
  )


def as_logged(
  world: World,
  state: env.SessionState,
  observation: CandidateObservation,
  decision: Decision,
  slots: chex.Array,
) -> tuple[jax.Array, Decision, ShownItems]:
  """A request of such a policy as a row of a log has it.

  Args:
    world: the world.
    state: the session before the request.
    observation: what the policy saw.
    decision: what it answered, for each of `C` candidates.
    slots: integer `[L]` places of the shown items in the user's pool.

  Returns:
    The observation `[S]`, the decision for the first shown item, and the shown
    items.
  """
  offered = env.candidate_slots(world, state)
  # No candidate is offered twice.
  place = jnp.argmax(slots[:, None] == offered[None, :], axis=1)
  shown = jax.tree.map(lambda column: column[place], decision)
  items = ShownItems(observation.features[place], shown.action, shown.box)
  first = jax.tree.map(lambda column: column[0], shown)
  return observation.observation, first, items
