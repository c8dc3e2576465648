"""A real log's held-out days as the policies of a fitted world would fuse them.

Labels and rewards are the log's, scores are the ranker's, which was trained on
earlier days, and nothing is simulated in judging. The days are held out from
the ranker alone, though: ES and the policies come from a world whose response
model was fitted to all days of the log, the held-out ones and what these users
did on them included. How a policy fares here is no test on days that nothing
about it has seen.

What a policy sees of a user is what the world shows it at the first request of
a session (`env.observe`): features of the earlier days, no session
statistics yet, the hour of the user's first impression of the day.

Letters: `n` impressions, `D` user days, `K` tasks, `A` action components, `S`
observation, `N` candidates of a search.
"""

import functools
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data import kuairand, kuairand_checks
from mtf_jax.evaluation import mtf_gauc
from mtf_jax.evaluation.mtf_gauc import Impressions
from mtf_jax.fitting import kuairand_world
from mtf_jax.io import InputError
from mtf_jax.kernels import fusion
from mtf_jax.kernels.fusion import FusionSpec, FusionWeights
from mtf_jax.policies import Act
from mtf_jax.ranking import features
from mtf_jax.ranking import ranker as ranker_lib
from mtf_jax.steps import OnStep, Steps, nobody
from mtf_jax.worlds import env
from mtf_jax.worlds.scores import positive_scores
from mtf_jax.worlds.world import World

# The item's reward: 1 for valid consumption and so much for the rest.
PLAY_REWARD, FINISH_REWARD, INTERACTION_REWARD = 0.02, 0.3, 2.0
_CHECKED_USERS = 64
# How far two trainings of one ranker may be apart, in levels of the world's
# tables: equal ones differ by a quarter, the rounding; another seed by several.
_MAX_LEVELS = 1.0


class HeldOut(NamedTuple):
  """Impressions of days held out from the ranker, with its scores.

  impressions: what was shown.
  scores: float32 `[n, K]`, positive.
  observation: float32 `[D, S]` at the start of each user day's session.
  date: int `[D]` as YYYYMMDD.
  in_world: bool `[D]`, whether the world has the user.
  """

  impressions: Impressions
  scores: np.ndarray
  observation: np.ndarray
  date: np.ndarray
  in_world: np.ndarray

  def on(self, dates: Any) -> "HeldOut":
    """The user days of the given dates."""
    keep = np.isin(self.date, dates)
    shown = keep[self.impressions.day]
    renumber = np.cumsum(keep) - 1
    return HeldOut(
      Impressions(
        self.impressions.label[shown],
        self.impressions.reward[shown],
        renumber[self.impressions.day[shown]],
        self.impressions.user[keep],
      ),
      self.scores[shown],
      self.observation[keep],
      self.date[keep],
      self.in_world[keep],
    )


def item_reward(log: kuairand.ImpressionLog) -> np.ndarray:
  """`valid + 0.02 play seconds + 0.3 finish + 2 interaction`, `[n]`.

  Valid is more than 10 s, interaction any of like, comment, follow and forward.
  """
  known = features.labels(log)
  return (
    known["valid"]
    + PLAY_REWARD * log.play_seconds
    + FINISH_REWARD * known["finish"]
    + INTERACTION_REWARD * known["interaction"]
  )


def _check_same_fit(world, users, values, ranker):
  """That features and ranker are those that the world was fitted with."""
  own = np.asarray(world.user_features)
  if own.shape != values[users].shape or not np.allclose(
    own, values[users], atol=1e-4
  ):
    raise InputError(
      "log_dir, test_from: expected the log and the day that the world was"
      " fitted with, found other user features."
    )
  sample = np.unique(np.linspace(0, len(users) - 1, _CHECKED_USERS).astype(int))
  pool = np.asarray(world.pool)[sample]
  linear = ranker_lib.linear_scores(ranker, users[sample], pool)
  found = positive_scores(linear, kuairand_world.LOG_LINK)
  codes = np.asarray(world.scores.codes)[sample]
  values = np.asarray(world.scores.values)
  level = np.stack(
    [
      np.interp(found[..., k], values[k], np.arange(values.shape[1]))
      for k in range(values.shape[0])
    ],
    axis=-1,
  )
  apart = float(np.mean(np.abs(level - codes)))
  if apart > _MAX_LEVELS:
    raise InputError(
      "log_dir, test_from, seed: expected the ranker that the world was fitted"
      f" with, found one whose scores are {apart:.1f} levels of the world's"
      f" tables apart on average (at most {_MAX_LEVELS})."
    )


