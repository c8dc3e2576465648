"""Networks of the policy and of the critics, as plain functions.

A learner sees a network as a pair of functions, `init` of one request and
`apply` of a batch; the networks here are flax modules behind that pair, and any
other pair will do. Unlike a kernel, `apply` takes the batch itself, because the
speed of an ensemble is decided by where the batch axis lies.

Letters: `B` requests of a batch, `S` state features, `A` action components, `K` tasks (`A = 2K`), `G`
reward groups (q in [1]), `M` critics of a group (m in [1]).

References:
  [1] Liu et al., "UnifiedRL: A Reinforcement Learning Algorithm Tailored for
  Multi-Task Fusion in Large-Scale Recommender Systems", arXiv 2404.17589.
  [2] Tang et al., "Progressive Layered Extraction (PLE): A Novel Multi-Task
  Learning Model for Personalized Recommendations", RecSys 2020.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from mtf_jax.kernels.exploration import ActionBox

_SMALL_SCALE = 1e-4


class Actor(NamedTuple):
  """A deterministic policy.

  init: `(rng_key, observation [S]) -> params`.
  apply: `(params, observation [B, S]) -> action [B, A]`, in [-1, 1].
  """

  init: Callable[..., Any]
  apply: Callable[..., jax.Array]


class Critic(NamedTuple):
  """An ensemble of action values.

  init: `(rng_key, observation [S], action [A], box [A]) -> params`; the critics
    here give every leaf leading axes `[G, M]`.
  apply: `(params, observation [B, S], action [B, A], box [B, A]) -> [B, G, M]`
    values, in units of the return.
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
  return Actor(module.init, jax.vmap(module.apply, in_axes=(None, 0)))


class _MLPActor(nn.Module):
  action_size: int
  hidden_sizes: Sequence[int]
  dtype: Any

  @nn.compact
  def __call__(self, observation):
    sizes = (*self.hidden_sizes, self.action_size)
    # Small last weights: a new policy starts at action 0, not on its limits,
    # where tanh passes no gradient.
    output = MLP(sizes, self.dtype, last_scale=_SMALL_SCALE)(observation)
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
      (*self.tower_sizes, 2), self.dtype, last_scale=_SMALL_SCALE, name="towers"
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


def box_deviation(action: chex.Array, box: ActionBox) -> jax.Array:
  """Position of an action in its box: 0 at the centre, -1 and 1 at the bounds.

  `epsilon_a = (action_a - centre_a) / half_width_a`, 0 for a component whose
  box has no width.

  Args:
    action: `[A]` action, in normalised units.
    box: bounds `[A]`.

  Returns:
    `[A]` deviation epsilon, in half-widths of the box.
  """
  half_width = (box.upper - box.lower) / 2
  explores = half_width > 0
  offset = action - (box.upper + box.lower) / 2
  deviation = offset / jnp.where(explores, half_width, 1)
  return jnp.where(explores, deviation, 0)


def _kernel_init(scale=1.0):
  # The leading axes are copies: the fan must not count them.
  return nn.initializers.variance_scaling(
    scale,
    "fan_in",
    "truncated_normal",
    in_axis=-1,
    out_axis=-2,
    batch_axis=(0, 1),
  )


@jax.custom_vjp
def _first_layer(
  kernels: tuple[jax.Array, ...], inputs: tuple[jax.Array, ...]
) -> jax.Array:
  """`[E, H, I]` kernels of the inputs `[B, I]` -> `[E, H, B]`, for E critics.

  One wide contraction forwards. Backwards each input has its own: nobody asks
  for the gradient of the observation, so that part is never compiled, and a
  per-critic gradient summed afterwards spares a transposed copy of `[E, H, B]`.
  """
  return jnp.einsum(
    "ehi,bi->ehb", jnp.concatenate(kernels, -1), jnp.concatenate(inputs, -1)
  )


def _first_layer_forward(kernels, inputs):
  return _first_layer(kernels, inputs), (kernels, inputs)


def _first_layer_backward(saved, gradient):
  kernels, inputs = saved
  of_kernels = tuple(jnp.einsum("ehb,bi->ehi", gradient, x) for x in inputs)
  of_inputs = tuple(
    jnp.sum(jnp.einsum("ehi,ehb->eib", kernel, gradient), axis=0).T
    for kernel in kernels
  )
  return of_kernels, of_inputs


_first_layer.defvjp(_first_layer_forward, _first_layer_backward)


