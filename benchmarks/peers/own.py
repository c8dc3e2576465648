"""The package's own learners at the sizes of the others."""

import jax
import numpy as np

from benchmarks import harness, learner
from benchmarks.peers import workload
from mtf_jax import networks
from mtf_jax.data import transitions
from mtf_jax.learners.registry import LEARNERS
from mtf_jax.training import loop

CRITICS = {"free-form": networks.mlp_critic, "box": networks.box_critic}


class Own:
  """One learner, compiled: a window is a dispatch of the training loop."""

  def __init__(
    self,
    name: str,
    critic: str,
    size: workload.Size,
    dataset: transitions.TransitionDataset,
  ):
    """Compiles and runs once.

    Args:
      name: of the learner.
      critic: "free-form" or "box".
      size: an update of the others' is one of the critics: one of ours has
        `actor_every` of them, each with a batch of its own.
      dataset: of one reward group.
    """
    self.name = f"{name}, {critic}"
    hidden = (workload.HIDDEN, workload.HIDDEN)
    built = LEARNERS[name].build(
      networks.mlp_actor(workload.ACTION, hidden),
      CRITICS[critic](1, size.critics, hidden),
      critic_updates=size.actor_every,
    )
    self._updates, self._dataset = size.updates, dataset
    self._state = learner.start_state(learner.Workload(), built, dataset)
    self._run, _ = harness.compile_ahead(
      lambda state, dataset: loop.update_chunk(
        built,
        state,
        dataset,
        batch_size=workload.BATCH * size.actor_every,
        num_updates=size.updates // size.actor_every,
        freeze=False,
      ),
      self._state,
      dataset,
    )
    self.window()

  def window(self) -> workload.Window:
    """Runs one window.

    Raises:
      FloatingPointError: training did not stay finite.
    """
    window = workload.timed(self._dispatch, self._updates)
    if not np.all(self._state.healthy):
      raise FloatingPointError(f"{self.name}: training did not stay finite")
    return window

  def _dispatch(self, updates: int) -> None:
    del updates  # The program has a fixed number.
    self._state, _ = self._run(self._state, self._dataset)
    jax.block_until_ready(self._state)
