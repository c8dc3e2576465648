"""Policies that draw: a Gaussian squashed into [-1, 1], and a VAE of actions.

Letters: `B` requests of a batch, `S` state features, `A` action components, `Z`
latent components.

References:
  [1] Haarnoja et al., "Soft Actor-Critic: Off-Policy Maximum Entropy Deep
  Reinforcement Learning with a Stochastic Actor", ICML 2018, appendix C.
  [2] Fujimoto, Meger and Precup, "Off-Policy Deep Reinforcement Learning without
  Exploration", ICML 2019: the generative model of actions.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from mtf_jax.networks.actors import MLP, Actor

LOG_STD_LIMITS = (-5.0, 2.0)
_LATENT_LOG_STD_LIMITS = (-4.0, 15.0)


class GaussianActor(NamedTuple):
  """A policy `tanh(z)`, `z` normal with a mean and a deviation of the state.

  init: `(rng_key, observation [S]) -> params`.
  apply: `(params, observation [B, S]) -> (mean [B, A], log_std [B, A])` of z.
  """

  init: Callable[..., Any]
  apply: Callable[..., tuple[jax.Array, jax.Array]]


def tanh_gaussian(actor: Actor) -> GaussianActor:
  """The Gaussian policy of [1] around what an actor answers.

  The actor comes from outside, so that the deviation has no layers in common
  with it, unlike in [1]: its logarithm is affine in the observation, 0 at the
  start, within `LOG_STD_LIMITS`.

  Args:
    actor: its answer, in [-1, 1], is the mode.

  Returns:
    The policy, its parameters `{"mode": of the actor, "log_std": {"kernel" [S,
    A], "bias" [A]}}`.
  """

  def init(rng_key, observation):
    mode = actor.init(rng_key, observation)
    size = jax.eval_shape(actor.apply, mode, observation[None]).shape[1]
    kernel = jnp.zeros((observation.shape[0], size), observation.dtype)
    return {"mode": mode, "log_std": {"kernel": kernel, "bias": 0 * kernel[0]}}

  def apply(params, observation):
    mode = actor.apply(params["mode"], observation)
    # A mode of 1 is no finite mean. The limit passes the gradient on, so that
    # the entropy can pull a policy back from there, until tanh rounds to 1.
    limit = 1 - 8 * float(jnp.finfo(mode.dtype).eps)
    limited = jnp.clip(mode, -limit, limit)
    mean = jnp.arctanh(mode + jax.lax.stop_gradient(limited - mode))
    log_std = observation @ params["log_std"]["kernel"]
    log_std += params["log_std"]["bias"][None, :]
    return mean, jnp.clip(log_std, *LOG_STD_LIMITS)

  return GaussianActor(init, apply)


def sample_tanh_normal(
  noise: chex.Array, mean: chex.Array, log_std: chex.Array
) -> tuple[jax.Array, jax.Array]:
  """Actions `tanh(mean + std noise)` and their log densities, from [1].

  `sum_a log N(z_a) - log(1 - tanh(z_a)^2)`, the second term as
  `2 (log 2 - z - softplus(-2 z))`, which is exact where tanh rounds to 1.

  Args:
    noise: standard normal, `[..., A]`.
    mean, log_std: of z, `[..., A]`.

  Returns:
    Actions `[..., A]` and log densities `[...]`.
  """
  z = mean + jnp.exp(log_std) * noise
  log_prob = -0.5 * jnp.square(noise) - log_std - 0.5 * math.log(2 * math.pi)
  log_slope = 2 * (math.log(2) - z - jax.nn.softplus(-2 * z))
  return jnp.tanh(z), jnp.sum(log_prob - log_slope, axis=-1)


class ActionVAE(NamedTuple):
  """A generative model of actions, given the state.

  init: `(rng_key, observation [S], action [A]) -> {"encoder": , "decoder": }`.
  encode: `(params["encoder"], observation [B, S], action [B, A]) -> (mean [B, Z], log_std
    [B, Z])` of the latent components.
  decode: `(params["decoder"], observation [B, S], latent [B, Z]) -> action [B,
    A]`, in [-1, 1].
  """

  init: Callable[..., Any]
  encode: Callable[..., tuple[jax.Array, jax.Array]]
  decode: Callable[..., jax.Array]


@functools.cache
def mlp_vae(
  hidden_sizes: tuple[int, ...] = (750, 750), dtype: Any = jnp.float32
) -> ActionVAE:
  """The variational autoencoder of [2], `Z = 2A` latent components.

  Args:
    hidden_sizes: widths of the hidden layers of either half.
    dtype: dtype of the computation; parameters are float32.
  """

  def encoder(action):
    return MLP((*hidden_sizes, 4 * action.shape[-1]), dtype)

  def decoder(latent):
    return MLP((*hidden_sizes, latent.shape[-1] // 2), dtype)

  def init(rng_key, observation, action):
    encoder_key, decoder_key = jax.random.split(rng_key)
    latent = jnp.zeros((2 * action.shape[0],), observation.dtype)
    return {
      "encoder": encoder(action).init(
        encoder_key, jnp.concatenate([observation, action])
      ),
      "decoder": decoder(latent).init(
        decoder_key, jnp.concatenate([observation, latent])
      ),
    }

  def run(module, params, *inputs):
    output = module.apply(params, jnp.concatenate(inputs, axis=-1))
    return output.astype(inputs[0].dtype)

  def encode(params, observation, action):
    output = run(encoder(action), params, observation, action)
    mean, log_std = jnp.split(output, 2, axis=-1)
    return mean, jnp.clip(log_std, *_LATENT_LOG_STD_LIMITS)

  def decode(params, observation, latent):
    output = run(decoder(latent), params, observation, latent)
    return jnp.tanh(output)

  return ActionVAE(init, encode, decode)
