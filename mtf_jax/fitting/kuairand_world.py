"""The `kuairand` world: users, items, responses and scores of a real log."""

import os
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from absl import logging

from mtf_jax.data import kuairand
from mtf_jax.data.behaviours import INTERACTIONS, TASKS
from mtf_jax.fitting import build, calibration
from mtf_jax.fitting.calibration import Pairs
from mtf_jax.fitting.response_fit import NUM_STEPS, check_log, fit_response
from mtf_jax.ranking import features
from mtf_jax.ranking import ranker as ranker_lib
from mtf_jax.steps import OnStep, Steps, nobody
from mtf_jax.worlds.response import ResponseModel
from mtf_jax.worlds.scores import encode_scores
from mtf_jax.worlds.world import World

# Share of a taste's variance that the user's own fitted effects explain; the
# rest is drawn, since a log tells behaviours and not contentment.
_TASTE_FROM_LOG = 0.7


# Links of the ranker's heads, see `scores.positive_scores`.
LOG_LINK = np.array([task == "watch_time" for task in TASKS])


class Fit(NamedTuple):
  """A fitted world and how it was come by.

  world: the calibrated world.
  ranker_metrics: per head, on the later days; see `ranker.evaluate`.
  num_rows: rows of the log without duplicates.
  num_duplicates: repeated impressions dropped.
  """

  world: World
  ranker_metrics: Mapping[str, Mapping[str, float]]
  num_rows: int
  num_duplicates: int


def most_active(rows: np.ndarray, num_users: int) -> np.ndarray:
  """The users that a world keeps, in its order.

  Args:
    rows: `[U]` impressions of each user of the catalogue.
    num_users: users to keep.

  Returns:
    Their indices, those with the most impressions first.
  """
  return np.argsort(-rows, kind="stable")[:num_users]


def _impressions(
  log: kuairand.ImpressionLog, num_items: int, rng: np.random.Generator
) -> tuple[Pairs, Pairs]:
  """Impressions of the log, and its users with videos at random."""
  # Random exposure is no choice of the platform's.
  chosen = np.flatnonzero(log.is_rand == 0)
  count = min(calibration.NUM_PAIRS, len(chosen))
  shown = rng.choice(chosen, count, replace=False)
  user = rng.choice(log.user, calibration.NUM_PAIRS)
  item = rng.integers(0, num_items, calibration.NUM_PAIRS)
  return Pairs(log.user[shown], log.item[shown]), Pairs(user, item)


def _tastes(response: ResponseModel, rng: np.random.Generator) -> build.Tastes:
  """Tastes that lean on what a user visibly does.

  Depth goes with a high play propensity, quick with a low one, social with the
  fitted like effect; the rest of each taste's variance is drawn.
  """
  like = np.asarray(response.user_interaction)[:, INTERACTIONS.index("like")]
  play = np.asarray(response.user_interest)

  def taste(known):
    known = (known - known.mean()) / features.spread(known)
    hidden = rng.standard_normal(known.shape)
    return (
      np.sqrt(_TASTE_FROM_LOG) * known + np.sqrt(1 - _TASTE_FROM_LOG) * hidden
    )

  return build.Tastes(taste(play), taste(-play), taste(like))


def fit_world(
  log_dir: str | os.PathLike[str],
  *,
  test_from: int,
  num_users: int,
  pool_size: int,
  num_candidates: int,
  slate_size: int,
  seed: int,
  fit_before: int | None = None,
  max_unknown_share: float = 0.0,
  on_step: OnStep = nobody,
) -> Fit:
  """Fits the world to a KuaiRand log folder.

  The ranker sees the days before `test_from` only and is tested on the others;
  the response model, the truth of the world, sees all days before `fit_before`.

  Args:
    log_dir: folder in KuaiRand's own layout.
    test_from: first day, as 20220505, of the ranker's test days.
    num_users: users kept, those with the most impressions.
    pool_size: items that retrieval finds for a user, a power of two.
    num_candidates: candidates of a request.
    slate_size: items shown of them.
    seed: of the fits and of what is drawn.
    fit_before: first day that nothing of the world sees, as 20220507, so that
      something is left to judge it by; all days are seen if omitted.
    max_unknown_share: share of the rows that may be of unknown users or videos;
      see `kuairand.iterate_log`.
    on_step: told how far it is, once the log is read.

  Returns:
    The world and the figures of the fit.

  Raises:
    InputError: bad data (see `data.kuairand`), a log that is too small for a
      fit, or sizes that are not its.
  """
  rng = np.random.default_rng(seed)
  catalogue = kuairand.read_catalogue(log_dir)
  build.check_pool_size(pool_size, len(catalogue.video_ids))
  log, duplicates = kuairand.read_log(
    log_dir, catalogue, max_unknown_share=max_unknown_share
  )
  if fit_before is not None:
    log, _ = kuairand.split_days(log, fit_before, "fit_before")
  check_log(log)
  earlier, later = kuairand.split_days(log, test_from)
  kept = min(num_users, len(catalogue.user_ids))
  # On KuaiRand-Pure all steps take about as long as each other.
  steps = Steps(
    ranker_lib.EPOCHS
    + ranker_lib.NUM_HEADS
    + NUM_STEPS
    + 1
    + calibration.num_steps(kept),
    on_step,
  )
  ranker = ranker_lib.train_ranker(earlier, catalogue, seed, count=steps.count)
  metrics = ranker_lib.evaluate(ranker, later, steps.count)
  ranker_lib.refuse_broken(metrics, later)
  response, _ = fit_response(log, catalogue, rng, steps.count)
  if response.num_users < num_users:
    logging.warning(
      "%s: the log has %d users, fewer than num_users = %d; all are kept.",
      log_dir,
      response.num_users,
      num_users,
    )

  rows = np.bincount(log.user, minlength=response.num_users)
  users = most_active(rows, num_users)
  rows = rows[users]
  response = calibration.calibrate_response(
    response,
    *_impressions(log, len(catalogue.video_ids), rng),
    fitted=True,
  )
  steps.count(1)
  values, names = features.user_observations(ranker.encoder, catalogue)
  values = np.asarray(values)
  tastes = _tastes(build.select_users(response, users), rng)
  pool_seed = rng.integers(2**63)

  def make(retrieval: build.Retrieval, kept: np.ndarray) -> World:
    """The world of some of the users, given by their places."""
    own = users[kept]
    chosen = build.select_users(response, own)
    pool = build.make_pool(chosen, retrieval, np.random.default_rng(pool_seed))
    scores = encode_scores(
      lambda block: ranker_lib.linear_scores(ranker, own[block], pool[block]),
      len(own),
      LOG_LINK,
    )
    return build.make_world(
      name="kuairand",
      response=chosen,
      scores=scores,
      pool=pool,
      tastes=build.Tastes(*(taste[kept] for taste in tastes)),
      user_features=values[own],
      feature_names=tuple(names),
      # Users open sessions as often as the log has rows of them.
      population=np.repeat(np.arange(len(own)), np.maximum(rows[kept], 1)),
      item_tag=np.asarray(catalogue.video_tag),
      num_candidates=num_candidates,
      slate_size=slate_size,
    )

  world = calibration.calibrate_world(
    make, len(users), pool_size=pool_size, seed=seed, count=steps.count
  )
  return Fit(world, metrics, len(log.user), int(duplicates))
