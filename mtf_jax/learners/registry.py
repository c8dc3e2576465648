"""Learners by name, all built from the same networks."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

from mtf_jax.learners import (
  awac,
  bc,
  bcq,
  constrained_rl,
  cql,
  enhanced_rl,
  integrated_rl,
  iql,
  preference_rl,
  sac_n,
  slope_regression,
  td3_bc,
  xmtf,
)
from mtf_jax.learners.base import Learner
from mtf_jax.networks import Actor, Critic, mlp_cells, mlp_vae


class Entry(NamedTuple):
  """One algorithm.

  build: `(actor, critic, *, critic_updates=...) -> Learner`.
  hyperparams: class of the numbers that the learner's `init` takes, a
    NamedTuple with a default for every field.
  actor_answers: whether what the actor answers is the policy's action, in the
    units of its frame, and not a part of it.
  closed_form: whether a round is one update, see `Learner.fit`.
  max_rounds: of progressive training; None for any number.
  any_weights: whether other `group_weights` are another policy of the same state,
    without training.
  of_pairs: whether states and actions are those of user-item pairs: it learns
    from logs with shown items, and acts on each candidate.
  of_cells: whether it learns from logs with scores of candidates, and serves
    cells, see `Learner.cells`.
  """

  build: Callable[..., Learner]
  hyperparams: type[Any]
  actor_answers: bool = True
  closed_form: bool = False
  max_rounds: int | None = None
  any_weights: bool = False
  of_pairs: bool = False
  of_cells: bool = False

  @property
  def needs(self) -> str | None:
    """Optional columns of a log that it learns from, a noun; None for no others."""
    if self.of_cells:
      return "scores of candidates"
    return "shown items" if self.of_pairs else None


def _bc(actor: Actor, critic: Critic, *, critic_updates: int = 1) -> Learner:
  # No critics: an update is one step of the actor on the whole batch.
  del critic, critic_updates
  return bc.bc(actor)


def _bcq(actor: Actor, critic: Critic, *, critic_updates: int = 1) -> Learner:
  # As wide as the critics; 750-750 as published.
  generator = mlp_vae(critic.hidden_sizes)
  return bcq.bcq(actor, critic, generator, critic_updates=critic_updates)


def _xmtf(actor: Actor, critic: Critic, *, critic_updates: int = 1) -> Learner:
  # As wide as the critics.
  cells_of = functools.partial(mlp_cells, hidden_sizes=critic.hidden_sizes)
  return xmtf.xmtf(actor, critic, cells_of, critic_updates=critic_updates)


def _slope_regression(
  actor: Actor, critic: Critic, *, critic_updates: int = 1
) -> Learner:
  # No networks, and no updates.
  del actor, critic, critic_updates
  return slope_regression.slope_regression()


LEARNERS = {
  "integrated_rl": Entry(
    integrated_rl.integrated_rl, integrated_rl.Hyperparams
  ),
  "constrained_rl": Entry(
    constrained_rl.constrained_rl, constrained_rl.Hyperparams
  ),
  "enhanced_rl": Entry(
    enhanced_rl.enhanced_rl, enhanced_rl.Hyperparams, of_pairs=True
  ),
  "xmtf": Entry(_xmtf, xmtf.Hyperparams, of_cells=True),
  "preference_rl": Entry(
    preference_rl.preference_rl, preference_rl.Hyperparams, any_weights=True
  ),
  "bc": Entry(_bc, bc.Hyperparams),
  "td3_bc": Entry(td3_bc.td3_bc, td3_bc.Hyperparams),
  "iql": Entry(iql.iql, iql.Hyperparams),
  "awac": Entry(awac.awac, awac.Hyperparams),
  "bcq": Entry(_bcq, bcq.Hyperparams, actor_answers=False),
  "cql": Entry(cql.cql, cql.Hyperparams),
  "sac_n": Entry(sac_n.sac_n, sac_n.Hyperparams),
  "slope_regression": Entry(
    _slope_regression,
    slope_regression.Hyperparams,
    actor_answers=False,
    closed_form=True,
    max_rounds=slope_regression.MAX_ROUNDS,
    any_weights=True,
  ),
  "edac": Entry(
    functools.partial(sac_n.sac_n, diversified=True), sac_n.EDACHyperparams
  ),
}
