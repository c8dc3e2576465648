"""The synthetic world: no data needed, several sizes, a seed.

Users, items and responses come from `population.synthetic_response`, whose
constants were fitted to KuaiRand-Pure; this file adds the ranking model's
scores, with errors, the users' features and the tastes.

Letters: `U` users, `I` items, `K` tasks, `D` factors.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.behaviours import (
  INDEX,
  INTERACTIONS,
  POSITIVE_INTERACTIONS,
  TASKS,
)
from mtf_jax.fitting import build
from mtf_jax.fitting.population import synthetic_response
from mtf_jax.io import InputError, check_seed
from mtf_jax.worlds import response as response_lib
from mtf_jax.worlds.response import ResponseModel
from mtf_jax.worlds.scores import ScoreTables, encode_scores
from mtf_jax.worlds.world import World


class Size(NamedTuple):
  """Counts of a synthetic world.

  num_users: `U`.
  num_items: `I`.
  pool_size: items that retrieval finds for a user, a power of two.
  num_candidates: candidates of a request.
  slate_size: items shown of them.
  """

  num_users: int
  num_items: int
  pool_size: int
  num_candidates: int = 50
  slate_size: int = 6


SIZES = {
  "small": Size(512, 1024, 256),
  "base": Size(4096, 8192, 1024),
  "large": Size(32768, 32768, 1024),
}


class ScoreErrors(NamedTuple):
  """How the synthetic ranking model errs, in logits (log seconds).

  item: standard deviation of an item's own error, shared by all users.
  pair: standard deviation of a pair's error at an average user.
  user_spread: standard deviation of the log of the error's size, by user and
    task: for some users a head is nearly useless, for others nearly exact.
  observed: share of the variance of that log that user features explain.
  rank: number of factors of the pair's error.
  """

  item: float = 0.3
  pair: float = 1.5
  user_spread: float = 1.1
  observed: float = 0.8
  rank: int = 6


# User features of the synthetic world, all standardised.
USER_FEATURES = (
  "activity",
  "tenure",
  "friends",
  "follows",
  "age",
  "history_play",
  "history_interaction",
  "history_depth",
  "history_quick",
  "history_social",
)
_NUM_TAGS = 40
_PROFILE = 5  # the first five: profile columns, drawn independently


def _reference_logits(response: ResponseModel) -> tuple[np.ndarray, np.ndarray]:
  """Each task's value for an average user, and its slope in the interest.

  Returns:
    `[I, K]` logits (log seconds), and `[I, K]` change per unit of interest.
  """
  items = jnp.arange(response.num_items, dtype=jnp.int32)[:, None]

  def tasks(shift):
    average = response._replace(
      user_interest=jnp.full((1,), shift, jnp.float32),
      user_factors=jnp.zeros_like(response.user_factors[:1]),
      user_interaction=jnp.zeros_like(response.user_interaction[:1]),
    )
    user = jnp.zeros((), jnp.int32)
    expected = jax.lax.map(
      lambda item: response_lib.expected_responses(average, user, item)[0],
      items,
      batch_size=512,
    )
    interactions = jnp.asarray([INDEX[name] for name in POSITIVE_INTERACTIONS])
    any_interaction = jnp.sum(expected[:, interactions], axis=1)
    probability = {
      "valid": expected[:, INDEX["valid"]],
      "finish": expected[:, INDEX["finish"]],
      "interaction": any_interaction,
      "long_view": expected[:, INDEX["long_view"]],
    }
    columns = []
    for task in TASKS:
      if task == "watch_time":
        columns.append(jnp.log(expected[:, INDEX["play_seconds"]]))
      else:
        p = jnp.clip(probability[task], 1e-5, 1.0 - 1e-5)
        columns.append(jnp.log(p) - jnp.log1p(-p))
    return jnp.stack(columns, axis=1)

  step = 0.25
  tasks = jax.jit(tasks)
  centre, below, above = (np.asarray(tasks(s)) for s in (0.0, -step, step))
  return centre, (above - below) / (2.0 * step)


def _reach_slope(response: ResponseModel, pool: np.ndarray) -> float:
  """Slope of the interest in the reach over pool pairs: a linear view of it."""
  reach = np.einsum(
    "ud,upd->up",
    np.asarray(response.user_factors),
    np.asarray(response.item_factors)[pool[:, :32]],
  )
  penalty = -float(response.reach_scale) * np.logaddexp(0.0, -reach)
  # Least squares by hand: a library's routine rounds by the kind of processor.
  centred = reach - reach.mean()
  return float((centred * penalty).sum() / np.square(centred).sum())


def make_scores(
  response: ResponseModel,
  pool: np.ndarray,
  profile: np.ndarray,
  errors: ScoreErrors,
  rng: np.random.Generator,
) -> ScoreTables:
  """Scores of a ranking model that is right on average and errs by user.

  Args:
    response: the response model.
    pool: `[U, P]` retrieved items.
    profile: `[U, 5]` standardised profile columns; users alike in them have
      heads of like quality.
    errors: sizes of the errors.
    rng: generator.

  Returns:
    The tables; their log odds are the truth's linearised, plus errors.
  """
  num_users, num_items, num_tasks = (
    response.num_users,
    response.num_items,
    len(TASKS),
  )
  value, slope = _reference_logits(response)
  value = value + errors.item * rng.standard_normal(value.shape)
  direction = rng.standard_normal((profile.shape[1], num_tasks))
  direction /= np.linalg.norm(direction, axis=0)
  log_size = np.sqrt(1.0 - errors.observed) * rng.standard_normal(
    (num_users, num_tasks)
  )
  # Column by column: a matrix product rounds by the kind of processor.
  for column, weights in zip(profile.T, direction, strict=True):
    log_size += np.sqrt(errors.observed) * column[:, None] * weights
  size = errors.pair * np.exp(
    errors.user_spread * log_size - errors.user_spread**2 / 2
  )
  user_error = rng.standard_normal((num_users, num_tasks, errors.rank))
  user_error *= size[..., None] / np.sqrt(errors.rank)
  item_error = rng.standard_normal((num_items, num_tasks, errors.rank))
  user_error, item_error = (
    user_error.astype(np.float32),
    item_error.astype(np.float32),
  )

  reach = _reach_slope(response, pool) * np.asarray(response.user_factors)
  own = np.asarray(response.user_interest)
  level = np.asarray(response.user_interaction)[:, INTERACTIONS.index("like")]
  user_level = np.zeros((num_users, num_tasks))
  user_level[:, TASKS.index("interaction")] = level

  items = np.asarray(response.item_factors)

  def linear_scores(users: np.ndarray) -> np.ndarray:
    shown = pool[users]
    pair = np.einsum("ud,upd->up", reach[users], items[shown])
    pair = pair + own[users][:, None]
    # Optimised, it is a matrix product, which rounds by the kind of processor.
    error = np.einsum("ukd,upkd->upk", user_error[users], item_error[shown])
    level = user_level[users][:, None, :]
    return value[shown] + slope[shown] * pair[..., None] + level + error

  log_link = np.array([task == "watch_time" for task in TASKS])
  return encode_scores(linear_scores, num_users, log_link)


def _noisy(
  truth: np.ndarray, reliability: float, rng: np.random.Generator
) -> np.ndarray:
  """A standardised measurement with the given share of true variance."""
  z = (truth - truth.mean()) / max(truth.std(), 1e-9)
  noise = rng.standard_normal(z.shape)
  return np.sqrt(reliability) * z + np.sqrt(1.0 - reliability) * noise


def synthetic_world(size: str = "base", world_seed: int = 0) -> World:
  """Builds and calibrates a synthetic world.

  Args:
    size: one of `SIZES`.
    world_seed: decides users, items and errors; the same seed gives the same
      world with the same versions of JAX and NumPy, whatever the number of
      cores.

  Returns:
    The world, with the default leaving model.

  Raises:
    InputError: unknown size, or a seed out of range.
  """
  check_seed(world_seed, "world_seed")
  if size not in SIZES:
    raise InputError(
      f"size: expected one of {', '.join(SIZES)}, found {size!r}."
    )
  counts = SIZES[size]
  rng = np.random.default_rng(world_seed)
  response = jax.tree.map(
    jnp.asarray, synthetic_response(rng, counts.num_users, counts.num_items)
  )
  retrieval = build.Retrieval(pool_size=counts.pool_size)
  pool = build.make_pool(response, retrieval, rng)
  profile = rng.standard_normal((counts.num_users, _PROFILE))
  scores = make_scores(response, pool, profile, ScoreErrors(), rng)
  tastes = build.Tastes(*rng.standard_normal((3, counts.num_users)))
  like = np.asarray(response.user_interaction)[:, INTERACTIONS.index("like")]
  history = [
    _noisy(truth, reliability, rng)
    for truth, reliability in (
      (np.asarray(response.user_interest), 0.8),
      (like, 0.5),
      (tastes.depth, 0.6),
      (tastes.quick, 0.6),
      (tastes.social, 0.6),
    )
  ]
  world = build.make_world(
    name=f"synthetic-{size}-{world_seed}",
    response=response,
    scores=scores,
    pool=pool,
    tastes=tastes,
    user_features=np.column_stack([profile, *history]),
    feature_names=USER_FEATURES,
    population=np.arange(counts.num_users),
    item_tag=rng.integers(0, _NUM_TAGS, counts.num_items),
    num_candidates=counts.num_candidates,
    slate_size=counts.slate_size,
  )
  return build.calibrate(world, seed=world_seed, synthetic=True)
