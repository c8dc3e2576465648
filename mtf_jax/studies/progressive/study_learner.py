"""A learner as the study trains it: sized for a world, started at an action.

Letters: `R` seeds, `S` state features, `A` action components, `G` reward
groups.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax import policies
from mtf_jax.data.transitions import Transition
from mtf_jax.kernels.exploration import action_box
from mtf_jax.learners.base import Learner, Normalization
from mtf_jax.learners.registry import LEARNERS
from mtf_jax.networks import Actor
from mtf_jax.training import machine
from mtf_jax.training.config import (
  TrainConfig,
  build_learner,
  hyperparams_of,
  make_networks,
)
from mtf_jax.worlds.world import World


@functools.cache
def started_actor(actor: Actor) -> Actor:
  """An actor that answers near a given action before it is trained.

  `(t + start) / (1 + t start)` with `t` the actor's own answer: the sum of the
  two inside the tanh, so that both have the full range and no limit is hit. The
  leaf `start` `[A]` is 0 after `init`, see `with_start`. It is not trained.

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


def with_start(actor: Actor, start: chex.Array) -> Actor:
  """The actor of `started_actor`, with another action after `init`.

  Args:
    actor: of `started_actor`.
    start: `[A]` in (-1, 1), what it answers near before it is trained.

  Returns:
    The actor; `apply` is the same function.
  """

  def init(rng_key, observation):
    return {**actor.init(rng_key, observation), "start": jnp.array(start)}

  return Actor(init, actor.apply)


class StudyLearner(NamedTuple):
  """A learner and its policy as functions; static arguments everywhere.

  Make one for all seeds and worlds of one size: another tuple of the same
  functions would compile everything again.

  learner: the algorithm.
  act: its policy, exploring, for `policies.PolicyParams`.
  actor: of the learner.
  build: the same algorithm around another actor.
  hyperparams: class of its numbers.
  starts: whether what the actor answers is the action, so that it can start at
    one.
  """

  learner: Learner
  act: policies.Act
  actor: Actor
  build: Callable[[Actor], Learner]
  hyperparams: Callable[..., Any]
  starts: bool


def make_study_learner(config: TrainConfig, world: World) -> StudyLearner:
  """The learner that a configuration describes, sized for a world.

  Args:
    config: names and sizes of the learner and its networks.
    world: one world; its numbers of action components and of reward groups
      count.

  Returns:
    The learner and its policy.
  """
  num_groups = world.group_weights.shape[0]
  actor, critic = make_networks(config, world.num_actions, num_groups)
  actor = started_actor(actor)
  build = functools.partial(build_learner, config, critic=critic)
  learner = build(actor)
  return StudyLearner(
    learner,
    policies.explore_around(learner.act),
    actor,
    build,
    hyperparams_of(config.learner),
    LEARNERS[config.learner].actor_answers,
  )


def initial_state(
  study_learner: StudyLearner,
  numbers: tuple[tuple[str, Any], ...],
  rng_key: chex.PRNGKey,
  normalization: Normalization,
  start: chex.Array,
  num_groups: int,
) -> Any:
  """A learner's state by seed, its policy answering near `start`.

  A policy that is told its box answers the box's middle, which is `start`.

  Args:
    study_learner: of `make_study_learner`.
    numbers: names and values of its hyperparameters that are not the default
      ones.
    rng_key: keys `[R]`.
    normalization: of the observations, `[R, S]`.
    start: actions `[R, A]`, inside (-1, 1).
    num_groups: `G`.

  Returns:
    The state, leading axis `R`.

  Raises:
    ValueError: as the learner's `init`.
  """
  # Arrays all: a default that is a Python number would be another program.
  hyperparams = study_learner.hyperparams(**dict(numbers))
  hyperparams = jax.tree.map(
    lambda value: np.asarray(value, np.float32), hyperparams, is_leaf=_is_number
  )
  args = (rng_key, normalization, start)
  # `init` checks numbers only where they are known, which they are not in the
  # program below: it must not be compiled for every set of them.
  jax.eval_shape(
    lambda *args: _initial_state(study_learner, num_groups, hyperparams, *args),
    *args,
  )
  return _compiled()(study_learner, num_groups, hyperparams, *args)


def _is_number(value: Any) -> bool:
  """A number, or one for each group."""
  return not hasattr(value, "_fields")


def _initial_state(
  study_learner, num_groups, hyperparams, rng_key, normalization, start
):
  zero = jnp.zeros_like(start[0])
  observation = jnp.zeros_like(normalization.mean[0])
  told_box = jnp.asarray(getattr(hyperparams, "told_box", 0.0)) > 0

  def one(rng_key, normalization, start):
    box = action_box(start)
    example = Transition(
      observation_tm1=observation,
      action_tm1=zero,
      box_tm1=box,
      r_t=jnp.zeros((num_groups,), jnp.float32),
      discount_t=jnp.zeros((), jnp.float32),
      observation_t=observation,
      box_t=box,
    )
    stays = told_box | (not study_learner.starts)
    own_start = jnp.where(stays, jnp.zeros_like(start), start)
    learner = study_learner.build(with_start(study_learner.actor, own_start))
    return learner.init(rng_key, example, hyperparams, normalization)

  return jax.vmap(one)(rng_key, normalization, start)


@functools.cache  # Options hang on the device, which nobody asks for at import.
def _compiled() -> Callable[..., Any]:
  return jax.jit(
    _initial_state,
    static_argnames=("study_learner", "num_groups"),
    compiler_options=machine.runs_once(),
  )