def read(
  log_dir: str | os.PathLike[str],
  world: World,
  *,
  test_from: int,
  seed: int,
  fit_before: int | None = None,
  judge_from: int | None = None,
  max_unknown_share: float = 0.0,
  on_step: OnStep = nobody,
) -> HeldOut:
  """Reads the held-out days and trains the world's ranker again.

  A world holds its ranker's scores of its pools and not the ranker, which
  trains in seconds from the same days and seed; that it is the same one is
  checked against the world's tables. All users of the log count, those that the
  world does not have as well: their features come from the same encoder. The
  world's response model has seen these days too, see the module.

  Args:
    log_dir: the folder that `fit_world` was given.
    world: the fitted world.
    test_from: the ranker's first held-out day, as `fit_world` was given.
    seed: as `fit_world` was given.
    fit_before: as `fit_world` was given; None for a world that saw all days.
    judge_from: first day to judge on, `test_from` if omitted and `fit_before` at
      the best: days that nothing has seen. Another one must follow, so that
      weights chosen on the first can be judged.
    max_unknown_share: share of the rows that may be of unknown users or videos;
      see `kuairand.iterate_log`.
    on_step: told how far the ranker is.

  Returns:
    The impressions of the held-out days.

  Raises:
    InputError: bad data, a single held-out day, or log, day or seed are not
      those of the fit.
  """
  catalogue = kuairand.read_catalogue(log_dir)
  log, _ = kuairand.read_log(
    log_dir, catalogue, max_unknown_share=max_unknown_share
  )
  judge_from = test_from if judge_from is None else judge_from
  if judge_from < test_from:
    raise InputError(
      f"judge_from: expected a day from test_from = {test_from} on, since the"
      f" ranker has seen those before, found {judge_from}."
    )
  fitted = log
  if fit_before is not None:
    fitted, _ = kuairand.split_days(log, fit_before, "fit_before")
  earlier, _ = kuairand.split_days(fitted, test_from)
  _, later = kuairand.split_days(log, judge_from, "judge_from")
  dates = np.unique(later.date)
  if len(dates) < 2:
    raise InputError(
      "judge_from: expected two days to judge on or more, found"
      f" {', '.join(map(str, dates))}; give an earlier --judge_from."
    )
  ranker = ranker_lib.train_ranker(
    earlier, catalogue, seed, count=Steps(ranker_lib.EPOCHS, on_step).count
  )
  values, _ = features.user_observations(ranker.encoder, catalogue)
  num_users = len(catalogue.user_ids)
  rows = np.bincount(fitted.user, minlength=num_users)
  users = kuairand_world.most_active(rows, world.user_features.shape[0])
  _check_same_fit(world, users, values, ranker)

  linear = ranker_lib.predict(ranker, later.user, later.item, later.tab)
  key = later.user.astype(np.int64) * 10**8 + later.date
  # The log is ordered by user and time: the first row is the day's first.
  _, first, day = np.unique(key, return_index=True, return_inverse=True)
  moment = later.time_ms[first] + kuairand_checks.UTC_OFFSET_HOURS * 3600 * 1000
  hour = (moment % kuairand_checks.DAY / kuairand_checks.DAY).astype(np.float32)
  user = later.user[first]
  return HeldOut(
    Impressions(features.labels(later)["valid"], item_reward(later), day, user),
    positive_scores(linear, kuairand_world.LOG_LINK).astype(np.float32),
    np.asarray(_first_observation(world, jnp.asarray(values), user, hour)),
    later.date[first],
    np.isin(user, users),
  )


