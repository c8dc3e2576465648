"""Sessions logged in parts are those logged at once."""

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax import policies
from mtf_jax.worlds import log_parts
from mtf_jax.worlds import rollout as rollout_lib


def test_parts_are_the_whole(small_world):
  """Neither the last part's filling nor its numbers can be seen in the log."""
  action = jnp.zeros(small_world.num_actions)
  arguments = (
    *(jax.random.key(3), small_world, policies.explore_in_box, action),
    *(10, 4),
  )
  told = []
  found = log_parts.log_sessions(
    *arguments, part=4, on_step=lambda *counts: told.append(counts)
  )
  expected = rollout_lib.pack(rollout_lib.rollout(*arguments))
  assert len(np.unique(expected.session_id)) == 10
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  assert told == [(0, 10), (4, 10), (8, 10), (10, 10)]
