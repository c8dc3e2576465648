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
import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special

from mtf_jax.data import behaviours, kuairand
from mtf_jax.data.behaviours import DURATION_EDGES, NUM_BUCKETS, duration_bucket
from mtf_jax.fitting import interaction_fit, reach_fit
from mtf_jax.fitting.population import ResponsePopulation
from mtf_jax.io import InputError
from mtf_jax.steps import Count, uncounted
from mtf_jax.worlds import response as response_lib

# Of a fit, some seconds each: reach, clicks and play times, every interaction.
NUM_STEPS = 2 + len(behaviours.INTERACTIONS)


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


def check_log(log: kuairand.ImpressionLog) -> None:
  """Refuses a log that has nothing to fit some part of the model to.

  Args:
    log: the impressions; those exposed at random are ignored.

  Raises:
    InputError: no impression that was not exposed at random, or none in a
      duration bucket.
  """
  num_rows = len(log.user)
  log = log.select(log.is_rand == 0)
  if not len(log.user):
    raise InputError(
      "log: expected recommended impressions (is_rand 0), found none among"
      f" {num_rows}: a log of random exposure alone does not tell whom a platform"
      " shows what; add the standard log."
    )
  counts = np.bincount(duration_bucket(log.duration), minlength=NUM_BUCKETS)
  limits = ("0", *(f"{edge:g}" for edge in DURATION_EDGES), "more")
  names = [
    f"{low} to {high} s" if high != "more" else f"{low} s or more"
    for low, high in itertools.pairwise(limits)
  ]
  names.append("pictures (no duration)")
  missing = [name for name, n in zip(names, counts, strict=True) if not n]
  if missing:
    raise InputError(
      f"log: expected impressions of videos of every length, found none of"
      f" {', '.join(missing)} among {len(log.user)}; each length has a play"
      " table of its own, so give a larger log."
    )


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
    counts, edges = np.histogram(mean[rows], bins=200)
    centers = 0.5 * (edges[1:] + edges[:-1])
    cdf = np.asarray(
      special.ndtr((grid[:, None] - centers[None, :]) / residual_scale)
    ) @ (counts / counts.sum())
    tables.append(np.quantile(fraction[rows], np.clip(cdf, 0, 1)))
  return np.maximum.accumulate(np.stack(tables), axis=1).astype(np.float32)


def _product(user_factors, item_factors, user, item):
  return np.sum(user_factors[user] * item_factors[item], axis=-1)


def _softplus(x):
  return np.logaddexp(0.0, x)


def fit_response(
  log: kuairand.ImpressionLog,
  catalogue: kuairand.Catalogue,
  rng: np.random.Generator,
  count: Count = uncounted,
) -> tuple[response_lib.ResponseModel, ResponsePopulation]:
  """Fits the response model to a log of recommended impressions.

  Args:
    log: the impressions; those exposed at random are ignored.
    catalogue: users and items of the log.
    rng: posterior draws and random pairs.
    count: told of each of the `NUM_STEPS`.

  Returns:
    (the model of the catalogue's users and items as numpy float32 arrays, the
    constants that `synthetic_response` draws from).

  Raises:
    InputError: as `check_log`.
  """
  check_log(log)
  log = log.select(log.is_rand == 0)
  num_users, num_items = len(catalogue.user_ids), len(catalogue.video_ids)
  n = len(log.user)
  user_factors, item_factors = reach_fit.fit_reach(log, catalogue, rng)
  count(1)
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
  count(1)
  interactions, mixing = interaction_fit.fit_interactions(
    log, beyond, num_users, num_items, rng, count
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
