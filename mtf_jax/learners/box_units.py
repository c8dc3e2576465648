"""Actions in the units that a learner sees: as they are, or of their box.

Told nothing, a policy has all of [-1, 1]^A to answer in, as rivals are
published. Told the box, it answers `u` in [-1, 1]^A and acts with
`a = centre + half_width u`; its noise, its samples and what holds it to the log
are then in half-widths of the box. `told_box` is a number of the state, 0 or 1,
so that both train in one program.

Letters: `B` transitions of a batch, `S` state features, `A` action components.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from mtf_jax.data.transitions import Transition
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.learners import actor_critic, base
from mtf_jax.learners.base import Normalization
from mtf_jax.networks import Actor, Critic


class Frame(NamedTuple):
  """Where a policy acts, `a = centre + half_width u`.

  centre, half_width: `[A]`; 0 and 1 for a policy that is told nothing.
  """

  centre: chex.Array
  half_width: chex.Array


class Policy(NamedTuple):
  """What acts: a network that answers `u`, and where that is.

  A log around one global action has one box, and `init` reads it off its
  example. Where the box moves with the observation, whoever serves the policy
  puts the request's `frame` in its place.

  actor_params: as the network's `init` made them.
  normalization: of the observations.
  frame: of the actions.
  """

  actor_params: Any
  normalization: Normalization
  frame: Frame


def frame_of(told_box: chex.Numeric, box: ActionBox) -> Frame:
  """The frame of a box `[..., A]`, or the identity where `told_box` is 0."""
  told = jnp.asarray(told_box) > 0
  centre = (box.lower + box.upper) / 2
  half_width = (box.upper - box.lower) / 2
  return Frame(
    jnp.where(told, centre, jnp.zeros_like(centre)),
    jnp.where(told, half_width, jnp.ones_like(half_width)),
  )


def to_units(
  told_box: chex.Numeric, action: chex.Array, box: ActionBox
) -> tuple[jax.Array, ActionBox]:
  """An action `[..., A]` and its box in the units of its frame.

  A component whose box has no width is 0, and its box stays without.
  """
  centre, half_width = frame_of(told_box, box)
  scale = jnp.where(half_width > 0, half_width, 1)
  return (action - centre) / scale, ActionBox(
    (box.lower - centre) / scale, (box.upper - centre) / scale
  )


def batch_to_units(told_box: chex.Numeric, batch: Transition) -> Transition:
  """A batch `[B, ...]` whose actions and boxes are in units of their frames."""
  action_tm1, box_tm1 = to_units(told_box, batch.action_tm1, batch.box_tm1)
  # Any action will do where the batch has none.
  known = batch.action_t is not None
  action_t, box_t = to_units(
    told_box, batch.action_t if known else batch.box_t.lower, batch.box_t
  )
  return batch._replace(
    action_tm1=action_tm1,
    box_tm1=box_tm1,
    box_t=box_t,
    action_t=action_t if known else None,
  )


def prepare(state: Any, batch: Transition) -> Transition:
  """A batch as a learner's networks see it.

  Args:
    state: with `normalization` and the number `told_box`.
    batch: `[B, ...]` as logged.
  """
  batch = base.normalize_batch(state.normalization, batch)
  return batch_to_units(state.hyperparams.told_box, batch)


def policy(state: Any) -> Policy:
  """The part of a state that acts."""
  return Policy(state.actor_params, state.normalization, state.frame)


def in_frame(frame: Frame, action: chex.Array) -> jax.Array:
  """`centre + half_width u`, `[A]` and in [-1, 1]."""
  return jnp.clip(frame.centre + frame.half_width * action, -1, 1)


@functools.cache
def deterministic_act(
  actor: Actor,
) -> Callable[[Policy, chex.Array, chex.PRNGKey], jax.Array]:
  """`act` of a learner whose policy is what its actor answers.

  One function for one actor, whatever the learner: it is a static argument, and
  another object would compile everything again.
  """
  answer = actor_critic.deterministic_act(actor)

  def act(
    params: Policy, observation: chex.Array, rng_key: chex.PRNGKey
  ) -> jax.Array:
    own = base.Policy(params.actor_params, params.normalization)
    return in_frame(params.frame, answer(own, observation, rng_key))

  return act


def values_of(
  critic: Critic,
  state: Any,
  observation: chex.Array,
  action: chex.Array,
  box: ActionBox,
) -> jax.Array:
  """Values of one action, by a state's own critics.

  Args:
    critic: the critics' network.
    state: with `critic_params`, `normalization` and the number `told_box`.
    observation: `[S]` as logged; it is normalised here.
    action: `[A]` as logged.
    box: bounds `[A]`.

  Returns:
    `[G, M]` values in units of the return.
  """
  units, box = to_units(state.hyperparams.told_box, action, box)
  return actor_critic.values_of(critic, state, observation, units, box)


def least_value(critic: Critic) -> Callable[..., jax.Array]:
  """`value` of a learner that trusts the critic whose weighted sum is least.

  Args:
    critic: the critics' network; states have `values_of`'s fields, and the
      number `group_weights`.
  """

  def value(
    state: Any, observation: chex.Array, action: chex.Array, box: ActionBox
  ) -> jax.Array:
    q = values_of(critic, state, observation, action, box)
    return actor_critic.chosen(q[None], state.hyperparams.group_weights)[0]

  return value
