"""Behaviour cloning: the policy that repeats what was logged.

The floor of every comparison: it learns no value, and its distance from a
learner that does is what the rewards were good for.

Letters: `B` transitions of a batch, `S` state features, `A` action components.

References:
  [1] Fujimoto and Gu, "A Minimalist Approach to Offline Reinforcement
  Learning", NeurIPS 2021, the second term of the actor's loss alone.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.transitions import Transition
from mtf_jax.learners import actor_critic, base
from mtf_jax.learners.base import Learner, Normalization
from mtf_jax.networks import Actor


class Hyperparams(NamedTuple):
  """Numbers of the algorithm: leaves of the state, so none of them recompiles.

  actor_learning_rate: Adam's step size.
  max_gradient_norm: global norm to which the gradient is clipped; `inf` never.
  """

  actor_learning_rate: chex.Numeric = 3e-4
  max_gradient_norm: chex.Numeric = np.inf


class State(NamedTuple):
  """Everything that an update reads and writes; a pytree of arrays.

  actor_params: as the network's `init` made them.
  actor_optimizer: Adam's moments.
  hyperparams: the numbers of the algorithm, each a leaf.
  normalization: of the observations.
  """

  actor_params: Any
  actor_optimizer: Any
  hyperparams: Hyperparams
  normalization: Normalization


class Metrics(NamedTuple):
  """What one update saw.

  actor_loss: scalar, mean squared error of an action component.
  actor_gradient_norm: scalar, before clipping.
  """

  actor_loss: jax.Array
  actor_gradient_norm: jax.Array


_BOUNDS = {
  "actor_learning_rate": (0.0, np.inf),
  "max_gradient_norm": (0.0, np.inf),
}


def bc(actor: Actor) -> Learner:
  """Builds behaviour cloning from its network.

  One update: Adam on `1/(B A) sum (mu(s) - a)^2`, the last term of [1].

  Args:
    actor: the policy's network.

  Returns:
    The learner; it has no `value`.

  Raises:
    ValueError: at `init`, a hyperparameter out of range.
  """

  def init(
    rng_key: chex.PRNGKey,
    example: Transition,
    hyperparams: Hyperparams | None = None,
    normalization: Normalization | None = None,
  ) -> State:
    hyperparams = Hyperparams() if hyperparams is None else hyperparams
    base.check_ranges(hyperparams, _BOUNDS)
    observation = jnp.asarray(example.observation_tm1)
    actor_params = actor.init(rng_key, observation)
    return State(
      actor_params=actor_params,
      actor_optimizer=base.start_optimizer(actor_params),
      hyperparams=actor_critic.own_hyperparams(hyperparams, example),
      normalization=base.own_normalization(normalization, observation),
    )

  def update(state: State, batch: Transition) -> tuple[State, Metrics]:
    batch = base.normalize_batch(state.normalization, batch)

    def loss_fn(params):
      action = actor.apply(params, batch.observation_tm1)
      return jnp.mean(jnp.square(action - batch.action_tm1)), None

    state, _, metrics = actor_critic.climb(loss_fn, state)
    return state, Metrics(**metrics)

  return Learner(
    init=init,
    update=update,
    policy=actor_critic.policy,
    act=actor_critic.deterministic_act(actor),
    value=None,
  )