class _Ensemble(nn.Module):
  """What critics of an ensemble share: parameters and layers for all at once.

  Activations are `[E, H, B]` with `E = G M`, the batch last: every large
  contraction then reads and writes arrays as they lie in memory.
  """

  num_groups: int
  ensemble_size: int
  dtype: Any

  def weight(self, name, shape, initializer):
    """A parameter `[G, M, *shape]`, as `[E, *shape]` of the compute dtype."""
    full = (self.num_groups, self.ensemble_size, *shape)
    value = self.param(name, initializer, full)
    return value.reshape(-1, *shape).astype(self.dtype)

  def kernel(self, name, out_size, in_size, initializer=None):
    initializer = initializer or _kernel_init()
    return self.weight(name, (out_size, in_size), initializer)

  def bias(self, name, size):
    return self.weight(name, (size,), nn.initializers.zeros)[:, :, None]

  def mlp(self, name, inputs, layer_sizes):
    """`[B, I]` inputs -> `[E, layer_sizes[-1], B]`."""
    hidden = None
    fan_in = sum(x.shape[1] for x in inputs.values())
    for layer, size in enumerate(layer_sizes):
      prefix = f"{name}_{layer}"
      if hidden is None:
        # A kernel for each input, together initialised as one.
        kernels = tuple(
          self.kernel(
            f"{prefix}_kernel_{part}",
            size,
            x.shape[1],
            _kernel_init(x.shape[1] / fan_in),
          )
          for part, x in inputs.items()
        )
        output = _first_layer(kernels, tuple(inputs.values()))
      else:
        kernel = self.kernel(f"{prefix}_kernel", size, hidden.shape[1])
        output = jnp.einsum("ekh,ehb->ekb", kernel, hidden)
      output += self.bias(f"{prefix}_bias", size)
      hidden = nn.relu(output)
    return output

  def per_critic(self, values, dtype):
    """`[E, B]` -> `[B, G, M]`."""
    shape = (self.num_groups, self.ensemble_size, -1)
    return values.reshape(shape).transpose(2, 0, 1).astype(dtype)


class _MLPCritic(_Ensemble):
  hidden_sizes: Sequence[int]

  @nn.compact
  def __call__(self, observation, action, box):
    del box
    inputs = {
      "observation": observation.astype(self.dtype),
      "action": action.astype(self.dtype),
    }
    value = self.mlp("value", inputs, (*self.hidden_sizes, 1))
    return self.per_critic(value[:, 0], observation.dtype)


class _BoxCritic(_Ensemble):
  hidden_sizes: Sequence[int]
  quadratic: bool

  def affine(self, name, inputs, size):
    # A small start: the first policy gradients come from data, not from here.
    small = _kernel_init(_SMALL_SCALE)
    kernel = self.kernel(f"{name}_kernel", size, inputs.shape[1], small)
    return jnp.einsum("eai,bi->eab", kernel, inputs) + self.bias(
      f"{name}_bias", size
    )

  @nn.compact
  def __call__(self, observation, action, box):
    inputs = observation.astype(self.dtype)
    deviation = jax.vmap(box_deviation)(action, box).astype(self.dtype)
    size = action.shape[1]
    value = self.mlp("value", {"observation": inputs}, (*self.hidden_sizes, 1))[
      :, 0
    ]
    slope = self.affine("slope", inputs, size)
    value += jnp.sum(slope * deviation.T[None], axis=1)
    if self.quadratic:
      curvature = self.affine("curvature", inputs, size)
      value += jnp.sum(curvature * jnp.square(deviation).T[None], axis=1)
    return self.per_critic(value, observation.dtype)


def _critic(module: nn.Module) -> Critic:
  def init(rng_key, observation, action, box):
    one = jax.tree.map(lambda leaf: leaf[None], (observation, action, box))
    return module.init(rng_key, *one)

  return Critic(init=init, apply=module.apply)


def mlp_critic(
  num_groups: int,
  ensemble_size: int,
  hidden_sizes: Sequence[int] = (256, 256),
  dtype: Any = jnp.float32,
) -> Critic:
  """The free-form critics of [1]: `Q(s, a)` is an MLP of both.

  Args:
    num_groups: `G`.
    ensemble_size: `M`.
    hidden_sizes: widths of the hidden layers.
    dtype: dtype of the computation; parameters are float32.
  """
  return _critic(
    _MLPCritic(
      num_groups=num_groups,
      ensemble_size=ensemble_size,
      hidden_sizes=tuple(hidden_sizes),
      dtype=dtype,
    )
  )


def box_critic(
  num_groups: int,
  ensemble_size: int,
  hidden_sizes: Sequence[int] = (256, 256),
  quadratic: bool = False,
  dtype: Any = jnp.float32,
) -> Critic:
  """Critics that know the exploration box; ours, not in [1].

  `Q(s, a) = V(s) + g(s) . epsilon [+ h(s) . epsilon^2]` with `epsilon` the
  deviation of `box_deviation`: V an MLP, g and h affine in the state. Inside a
  small box the value is nearly affine in the deviation, and the deviation is
  drawn independently of the state, so g is estimated as by a regression whose
  error does not depend on how well V fits. A free-form critic has to find the
  same slope among all functions of the state and the action.

  Args:
    num_groups: `G`.
    ensemble_size: `M`.
    hidden_sizes: widths of V's hidden layers.
    quadratic: whether to add the term h.
    dtype: dtype of the computation; parameters are float32.
  """
  return _critic(
    _BoxCritic(
      num_groups=num_groups,
      ensemble_size=ensemble_size,
      hidden_sizes=tuple(hidden_sizes),
      quadratic=quadratic,
      dtype=dtype,
    )
  )
