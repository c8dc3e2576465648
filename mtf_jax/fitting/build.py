"""From a response model and score tables to a calibrated `World`.

Both worlds pass here: the one fitted to a log and the synthetic one. What is
added is what no log of single impressions can tell: how retrieval fills a
request, and the hidden satisfaction. Then the world is calibrated under its
default weights (action 0), before any algorithm exists.

Letters: `U` users, `I` items, `P` pool, `E` behaviours.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.behaviours import (
  BEHAVIOURS,
  INDEX,
  INTERACTIONS,
  PICTURE_SECONDS,
  TASKS,
)
from mtf_jax.fitting.population import load_population
from mtf_jax.io import InputError
from mtf_jax.kernels.fusion import FusionSpec
from mtf_jax.policies import fixed_action
from mtf_jax.worlds import env
from mtf_jax.worlds import response as response_lib
from mtf_jax.worlds import satisfaction as satisfaction_lib
from mtf_jax.worlds.leaving import LEAVING_MODELS, make_leaving
from mtf_jax.worlds.response import ResponseModel
from mtf_jax.worlds.rollout import scan_requests
from mtf_jax.worlds.satisfaction import Satisfaction
from mtf_jax.worlds.scores import ScoreTables
from mtf_jax.worlds.world import World, default_group_weights

_CHUNK = 256  # users a block of the retrieval holds in memory


class Retrieval(NamedTuple):
  """How candidates reach a request.

  pool_size: `P`, items found for a user, a power of two.
  noise: standard deviation of the retrieval's own error, in interest units.
  """

  pool_size: int = 1024
  noise: float = 0.3


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


def check_pool_size(pool_size: int, num_items: int) -> None:
  """Refuses a pool that is no power of two or larger than the catalogue."""
  if pool_size < 1 or pool_size & (pool_size - 1) or pool_size > num_items:
    raise InputError(
      "pool_size: expected a power of two of at most the number of items"
      f" {num_items}, found {pool_size}."
    )


def make_pool(
  response: ResponseModel, retrieval: Retrieval, rng: np.random.Generator
) -> np.ndarray:
  """Items that retrieval finds for each user, `[U, P]`, in random order.

  The `P` items of highest interest as a noisy retrieval sees it.

  Args:
    response: the response model.
    retrieval: pool size and noise.
    rng: generator of the retrieval's errors and of the order.

  Returns:
    uint16 `[U, P]` item indices, int32 if there are more than 65,536 items.

  Raises:
    InputError: the pool is no power of two or larger than the catalogue.
  """
  size, num_items = retrieval.pool_size, response.num_items
  check_pool_size(size, num_items)
  interest = jax.jit(jax.vmap(response_lib.interest, in_axes=(None, 0, None)))
  items = jnp.arange(num_items, dtype=jnp.int32)
  blocks = []
  for start in range(0, response.num_users, _CHUNK):
    # The last block is filled up with the last user: one compiled program.
    user = np.minimum(np.arange(start, start + _CHUNK), response.num_users - 1)
    seen = np.asarray(interest(response, jnp.asarray(user, jnp.int32), items))
    noise = rng.standard_normal(seen.shape, np.float32)
    found = np.argpartition(-(seen + retrieval.noise * noise), size - 1, axis=1)
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
    fusion_spec=FusionSpec(
      *(jnp.full((len(TASKS),), value, jnp.float32) for value in FusionSpec())
    ),
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


# Rates of KuaiRand-Pure's standard log, all tabs, 25 April to 6 May 2022 without
# duplicates; click as the threshold of the play time that `BEHAVIOURS` means.
TARGET_RATES = {
  "click": 0.4342,
  "like": 0.01738,
  "comment": 0.002573,
  "follow": 0.001276,
  "forward": 0.000811,
  "hate": 0.000868,
}
TARGET_LOG_DURATION = 4.17  # mean of log seconds, pictures as 60 s
# KuaiRand's random exposure: clicks 2.56 times rarer than in the standard log
# (.1762 against .4512), any interaction 3.8 times (.0056 against .0214).
_RANDOM_RATES = np.full(len(BEHAVIOURS), 0.5)
_RANDOM_RATES[INDEX["click"]] = TARGET_RATES["click"] / 2.56
_RANDOM_RATES[INDEX["like"]] = TARGET_RATES["like"] / 3.8
_RANDOM_PAIRS = 8192
_SHIFTED = np.array([name != "hate" for name in INTERACTIONS], np.float32)


# Share of a user's own mean in what the user is used to.
ADAPTATION = 0.8


class _Slates(NamedTuple):
  """What the default weights show, `[U, T, L, ...]`; see `_default_slates`.

  interest, log_duration: of the shown items.
  satisfaction, used_to: sampled, and expected apart from the hour.
  expected: `[U, T, L, E]` expected behaviours.
  random: `[_RANDOM_PAIRS, E]` the same for random users and items.
  """

  interest: jax.Array
  log_duration: jax.Array
  satisfaction: jax.Array
  used_to: jax.Array
  expected: jax.Array
  random: jax.Array


class _Shown(NamedTuple):
  """Moments of `_Slates` over users as often as they open sessions, float64."""

  interest_std: np.ndarray
  log_duration: np.ndarray
  satisfaction_by_user: np.ndarray
  satisfaction_std: np.ndarray
  rates: np.ndarray
  random_rates: np.ndarray


@functools.partial(jax.jit, static_argnames="max_requests")
def _default_slates(
  rng_key: jax.Array, world: World, max_requests: int
) -> _Slates:
  """Shows every user the first slates of a session that nobody leaves."""
  num_users = world.pool.shape[0]
  action = jnp.zeros((world.num_actions,), jnp.float32)

  def emit(_, request):
    user, result = request.state.user, request.result
    expected = response_lib.expected_responses(
      world.response, user, result.items
    )
    interest = response_lib.interest(world.response, user, result.items)
    duration = world.response.duration[result.items]
    duration = jnp.log(
      jnp.where(jnp.isinf(duration), PICTURE_SECONDS, duration)
    )
    used_to = satisfaction_lib.item_satisfaction(
      world.satisfaction, user, result.items, expected, jnp.zeros(())
    )
    return None, (interest, duration, result.satisfaction, used_to, expected)

  def one(key, user):
    return scan_requests(
      world,
      fixed_action,
      action,
      env.reset(key, world)._replace(user=user),
      # A fixed action does not use it.
      key,
      emit,
      max_requests=max_requests,
      # A marginal must not depend on the leaving model.
      leaving=False,
    )[2]

  keys = jax.random.split(rng_key, num_users)
  users = jnp.arange(num_users, dtype=jnp.int32)
  interest, duration, satisfaction, used_to, expected = jax.lax.map(
    lambda pair: one(*pair), (keys, users), batch_size=512
  )
  pair_key, item_key = jax.random.split(jax.random.fold_in(rng_key, 1))
  random_users = jax.random.choice(pair_key, world.population, (_RANDOM_PAIRS,))
  random_items = jax.random.randint(
    item_key, (_RANDOM_PAIRS, 1), 0, world.response.num_items
  )
  random = jax.lax.map(
    lambda pair: response_lib.expected_responses(world.response, *pair)[0],
    (random_users, random_items),
    batch_size=512,
  )
  return _Slates(interest, duration, satisfaction, used_to, expected, random)


def _moments(slates: _Slates, population: np.ndarray) -> _Shown:
  """Means and deviations, in NumPy.

  XLA splits a sum over users between as many threads as the machine has cores,
  and so rounds it differently; a world must not depend on that.
  """
  interest, log_duration, satisfaction, used_to, expected, random = (
    np.asarray(part, np.float64) for part in slates
  )
  num_users = len(interest)
  # Users weigh as often as they open sessions.
  weight = np.bincount(population, minlength=num_users) / len(population)

  def mean(values):
    by_user = values.reshape(num_users, -1).mean(axis=1)
    return (weight * by_user).sum()

  def std(values):
    return np.sqrt(mean(np.square(values - mean(values))))

  by_user = expected.mean(axis=(1, 2))
  return _Shown(
    interest_std=std(interest),
    log_duration=mean(log_duration),
    satisfaction_by_user=used_to.mean(axis=(1, 2)),
    satisfaction_std=std(satisfaction),
    rates=(weight[:, None] * by_user).sum(axis=0),
    random_rates=random.mean(axis=0),
  )


def _log_odds(rate: np.ndarray | float) -> np.ndarray:
  rate = np.clip(rate, 1e-6, 1.0 - 1e-6)
  return np.log(rate) - np.log1p(-rate)


def calibrate(
  world: World,
  *,
  seed: int,
  synthetic: bool,
  max_requests: int = 4,
  rounds: int = 8,
) -> World:
  """Makes the slates of the default weights look like the log.

  Shifts the interest and the logits of the interactions to the log's rates, and
  standardises the satisfaction. What a lack of reach costs is set so that
  random pairs have the click and like rates of KuaiRand's random exposure: a
  log of chosen impressions has too few pairs out of reach to tell. The default
  power of the watch time is set so that shown videos are as long as the log's,
  as a platform's formula would have been. A synthetic world has more freedom:
  the residual is set so that the shown items' latent play propensity has the
  log's variance (the play times then follow its table) and each interaction has
  its own shift.

  Args:
    world: the world.
    seed: of the sessions used.
    synthetic: whether nothing was fitted to this world's own log.
    max_requests: slates a user.
    rounds: of the fixed-point iteration.

  Returns:
    The calibrated world.
  """
  targets = np.array([TARGET_RATES[name] for name in INTERACTIONS])
  first = BEHAVIOURS.index(INTERACTIONS[0])
  watch_time = TASKS.index("watch_time")
  population = load_population()
  total_variance = (
    population.residual_scale**2
    + population.user_interest_scale**2
    + population.item_interest_scale**2
  )
  for n in range(rounds):
    key = jax.random.fold_in(jax.random.key(seed), n)
    shown = _moments(
      _default_slates(key, world, max_requests), np.asarray(world.population)
    )
    gap = _log_odds(targets) - _log_odds(shown.rates[first:])
    # How much worse than the slates random pairs are, against what is published.
    excess = _log_odds(shown.random_rates) - _log_odds(_RANDOM_RATES)
    random_click, like = excess[INDEX["click"]], excess[INDEX["like"]]
    click = _log_odds(TARGET_RATES["click"]) - _log_odds(
      shown.rates[INDEX["click"]]
    )
    power = world.fusion_spec.power_base
    longer = np.clip(shown.log_duration - TARGET_LOG_DURATION, -0.5, 0.5)
    power = power.at[watch_time].multiply(np.float32(np.exp(-longer)))
    world = world.replace(
      fusion_spec=world.fusion_spec._replace(power_base=power)
    )
    response = world.response
    response = response._replace(
      # 0.65 sd of a normal latent are about one unit of log odds.
      watch_shift=response.watch_shift + np.float32(0.65 * click),
      reach_scale=response.reach_scale
      * np.float32(np.exp(np.clip(random_click, -0.7, 0.7))),
      interaction_reach=response.interaction_reach
      + np.float32(0.5 * like) * _SHIFTED,
    )
    if synthetic:
      residual = np.sqrt(total_variance - shown.interest_std**2)
      response = response._replace(
        residual_scale=jnp.asarray(residual, jnp.float32),
        interaction_play=response.interaction_play
        + gap[:, None].astype(np.float32),
      )
    else:
      response = response._replace(
        interaction_shift=response.interaction_shift
        + np.float32(gap[:4].mean())
      )
    satisfaction = world.satisfaction
    by_user = shown.satisfaction_by_user
    used_to = ADAPTATION * by_user + (1 - ADAPTATION) * np.mean(by_user)
    world = world.replace(
      response=response,
      satisfaction=satisfaction._replace(
        center=satisfaction.center
        + used_to.astype(np.float32) * satisfaction.scale,
        scale=satisfaction.scale * np.float32(shown.satisfaction_std),
      ),
    )
  return world
