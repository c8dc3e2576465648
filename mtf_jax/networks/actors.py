"""Networks of the policy, as plain functions.

A learner sees a network as a pair of functions, `init` of one request and
`apply` of a batch; the networks here are flax modules behind that pair, and any
other pair will do. Unlike a kernel, `apply` takes the batch itself, because the
speed of an ensemble is decided by where the batch axis lies.

Letters: `B` requests of a batch, `S` state features, `A` action components, `K`
tasks (`A = 2K`).

References:
  [1] Liu et al., "UnifiedRL: A Reinforcement Learning Algorithm Tailored for
  Multi-Task Fusion in Large-Scale Recommender Systems", arXiv 2404.17589.
  [2] Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task
  Learning Model for Personalized Recommendations", RecSys 2020.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

SMALL_SCALE = 1e-4


class Actor(NamedTuple):
  """A deterministic policy.

  init: `(rng_key, observation [S]) -> params`.
  apply: `(params, observation [B, S]) -> action [B, A]`, in [-1, 1].
  """

  init: Callable[..., Any]
  apply: Callable[..., jax.Array]


class MLP(nn.Module):
  """Multi-layer perceptron with ReLU between its layers.

  layer_sizes: width of each layer; the last one is linear.
  dtype: dtype of the computation; parameters are float32.
  last_scale: variance of the last kernel's start, relative to 1 / fan-in.
  """

  layer_sizes: Sequence[int]
  dtype: Any = jnp.float32
  last_scale: float = 1.0

  @nn.compact
  def __call__(self, inputs: chex.Array) -> jax.Array:
    """Maps `[..., inputs]` to `[..., layer_sizes[-1]]`."""
    *hidden_sizes, output_size = self.layer_sizes
    for size in hidden_sizes:
      inputs = nn.relu(nn.Dense(size, dtype=self.dtype)(inputs))
    last_init = nn.initializers.variance_scaling(
      self.last_scale, "fan_in", "truncated_normal"
    )
    return nn.Dense(output_size, dtype=self.dtype, kernel_init=last_init)(
      inputs
    )


def _actor(module: nn.Module) -> Actor:
  # flax returns a tuple only where a collection is mutable.
  apply = cast(Callable[..., jax.Array], module.apply)
  return Actor(module.init, jax.vmap(apply, in_axes=(None, 0)))


class _MLPActor(nn.Module):
  action_size: int
  hidden_sizes: Sequence[int]
  dtype: Any

  @nn.compact
  def __call__(self, observation):
    sizes = (*self.hidden_sizes, self.action_size)
    # Small last weights: a new policy starts at action 0, not on its limits,
    # where tanh passes no gradient.
    output = MLP(sizes, self.dtype, last_scale=SMALL_SCALE)(observation)
    return jnp.tanh(output).astype(observation.dtype)


def mlp_actor(
  action_size: int,
  hidden_sizes: Sequence[int] = (256, 256),
  dtype: Any = jnp.float32,
) -> Actor:
  """A plain policy: an MLP with tanh output, near action 0 at the start.

  Args:
    action_size: `A`.
    hidden_sizes: widths of the hidden layers.
    dtype: dtype of the computation; parameters are float32.
  """
  module = _MLPActor(action_size, tuple(hidden_sizes), dtype)
  return _actor(module)


class _PLEActor(nn.Module):
  num_tasks: int
  shared_experts: int
  task_experts: int
  expert_sizes: Sequence[int]
  tower_sizes: Sequence[int]
  dtype: Any

  @nn.compact
  def __call__(self, observation):
    def bank(num_experts, name):
      # One module over a leading axis: a contraction for all experts.
      experts = nn.vmap(
        MLP,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=None,
        axis_size=num_experts,
      )
      return nn.relu(
        experts(self.expert_sizes, self.dtype, name=name)(observation)
      )

    width = self.expert_sizes[-1]
    shared = bank(self.shared_experts, "shared_experts")
    own = bank(self.num_tasks * self.task_experts, "task_experts")
    own = own.reshape(self.num_tasks, self.task_experts, width)
    shared = jnp.broadcast_to(shared[None], (self.num_tasks, *shared.shape))
    experts = jnp.concatenate([shared, own], axis=1)
    num_gates = self.num_tasks * experts.shape[1]
    gate = nn.Dense(num_gates, dtype=self.dtype, name="gates")(observation)
    gate = nn.softmax(gate.reshape(experts.shape[:2]), axis=1)
    mixed = jnp.einsum("ke,keh->kh", gate, experts)
    towers = nn.vmap(
      MLP, variable_axes={"params": 0}, split_rngs={"params": True}
    )
    output = towers(
      (*self.tower_sizes, 2), self.dtype, last_scale=SMALL_SCALE, name="towers"
    )(mixed)
    # [K, (power, bias)] -> powers first, then biases, as Eq. 1 reads them.
    return jnp.tanh(output.T.reshape(-1)).astype(observation.dtype)


def ple_actor(
  num_tasks: int,
  shared_experts: int = 2,
  task_experts: int = 1,
  expert_sizes: Sequence[int] = (256, 128),
  tower_sizes: Sequence[int] = (64,),
  dtype: Any = jnp.float32,
) -> Actor:
  """A policy with one extraction layer of [2], as [1] suggests in words.

  Each task has experts of its own besides the shared ones, a softmax gate over
  both, and a tower that gives the task's power and bias.

  Args:
    num_tasks: `K`; the action has `2K` components, powers first.
    shared_experts: number of experts that every task's gate mixes.
    task_experts: number of experts of each task alone.
    expert_sizes: widths of an expert's layers.
    tower_sizes: widths of a tower's hidden layers.
    dtype: dtype of the computation; parameters are float32.
  """
  module = _PLEActor(
    num_tasks,
    shared_experts,
    task_experts,
    tuple(expert_sizes),
    tuple(tower_sizes),
    dtype,
  )
  return _actor(module)
