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
from mtf_jax.fitting import build, calibration
from mtf_jax.fitting.calibration import Pairs
from mtf_jax.fitting.float64 import in_float64
from mtf_jax.fitting.population import synthetic_response
from mtf_jax.io import InputError, check_seed
from mtf_jax.steps import OnStep, Steps, nobody
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
  pair: standard deviation of a pair's error at an average user; such that the
    GAUC on pairs like the log's is that of the ranker of the real log.
  user_spread: standard deviation of the log of the error's size, by user and
    task: for some users a head is nearly useless, for others nearly exact.
  observed: share of the variance of that log that user features explain.
  rank: number of factors of the pair's error.
  """

  item: float = 0.3
  pair: float = 6.0
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


@in_float64
@jax.jit
def _average_tasks(response: ResponseModel, shift: jax.Array) -> jax.Array:
  """`[I, K]` log odds (log seconds) of an average user of that interest."""
  average = response._replace(
    user_interest=shift[None],
    user_factors=jnp.zeros_like(response.user_factors[:1]),
    user_interaction=jnp.zeros_like(response.user_interaction[:1]),
  )
  user = jnp.zeros((), jnp.int32)
  expected = jax.lax.map(
    lambda item: response_lib.expected_responses(average, user, item)[0],
    jnp.arange(response.num_items, dtype=jnp.int32)[:, None],
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


class _Reference(NamedTuple):
  """Each task of an average user, `[I, K]` log odds (log seconds).

  value: at the interest of 0.
  slope: change per unit of interest.
  """

  value: np.ndarray
  slope: np.ndarray


def _reference(response: ResponseModel) -> _Reference:
  step = 0.25
  centre, below, above = (
    _average_tasks(response, np.float32(shift)) for shift in (0.0, -step, step)
  )
  return _Reference(centre, (above - below) / (2.0 * step))


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


class _DrawnErrors(NamedTuple):
  """Errors of a ranking model, drawn once for all users and items.

  value: `[I, K]` of an item, shared by all users.
  user, item: `[U, K, rank]`, `[I, K, rank]` factors of a pair's.
  """

  value: np.ndarray
  user: np.ndarray
  item: np.ndarray


def _draw_errors(
  profile: np.ndarray,
  num_items: int,
  errors: ScoreErrors,
  rng: np.random.Generator,
) -> _DrawnErrors:
  """Users alike in their profile `[U, 5]` have heads of like quality."""
  num_users, num_tasks = len(profile), len(TASKS)
  value = errors.item * rng.standard_normal((num_items, num_tasks))
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
  user = rng.standard_normal((num_users, num_tasks, errors.rank))
  user *= size[..., None] / np.sqrt(errors.rank)
  item = rng.standard_normal((num_items, num_tasks, errors.rank))
  return _DrawnErrors(value, user, item)


def _make_scores(
  response: ResponseModel,
  pool: np.ndarray,
  reference: _Reference,
  errors: _DrawnErrors,
) -> ScoreTables:
  """Scores of a ranking model that is right on average and errs by user.

  Log odds are the truth's linearised, plus errors, drawn in towards each task's
  mean as a least-squares fit would have them: a model that errs is careful.

  Args:
    response: the response model.
    pool: `[U, P]` retrieved items.
    reference: of the items.
    errors: of these users.

  Returns:
    The tables.
  """
  num_users, num_tasks = response.num_users, len(TASKS)
  reach = _reach_slope(response, pool) * np.asarray(response.user_factors)
  own = np.asarray(response.user_interest)
  user_level = np.zeros((num_users, num_tasks))
  user_level[:, TASKS.index("interaction")] = _like_effect(response)
  items = np.asarray(response.item_factors)

  def linear(users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[N, P, K]`: the truth, and the model's error."""
    shown = pool[users]
    pair = np.einsum("ud,upd->up", reach[users], items[shown])
    pair = pair + own[users][:, None]
    # Optimised, it is a matrix product, which rounds by the kind of processor.
    error = np.einsum("ukd,upkd->upk", errors.user[users], errors.item[shown])
    level = user_level[users][:, None, :]
    truth = reference.value[shown] + level
    truth = truth + reference.slope[shown] * pair[..., None]
    return truth, error + errors.value[shown]

  sample = np.linspace(0, num_users - 1, min(256, num_users)).astype(int)
  truth, error = linear(sample)
  centre, found = truth.mean(axis=(0, 1)), truth + error
  middle = found.mean(axis=(0, 1))
  shrink = ((truth - centre) * (found - middle)).mean(axis=(0, 1))
  shrink /= np.square(found - middle).mean(axis=(0, 1))

  def linear_scores(users: np.ndarray) -> np.ndarray:
    truth, error = linear(users)
    return centre + shrink * (truth + error - middle)

  log_link = np.array([task == "watch_time" for task in TASKS])
  return encode_scores(linear_scores, num_users, log_link)


