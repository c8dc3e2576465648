"""Networks of the critics, as plain functions; see `actors` for the pair.

Letters: `B` requests of a batch, `S` state features, `A` action components, `G`
reward groups (q in [1]), `M` critics of a group (m in [1]).

References:
  [1] Liu et al., "UnifiedRL: A Reinforcement Learning Algorithm Tailored for
  Multi-Task Fusion in Large-Scale Recommender Systems", arXiv 2404.17589.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.networks.actors import SMALL_SCALE


class Critic(NamedTuple):
  """An ensemble of action values.

  init: `(rng_key, observation [S], action [A], box [A]) -> params`; the critics
    here give every leaf leading axes `[G, M]`.
  apply: `(params, observation [B, S], action [B, A], box [B, A]) -> [B, G, M]`
    values, in units of the return.
  hidden_sizes: widths of the hidden layers, for a learner that needs one more
    network of this size.
  apply_one: `(params, observation [B, S], action [B, A], box [B, A]) -> [B]` of
    one critic, its leaves without the axes `[G, M]`; for a learner that needs a
    gradient of each critic's own. None if the network has no such thing.
  apply_many: `(params, observation [B, S], actions [N, B, A], box [B, A]) ->
    [N, B, G, M]` values of several actions of a state. None if the network has no
    such thing.
  """

  init: Callable[..., Any]
  apply: Callable[..., jax.Array]
  hidden_sizes: tuple[int, ...] = (256, 256)
  apply_one: Callable[..., jax.Array] | None = None
  apply_many: Callable[..., jax.Array] | None = None


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
  """`[G, M, H, I]` kernels of the inputs `[B, I]` -> `[G, M, H, B]`.

  One wide contraction forwards. Backwards each input has its own: nobody asks
  for the gradient of the observation, so that part is never compiled, and a
  per-critic gradient summed afterwards spares a transposed copy of the outputs.
  """
  return jnp.einsum(
    "gmhi,bi->gmhb", jnp.concatenate(kernels, -1), jnp.concatenate(inputs, -1)
  )


def _first_layer_forward(kernels, inputs):
  return _first_layer(kernels, inputs), (kernels, inputs)


def _first_layer_backward(saved, gradient):
  kernels, inputs = saved
  of_kernels = tuple(jnp.einsum("gmhb,bi->gmhi", gradient, x) for x in inputs)
  of_inputs = tuple(
    jnp.sum(jnp.einsum("gmhi,gmhb->gmib", kernel, gradient), axis=(0, 1)).T
    for kernel in kernels
  )
  return of_kernels, of_inputs


_first_layer.defvjp(_first_layer_forward, _first_layer_backward)


def _varying_alike(trees: Any) -> Any:
  """The same arrays; under `shard_map` all vary over the same axes of a mesh.

  A gradient made by hand has to vary as what it belongs to. Kernels that every
  device has, with a batch that is split, then get the sum over the devices.
  Elsewhere XLA drops the zero that is added.
  """
  leaves = jax.tree.leaves(trees)
  zero = sum(jnp.zeros_like(leaf.ravel()[0]) for leaf in leaves)
  return jax.tree.map(lambda leaf: leaf + zero, trees)


class _Ensemble(nn.Module):
  """What critics of an ensemble share: parameters and layers for all at once.

  Activations are `[G, M, H, B]`, the batch last: every large contraction then
  reads and writes arrays as they lie in memory. G and M stay axes of their own:
  merged, they could not be divided over devices by M.
  """

  num_groups: int
  ensemble_size: int
  dtype: Any

  def weight(self, name, shape, initializer):
    """A parameter `[G, M, *shape]`, in the compute dtype."""
    full = (self.num_groups, self.ensemble_size, *shape)
    value = self.param(name, initializer, full, jnp.float32)
    return value.astype(self.dtype)

  def kernel(self, name, out_size, in_size, initializer=None):
    initializer = initializer or _kernel_init()
    return self.weight(name, (out_size, in_size), initializer)

  def bias(self, name, size):
    return self.weight(name, (size,), nn.initializers.zeros)[..., None]

  def mlp(self, name, inputs, layer_sizes):
    """`[B, I]` inputs -> `[G, M, layer_sizes[-1], B]`."""
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
        output = _first_layer(
          *_varying_alike((kernels, tuple(inputs.values())))
        )
      else:
        kernel = self.kernel(f"{prefix}_kernel", size, hidden.shape[2])
        output = jnp.einsum("gmkh,gmhb->gmkb", kernel, hidden)
      output += self.bias(f"{prefix}_bias", size)
      hidden = nn.relu(output)
    return output

  def per_critic(self, values, dtype):
    """`[G, M, B]` -> `[B, G, M]`."""
    return values.transpose(2, 0, 1).astype(dtype)


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
    return self.per_critic(value[:, :, 0], observation.dtype)


class _BoxCritic(_Ensemble):
  hidden_sizes: Sequence[int]
  quadratic: bool

  def affine(self, name, inputs, size):
    # A small start: the first policy gradients come from data, not from here.
    small = _kernel_init(SMALL_SCALE)
    kernel = self.kernel(f"{name}_kernel", size, inputs.shape[1], small)
    return jnp.einsum("gmai,bi->gmab", kernel, inputs) + self.bias(
      f"{name}_bias", size
    )

  @nn.compact
  def __call__(self, observation, action, box):
    inputs = observation.astype(self.dtype)
    deviation = jax.vmap(box_deviation)(action, box).astype(self.dtype)
    size = action.shape[1]
    value = self.mlp("value", {"observation": inputs}, (*self.hidden_sizes, 1))[
      :, :, 0
    ]
    slope = self.affine("slope", inputs, size)
    value += jnp.sum(slope * deviation.T[None, None], axis=2)
    if self.quadratic:
      curvature = self.affine("curvature", inputs, size)
      value += jnp.sum(curvature * jnp.square(deviation).T[None, None], axis=2)
    return self.per_critic(value, observation.dtype)


def _in_a_row(apply: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """`apply_many` of a network that takes state and action together.

  A batch as many times as long: mapped over the actions, the gradient of its
  kernels would be one for each of them, summed afterwards.
  """

  def apply_many(params, observation, actions, box):
    count, rows, _ = actions.shape

    def repeated(leaf):
      longer = jnp.broadcast_to(leaf[None], (count, *leaf.shape))
      return longer.reshape(-1, leaf.shape[1])

    observation, box = jax.tree.map(repeated, (observation, box))
    flat = actions.reshape(-1, actions.shape[2])
    values = apply(params, observation, flat, box)
    return values.reshape(count, rows, *values.shape[1:])

  return apply_many


def _mapped(apply: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """`apply_many` of a network whose layers see the state alone, made once."""
  return jax.vmap(apply, (None, None, 0, None))


def _critic(
  module: _MLPCritic | _BoxCritic,
  many: Callable[[Callable[..., jax.Array]], Callable[..., jax.Array]],
) -> Critic:
  def init(rng_key, observation, action, box):
    one = jax.tree.map(lambda leaf: leaf[None], (observation, action, box))
    return module.init(rng_key, *one)

  # flax returns a tuple only where a collection is mutable.
  apply = cast(Callable[..., jax.Array], module.apply)
  alone = module.clone(num_groups=1, ensemble_size=1)

  def apply_one(params, observation, action, box):
    params = jax.tree.map(lambda leaf: leaf[None, None], params)
    value = cast(jax.Array, alone.apply(params, observation, action, box))
    return value[:, 0, 0]

  return Critic(init, apply, tuple(module.hidden_sizes), apply_one, many(apply))


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
    ),
    _in_a_row,
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
    ),
    _mapped,
  )
