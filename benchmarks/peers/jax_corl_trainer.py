"""JAX-CORL: TD3+BC, as many updates in a program as it has by default."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.peers import workload


def td3_bc(size: workload.Size) -> Callable[[int], None]:
  """Its TD3+BC; its critics have layer normalisation, which it cannot turn off."""
  import td3bc as theirs

  config = theirs.TD3BCConfig(
    batch_size=workload.BATCH,
    hidden_dims=(workload.HIDDEN, workload.HIDDEN),
    policy_freq=size.actor_every,
  )
  data = {k: jnp.asarray(v) for k, v in workload.transitions().items()}
  data["dones"] = data.pop("terminals")
  dataset = theirs.Transition(**data)
  state = theirs.create_td3bc_train_state(
    jax.random.PRNGKey(0), dataset.observations[0], dataset.actions[0], config
  )
  update = jax.jit(theirs.TD3BC().update_n_times, static_argnums=(3,))
  rng_key = jax.random.PRNGKey(1)

  def run(updates: int) -> None:
    nonlocal state, rng_key
    for _ in range(updates // config.n_jitted_updates):
      rng_key, update_key = jax.random.split(rng_key)
      state, _ = update(state, dataset, update_key, config)
    jax.block_until_ready(state)

  return run
