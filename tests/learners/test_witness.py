"""Updates against d3rlpy's on the same weights and batch.

`witness/make_d3rlpy.py` made the numbers. Where the two count differently it is
said here: d3rlpy sums the critics' losses, ours is their mean; its ReBRAC sums
distances over the components of an action, ours is their mean.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import networks
from mtf_jax.data.transitions import Transition
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.learners import iql, td3_bc
from tests.learners.witness import inputs

_FOUND = json.loads(
  (pathlib.Path(__file__).parent / "witness" / "d3rlpy.json").read_text()
)
_ACTOR = networks.mlp_actor(inputs.A, inputs.HIDDEN)
_CRITIC = networks.mlp_critic(1, 2, inputs.HIDDEN)
_PLAIN = {"discount": inputs.DISCOUNT, "max_gradient_norm": np.inf}
_TD3 = td3_bc.td3_bc(_ACTOR, _CRITIC, critic_updates=1)
_IQL = iql.iql(_ACTOR, _CRITIC, value=networks.mlp_critic(1, 1, inputs.HIDDEN))
_CASES = {
  "td3": (_TD3, td3_bc.TD3._replace(target_noise=0.0, **_PLAIN)),
  "td3_bc": (
    _TD3,
    td3_bc.Hyperparams(target_noise=0.0, value_scale=inputs.ALPHA, **_PLAIN),
  ),
  "rebrac": (
    _TD3,
    td3_bc.REBRAC._replace(
      target_noise=0.0,
      cloning_scale=inputs.ACTOR_BETA * inputs.A,
      next_cloning_scale=inputs.CRITIC_BETA * inputs.A,
      **_PLAIN,
    ),
  ),
  "iql": (
    _IQL,
    iql.Hyperparams(
      expectile=inputs.EXPECTILE,
      inverse_temperature=inputs.TEMPERATURE,
      max_weight=inputs.MAX_WEIGHT,
      **_PLAIN,
    ),
  ),
}


def _actor(layers):
  return {
    "params": {
      "MLP_0": {
        f"Dense_{n}": {"kernel": jnp.asarray(kernel).T, "bias": jnp.array(bias)}
        for n, (kernel, bias) in enumerate(layers)
      }
    }
  }


def _critics(members):
  """`[G, M, ...]` leaves of one group from lists of layers."""
  stacked = [
    [np.stack(parts)[None] for parts in zip(*layer, strict=True)]
    for layer in zip(*members, strict=True)
  ]
  first = stacked[0][0]
  params = {
    "value_0_kernel_observation": first[..., : inputs.S],
    "value_0_kernel_action": first[..., inputs.S :],
  }
  for n, (kernel, bias) in enumerate(stacked):
    params[f"value_{n}_bias"] = bias
    if n:
      params[f"value_{n}_kernel"] = kernel
  return {"params": jax.tree.map(jnp.asarray, params)}


def _value(layers):
  """V is a critic that is always asked about the action 0."""
  (kernel, bias), *others = layers
  nothing = np.zeros((len(bias), inputs.A), np.float32)
  return _critics([[(np.concatenate([kernel, nothing], 1), bias), *others]])


def _batch():
  given = inputs.batch()
  limit = np.ones_like(given["action"])
  box = ActionBox(-limit, limit)
  return Transition(
    observation_tm1=given["observation"],
    action_tm1=given["action"],
    box_tm1=box,
    r_t=given["reward"],
    discount_t=1 - given["terminal"][:, 0],
    observation_t=given["next_observation"],
    box_t=box,
    action_t=given["next_action"],
    action_logged_t=np.ones(inputs.B, bool),
  )


@functools.cache
def _updated(name, actor_rate, critic_rate):
  """State and metrics of one update from the given weights."""
  learner, numbers = _CASES[name]
  given, batch = inputs.weights(), _batch()
  state = learner.init(
    jax.random.key(0),
    jax.tree.map(lambda leaf: leaf[0], batch),
    numbers._replace(
      actor_learning_rate=actor_rate, critic_learning_rate=critic_rate
    ),
  )
  params = {
    "critic_params": _critics(given["critics"]),
    "target_critic_params": _critics(given["target_critics"]),
    "actor_params": _actor(given["actor"]),
  }
  if name == "iql":
    params["actor_params"] = {
      "mean": params["actor_params"],
      "log_std": jnp.asarray(inputs.LOG_STD),
    }
    params["value_params"] = _value(given["value"])
  else:
    params["target_actor_params"] = _actor(given["target_actor"])
  for field, value in params.items():
    shapes = jax.tree.map(jnp.shape, getattr(state, field))
    assert jax.tree.map(jnp.shape, value) == shapes
  return jax.jit(learner.update)(state._replace(**params), batch)


@pytest.mark.parametrize("name", _CASES)
def test_losses_are_those_of_d3rlpy(name):
  _, metrics = _updated(name, 0.0, 0.0)
  expected = _FOUND[name]["losses"]
  close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
  of_critics = expected.get("critic.q_loss", expected["critic.critic_loss"])
  close(2 * metrics.critic_loss, of_critics)
  close(metrics.actor_loss, expected["actor.actor_loss"])
  if name == "iql":
    close(metrics.value_loss, expected["critic.v_loss"])
  elif "actor.bc_loss" in expected:
    summed = inputs.A if name == "rebrac" else 1
    close(summed * metrics.cloning_error, expected["actor.bc_loss"])


@pytest.mark.parametrize("name", _CASES)
def test_adam_steps_are_those_of_d3rlpy(name):
  """Steps of 1e-3, equal to 2e-6: the scale of a loss shows in epsilon alone."""
  stepped = _FOUND[name]["stepped"]
  rate = inputs.LEARNING_RATE
  given = inputs.weights()

  def compare(found, expected, before):
    moved = 0
    for ours, theirs, start in zip(
      *map(jax.tree.leaves, (found, expected, before)), strict=True
    ):
      np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-6)
      moved = max(moved, np.abs(np.asarray(theirs) - start).max())
    assert moved == pytest.approx(rate, rel=1e-3)

  state, _ = _updated(name, 0.0, rate)
  compare(
    state.critic_params,
    _critics(stepped["critics"]),
    _critics(given["critics"]),
  )
  state, _ = _updated(name, rate, 0.0)
  actor = state.actor_params["mean"] if name == "iql" else state.actor_params
  compare(actor, _actor(stepped["actor"]), _actor(given["actor"]))
