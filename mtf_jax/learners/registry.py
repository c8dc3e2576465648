"""Learners by name, all built from the same networks."""

from collections.abc import Callable
from typing import Any, NamedTuple

from mtf_jax.learners import bc, integrated_rl, td3_bc
from mtf_jax.learners.base import Learner
from mtf_jax.networks import Actor, Critic


class Entry(NamedTuple):
  """One algorithm.

  build: `(actor, critic, *, critic_updates=...) -> Learner`.
  hyperparams: class of the numbers that the learner's `init` takes, a
    NamedTuple with a default for every field.
  """

  build: Callable[..., Learner]
  hyperparams: type[Any]


def _bc(actor: Actor, critic: Critic, *, critic_updates: int = 1) -> Learner:
  # No critics: an update is one step of the actor on the whole batch.
  del critic, critic_updates
  return bc.bc(actor)


LEARNERS = {
  "integrated_rl": Entry(
    integrated_rl.integrated_rl, integrated_rl.Hyperparams
  ),
  "bc": Entry(_bc, bc.Hyperparams),
  "td3_bc": Entry(td3_bc.td3_bc, td3_bc.Hyperparams),
}
