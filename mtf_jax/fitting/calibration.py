"""Sets what a fit leaves open, so that a world stands up to its own log.

What a log shows was picked from candidates that nobody logged. So three things
must agree with KuaiRand at once: (a) what users do on the log's own impressions,
(b) what they do on the slates that the default weights (action 0) pick, (c) how
much worse a random video is. Users and items are set by (a) and (c), which no
policy touches; then candidates are found so bad that the best of them are as good
as the log's. No user is made colder, and no algorithm exists yet.

Letters: `U` users, `P` pool, `E` behaviours, `n` pairs.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mtf_jax.data.behaviours import (
  BEHAVIOURS,
  INDEX,
  INTERACTIONS,
  PICTURE_SECONDS,
  TASKS,
)
from mtf_jax.fitting.build import Retrieval
from mtf_jax.fitting.float64 import in_float64
from mtf_jax.policies import fixed_action
from mtf_jax.steps import Count, uncounted
from mtf_jax.worlds import env
from mtf_jax.worlds import response as response_lib
from mtf_jax.worlds import satisfaction as satisfaction_lib
from mtf_jax.worlds.response import ResponseModel
from mtf_jax.worlds.rollout import scan_requests
from mtf_jax.worlds.world import World

# Rates of KuaiRand-Pure's standard log, all tabs, 25 April to 6 May 2022 without
# duplicates; click as the threshold of the play time that `BEHAVIOURS` means.
TARGET_RATES = {
  "click": 0.4342,
  "finish": 0.1398,
  "like": 0.01738,
  "comment": 0.002573,
  "follow": 0.001276,
  "forward": 0.000811,
  "hate": 0.000868,
}
TARGET_LOG_DURATION = 4.17  # mean of log seconds, pictures as 60 s
# KuaiRand's random exposure: clicks 2.56 times rarer than in the standard log
# (.1762 against .4512), any interaction 3.8 times (.0056 against .0214).
_RANDOM_CLICK = TARGET_RATES["click"] / 2.56
_RANDOM_LIKE = TARGET_RATES["like"] / 3.8
_SHIFTED = np.array([name != "hate" for name in INTERACTIONS], np.float32)
_CLICK, _LIKE = INDEX["click"], INDEX["like"]
_FIRST_INTERACTION = BEHAVIOURS.index(INTERACTIONS[0])

NUM_PAIRS = 20_000  # of the log, and random ones, that responses are set on
_FEW_USERS = 1024
_MOST_REACH = 10.0  # by which factor the cost of a lack of reach may be another

# Share of a user's own mean in what the user is used to.
ADAPTATION = 0.8
_RESPONSE_ROUNDS = 8
_ROUNDS_OF_FEW, _ROUNDS_OF_ALL, _SATISFACTION_ROUNDS = 6, 3, 3
_REQUESTS = 4  # slates a user sees while candidates are found
_NOISE_RANGE, _LIKE_RANGE = (0.05, 50.0), (-3.0, 3.0)


class Pairs(NamedTuple):
  """Users and items, integer `[n]` each."""

  user: np.ndarray
  item: np.ndarray


def log_odds(rate: np.ndarray | float) -> np.ndarray:
  """`log(rate / (1 - rate))`, rates kept off 0 and 1 by 1e-6."""
  rate = np.clip(rate, 1e-6, 1.0 - 1e-6)
  return np.log(rate) - np.log1p(-rate)


@in_float64
@jax.jit
def _expected(response, user, item):
  return jax.lax.map(
    lambda pair: response_lib.expected_responses(
      response, pair[0], pair[1][None]
    )[0],
    (user, item),
    batch_size=512,
  )


def expected_rates(response: ResponseModel, pairs: Pairs) -> np.ndarray:
  """Mean behaviours `[E]` of pairs, float64, play time in seconds."""
  user, item = (side.astype(np.int32) for side in pairs)
  return _expected(response, user, item).mean(axis=0)


@in_float64
@jax.jit
def _interest(response, user, item):
  return jax.vmap(
    lambda user, item: response_lib.interest(response, user, item[None])[0]
  )(user, item)


def _interest_variance(response: ResponseModel, pairs: Pairs) -> float:
  user, item = (side.astype(np.int32) for side in pairs)
  return float(_interest(response, user, item).var())


def calibrate_response(
  response: ResponseModel,
  logged: Pairs,
  random: Pairs,
  *,
  fitted: bool,
) -> ResponseModel:
  """Users and items that agree with (a) the log and (c) random exposure.

  What a lack of reach costs is set so that random pairs have the click and like
  rates of KuaiRand's random exposure: a log of chosen impressions has too few
  pairs out of reach to tell. All interests and the interactions' logits move by
  constants, so that the logged pairs keep the log's rates.

  Args:
    response: the response model.
    logged: impressions of the log, or pairs like them.
    random: users as often as they are there, items at random.
    fitted: whether the model was fitted to these very impressions. Then play
      times keep their spread, what interest does not explain shrinking as
      interests come apart, and all interactions move by one constant. Else each
      interaction has its own.

  Returns:
    The model.
  """
  targets = np.array([TARGET_RATES[name] for name in INTERACTIONS])
  wanted = log_odds(
    np.array([TARGET_RATES["click"], TARGET_RATES["like"]])
  ) - log_odds(np.array([_RANDOM_CLICK, _RANDOM_LIKE]))
  # Where reach does not tell what is shown from the rest, no cost of it will do.
  fitted_scale = np.float32(response.reach_scale)
  most = (
    fitted_scale / np.float32(_MOST_REACH),
    fitted_scale * np.float32(_MOST_REACH),
  )
  spread = float(response.residual_scale) ** 2 + _interest_variance(
    response, logged
  )
  for _ in range(_RESPONSE_ROUNDS):
    shown = expected_rates(response, logged)
    apart = log_odds(shown) - log_odds(expected_rates(response, random))
    click, like = wanted - apart[[_CLICK, _LIKE]]
    gap = log_odds(targets) - log_odds(shown[_FIRST_INTERACTION:])
    # 0.65 sd of a normal latent are about one unit of log odds.
    shift = 0.65 * (log_odds(TARGET_RATES["click"]) - log_odds(shown[_CLICK]))
    response = response._replace(
      watch_shift=response.watch_shift + np.float32(shift),
      reach_scale=np.clip(
        response.reach_scale * np.float32(np.exp(np.clip(click, -0.7, 0.7))),
        *most,
      ),
      interaction_reach=response.interaction_reach
      + np.float32(0.5 * like) * _SHIFTED,
    )
    if fitted:
      shift = np.float32(gap[INTERACTIONS.index("like")])
      residual = spread - _interest_variance(response, logged)
      response = response._replace(
        interaction_shift=response.interaction_shift + shift,
        residual_scale=np.float32(np.sqrt(max(residual, 0.25))),
      )
    else:
      play = response.interaction_play + gap[:, None].astype(np.float32)
      response = response._replace(interaction_play=play)
  return jax.tree.map(jnp.asarray, response)


class _Slates(NamedTuple):
  """What the default weights show, `[U, T, L, ...]`; see `_default_slates`.

  log_duration: of the shown items.
  satisfaction, used_to: sampled, and expected apart from the hour.
  expected: `[U, T, L, E]` expected behaviours.
  """

  log_duration: jax.Array
  satisfaction: jax.Array
  used_to: jax.Array
  expected: jax.Array


class Shown(NamedTuple):
  """Moments of default slates over users as often as they open sessions.

  All float64. log_duration: scalar. satisfaction_by_user: `[U]`.
  satisfaction_std: scalar. rates: `[E]`, play time in seconds.
  """

  log_duration: np.ndarray
  satisfaction_by_user: np.ndarray
  satisfaction_std: np.ndarray
  rates: np.ndarray


@in_float64
@functools.partial(jax.jit, static_argnames="max_requests")
def _default_slates(
  rng_key: jax.Array, world: World, max_requests: int
) -> _Slates:
  """Shows every user the first slates of a session that nobody leaves."""
  num_users = world.pool.shape[0]
  dtype = world.user_features.dtype
  action = jnp.zeros((world.num_actions,), dtype)

  def emit(_, request):
    user, result = request.state.user, request.result
    expected = response_lib.expected_responses(
      world.response, user, result.items
    )
    duration = world.response.duration[result.items]
    duration = jnp.log(
      jnp.where(jnp.isinf(duration), PICTURE_SECONDS, duration)
    )
    used_to = satisfaction_lib.item_satisfaction(
      world.satisfaction, user, result.items, expected, jnp.zeros(())
    )
    return None, _Slates(duration, result.satisfaction, used_to, expected)

  def one(key, user):
    start = jax.tree.map(
      lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x,
      env.reset(key, world)._replace(user=user),
    )
    return scan_requests(
      world,
      fixed_action,
      action,
      start,
      # A fixed action does not use it.
      key,
      emit,
      max_requests=max_requests,
      # A marginal must not depend on the leaving model.
      leaving=False,
    )[2]

  keys = jax.random.split(rng_key, num_users)
  users = jnp.arange(num_users, dtype=jnp.int32)
  return jax.lax.map(lambda pair: one(*pair), (keys, users), batch_size=512)


def default_slates(
  rng_key: jax.Array, world: World, max_requests: int = _REQUESTS
) -> Shown:
  """What the default weights show the world's users, on average.

  Args:
    rng_key: random number generator key, consumed.
    world: the world.
    max_requests: slates a user, static.

  Returns:
    The moments.
  """
  log_duration, satisfaction, used_to, expected = _default_slates(
    rng_key, world, max_requests=max_requests
  )
  population = np.asarray(world.population)
  num_users = len(expected)
  # Users weigh as often as they open sessions.
  weight = np.bincount(population, minlength=num_users) / len(population)

  def mean(values):
    by_user = values.reshape(num_users, -1).mean(axis=1)
    return (weight * by_user).sum()

  by_user = expected.mean(axis=(1, 2))
  return Shown(
    log_duration=mean(log_duration),
    satisfaction_by_user=used_to.mean(axis=(1, 2)),
    satisfaction_std=np.sqrt(
      mean(np.square(satisfaction - mean(satisfaction)))
    ),
    rates=(weight[:, None] * by_user).sum(axis=0),
  )


def with_powers(world: World, powers: dict[str, float]) -> World:
  """The world whose default powers of some tasks are others."""
  base = np.array(world.fusion_spec.power_base)
  for task, power in powers.items():
    base[TASKS.index(task)] = power
  spec = world.fusion_spec._replace(power_base=jnp.asarray(base))
  return world.replace(fusion_spec=spec)


class _Search(NamedTuple):
  """Where the search for candidates is.

  log_noise, like_weight: of the retrieval.
  log_watch, log_finish: of the default powers of two tasks.
  """

  log_noise: float = float(np.log(3.0))
  like_weight: float = 0.0
  log_watch: float = 0.0
  log_finish: float = 0.0

  def retrieval(self, pool_size: int) -> Retrieval:
    """What finds the candidates."""
    return Retrieval(pool_size, float(np.exp(self.log_noise)), self.like_weight)

  def powers(self) -> dict[str, float]:
    """Of the platform's formula."""
    return {
      "watch_time": float(np.exp(self.log_watch)),
      "finish": float(np.exp(self.log_finish)),
    }

  def moved(self, shown: Shown) -> "_Search":
    """Towards the log, by what the default slates show now."""
    gap = {
      name: log_odds(TARGET_RATES[name]) - log_odds(shown.rates[INDEX[name]])
      for name in ("click", "finish", "like")
    }
    noise = self.log_noise - np.clip(3.0 * gap["click"], -1.0, 1.0)
    like = self.like_weight + np.clip(3.0 * gap["like"], -0.5, 0.5)
    longer = shown.log_duration - TARGET_LOG_DURATION
    return _Search(
      float(np.clip(noise, *np.log(_NOISE_RANGE))),
      float(np.clip(like, *_LIKE_RANGE)),
      self.log_watch - float(np.clip(longer, -0.5, 0.5)),
      self.log_finish + float(np.clip(1.5 * gap["finish"], -0.5, 0.5)),
    )


