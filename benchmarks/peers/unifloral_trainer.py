"""unifloral: SAC-N of its unified trainer, TD3+BC of its own file.

A window is one call of `jax.lax.scan`, as between two of its evaluations.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.peers import workload

# What configs/unifloral/sac_n.yaml sets, with two hidden layers for its three.
_SAC_N = {
  **{"lr": 3e-4, "actor_lr": 3e-4, "batch_size": workload.BATCH},
  **{"norm_obs": False, "actor_ln": False, "critic_ln": False},
  **{"deterministic": False, "use_tanh_mean": False},
  **{"actor_num_layers": 2, "critic_num_layers": 2},
  **{"actor_layer_width": workload.HIDDEN},
  **{"critic_layer_width": workload.HIDDEN},
  **{"actor_bc_coef": 0.0, "normalize_q_loss": False, "aggregate_q": "min"},
  **{"num_critic_updates_per_step": 1, "critic_bc_coef": 0.0},
  **{"policy_noise": 0.0, "noise_clip": 0.0, "use_target_actor": False},
  **{"use_entropy_loss": True, "actor_entropy_coef": 1.0},
  "critic_entropy_coef": 1.0,
}


def _dataset(transition: type, **more: jax.Array):
  data = {k: jnp.asarray(v) for k, v in workload.transitions().items()}
  return transition(
    obs=data["observations"],
    action=data["actions"],
    reward=data["rewards"],
    next_obs=data["next_observations"],
    done=data["terminals"],
    **more,
  )


def _runner(step, agent_state, more: tuple, a_step: int) -> Callable:
  state = (jax.random.PRNGKey(0), agent_state, *more)
  # Types that an update would change compile everything once more.
  state = jax.tree.map(
    lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf)), state
  )

  def run(updates: int) -> None:
    nonlocal state
    state, _ = jax.lax.scan(step, state, None, updates // a_step)
    jax.block_until_ready(state)

  return run


def sac_n(size: workload.Size) -> Callable[[int], None]:
  """Its SAC-N with as many critics."""
  # It asks for a jax before 0.6, which still had this name.
  jax.tree_map = jax.tree.map
  import unifloral as theirs

  args = theirs.Args(num_critics=size.critics, **_SAC_N)
  actions = jnp.asarray(workload.transitions()["actions"])
  dataset = _dataset(
    theirs.Transition, next_action=jnp.roll(actions, -1, axis=0)
  )
  mean = jax.tree.map(lambda leaf: leaf.mean(axis=0), dataset)
  std = jax.tree.map(lambda leaf: leaf.std(axis=0), dataset)
  actor = theirs.Actor(args, mean, std, workload.ACTION)
  critic = theirs.VectorQ(args, mean, std)
  alpha = theirs.EntropyCoef(args)
  inputs = [dataset.obs[0], dataset.action[0]]
  keys = jax.random.split(jax.random.PRNGKey(0), 3)

  def critic_state():
    return theirs.create_train_state(args, keys[1], critic, inputs)

  state = theirs.AgentTrainState(
    actor=theirs.create_train_state(args, keys[0], actor, inputs[:1], True),
    actor_target=None,
    vec_q=critic_state(),
    vec_q_target=critic_state(),
    value=None,
    alpha=theirs.create_train_state(args, keys[2], alpha, []),
  )
  step = theirs.make_train_step(
    args, actor.apply, critic.apply, None, alpha.apply, dataset, None
  )
  return _runner(step, state, (None,), 1)


def td3_bc(size: workload.Size) -> Callable[[int], None]:
  """Its TD3+BC; a step of it has several updates of the critics."""
  import td3_bc as theirs

  args = theirs.Args(num_critic_updates_per_step=size.actor_every)
  dataset = _dataset(theirs.Transition)
  mean, std = dataset.obs.mean(axis=0), dataset.obs.std(axis=0)
  actor = theirs.DeterministicTanhActor(workload.ACTION, mean, std)
  critic = theirs.DualQNetwork(mean, std)
  inputs = [dataset.obs[0], dataset.action[0]]
  keys = jax.random.split(jax.random.PRNGKey(0))

  def actor_state():
    return theirs.create_train_state(args, keys[0], actor, inputs[:1])

  def critic_state():
    return theirs.create_train_state(args, keys[1], critic, inputs)

  state = theirs.AgentTrainState(
    actor=actor_state(),
    actor_target=actor_state(),
    dual_q=critic_state(),
    dual_q_target=critic_state(),
  )
  step = theirs.make_train_step(args, actor.apply, critic.apply, dataset)
  return _runner(step, state, (), size.actor_every)
