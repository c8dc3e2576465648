"""The policy in service, with the exploration around it.

Letters: `R` seeds, `B` sessions, `T` requests, `N` rows, `S` state features, `A`
action components, `G` reward groups, `O` outcomes, `H` bins.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from mtf_jax import policies
from mtf_jax.evaluation.ab_test import Judged, judge
from mtf_jax.kernels.exploration import (
  action_box,
  box_log_prob,
  sample_box,
  sample_gaussian,
)
from mtf_jax.learners.base import Normalization
from mtf_jax.learners.integrated_rl import State
from mtf_jax.networks import Actor
from mtf_jax.policies import Decision
from mtf_jax.worlds.returns import ExpectedRewards
from mtf_jax.worlds.world import World


class Service(NamedTuple):
  """A policy in service, with the exploration around it.

  actor_params: of the actor.
  normalization: of its observations.
  half_width: scalar, of the box; 0 does not explore.
  stddev: scalar, of Gaussian noise on top; 0 for none.
  """

  actor_params: Any
  normalization: Normalization
  half_width: chex.Numeric
  stddev: chex.Numeric


# How a service is vmapped over seeds: they explore alike.
SERVICE_AXES = Service(0, 0, None, None)


def started_actor(actor: Actor) -> Actor:
  """An actor that answers near a given action before it is trained.

  `(t + start) / (1 + t start)` with `t` the actor's own answer: the sum of the
  two inside the tanh, so that both have the full range and no limit is hit. The
  leaf `start` `[A]` is 0 after `init`; set it with `start_at`. It is not
  trained.

  Args:
    actor: answers near 0 before it is trained.

  Returns:
    The actor, its parameters `{"network": ..., "start": [A]}`.
  """

  def init(rng_key, observation):
    network = actor.init(rng_key, observation)
    answer = jax.eval_shape(actor.apply, network, observation[None])
    start = jnp.zeros(answer.shape[1:], answer.dtype)
    return {"network": network, "start": start}

  def apply(params, observation):
    own = actor.apply(params["network"], observation)
    start = jax.lax.stop_gradient(params["start"])[None]
    return (own + start) / (1 + own * start)

  return Actor(init, apply)


def start_at(state: State, action: chex.Array) -> State:
  """The state with `action` `[A]`, inside (-1, 1), as its start; also `[R]`."""

  def put(params):
    return {**params, "start": jnp.array(action)}

  return state._replace(
    actor_params=put(state.actor_params),
    target_actor_params=put(state.target_actor_params),
  )


def make_act(actor: Actor) -> policies.Act:
  """`act` of `session` for a `Service`; make it once, it is a static argument.

  The decision's box is the one of the bounded exploration; a log must not be
  taken with Gaussian noise on top.
  """

  def act(
    service: Service, observation: chex.Array, rng_key: chex.PRNGKey
  ) -> Decision:
    box_key, noise_key = jax.random.split(rng_key)
    mean, scale = service.normalization
    standard = (observation - mean) / scale
    own = actor.apply(service.actor_params, standard[None])[0]
    box = action_box(own, -service.half_width, service.half_width)
    action = sample_box(box_key, box)
    log_prob = box_log_prob(action, box)
    action = sample_gaussian(noise_key, action, service.stddev)
    return Decision(action, box, log_prob)

  return act


@functools.partial(
  jax.jit, static_argnames=("act", "num_sessions", "max_requests")
)
def judge_service(
  rng_key: chex.PRNGKey,
  world: World,
  table: ExpectedRewards,
  act: policies.Act,
  params: Service,
  num_sessions: int,
  max_requests: int,
  held: chex.Array,
) -> Judged:
  """`judge` of each seed; arguments and result, not `held`, have the axis `R`."""

  def one(rng_key, world, table, params):
    return judge(
      rng_key,
      world,
      table,
      act,
      params,
      num_sessions,
      max_requests,
      held=held,
    )

  return jax.vmap(one, in_axes=(0, 0, 0, SERVICE_AXES))(
    rng_key, world, table, params
  )


def service(
  state: State, half_width: float = 0.0, stddev: float = 0.0
) -> Service:
  """The learner's policy in service, exploring or not."""
  return Service(
    state.actor_params,
    state.normalization,
    jnp.asarray(half_width, jnp.float32),
    jnp.asarray(stddev, jnp.float32),
  )
