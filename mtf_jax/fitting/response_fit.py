"""Fits the response model to a log.

What a log cannot say exactly, it says as a distribution: a user with eight
impressions has no known like rate. Effects of users and items are therefore
*drawn from their posterior*, not set to its mean, so that the population of the
world is as heterogeneous as the log's and not shrunk.

1. Reach: a logistic regression of logged against random (user, item) pairs on
   user categories and item tags and categories, low-rank plus popularity.
2. Interest: a probit model of the click (7 s, or the whole video) with an
   intercept per duration bucket, the reach and random effects of users and
   items, by a Gibbs sampler with the latent propensity as data.
3. Play tables: the quantiles of the log at the quantiles of the simulated z, so
   that the play times of logged impressions are the log's.
4. Interactions: a logistic regression on play time, reach and the interactions
   before, in turns with a posterior draw of user and item effects under a
   mixing distribution on a grid that is estimated as well.

Reference:
  [1] Gao et al., "KuaiRand: An Unbiased Sequential Recommendation Dataset with
  Randomly Exposed Videos", CIKM 2022.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.scipy import special

from mtf_jax.data import behaviours, kuairand
from mtf_jax.data.behaviours import DURATION_EDGES, NUM_BUCKETS, duration_bucket
from mtf_jax.fitting.population import (
  EFFECT_GRID,
  NUM_FACTORS,
  ResponsePopulation,
)
from mtf_jax.worlds import response as response_lib


def _one_hot(codes: np.ndarray, max_size: int) -> np.ndarray:
  """One-hot columns of the code columns that have at most `max_size` values."""
  blocks = [
    np.eye(column.max() + 1, dtype=np.float32)[column]
    for column in codes.T
    if column.max() < max_size
  ]
  return np.concatenate(blocks, axis=1)


# --- Reach -------------------------------------------------------------------


def fit_reach(
  log: kuairand.ImpressionLog,
  catalogue: kuairand.Catalogue,
  rng: np.random.Generator,
  *,
  epochs: int = 10,
  batch_size: int = 8192,
) -> tuple[np.ndarray, np.ndarray]:
  """Factors whose product tells logged pairs from random ones.

  Features only, no embedding of single users or items but the item's
  popularity, so that pairs outside of the log are treated as those inside.

  Returns:
    (`[U, D]` user factors, `[I, D]` item factors); the last factor is the
    item's popularity, for which every user has 1.
  """
  users = jnp.asarray(_one_hot(catalogue.user_categories, 64))
  items = jnp.asarray(
    np.concatenate(
      [
        catalogue.video_tags,
        _one_hot(catalogue.video_categories, 64),
        np.eye(NUM_BUCKETS, dtype=np.float32)[
          duration_bucket(catalogue.duration)
        ],
      ],
      axis=1,
    )
  )
  num_users, num_items = len(users), len(items)
  personal = NUM_FACTORS - 1
  parameters = {
    "user": rng.normal(0, 0.05, (users.shape[1], personal)),
    "item": rng.normal(0, 0.05, (items.shape[1], personal)),
    "popularity": np.zeros(num_items),
    "bias": np.zeros(()),
  }
  parameters = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), parameters)
  half = batch_size // 2
  steps = max(1, len(log.user) // half)

  def factors(p, user, item, users, items):
    left, right = users[user] @ p["user"], items[item] @ p["item"]
    return jnp.sum(left * right, axis=-1) + p["popularity"][item] + p["bias"]

  def loss(p, batch, users, items):
    user, item, label = batch
    logits = factors(p, user, item, users, items)
    decay = sum(jnp.sum(jnp.square(p[k])) for k in ("user", "item"))
    # The popularity of rarely logged items stays near the prior.
    prior = jnp.sum(jnp.square(p["popularity"])) / len(log.user)
    return (
      jnp.mean(optax.sigmoid_binary_cross_entropy(logits, label))
      + 1e-5 * decay
      + 0.25 * prior
    )

  optimiser = optax.adam(2e-2)

  @jax.jit
  def epoch(carry, batches, users, items):
    def step(carry, batch):
      p, state = carry
      gradient = jax.grad(loss)(p, batch, users, items)
      # optax multiplies float32 by Python floats of int32 counts.
      with jax.numpy_dtype_promotion("standard"):
        updates, state = optimiser.update(gradient, state)
      return (optax.apply_updates(p, updates), state), None

    return jax.lax.scan(step, carry, batches)[0]

  carry = (parameters, optimiser.init(parameters))
  label = np.repeat(np.float32([1, 0]), half)
  for _ in range(epochs):
    rows = rng.permutation(max(len(log.user), steps * half))[: steps * half]
    rows = rows.reshape(steps, half) % len(log.user)
    others = rng.integers(len(log.user), size=rows.shape)
    user = np.concatenate([log.user[rows], log.user[others]], axis=1)
    item = np.concatenate(
      [log.item[rows], rng.integers(num_items, size=rows.shape)], axis=1
    )
    batches = (user, item, np.tile(label, (steps, 1)))
    carry = epoch(carry, jax.tree.map(jnp.asarray, batches), users, items)
  p = jax.tree.map(np.asarray, carry[0])
  user_factors = np.asarray(users) @ p["user"]
  item_factors = np.asarray(items) @ p["item"]
  popularity = (p["popularity"] + p["bias"])[:, None]
  return (
    np.concatenate([user_factors, np.ones((num_users, 1))], axis=1).astype(
      np.float32
    ),
    np.concatenate([item_factors, popularity], axis=1).astype(np.float32),
  )


# --- Interest ----------------------------------------------------------------


@functools.partial(
  jax.jit, static_argnames=("num_users", "num_items", "sweeps")
)
def _gibbs(key, columns, *, num_users, num_items, sweeps):
  """Draws from the posterior of the probit model of the click.

  `z = intercept[bucket] - slope * beyond + user + item + N(0, 1)`, clicked
  where z > 0. Flat priors for intercepts and slope, normal ones for the
  effects with the variances' moment estimates of the sweep before.

  Args:
    key: random number generator key, consumed.
    columns: `[n]` each: user, item, duration bucket, softplus(-reach), clicked.
    num_users, num_items, sweeps: static.

  Returns:
    (users' effects, items' effects, intercepts `[H]`, slope) of the last sweep.
  """
  user_of, item_of, bucket, beyond, clicked = columns
  count = jnp.ones_like(beyond)
  user_rows = jax.ops.segment_sum(count, user_of, num_users)
  item_rows = jax.ops.segment_sum(count, item_of, num_items)
  bucket_rows = jax.ops.segment_sum(count, bucket, NUM_BUCKETS)

  def effects(key, residual, groups, rows, variance):
    sums = jax.ops.segment_sum(residual, groups, rows.shape[0])
    precision = rows + 1.0 / variance
    noise = jax.random.normal(key, rows.shape)
    draw = sums / precision + noise / jnp.sqrt(precision)
    seen = (rows > 0).astype(draw.dtype)
    return draw, jnp.sum(seen * jnp.square(draw)) / jnp.sum(seen)

  def sweep(state, key):
    user, item, intercept, slope, variances = state
    keys = jax.random.split(key, 5)
    base = intercept[bucket] - slope * beyond
    mean = base + user[user_of] + item[item_of]
    # The latent z, truncated to the side of 0 that the click tells.
    below = special.ndtr(-mean)
    uniform = jax.random.uniform(keys[0], mean.shape)
    level = jnp.where(clicked, below + uniform * (1.0 - below), uniform * below)
    z = mean + special.ndtri(jnp.clip(level, 1e-6, 1.0 - 1e-6))

    user, user_variance = effects(
      keys[1], z - base - item[item_of], user_of, user_rows, variances[0]
    )
    item, item_variance = effects(
      keys[2], z - base - user[user_of], item_of, item_rows, variances[1]
    )
    rest = z - user[user_of] - item[item_of]
    sums = jax.ops.segment_sum(rest + slope * beyond, bucket, NUM_BUCKETS)
    noise = jax.random.normal(keys[3], sums.shape)
    rows = jnp.maximum(bucket_rows, 1.0)
    intercept = sums / rows + noise / jnp.sqrt(rows)
    gram = jnp.sum(jnp.square(beyond))
    noise = jax.random.normal(keys[4])
    slope = jnp.sum(beyond * (intercept[bucket] - rest)) / gram
    slope += noise / jnp.sqrt(gram)
    state = (user, item, intercept, slope, (user_variance, item_variance))
    return state, None

  zeros = jnp.zeros(num_users), jnp.zeros(num_items), jnp.zeros(NUM_BUCKETS)
  start = (*zeros, jnp.zeros(()), (jnp.full((), 0.2), jnp.full((), 0.1)))
  state, _ = jax.lax.scan(sweep, start, jax.random.split(key, sweeps))
  return state[:4]


def _play_tables(log, mean, residual_scale):
  """Quantiles of the play fraction at the quantiles of the simulated z."""
  grid = np.linspace(
    response_lib.Z_MIN, response_lib.Z_MAX, response_lib.Z_POINTS
  )
  fraction = response_lib.play_fraction(log.play_seconds, log.duration)
  bucket = duration_bucket(log.duration)
  tables = []
  for h in range(NUM_BUCKETS):
    rows = bucket == h
    if not np.any(rows):
      raise ValueError(
        f"log: expected impressions in every duration bucket, found none in"
        f" bucket {h} of edges {DURATION_EDGES} (the last is pictures)."
      )
    counts, edges = np.histogram(mean[rows], bins=200)
    centers = 0.5 * (edges[1:] + edges[:-1])
    cdf = np.asarray(
      special.ndtr((grid[:, None] - centers[None, :]) / residual_scale)
    ) @ (counts / counts.sum())
    tables.append(np.quantile(fraction[rows], np.clip(cdf, 0, 1)))
  return np.maximum.accumulate(np.stack(tables), axis=1).astype(np.float32)


# --- Interactions ------------------------------------------------------------


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


def _fit_interactions(log, beyond, num_users, num_items, rng):
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
  mixing = [np.exp(-0.5 * (EFFECT_GRID / scale) ** 2) for scale in (3.0, 1.0)]
  mixing = tuple(np.float32(m / m.sum()) for m in mixing)
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


# --- The whole fit -----------------------------------------------------------


def _product(user_factors, item_factors, user, item):
  return np.sum(user_factors[user] * item_factors[item], axis=-1)


def _softplus(x):
  return np.logaddexp(0.0, x)


def fit_response(
  log: kuairand.ImpressionLog,
  catalogue: kuairand.Catalogue,
  rng: np.random.Generator,
) -> tuple[response_lib.ResponseModel, ResponsePopulation]:
  """Fits the response model to a log of recommended impressions.

  Args:
    log: the impressions; those exposed at random are ignored.
    catalogue: users and items of the log.
    rng: posterior draws and random pairs.

  Returns:
    (the model of the catalogue's users and items as numpy float32 arrays, the
    constants that `synthetic_response` draws from).

  Raises:
    ValueError: a duration bucket has no impression.
  """
  log = log.select(log.is_rand == 0)
  num_users, num_items = len(catalogue.user_ids), len(catalogue.video_ids)
  n = len(log.user)
  user_factors, item_factors = fit_reach(log, catalogue, rng)
  logged = _product(user_factors, item_factors, log.user, log.item)
  # Reach is counted from the level that only a fifth of the log falls short
  # of: within the log it hardly matters.
  item_factors[:, -1] -= np.quantile(logged, 0.2)
  beyond = _softplus(-_product(user_factors, item_factors, log.user, log.item))
  random_user = log.user[rng.integers(n, size=100_000)]
  random_item = rng.integers(num_items, size=100_000)

  clicked = log.play_seconds >= np.minimum(
    behaviours.CLICK_SECONDS, log.duration
  )
  bucket = duration_bucket(catalogue.duration)
  columns = (log.user, log.item, bucket[log.item], beyond, clicked)
  user, item, intercept, scale = (
    np.asarray(value)
    for value in _gibbs(
      jax.random.key(rng.integers(2**31)),
      jax.tree.map(jnp.asarray, columns),
      num_users=num_users,
      num_items=num_items,
      sweeps=200,
    )
  )
  item = item + intercept[bucket]
  mean = user[log.user] + item[log.item] - scale * beyond
  table = _play_tables(log, mean, 1.0)
  interactions, mixing = _fit_interactions(
    log, beyond, num_users, num_items, rng
  )
  model = response_lib.ResponseModel(
    user_interest=user,
    item_interest=item,
    user_factors=user_factors,
    item_factors=item_factors,
    reach_scale=scale,
    watch_shift=0.0,
    duration=catalogue.duration,
    duration_bucket=bucket,
    play_table=table,
    residual_scale=1.0,
    interaction_shift=0.0,
    **interactions,
  )
  model = jax.tree.map(response_lib.as_leaf, model)
  seen_users, seen_items = np.unique(log.user), np.unique(log.item)
  finite = catalogue.duration[np.isfinite(catalogue.duration)]
  personal = _product(
    user_factors[:, :-1], item_factors[:, :-1], random_user, random_item
  )
  population = ResponsePopulation(
    duration_quantiles=np.quantile(finite, np.linspace(0, 1, 33)),
    picture_share=float(np.mean(np.isinf(catalogue.duration))),
    play_table=table,
    residual_scale=1.0,
    user_interest_scale=float(user[seen_users].std()),
    item_interest_scale=float(item[seen_items].std()),
    item_interest_mean=float(item[seen_items].mean()),
    reach_scale=float(scale),
    reach_mean=float(item_factors[:, -1].mean() + personal.mean()),
    reach_item_scale=float(item_factors[:, -1].std()),
    reach_pair_scale=float(personal.std()),
    interaction_play=interactions["interaction_play"],
    interaction_reach=interactions["interaction_reach"],
    interaction_coupling=interactions["interaction_coupling"],
    user_effect_weights=mixing[0],
    item_effect_weights=mixing[1],
  )
  return model, population
