"""EnhancedRL: IntegratedRL-MTF with an action for each user-item pair.

The state of a pair is the request's features and the item's, the ranking model's
scores among them; the policy answers each candidate by itself, and Eq. 1 ranks
them by weights of their own (`kernels.fusion.itemwise_log_score`). Rewards are
known of shown lists, so that the critics' values are summed over the list before
they are compared with them. With lists of one item it is `integrated_rl`, bit for
bit.

[1] leaves open what this file decides; docs/decisions.md has the reasons: phi
and d are each pair's own, the next list is the one that was logged, candidates
that were not shown have no value, and sums are all that is asked of the parts.
So an item's value may be negative where its list's is not, and phi, which shrinks
it, then rewards leaving the item's box: metrics say how often
(`negative_target_share`, of the items' parts of the targets). Values in the metrics
are of lists, the critics' disagreement and exceedance of pairs.

Letters: `B` transitions of a batch, `L` items of a shown list, `S` state features,
`F` item features, `A` action components, `G` reward groups, `M` critics of a group
(ten in [1]).

References:
  [1] Liu et al., "An Enhanced-State Reinforcement Learning Algorithm for
  Multi-Task Fusion in Large-Scale Recommender Systems", arXiv 2409.11678.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

from mtf_jax.data.shown_items import ShownItems, pair_observation, require
from mtf_jax.data.transitions import Transition
from mtf_jax.kernels.losses import (
  list_td_targets,
  list_value,
  td_targets,
)
from mtf_jax.learners import (
  actor_critic,
  base,
  integrated_rl,
  integrated_steps,
)
from mtf_jax.learners.base import Learner, Normalization
from mtf_jax.learners.integrated_rl import Metrics, State
from mtf_jax.networks import Actor, Critic


class Hyperparams(integrated_rl.Hyperparams):
  """Those of `integrated_rl`; prices are in units of an item's value.

  A list's value is the sum of its items', so that `penalty_scale` of 1 weighs `L`
  times as much against it.
  """

  __slots__ = ()


def _flat(tree: Any) -> Any:
  """`[B, L, ...]` -> `[B L, ...]`: networks take pairs."""
  return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)


def _as_lists(state: State, batch: Transition) -> Transition:
  """Observations `[B, L, S + F]` normalised, actions and boxes of the items."""
  items_tm1, items_t = (
    require(items, "enhanced_rl") for items in (batch.items_tm1, batch.items_t)
  )

  def pairs(observation: chex.Array, items: ShownItems) -> jax.Array:
    rows = pair_observation(observation, items.features)
    return jax.vmap(base.normalize_one, (None, 0))(state.normalization, rows)

  return batch._replace(
    observation_tm1=jax.vmap(pairs)(batch.observation_tm1, items_tm1),
    action_tm1=items_tm1.action,
    box_tm1=items_tm1.box,
    observation_t=jax.vmap(pairs)(batch.observation_t, items_t),
    box_t=items_t.box,
    items_tm1=None,
    items_t=None,
  )


def _of_lists(critic: Critic) -> Critic:
  """The critics of a list: `apply` on `[B, L, ...]` sums over its items."""

  def apply(params, observation, action, box):
    q = critic.apply(params, *_flat((observation, action, box)))
    by_list = q.reshape(*observation.shape[:2], *q.shape[1:])
    return jax.vmap(list_value)(by_list)

  return Critic(critic.init, apply, critic.hidden_sizes)


def enhanced_rl(
  actor: Actor, critic: Critic, *, critic_updates: int = 1
) -> Learner:
  """Builds the learner of [1] from its networks.

  One update, critics first, `x_l` the features of the list's item `l`:

    `y_gm = r_g + gamma sum_l phi_l Q'_gm(s', x'_l, mu'(s', x'_l))`, the items
    and boxes of the next row;
    critics: Adam on the mean of `(sum_l Q_gm(s, x_l, a_l) - y_gm)^2`; soft
    update of Q';
    actor: Adam on the mean over pairs of
    `-sum w Qbar(s, x, mu(s, x)) + eta d + lambda sum w std`; soft update of mu'.

  `act` and `value` are of a pair, `[S + F]`. The normalisation is that of the
  request's features; those of items are taken as they are.

  Args:
    actor: the policy's network, on `[S + F]`.
    critic: the critics' network, likewise.
    critic_updates: as in `integrated_rl`, static.

  Returns:
    The learner.

  Raises:
    ValueError: as `integrated_rl`.
    InputError: at `init` and `update`, a transition without shown items.
  """
  pairwise = integrated_rl.integrated_rl(actor, critic)
  list_critic = _of_lists(critic)

  def init(
    rng_key: chex.PRNGKey,
    example: Transition,
    hyperparams: Hyperparams | None = None,
    normalization: Normalization | None = None,
  ) -> State:
    items = require(example.items_tm1, "enhanced_rl")
    observation = jnp.asarray(example.observation_tm1)
    pairs = pair_observation(observation, items.features)
    own = base.own_normalization(normalization, observation)
    more = pairs.shape[1] - observation.shape[0]
    first = jax.tree.map(lambda leaf: leaf[0], (pairs, items.action, items.box))
    example = example._replace(
      observation_tm1=first[0], action_tm1=first[1], box_tm1=first[2]
    )
    return pairwise.init(
      rng_key,
      example,
      Hyperparams() if hyperparams is None else hyperparams,
      Normalization(
        jnp.pad(own.mean, (0, more)),
        jnp.pad(own.scale, (0, more), constant_values=1),
      ),
    )

  def update_critic(
    state: State, batch: Transition
  ) -> tuple[State, dict[str, jax.Array]]:
    numbers = state.hyperparams
    answers = integrated_steps.answers_at(
      actor, critic, state, *_flat((batch.observation_t, batch.box_t))
    )
    size = batch.observation_t.shape[:2]
    exceedance_t, weight_t, q_t = (
      leaf.reshape(*size, *leaf.shape[1:]) for leaf in answers
    )
    targets = jax.vmap(list_td_targets)(
      batch.r_t + numbers.reward_shift[None, :],
      numbers.discount * batch.discount_t,
      weight_t,
      q_t,
    )
    state, metrics = integrated_steps.follow_targets(
      list_critic,
      state,
      batch,
      targets,
      jnp.mean(exceedance_t, axis=1),
      jnp.mean(weight_t, axis=1),
    )
    # phi acts on each item's part, which can be negative in a target that is not.
    parts = jax.vmap(jax.vmap(td_targets, (None, None, 0, 0)))(
      (batch.r_t + numbers.reward_shift[None, :]) / size[1],
      numbers.discount * batch.discount_t,
      weight_t,
      q_t,
    )
    negative = jnp.mean(parts < 0, axis=(1, 2, 3), dtype=parts.dtype)
    share = integrated_steps.continuing_mean(batch, negative)
    return state, metrics | {"negative_target_share": share}

  def update_actor(
    state: State, batch: Transition
  ) -> tuple[State, dict[str, jax.Array]]:
    pairs = _flat((batch.observation_tm1, batch.box_tm1))
    return integrated_steps.climb_at(actor, critic, state, *pairs)

  return Learner(
    init=init,
    update=actor_critic.delayed(
      update_critic, update_actor, Metrics, critic_updates, prepare=_as_lists
    ),
    policy=pairwise.policy,
    act=pairwise.act,
    value=pairwise.value,
  )