def _asked(num_users: int) -> list[np.ndarray]:
  """Places of the users that each round of the search asks."""
  everybody = np.arange(num_users)
  few = np.linspace(0, num_users - 1, min(num_users, _FEW_USERS)).astype(int)
  # Rare behaviours differ between samples of users: the last rounds ask all.
  return [few] * _ROUNDS_OF_FEW + [everybody] * _ROUNDS_OF_ALL


def num_steps(num_users: int) -> int:
  """What `calibrate_world` counts: a round of many users is many steps."""
  rounds = sum(_steps_of(users) for users in _asked(num_users))
  return rounds + _SATISFACTION_ROUNDS


def _steps_of(users: np.ndarray) -> int:
  return -(-len(users) // _FEW_USERS)


def calibrate_world(
  make: Callable[[Retrieval, np.ndarray], World],
  num_users: int,
  *,
  pool_size: int,
  seed: int,
  count: Count = uncounted,
) -> World:
  """A world whose default slates do (b) as well as the log's impressions.

  The retrieval's error decides the click rate (and with it every threshold of
  the play time), its weight of likes the like rate. The default powers of the
  watch time and of finishing are set so that shown videos are as long as the
  log's and as often finished, as a platform's formula would have been. A
  catalogue too small for the log's rates ends at bounds. At last satisfaction
  gets mean 0 and deviation 1, relative to what users are used to.

  Args:
    make: the world of some of the users, given by their places, for a
      retrieval; its responses are calibrated.
    num_users: `U`.
    pool_size: items that retrieval finds.
    seed: of the sessions that are looked at.
    count: told of the `num_steps`.

  Returns:
    The world of all users.
  """
  search, shown = _Search(), None
  for n, users in enumerate(_asked(num_users)):
    if shown is not None:
      search = search.moved(shown)
    world = make(search.retrieval(pool_size), users)
    world = with_powers(world, search.powers())
    shown = default_slates(jax.random.fold_in(jax.random.key(seed), n), world)
    logging.info(
      "%s: click %.4f, like %.5f", search, *shown.rates[[_CLICK, _LIKE]]
    )
    count(_steps_of(users))
  for n in range(_SATISFACTION_ROUNDS):
    key = jax.random.fold_in(jax.random.key(seed), 100 + n)
    shown = default_slates(key, world)
    by_user = shown.satisfaction_by_user
    used_to = ADAPTATION * by_user + (1 - ADAPTATION) * np.mean(by_user)
    satisfaction = world.satisfaction
    world = world.replace(
      satisfaction=satisfaction._replace(
        center=satisfaction.center
        + used_to.astype(np.float32) * satisfaction.scale,
        scale=satisfaction.scale * np.float32(shown.satisfaction_std),
      )
    )
    count(1)
  return world
