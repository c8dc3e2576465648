"""The `World` pytree: everything that a session simulator needs to know.

Letters: `U` users, `I` items, `P` pool, `C` candidates, `L` slate positions,
`K` tasks, `E` behaviours, `G` reward groups, `F` user features, `W` sessions of
the population table.
"""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from mtf_jax.data.behaviours import BEHAVIOURS, TASKS
from mtf_jax.io import digest
from mtf_jax.kernels.fusion import FusionSpec
from mtf_jax.worlds import leaving as leaving_lib
from mtf_jax.worlds import scores as scores_lib
from mtf_jax.worlds.response import ResponseModel
from mtf_jax.worlds.satisfaction import Satisfaction

REWARD_GROUPS = ("watch_time", "behaviours")


# Running statistics of the session, in the order of the observation.
SESSION_FEATURES = (
  "session_requests",
  *(
    f"session_{span}_{name}"
    for span in ("mean", "last")
    for name in ("click", "valid", "long_view", "finish", "interaction", "play")
  ),
)


CONTEXT_FEATURES = ("evening", "morning")


class World(struct.PyTreeNode):
  """A session simulator's parameters; one size of world is one program.

  Every array is a dynamic leaf. The counts and names at the end are static.

  response: what a user does with a shown video (hidden from the policy).
  satisfaction: what the user inwardly makes of it (hidden).
  leaving: when the user ends the session (hidden), see `leaving`.
  scores: what the ranking model says, all that the fusion sees of an item.
  fusion_spec: maps a normalised action to powers and biases.
  group_weights: float32 `[G, E]` reward per unit of behaviour.
  user_features: float32 `[U, F]` what a policy knows of a user beforehand.
  population: int32 `[W]` users, each as often as it opens sessions.
  pool: uint16 or int32 `[U, P]` items that retrieval finds for a user, in
    random order, `P` a power of two.
  item_tag: int32 `[I]` topic of an item.
  feature_names: names of the `F` user features.
  num_candidates: `C`, candidates of a request.
  slate_size: `L`, items shown of them.
  name: name of the world.
  """

  response: ResponseModel
  satisfaction: Satisfaction
  leaving: Any
  scores: scores_lib.ScoreTables
  fusion_spec: FusionSpec
  group_weights: chex.Array
  user_features: chex.Array
  population: chex.Array
  pool: chex.Array
  item_tag: chex.Array
  feature_names: tuple[str, ...] = struct.field(pytree_node=False)
  num_candidates: int = struct.field(pytree_node=False)
  slate_size: int = struct.field(pytree_node=False)
  name: str = struct.field(pytree_node=False)

  @property
  def num_actions(self) -> int:
    """`2K`, components of an action: powers, then biases."""
    return 2 * len(TASKS)

  @property
  def observation_names(self) -> tuple[str, ...]:
    """Names of the observation's `S` components."""
    return (*self.feature_names, *SESSION_FEATURES, *CONTEXT_FEATURES)

  def with_leaving(self, name: str) -> "World":
    """The same world under another named leaving model."""
    return self.replace(leaving=leaving_lib.make_leaving(name))


def default_group_weights() -> jax.Array:
  """Reward per unit of behaviour, `[G, E]`.

  The first group is watching time, one unit for 30 s. The second weighs valid
  consumption and the interactions roughly by the inverse of their rates
  (KuaiRand: valid .37, like .018, comment .0026, forward .0009, follow .0013),
  damped by a square root as platforms do for rare signals, so that each rare
  behaviour matters without ruling the variance.
  """
  weights = np.zeros((len(REWARD_GROUPS), len(BEHAVIOURS)), np.float32)
  weights[0, BEHAVIOURS.index("play_seconds")] = 1.0 / 30.0
  for name, weight in {
    "valid": 1.0,
    "like": 4.0,
    "comment": 10.0,
    "follow": 15.0,
    "forward": 15.0,
  }.items():
    weights[1, BEHAVIOURS.index(name)] = weight
  return jnp.asarray(weights)


def fingerprint(world: World) -> str:
  """Names the content of a world: 16 hex digits that every result quotes.

  A SHA-256 over the names, shapes, types and values of all leaves and over the
  static fields; the leaving model is part of it.
  """
  static = "".join(
    f"{field.name}={getattr(world, field.name)!r};"
    for field in dataclasses.fields(world)
    if not field.metadata.get("pytree_node", True)
  )
  leaves = (
    (jax.tree_util.keystr(path), np.asarray(leaf))
    for path, leaf in jax.tree_util.tree_leaves_with_path(world)
  )
  leaving = type(world.leaving).__name__
  return digest(leaves, before=static, after=leaving)[:16]
