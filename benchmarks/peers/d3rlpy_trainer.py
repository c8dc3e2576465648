"""d3rlpy: SAC with as many critics (SAC-N) and TD3+BC, batches of its buffer."""

from collections.abc import Callable

import d3rlpy

from benchmarks.peers import workload


def _loop(config) -> Callable[[int], None]:
  """Its `fit` without logs and metrics: a batch of its buffer, its update."""
  data = workload.transitions()
  buffer = d3rlpy.dataset.MDPDataset(
    data["observations"],
    data["actions"],
    data["rewards"],
    data["terminals"],
    action_space=d3rlpy.ActionSpace.CONTINUOUS,
  )
  learner = config.create(device="cpu:0")
  learner.build_with_dataset(buffer)

  def run(updates: int) -> None:
    for _ in range(updates):
      learner.update(buffer.sample_transition_batch(workload.BATCH))

  return run


def _networks() -> dict:
  encoder = d3rlpy.models.VectorEncoderFactory(
    [workload.HIDDEN, workload.HIDDEN]
  )
  return {
    "batch_size": workload.BATCH,
    "actor_encoder_factory": encoder,
    "critic_encoder_factory": encoder,
  }


def sac_n(size: workload.Size) -> Callable[[int], None]:
  """Its SAC, whose critics are networks one after another."""
  return _loop(d3rlpy.algos.SACConfig(n_critics=size.critics, **_networks()))


def td3_bc(size: workload.Size) -> Callable[[int], None]:
  """Its TD3+BC."""
  return _loop(
    d3rlpy.algos.TD3PlusBCConfig(
      update_actor_interval=size.actor_every, **_networks()
    )
  )
