"""CORL: SAC-N and TD3+BC, a call of their update for each batch."""

from collections.abc import Callable

import torch

from benchmarks.peers import workload

_LEARNING_RATE = 3e-4


def _adam(module: torch.nn.Module) -> torch.optim.Optimizer:
  return torch.optim.Adam(module.parameters(), lr=_LEARNING_RATE)


def _loop(theirs, update: Callable) -> Callable[[int], None]:
  """Their training loop: a batch of their buffer, then their update."""
  buffer = theirs.ReplayBuffer(workload.STATE, workload.ACTION, workload.ROWS)
  buffer.load_d4rl_dataset(workload.transitions())

  def run(updates: int) -> None:
    for _ in range(updates):
      update(buffer.sample(workload.BATCH))

  return run


def sac_n(size: workload.Size) -> Callable[[int], None]:
  """Their SAC-N, without the third hidden layer that they fix."""
  import sac_n as theirs

  shape = (workload.STATE, workload.ACTION, workload.HIDDEN)
  actor = theirs.Actor(*shape)
  critic = theirs.VectorizedCritic(*shape, size.critics)
  # A layer and its ReLU.
  del actor.trunk[2:4]
  del critic.critic[2:4]
  trainer = theirs.SACN(
    actor, _adam(actor), critic, _adam(critic), device="cpu"
  )
  return _loop(theirs, trainer.update)


def td3_bc(size: workload.Size) -> Callable[[int], None]:
  """Their TD3+BC."""
  import td3_bc as theirs

  actor = theirs.Actor(workload.STATE, workload.ACTION, 1.0)
  critics = [
    theirs.Critic(workload.STATE, workload.ACTION) for _ in range(size.critics)
  ]
  trainer = theirs.TD3_BC(
    1.0,
    *(part for module in (actor, *critics) for part in (module, _adam(module))),
    policy_freq=size.actor_every,
    device="cpu",
  )
  return _loop(theirs, trainer.train)
