"""Value of a policy by fitted Q evaluation, `learners.fqe`.

It knows the policy's later actions as well as the first, unlike the estimators of
`off_policy`, but only through its critics: a free-form one cannot see an action
that explains a thousandth of the return's variance, a box critic can. It claims
no interval: its error is that of the critics, not of the sessions.

Letters: `N` rows of the log, `n` sessions, `S` state features, `A` action
components, `G` reward groups.
"""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.transitions import TransitionDataset
from mtf_jax.evaluation.logged_units import ROUNDING, Estimate
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.learners.base import Learner
from mtf_jax.learners.fqe import State
from mtf_jax.networks.critics import box_deviation


def first_rows(
  dataset: TransitionDataset, step: chex.Array
) -> tuple[jax.Array, ActionBox]:
  """`[n, S]` first observations of the sessions and their boxes `[n, A]`.

  Args:
    dataset: rows on the device.
    step: int `[N]` of the log.
  """
  first = np.flatnonzero(np.asarray(step) == 0)
  return dataset.observation[first], jax.tree.map(
    lambda bound: bound[first], dataset.box
  )


@functools.partial(jax.jit, static_argnames="learner")
def _values(
  learner: Learner,
  state: State,
  rng_keys: chex.PRNGKey,
  observation: chex.Array,
  box: ActionBox,
  group_weights: chex.Numeric,
) -> tuple[jax.Array, jax.Array]:
  """`[n]` values of the policy's actions, and whether these are outside."""

  def one(rng_key, observation, box):
    action = learner.act(state.policy_params, observation, rng_key)
    q = learner.value(state, observation, action, box)
    position = box_deviation(action, box)
    pinned = (box.upper <= box.lower) & (jnp.abs(action - box.lower) > ROUNDING)
    outside = jnp.any((jnp.abs(position) > 1 + ROUNDING) | pinned)
    return jnp.sum(group_weights * q), outside

  return jax.vmap(one)(rng_keys, observation, box)


def policy_value(
  learner: Learner,
  state: State,
  rng_key: chex.PRNGKey,
  observation: chex.Array,
  box: ActionBox,
  group_weights: chex.Numeric = 1.0,
) -> Estimate:
  """Mean of `sum_g w_g Q_g(s_0, pi(s_0))` over the sessions of a log.

  Args:
    learner: of `fqe`.
    state: after its training.
    rng_key: of the policy's draws, consumed.
    observation: `[n, S]` first ones of the sessions, see `first_rows`.
    box: bounds `[n, A]` there.
    group_weights: scalar or `[G]`.

  Returns:
    The value, discounted, without an interval; all sessions weigh the same.
  """

  keys = jax.random.split(rng_key, observation.shape[0])
  value, outside = jax.device_get(
    _values(learner, state, keys, observation, box, group_weights)
  )
  value = value.astype(np.float64)
  return Estimate(
    value=float(value.mean()),
    low=math.nan,
    high=math.nan,
    effective_sample_size=float(value.size),
    outside_share=float(outside.mean()),
    contributions=value,
  )