@jax.jit
def _first_observation(world, user_features, user, hour):
  """`[D, S]` of a session's first request, for users of the whole catalogue."""
  world = world.replace(user_features=user_features)
  state = env.reset(jax.random.key(0), world)

  def one(user, hour):
    return env.observe(world, state._replace(user=user, hour=hour))

  return jax.vmap(one)(user, hour)


@functools.partial(jax.jit, static_argnames="act")
def actions(act: Act, params: Any, observation: chex.Array) -> jax.Array:
  """Actions `[D, A]` of a policy that does not explore.

  Args:
    act: as in `rollout.rollout`, static.
    params: its parameters, without exploration.
    observation: `[D, S]`.
  """
  key = jax.random.key(0)

  def one(observation):
    return act(params, observation, key).action

  return jax.vmap(one)(observation)


@jax.jit
def fuse(
  scores: chex.Array, day: chex.Array, action: chex.Array, spec: FusionSpec
) -> jax.Array:
  """Log fused scores `[n]`, each user day's impressions under its own action.

  Args:
    scores: `[n, K]`.
    day: int `[n]`.
    action: `[D, A]`.
    spec: the world's.
  """
  weights = jax.vmap(fusion.weights_from_action, in_axes=(0, None))(
    action, spec
  )

  def one(scores, day):
    own = jax.tree.map(lambda leaf: leaf[day], weights)
    return fusion.fused_log_score(scores[None], own)[0]

  return jax.vmap(one)(scores, day)


_fuse_global = jax.jit(fusion.fused_log_score)


def policy_score(
  held_out: HeldOut, act: Act, params: Any, spec: FusionSpec
) -> np.ndarray:
  """Fused scores `[n]` of a policy.

  Raises:
    ValueError: an action is not finite.
  """
  action = actions(act, params, held_out.observation)
  bad = int(np.sum(~np.isfinite(np.asarray(action)).all(axis=1)))
  if bad:
    raise ValueError(
      f"params: expected finite actions, found {bad} of {len(action)} that are"
      " not."
    )
  day = held_out.impressions.day
  return np.asarray(fuse(held_out.scores, day, action, spec))


def global_score(held_out: HeldOut, weights: FusionWeights) -> np.ndarray:
  """Fused scores `[n]` under one set of weights `[K]`."""
  weights = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), weights)
  return np.asarray(_fuse_global(held_out.scores, weights))


def best_weights(
  held_out: HeldOut,
  to_weights: Callable[[np.ndarray], FusionWeights],
  size: int,
  *,
  population: int = 48,
  iterations: int = 10,
  seed: int = 0,
) -> FusionWeights:
  """Global weights of the highest MTF-GAUC, by the cross-entropy method.

  Args:
    held_out: impressions of the days to choose on.
    to_weights: maps a point of [-1, 1]^size to weights `[K]`.
    size: components of a point.
    population: `N`, points of an iteration; the best quarter leads on.
    iterations: of the search.
    seed: of the search.

  Returns:
    The best weights seen; the point 0 is among those looked at.
  """
  rng = np.random.default_rng(seed)
  middle, spread = np.zeros(size), np.full(size, 0.5)
  best, best_value = to_weights(middle), -np.inf
  for _ in range(iterations):
    points = middle + spread * rng.standard_normal((population, size))
    points = np.clip(np.r_[middle[None], points], -1, 1)
    values = []
    for point in points:
      weights = to_weights(point)
      score = global_score(held_out, weights)
      auc = mtf_gauc.day_auc(score, held_out.impressions)
      values.append(mtf_gauc.mtf_gauc(auc, held_out.impressions))
      if values[-1] > best_value:
        best, best_value = weights, values[-1]
    leading = points[np.argsort(values)[-population // 4 :]]
    middle, spread = leading.mean(axis=0), leading.std(axis=0)
  return best
