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
4. Interactions: a logistic regression on play time, reach and the before, in turns with a posterior draw of user and item effects
   under a mixing distribution on a grid that is estimated as well.

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

from mtf_jax.datasets import kuairand
from mtf_jax.worlds import response as response_lib
from mtf_jax.worlds.population import (
  DURATION_EDGES,
  EFFECT_GRID,
  NUM_BUCKETS,
  NUM_FACTORS,
  ResponsePopulation,
  duration_bucket,
)


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
    mean = intercept[bucket] - slope * beyond + user[user_of] + item[item_of]
    # The latent z, truncated to the side of 0 that the click tells.
    below = special.ndtr(-mean)
    uniform = jax.random.uniform(keys[0], mean.shape)
    level = jnp.where(clicked, below + uniform * (1.0 - below), uniform * below)
    z = mean + special.ndtri(jnp.clip(level, 1e-6, 1.0 - 1e-6))

    base = z - intercept[bucket] + slope * beyond
    user, user_variance = effects(
      keys[1], base - item[item_of], user_of, user_rows, variances[0]
    )
    item, item_variance = effects(
      keys[2], base - user[user_of], item_of, item_rows, variances[1]
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


def _sigmoid(x):
  return 0.5 * (1.0 + np.tanh(0.5 * x))


def _newton(design, label, offset, penalty, start, steps):
  """Penalised logistic regression by Newton steps."""
  coefficients = start
  for _ in range(steps):
    p = _sigmoid(design @ coefficients + offset)
    gradient = design.T @ (label - p) - penalty @ coefficients
    hessian = (design * (p * (1 - p))[:, None]).T @ design + penalty
    step = np.linalg.solve(hessian, gradient)
    coefficients = coefficients + np.clip(step, -1.0, 1.0)
  return coefficients


@functools.partial(jax.jit, static_argnames="size")
def _grid_log_likelihood(groups, label, logit, grid, *, size):
  """`[size, X]` log likelihood of a logistic model at each effect."""
  value = logit[:, None] + grid[None, :]
  terms = label[:, None] * value - jax.nn.softplus(value)
  return jax.ops.segment_sum(terms, groups, size)


def _draw_effects(groups, size, label, logit, weights, rng):
  """Posterior draw of group effects on the grid, and the updated weights."""
  log_likelihood = np.asarray(
    _grid_log_likelihood(
      groups,
      jnp.asarray(label, jnp.float32),
      jnp.asarray(logit, jnp.float32),
      EFFECT_GRID,
      size=size,
    )
  )
  posterior = log_likelihood + np.log(weights)[None, :]
  posterior = np.exp(posterior - posterior.max(axis=1, keepdims=True))
  posterior /= posterior.sum(axis=1, keepdims=True)
  pick = (posterior.cumsum(axis=1) < rng.random(size)[:, None]).sum(axis=1)
  pick = np.minimum(pick, len(EFFECT_GRID) - 1)
  seen = np.bincount(groups, minlength=size) > 0
  weights = np.maximum(posterior[seen].mean(axis=0), 1e-7)
  return EFFECT_GRID[pick], weights / weights.sum()


def _fit_interactions(log, beyond, num_users, num_items, rng, sweeps=20):
  labels = np.stack(
    [getattr(log, name) for name in response_lib.INTERACTIONS], axis=1
  ).astype(np.float64)
  num = labels.shape[1]
  knots = response_lib.PLAY_KNOTS
  basis = np.concatenate(
    [_knot_basis(log.play_seconds), -beyond[:, None]], axis=1
  )
  second = np.diff(np.eye(knots), 2, axis=0)
  # Where the estimation of the mixing distributions starts: wide for users
  # (most never like), the platform-wide spread of log rates for items.
  user_prior, item_prior = (
    np.exp(-0.5 * (EFFECT_GRID / scale) ** 2) for scale in (3.0, 1.0)
  )
  result = {
    "interaction_play": np.zeros((num, knots)),
    "interaction_reach": np.zeros(num),
    "interaction_coupling": np.zeros((num, num)),
    "user_interaction": np.zeros((num_users, num)),
    "item_interaction": np.zeros((num_items, num)),
    "user_effect_weights": np.zeros((num, len(EFFECT_GRID))),
    "item_effect_weights": np.zeros((num, len(EFFECT_GRID))),
  }
  for n in range(num):
    label = labels[:, n]
    design = np.concatenate([basis, labels[:, :n]], axis=1)
    penalty = np.zeros((design.shape[1], design.shape[1]))
    # Smooth in the play time; a knot without rows follows its neighbours, and
    # a coupling seen a handful of times stays near none.
    penalty[:knots, :knots] = 4.0 * second.T @ second + 1e-3 * np.eye(knots)
    penalty[knots:, knots:] = 0.5 * np.eye(n + 1)
    rate = max(label.mean(), 1.0 / len(label))
    coefficients = np.zeros(design.shape[1])
    coefficients[:knots] = np.log(rate)
    user, item = np.zeros(num_users), np.zeros(num_items)
    user_weights = user_prior / user_prior.sum()
    item_weights = item_prior / item_prior.sum()
    for sweep in range(sweeps):
      effects = user[log.user] + item[log.item]
      coefficients = _newton(
        design, label, effects, penalty, coefficients, 12 if sweep == 0 else 1
      )
      logit = design @ coefficients
      user, user_weights = _draw_effects(
        log.user, num_users, label, logit + item[log.item], user_weights, rng
      )
      item, item_weights = _draw_effects(
        log.item, num_items, label, logit + user[log.user], item_weights, rng
      )
    # The last word is the regression's: it makes the expected counts the log's.
    effects = user[log.user] + item[log.item]
    coefficients = _newton(design, label, effects, penalty, coefficients, 8)
    result["interaction_play"][n] = coefficients[:knots]
    result["interaction_reach"][n] = coefficients[knots]
    result["interaction_coupling"][n, :n] = coefficients[knots + 1 :]
    result["user_interaction"][:, n] = user
    result["item_interaction"][:, n] = item
    result["user_effect_weights"][n] = user_weights
    result["item_effect_weights"][n] = item_weights
  return result


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
    response_lib.CLICK_SECONDS, log.duration
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
  interactions = _fit_interactions(log, beyond, num_users, num_items, rng)
  user_weights = interactions.pop("user_effect_weights")
  item_weights = interactions.pop("item_effect_weights")
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
    user_effect_weights=user_weights,
    item_effect_weights=item_weights,
  )
  return model, population
