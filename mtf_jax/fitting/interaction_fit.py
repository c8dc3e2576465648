"""Fits the interactions (like, comment, follow, forward, hate) to a log.

Logistic regressions on play time, reach and the interactions before, in turns
with a posterior draw of user and item effects under a mixing distribution on a
grid that is estimated as well.

Letters: `n` impressions, `N` interactions, `P` play knots, `M` columns of a
regression, `X` points of the effect grid, `U` users, `I` items.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data import behaviours, kuairand
from mtf_jax.fitting.population import EFFECT_GRID
from mtf_jax.steps import Count, uncounted
from mtf_jax.worlds import response as response_lib


def _knot_basis(play_seconds: np.ndarray) -> np.ndarray:
  """`[n, P]` weights of the linear interpolation between the play knots."""
  position = np.clip(
    np.log1p(play_seconds) / response_lib.KNOT_SPACING,
    0,
    response_lib.PLAY_KNOTS - 1,
  )
  knots = np.arange(response_lib.PLAY_KNOTS)
  return np.maximum(1.0 - np.abs(position[:, None] - knots), 0.0)


@functools.partial(jax.jit, static_argnames="sweeps")
def _fit_interaction(
  key, design, label, user_of, item_of, penalty, weights, *, sweeps
):
  """Stochastic expectation maximisation for one interaction.

  Turns of one Newton step of the penalised logistic regression and of a draw of
  the users' and the items' effects on the grid, whose mixing distributions are
  estimated along the way.

  Args:
    key: random number generator key, consumed.
    design: `[n, M]` columns of the regression.
    label: `[n]` 0 or 1.
    user_of, item_of: `[n]`.
    penalty: `[M, M]`.
    weights: pair of a start for the mixing distributions `[X]` and of the seen
      groups `[U]` and `[I]`, 0 or 1, of users and of items.
    sweeps: static.

  Returns:
    (coefficients `[M]`, users' effects `[U]`, items' effects `[I]`, users'
    mixing distribution `[X]`, items').
  """
  mixing, seen = weights
  grid = jnp.asarray(EFFECT_GRID)

  def newton(coefficients, offset, steps):
    def step(coefficients, _):
      p = jax.nn.sigmoid(design @ coefficients + offset)
      gradient = (label - p) @ design - penalty @ coefficients
      hessian = (design * (p * (1.0 - p))[:, None]).T @ design + penalty
      change = jnp.linalg.solve(hessian, gradient)
      return coefficients + jnp.clip(change, -1.0, 1.0), None

    return jax.lax.scan(step, coefficients, length=steps)[0]

  def draw(key, groups, seen, logit, weights):
    """Effects drawn from their posterior on the grid, and the new weights."""
    value = logit[:, None] + grid[None, :]
    # exp of the sum as a product: one transcendental a row and point, not two.
    odds = jnp.exp(jnp.minimum(logit, 60.0))[:, None] * jnp.exp(grid)[None, :]
    terms = label[:, None] * value - jnp.log1p(odds)
    likelihood = jax.ops.segment_sum(terms, groups, seen.shape[0])
    log_posterior = likelihood + jnp.log(weights)[None, :]
    effect = grid[jax.random.categorical(key, log_posterior)]
    posterior = jax.nn.softmax(log_posterior, axis=1)
    total = jnp.sum(seen[:, None] * posterior, axis=0)
    weights = jnp.maximum(total / jnp.sum(seen), 1e-7)
    return effect, weights / jnp.sum(weights)

  def sweep(state, key):
    coefficients, user, item, user_mixing, item_mixing = state
    user_key, item_key = jax.random.split(key)
    coefficients = newton(coefficients, user[user_of] + item[item_of], 1)
    logit = design @ coefficients
    user, user_mixing = draw(
      user_key, user_of, seen[0], logit + item[item_of], user_mixing
    )
    item, item_mixing = draw(
      item_key, item_of, seen[1], logit + user[user_of], item_mixing
    )
    return (coefficients, user, item, user_mixing, item_mixing), None

  rate = jnp.maximum(jnp.mean(label), 1.0 / label.shape[0])
  knots = jnp.arange(design.shape[1]) < response_lib.PLAY_KNOTS
  start = jnp.where(knots, jnp.log(rate), 0.0)
  none = jnp.zeros_like(seen[0]), jnp.zeros_like(seen[1])
  state = (newton(start, jnp.zeros_like(label), 11), *none, *mixing)
  state, _ = jax.lax.scan(sweep, state, jax.random.split(key, sweeps))
  coefficients, user, item, *mixing = state
  # The last word is the regression's: it makes the expected counts the log's.
  coefficients = newton(coefficients, user[user_of] + item[item_of], 8)
  return coefficients, user, item, *mixing


def fit_interactions(
  log: kuairand.ImpressionLog,
  beyond: np.ndarray,
  num_users: int,
  num_items: int,
  rng: np.random.Generator,
  count: Count = uncounted,
) -> tuple[dict[str, np.ndarray], tuple[np.ndarray, np.ndarray]]:
  """Fits all interactions, each explained by those before it.

  Args:
    log: the impressions.
    beyond: `[n]` softplus of minus the reach, in the log's order.
    num_users: `U`.
    num_items: `I`.
    rng: posterior draws.
    count: told of each interaction that is fitted.

  Returns:
    (fields of `ResponseModel` by name, mixing distributions `[N, X]` of the
    users' and of the items' effects).
  """
  labels = np.stack(
    [getattr(log, name) for name in behaviours.INTERACTIONS], axis=1
  ).astype(np.float32)
  num = labels.shape[1]
  knots = response_lib.PLAY_KNOTS
  columns = [_knot_basis(log.play_seconds), -beyond[:, None], labels]
  design = np.concatenate(columns, axis=1).astype(np.float32)
  before = knots + 1  # first column of the interactions before
  # Smooth in the play time; a knot without rows follows its neighbours, and a
  # coupling seen a handful of times stays near none.
  second = np.diff(np.eye(knots), 2, axis=0)
  penalty = 0.5 * np.eye(design.shape[1])
  penalty[:knots, :knots] = 4.0 * second.T @ second + 1e-3 * np.eye(knots)
  # Where the estimation of the mixing distributions starts: wide for users
  # (most never like), the platform-wide spread of log rates for items.
  density = [np.exp(-0.5 * (EFFECT_GRID / scale) ** 2) for scale in (3.0, 1.0)]
  mixing = tuple(np.float32(d / d.sum()) for d in density)
  seen = tuple(
    np.float32(np.bincount(groups, minlength=size) > 0)
    for groups, size in ((log.user, num_users), (log.item, num_items))
  )
  key = jax.random.key(rng.integers(2**31))
  fits = []
  for n in range(num):
    # An interaction is explained by those before it only.
    kept = np.ones(design.shape[1], np.float32)
    kept[before + n :] = 0.0
    arguments = (
      design * kept,
      labels[:, n],
      log.user,
      log.item,
      np.float32(penalty),
      (mixing, seen),
    )
    fit = _fit_interaction(
      jax.random.fold_in(key, n),
      *jax.tree.map(jnp.asarray, arguments),
      sweeps=20,
    )
    fits.append([np.asarray(part, np.float64) for part in fit])
    count(1)
  coefficients, user, item, user_weights, item_weights = (
    np.stack(parts) for parts in zip(*fits, strict=True)
  )
  effects = {
    "interaction_play": coefficients[:, :knots],
    "interaction_reach": coefficients[:, knots],
    "interaction_coupling": coefficients[:, before:],
    "user_interaction": user.T,
    "item_interaction": item.T,
  }
  return effects, (user_weights, item_weights)
