"""xMTF: an actor bends monotone cells, and cells learn to rank as it does.

The outer stage is an actor-critic whose action bends the cells that were in
service when the log was written. The inner stage teaches a network of cells the
order that the actor's action gives to candidates of a request. The cells are what
is served: they need no action on top, and the next round explores around them.

[1] leaves open what this file decides; docs/monotone_fusion.md has the reasons: the
outer stage is that of `integrated_rl`, which with `sharpness`, `penalty_scale` and
`uncertainty_scale` of 0 is the plain actor-critic of [1]; both stages take a step in
every update; cells cannot fall, so that there is no loss for monotony.

Letters: `B` transitions of a batch, `S` state features, `C` logged candidates, `K`
tasks, one for each action component, `J` knots of a cell.

References:
  [1] Cao et al., "xMTF: A Formula-Free Model for Reinforcement-Learning-Based
  Multi-Task Fusion in Recommender Systems", arXiv 2504.05669.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.candidate_scores import require
from mtf_jax.data.transitions import Transition
from mtf_jax.kernels.monotone import (
  MonotoneCells,
  monotone_fused_score,
  ranking_transfer_loss,
)
from mtf_jax.learners import actor_critic, base, integrated_rl, integrated_steps
from mtf_jax.learners.base import Learner, Normalization
from mtf_jax.networks import Actor, CellNetwork, Critic

_DEFAULT = integrated_rl.Hyperparams()


class Hyperparams(NamedTuple):
  """Numbers of the algorithm: leaves of the state, so none of them recompiles.

  The others are those of `integrated_rl.Hyperparams`.

  cells_learning_rate: Adam's step size for the cells.
  """

  discount: chex.Numeric = _DEFAULT.discount
  sharpness: chex.Numeric = _DEFAULT.sharpness
  penalty_scale: chex.Numeric = _DEFAULT.penalty_scale
  uncertainty_scale: chex.Numeric = _DEFAULT.uncertainty_scale
  group_weights: chex.Numeric = _DEFAULT.group_weights
  reward_shift: chex.Numeric = _DEFAULT.reward_shift
  target_step_size: chex.Numeric = _DEFAULT.target_step_size
  actor_learning_rate: chex.Numeric = _DEFAULT.actor_learning_rate
  critic_learning_rate: chex.Numeric = _DEFAULT.critic_learning_rate
  max_gradient_norm: chex.Numeric = _DEFAULT.max_gradient_norm
  cells_learning_rate: chex.Numeric = 3e-4


class State(NamedTuple):
  """Everything that an update reads and writes; a pytree of arrays.

  base: `[K, J]`, `[K]` and `[K, J-1]`, the cells that those of the network were
    made from.
  cells_params: of the network of cells.
  cells_optimizer: Adam's moments.

  The others are those of `integrated_rl.State`.
  """

  actor_params: Any
  critic_params: Any
  target_actor_params: Any
  target_critic_params: Any
  actor_optimizer: Any
  critic_optimizer: Any
  hyperparams: Hyperparams
  normalization: Normalization
  base: MonotoneCells
  cells_params: Any
  cells_optimizer: Any


class Metrics(NamedTuple):
  """What one update saw.

  cells_loss: scalar, of the transfer.
  cells_gradient_norm: scalar, before clipping.
  same_order: scalar, share of the pairs of candidates that the outer stage orders
    which the cells order alike, before their step.

  The others are those of `integrated_rl.Metrics`.
  """

  critic_loss: jax.Array
  actor_loss: jax.Array
  q_mean: jax.Array
  q_min: jax.Array
  q_max: jax.Array
  q_std: jax.Array
  exceedance: jax.Array
  outside_share: jax.Array
  target_exceedance: jax.Array
  bootstrap_weight: jax.Array
  negative_target_share: jax.Array
  critic_gradient_norm: jax.Array
  actor_gradient_norm: jax.Array
  cells_loss: jax.Array
  cells_gradient_norm: jax.Array
  same_order: jax.Array


class Policy(NamedTuple):
  """What acts, and what is served.

  actor_params: of the outer stage.
  cells_params, base: of the cells, as in the state.
  normalization: of the observations.
  """

  actor_params: Any
  cells_params: Any
  base: MonotoneCells
  normalization: Normalization


def _pairs_alike(inner: jax.Array, outer: jax.Array) -> jax.Array:
  """Share of the pairs that one order has which the other has, of `[C]` each."""
  ordered = outer[:, None] < outer[None, :]
  alike = ordered & (inner[:, None] < inner[None, :])
  count = jnp.sum(ordered, dtype=inner.dtype)
  return jnp.sum(alike, dtype=inner.dtype) / jnp.maximum(count, 1)


@functools.cache
def _served(
  cells_of: Callable[[MonotoneCells], CellNetwork],
) -> Callable[[Policy, chex.Array], MonotoneCells]:
  """What is served; one function for a network, as `jit` tells policies apart."""

  def cells(params: Policy, observation: chex.Array) -> MonotoneCells:
    observation = base.normalize_one(params.normalization, observation)
    network = cells_of(params.base)
    found = network.apply(params.cells_params, observation[None, :])
    return jax.tree.map(lambda leaf: leaf[0], found)

  return cells


def xmtf(
  actor: Actor,
  critic: Critic,
  cells_of: Callable[[MonotoneCells], CellNetwork],
  *,
  critic_updates: int = 1,
) -> Learner:
  """Builds the learner of [1] from its networks.

  One update, critics first, `z(o, h, a) = sum_k q_k (1 + a_k q_k)`, `q_k =
  h_k(o_k)`, of candidates' scores `o`:

    critics and actor: those of `integrated_rl`;
    cells: Adam on the mean over requests of `ranking_transfer_loss` of `z(o,
    h(s), 0)` to `z(o, h_logged, mu(s))`, `h` the network's cells and `h_logged`
    those in service at the row.

  `act` answers the outer action, which means something on `h_logged` alone;
  `cells` answers `h`, which is served at action 0. The network begins as the
  cells of the row that `init` was given: in a first round those of every row.

  Args:
    actor: the outer stage's network, on `[S]`, to `[K]`.
    critic: the critics' network.
    cells_of: cells to a network that begins as them, such as
      `networks.mlp_cells`.
    critic_updates: as in `integrated_rl`, static.

  Returns:
    The learner.

  Raises:
    ValueError: as `integrated_rl`.
    InputError: at `init` and `update`, a transition without scores of candidates.
  """
  outer_stage = integrated_rl.integrated_rl(actor, critic)

  def init(
    rng_key: chex.PRNGKey,
    example: Transition,
    hyperparams: Hyperparams | None = None,
    normalization: Normalization | None = None,
  ) -> State:
    hyperparams = Hyperparams() if hyperparams is None else hyperparams
    base.check_ranges(hyperparams, {"cells_learning_rate": (0.0, np.inf)})
    in_service = require(example.candidates_tm1, "xmtf").cells
    outer_key, cells_key = jax.random.split(rng_key)
    fields = integrated_rl.Hyperparams._fields
    numbers = (getattr(hyperparams, name) for name in fields)
    outer = outer_stage.init(
      outer_key, example, integrated_rl.Hyperparams(*numbers), normalization
    )
    observation = jnp.asarray(example.observation_tm1)
    own = jax.tree.map(
      lambda leaf: jnp.array(leaf, observation.dtype), in_service
    )
    cells_params = cells_of(own).init(cells_key, observation)
    values = {
      **outer._asdict(),
      "hyperparams": actor_critic.own_hyperparams(
        hyperparams, example, by_group=("group_weights", "reward_shift")
      ),
      "base": own,
      "cells_params": cells_params,
      "cells_optimizer": base.start_optimizer(cells_params),
    }
    return State(**values)

  def update_critic(
    state: State, batch: Transition
  ) -> tuple[State, dict[str, jax.Array]]:
    return integrated_steps.regress_on(actor, critic, state, batch)

  def transfer(
    state: State, batch: Transition
  ) -> tuple[State, dict[str, jax.Array]]:
    """One step of the cells towards the order of the outer stage."""
    candidates = require(batch.candidates_tm1, "xmtf")
    observation = batch.observation_tm1
    action = actor.apply(state.actor_params, observation)
    fuse = jax.vmap(monotone_fused_score)
    outer = fuse(candidates.scores, candidates.cells, action)
    network = cells_of(state.base)

    def loss_fn(params):
      cells = network.apply(params, observation)
      inner = fuse(candidates.scores, cells, jnp.zeros_like(action))
      return jnp.mean(jax.vmap(ranking_transfer_loss)(inner, outer)), inner

    state, inner, metrics = actor_critic.step_part(
      "cells", loss_fn, state, state.hyperparams.cells_learning_rate
    )
    alike = jnp.mean(jax.vmap(_pairs_alike)(inner, outer))
    return state, metrics | {"same_order": alike}

  def update_actor(
    state: State, batch: Transition
  ) -> tuple[State, dict[str, jax.Array]]:
    state, of_actor = integrated_steps.climb_at(
      actor, critic, state, batch.observation_tm1, batch.box_tm1
    )
    state, of_cells = transfer(state, batch)
    return state, of_actor | of_cells

  def policy(state: State) -> Policy:
    return Policy(*(getattr(state, name) for name in Policy._fields))

  return Learner(
    init=init,
    update=actor_critic.delayed(
      update_critic, update_actor, Metrics, critic_updates
    ),
    policy=policy,
    act=outer_stage.act,
    value=outer_stage.value,
    cells=_served(cells_of),
  )
