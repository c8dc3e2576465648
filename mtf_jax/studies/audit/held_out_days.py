"""A real log beside what a world fitted to it says of the same impressions."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data import behaviours, kuairand
from mtf_jax.fitting import kuairand_world
from mtf_jax.fitting.response_fit import NUM_STEPS, fit_response
from mtf_jax.io import InputError
from mtf_jax.steps import OnStep, Steps, nobody
from mtf_jax.studies.audit import marginals
from mtf_jax.worlds import response as response_lib
from mtf_jax.worlds.world import World

_ANSWERS = 4  # simulated ones to each impression: only the log's error remains


def describe_log(log: kuairand.ImpressionLog) -> dict[str, Any]:
  """`marginals.describe` of logged impressions."""
  return marginals.describe(
    _feedback(log), np.asarray(log.duration), log.user, log.item
  )


def _feedback(log: kuairand.ImpressionLog) -> np.ndarray:
  """`[N, E]`: thresholds derived from the play time, as a world has them."""
  play, duration = np.asarray(log.play_seconds), np.asarray(log.duration)
  derived = {
    "valid": play > behaviours.VALID_SECONDS,
    "play_seconds": play,
    "finish": play >= duration,
    "click": play >= np.minimum(behaviours.CLICK_SECONDS, duration),
    "long_view": play >= np.minimum(behaviours.LONG_VIEW_SECONDS, duration),
  }
  columns = [
    derived[name] if name in derived else getattr(log, name)
    for name in behaviours.BEHAVIOURS
  ]
  return np.stack([np.asarray(c, np.float32) for c in columns], axis=1)


def own_log_comparison(
  world: World,
  log_dir: str | os.PathLike[str],
  *,
  fit_before: int | None,
  judge_from: int | None,
  max_unknown_share: float = 0.0,
) -> tuple[dict[str, Any], dict[str, Any]]:
  """Facts of a log, real and as the world that was fitted to it has them.

  The world's own users are asked for what they were really shown: no policy is
  involved, and no fit but the world's.

  Args:
    world: of `kuairand_world.fit_world`.
    log_dir: the folder that it was fitted to.
    fit_before: as `fit_world` was given.
    judge_from: first day to compare on; all days if omitted.
    max_unknown_share: share of the rows that may be of unknown users or videos;
      see `kuairand.iterate_log`.

  Returns:
    (`describe` of the log, `describe` of the world's answers).

  Raises:
    InputError: bad data, or the world was not fitted to this log.
  """
  catalogue = kuairand.read_catalogue(log_dir)
  log, _ = kuairand.read_log(
    log_dir, catalogue, max_unknown_share=max_unknown_share
  )
  fitted = log
  if fit_before is not None:
    fitted, _ = kuairand.split_days(log, fit_before, "fit_before")
  if judge_from is not None:
    _, log = kuairand.split_days(log, judge_from, "judge_from")
  num_users = len(catalogue.user_ids)
  rows = np.bincount(fitted.user, minlength=num_users)
  users = kuairand_world.most_active(rows, world.user_features.shape[0])
  opened = np.bincount(np.asarray(world.population), minlength=len(users))
  if world.response.num_items != len(catalogue.video_ids) or not np.array_equal(
    opened, np.maximum(rows[users], 1)
  ):
    raise InputError(
      "log_dir, fit_before: expected the log and the day that the world was"
      " fitted with, found other users or videos."
    )
  place = np.full(num_users, -1)
  place[users] = np.arange(len(users))
  log = log.select((log.is_rand == 0) & (place[log.user] >= 0))
  user = np.tile(place[log.user], _ANSWERS)
  item = np.tile(log.item, _ANSWERS)
  feedback = marginals.respond_to(world.response, user, item)
  duration = catalogue.duration[item]
  found = marginals.describe(feedback, duration, user, item)
  once = slice(len(log.user))
  # The heterogeneity is that of one answer.
  found["icc"] = marginals.describe(
    feedback[once], duration[once], user[once], item[once]
  )["icc"]
  return describe_log(log), found


@jax.jit
def _expected(response, user, item):
  """`[N, E]` expected behaviours of impressions."""

  def one(pair):
    return response_lib.expected_responses(response, pair[0], pair[1][None])[0]

  return jax.lax.map(one, (user, item), batch_size=2048)


def days_left_out(
  log_dir: str | os.PathLike[str],
  *,
  days_per_fold: int,
  num_fits: int,
  seed: int,
  max_unknown_share: float = 0.0,
  on_step: OnStep = nobody,
) -> dict[str, Any]:
  """Each day's rates, and as fits to the other days' rows expect them.

  Every day is held out once, so that all rows of the log judge the response
  model: the frequent behaviours of one or two days alone are known no better
  than the error that is looked for. Beside it stand fits to all days, as a
  world has them.

  Args:
    log_dir: folder in KuaiRand's own layout.
    days_per_fold: consecutive days held out together.
    num_fits: fits averaged, since effects are posterior draws.
    seed: of the fits.
    max_unknown_share: as in `own_log_comparison`.
    on_step: told how far the fits are.

  Returns:
    `days`, a list with `date`, `rows` and by behaviour `log`, its
    `standard_error` (deviations from the expected added up by user first),
    `held_out` and `in_sample`; `all`, the same over all rows.

  Raises:
    InputError: bad data, or all days of the log would be held out together.
  """
  catalogue = kuairand.read_catalogue(log_dir)
  log, _ = kuairand.read_log(
    log_dir, catalogue, max_unknown_share=max_unknown_share
  )
  dates = np.unique(log.date)
  if len(dates) <= days_per_fold:
    raise InputError(
      f"log_dir: expected more than {days_per_fold} days, which are held out"
      f" together, found {len(dates)} ({', '.join(map(str, dates))}) in"
      f" {log_dir}."
    )
  folds = range(0, len(dates), days_per_fold)
  steps = Steps((1 + len(folds)) * num_fits * NUM_STEPS, on_step)
  observed = _feedback(log).astype(np.float64)
  rng = np.random.default_rng(seed)

  def expect(training, rows):
    total = np.zeros((int(rows.sum()), observed.shape[1]))
    user, item = jnp.asarray(log.user[rows]), jnp.asarray(log.item[rows])
    for _ in range(num_fits):
      response, _ = fit_response(
        log.select(training), catalogue, rng, steps.count
      )
      response = jax.tree.map(jnp.asarray, response)
      total += np.asarray(_expected(response, user, item))
    return total / num_fits

  everything = np.ones(len(log.user), bool)
  in_sample = expect(everything, everything)
  held_out = np.zeros_like(in_sample)
  for start in folds:
    rows = np.isin(log.date, dates[start : start + days_per_fold])
    held_out[rows] = expect(~rows, rows)

  def facts(rows):
    count = int(rows.sum())
    _, user = np.unique(log.user[rows], return_inverse=True)
    result = {"rows": count}
    for n, name in enumerate(behaviours.BEHAVIOURS):
      deviation = (observed[:, n] - held_out[:, n])[rows]
      error = np.sqrt(np.sum(np.bincount(user, deviation) ** 2)) / count
      result[name] = {
        "log": float(observed[rows, n].mean()),
        "standard_error": float(error),
        "held_out": float(held_out[rows, n].mean()),
        "in_sample": float(in_sample[rows, n].mean()),
      }
    return result

  days = [{"date": int(d), **facts(log.date == d)} for d in dates]
  return {"days": days, "all": facts(everything)}