def _like_effect(response: ResponseModel) -> np.ndarray:
  """`[U]`, log odds."""
  return np.asarray(response.user_interaction)[:, INTERACTIONS.index("like")]


def _pairs(
  response: ResponseModel, rng: np.random.Generator
) -> tuple[Pairs, Pairs]:
  """Pairs such as a log has, in proportion to `exp(reach)`, and random ones."""
  num_users, num_items = response.num_users, response.num_items
  count = calibration.NUM_PAIRS
  user = rng.integers(0, num_users, count)
  users, items = (
    np.asarray(side, np.float64)
    for side in (response.user_factors, response.item_factors)
  )
  shown = np.empty(count, np.int64)
  for start in range(0, count, 512):
    block = slice(start, start + 512)
    # Gumbel's way of drawing from a softmax, and no matrix product.
    reach = np.einsum("nd,id->ni", users[user[block]], items)
    shown[block] = np.argmax(reach + rng.gumbel(size=reach.shape), axis=1)
  random = Pairs(user, rng.integers(0, num_items, count))
  return Pairs(user, shown), random


def _noisy(
  truth: np.ndarray, reliability: float, rng: np.random.Generator
) -> np.ndarray:
  """A standardised measurement with the given share of true variance."""
  z = (truth - truth.mean()) / max(truth.std(), 1e-9)
  noise = rng.standard_normal(z.shape)
  return np.sqrt(reliability) * z + np.sqrt(1.0 - reliability) * noise


def synthetic_world(
  size: str = "base", world_seed: int = 0, on_step: OnStep = nobody
) -> World:
  """Builds and calibrates a synthetic world.

  Args:
    size: one of `SIZES`.
    world_seed: decides users, items and errors; the same seed gives the same
      world with the same versions of JAX and NumPy, whatever the number of
      cores.
    on_step: told how far it is.

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
  steps = Steps(1 + calibration.num_steps(counts.num_users), on_step)
  rng = np.random.default_rng(world_seed)
  response = jax.tree.map(
    jnp.asarray, synthetic_response(rng, counts.num_users, counts.num_items)
  )
  response = calibration.calibrate_response(
    response, *_pairs(response, rng), fitted=False
  )
  steps.count(1)
  profile = rng.standard_normal((counts.num_users, _PROFILE))
  errors = _draw_errors(profile, counts.num_items, ScoreErrors(), rng)
  tastes = build.Tastes(*rng.standard_normal((3, counts.num_users)))
  history = [
    _noisy(truth, reliability, rng)
    for truth, reliability in (
      (np.asarray(response.user_interest), 0.8),
      (_like_effect(response), 0.5),
      (tastes.depth, 0.6),
      (tastes.quick, 0.6),
      (tastes.social, 0.6),
    )
  ]
  user_features = np.column_stack([profile, *history])
  item_tag = rng.integers(0, _NUM_TAGS, counts.num_items)
  reference = _reference(response)
  pool_seed = rng.integers(2**63)

  def make(retrieval: build.Retrieval, kept: np.ndarray) -> World:
    """The world of some of the users, given by their places."""
    chosen = build.select_users(response, kept)
    pool = build.make_pool(chosen, retrieval, np.random.default_rng(pool_seed))
    return build.make_world(
      name=f"synthetic-{size}-{world_seed}",
      response=chosen,
      scores=_make_scores(
        chosen, pool, reference, errors._replace(user=errors.user[kept])
      ),
      pool=pool,
      tastes=build.Tastes(*(taste[kept] for taste in tastes)),
      user_features=user_features[kept],
      feature_names=USER_FEATURES,
      population=np.arange(len(kept)),
      item_tag=item_tag,
      num_candidates=counts.num_candidates,
      slate_size=counts.slate_size,
    )

  return calibration.calibrate_world(
    make,
    counts.num_users,
    pool_size=counts.pool_size,
    seed=world_seed,
    count=steps.count,
  )
