"""From a response model and score tables to a `World`.

Both worlds pass here: the one fitted to a log and the synthetic one. What is
added is what no log of single impressions can tell: how retrieval fills a
request, and the hidden satisfaction. `calibration` then sets what is left open.

Letters: `U` users, `I` items, `P` pool, `E` behaviours, `K` tasks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.behaviours import (
  BEHAVIOURS,
  INDEX,
  INTERACTIONS,
  TASKS,
)
from mtf_jax.fitting.float64 import in_float64
from mtf_jax.io import InputError
from mtf_jax.kernels.fusion import FusionSpec
from mtf_jax.worlds import response as response_lib
from mtf_jax.worlds.leaving import LEAVING_MODELS, make_leaving
from mtf_jax.worlds.response import ResponseModel
from mtf_jax.worlds.satisfaction import Satisfaction
from mtf_jax.worlds.scores import ScoreTables
from mtf_jax.worlds.world import World, default_group_weights

_CHUNK = 256  # users a block of the retrieval holds in memory
# Log-change of a power or a bias per unit of action. At 1.5 the best global
# weights had components at the limit; at 3 they lie inside (docs/results/worlds.md).
_RATE = 3.0


class Retrieval(NamedTuple):
  """How candidates reach a request: by interest and likes, with an error.

  pool_size: `P`, items found for a user, a power of two.
  noise: standard deviation of the retrieval's own error, in interest units. The
    larger, the worse the candidates: at infinity they are drawn at random.
  like_weight: interest that a unit of an item's like effect (logits) is worth
    to the retrieval.
  """

  pool_size: int = 1024
  noise: float = 0.3
  like_weight: float = 0.0


class Tastes(NamedTuple):
  """Standardised tastes of the users, float `[U]` each, mean 0.

  depth: long views; quick: finished clips; social: taking part.
  """

  depth: np.ndarray
  quick: np.ndarray
  social: np.ndarray


# Satisfaction per unit of behaviour for a user of average taste, relative to a
# long view. Assumptions: a finished video pleases more than a long look, an
# interaction more than either, a hate costs several of them.
_BASE_TASTE = {
  "long_view": 1.0,
  "finish": 1.2,
  "like": 2.0,
  "comment": 2.0,
  "follow": 3.0,
  "forward": 3.0,
  "hate": -4.0,
}


def select_users(response: ResponseModel, users: np.ndarray) -> ResponseModel:
  """The response model of some of its users, in the given order."""
  return response._replace(
    user_interest=response.user_interest[users],
    user_factors=response.user_factors[users],
    user_interaction=response.user_interaction[users],
  )


def check_pool_size(pool_size: int, num_items: int) -> None:
  """Refuses a pool that is no power of two or larger than the catalogue."""
  if pool_size < 1 or pool_size & (pool_size - 1) or pool_size > num_items:
    raise InputError(
      "pool_size: expected a power of two of at most the number of items"
      f" {num_items}, found {pool_size}."
    )


_interest = in_float64(
  jax.jit(jax.vmap(response_lib.interest, in_axes=(None, 0, None)))
)


def make_pool(
  response: ResponseModel, retrieval: Retrieval, rng: np.random.Generator
) -> np.ndarray:
  """Items that retrieval finds for each user, `[U, P]`, in random order.

  The `P` items of highest interest and most likes as a noisy retrieval sees
  them.

  Args:
    response: the response model.
    retrieval: pool size, noise and weight of the likes.
    rng: generator of the retrieval's errors and of the order.

  Returns:
    uint16 `[U, P]` item indices, int32 if there are more than 65,536 items.

  Raises:
    InputError: the pool is no power of two or larger than the catalogue.
  """
  size, num_items = retrieval.pool_size, response.num_items
  check_pool_size(size, num_items)
  items = np.arange(num_items, dtype=np.int32)
  like = np.asarray(response.item_interaction)[:, INTERACTIONS.index("like")]
  liked = np.float32(retrieval.like_weight) * like
  blocks = []
  for start in range(0, response.num_users, _CHUNK):
    # The last block is filled up with the last user: one compiled program.
    user = np.minimum(np.arange(start, start + _CHUNK), response.num_users - 1)
    seen = _interest(response, user.astype(np.int32), items)
    noise = rng.standard_normal(seen.shape, np.float32)
    seen = seen + liked + np.float32(retrieval.noise) * noise
    found = np.argpartition(-seen, size - 1, axis=1)
    # Sorted: the order of a partition is another on every kind of processor.
    blocks.append(rng.permuted(np.sort(found[:, :size], axis=1), axis=1))
  pool = np.concatenate(blocks)[: response.num_users]
  return pool.astype(np.uint16 if num_items <= 1 << 16 else np.int32)


def _standardise(values: np.ndarray) -> np.ndarray:
  values = np.asarray(values, np.float64)
  return (values - values.mean()) / max(values.std(), 1e-9)


def make_satisfaction(
  response: ResponseModel,
  tastes: Tastes,
  taste_spread: float,
  regret_strength: float,
) -> Satisfaction:
  """The hidden satisfaction, not yet standardised.

  Regret: `strength * max(0, (z(item interest) - z(item like effect)) / sqrt 2)`,
  z standardised over the catalogue: an item that attracts more than it is
  liked. In KuaiRand's item table long plays and sharing are anti-correlated
  (Spearman -.45), so such items are many.

  Args:
    response: the response model.
    tastes: of the users.
    taste_spread: standard deviation of a log taste.
    regret_strength: satisfaction lost per unit of regret and click.

  Returns:
    Coefficients with center 0 and scale 1.
  """
  taste = np.zeros((response.num_users, len(BEHAVIOURS)), np.float32)
  lean = {"long_view": tastes.depth, "finish": tastes.quick}
  for name, base in _BASE_TASTE.items():
    z = 0.0 if name == "hate" else lean.get(name, tastes.social)
    # Divided by the mean of the lognormal: the average taste stays the base.
    taste[:, INDEX[name]] = base * np.exp(
      taste_spread * z - taste_spread**2 / 2
    )
  like = np.asarray(response.item_interaction)[:, INTERACTIONS.index("like")]
  excess = _standardise(response.item_interest) - _standardise(like)
  evening = np.zeros(len(BEHAVIOURS), np.float32)
  evening[INDEX["long_view"]], evening[INDEX["finish"]] = 0.3, -0.3
  regretted = np.zeros(len(BEHAVIOURS), np.float32)
  regretted[INDEX["click"]] = 1.0
  return Satisfaction(
    taste=jnp.asarray(taste),
    evening_taste=jnp.asarray(evening),
    regret=jnp.asarray(
      regret_strength * np.maximum(excess / np.sqrt(2.0), 0.0), jnp.float32
    ),
    regretted=jnp.asarray(regretted),
    center=jnp.zeros((response.num_users,), jnp.float32),
    scale=jnp.ones((), jnp.float32),
  )


def _fusion_spec(scores: ScoreTables) -> FusionSpec:
  """The action's map: powers around 1, biases around the tasks' median scores.

  A bias far below a task's scores does nothing, and scores have other units
  (seconds, probabilities of a half or of a hundredth): so each task's own.
  """
  codes = np.asarray(scores.codes).reshape(-1, len(TASKS))
  levels = np.median(codes, axis=0).astype(int)
  median = np.asarray(scores.values)[np.arange(len(TASKS)), levels]
  return FusionSpec(
    power_base=jnp.ones((len(TASKS),), jnp.float32),
    power_rate=jnp.full((len(TASKS),), _RATE, jnp.float32),
    bias_base=jnp.asarray(median, jnp.float32),
    bias_rate=jnp.full((len(TASKS),), _RATE, jnp.float32),
  )


def make_world(
  *,
  name: str,
  response: ResponseModel,
  scores: ScoreTables,
  pool: np.ndarray,
  tastes: Tastes,
  user_features: np.ndarray,
  feature_names: tuple[str, ...],
  population: np.ndarray,
  item_tag: np.ndarray,
  num_candidates: int,
  slate_size: int,
  taste_spread: float = 1.0,
  regret_strength: float = 0.8,
) -> World:
  """Puts the parts together; `calibrate` comes next.

  Args:
    name: name of the world.
    response: the response model.
    scores: the ranking model's tables.
    pool: `[U, P]` retrieved items.
    tastes: of the users.
    user_features: `[U, F]` observable features, standardised.
    feature_names: `F` names.
    population: `[W]` users, each as often as it opens sessions.
    item_tag: `[I]` topics.
    num_candidates: candidates of a request.
    slate_size: items shown of them.
    taste_spread: see `make_satisfaction`.
    regret_strength: see `make_satisfaction`.

  Returns:
    The world under the default leaving model, not calibrated.

  Raises:
    InputError: slates, candidates and pools that do not fit together.
    ValueError: arrays that do not.
  """
  num_users, num_items = response.num_users, response.num_items
  expected = {
    "user_features": (np.shape(user_features), (num_users, len(feature_names))),
    "item_tag": (np.shape(item_tag), (num_items,)),
    "pool": (np.shape(pool)[:1], (num_users,)),
    "scores.codes": (scores.codes.shape, (*np.shape(pool), len(TASKS))),
  }
  for field, (found, shape) in expected.items():
    if found != shape:
      raise ValueError(f"{field}: expected shape {shape}, found {found}.")
  if not 1 <= slate_size <= num_candidates <= np.shape(pool)[1]:
    raise InputError(
      "slate_size, num_candidates, pool: expected slate_size <= num_candidates"
      f" <= pool size, found {slate_size}, {num_candidates},"
      f" {np.shape(pool)[1]}."
    )
  return World(
    response=jax.tree.map(jnp.asarray, response),
    satisfaction=make_satisfaction(
      response, tastes, taste_spread, regret_strength
    ),
    leaving=make_leaving(next(iter(LEAVING_MODELS))),
    scores=scores,
    fusion_spec=_fusion_spec(scores),
    group_weights=default_group_weights(),
    user_features=jnp.asarray(user_features, jnp.float32),
    population=jnp.asarray(population, jnp.int32),
    pool=jnp.asarray(pool),
    item_tag=jnp.asarray(item_tag, jnp.int32),
    feature_names=tuple(feature_names),
    num_candidates=num_candidates,
    slate_size=slate_size,
    name=name,
  )
