"""Populations of users and items: constants of a fit, and draws from them.

A synthetic response model needs no data: it is drawn from the few hundred
constants of a fit to a log, by default those of `kuairand_population.json`,
which `response_fit.fit_response` found on KuaiRand-Pure's standard log [1] of 25
April to 6 May 2022 (CC BY-SA 4.0; aggregates only, no row of the log).

Letters as in `response`; `X` points of the effect grid, `Y` quantiles.

References:
  [1] Gao et al., "KuaiRand: An Unbiased Sequential Recommendation Dataset with
  Randomly Exposed Videos", CIKM 2022.
"""

import json
import os
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from mtf_jax.data import behaviours
from mtf_jax.data.behaviours import NUM_BUCKETS, duration_bucket
from mtf_jax.io import write_json
from mtf_jax.worlds import response as response_lib

NUM_FACTORS = 8


# Logit effects of users and items on an interaction live on this grid.
EFFECT_GRID = np.linspace(-6.0, 6.0, 25).astype(np.float32)


_KUAIRAND = pathlib.Path(__file__).with_name("kuairand_population.json")


class ResponsePopulation(NamedTuple):
  """What a synthetic response model is drawn from: constants of a fit.

  duration_quantiles: `[Y]` quantiles of the items' durations, seconds.
  picture_share: share of items without duration.
  play_table: `[H, Q]`; see `ResponseModel`.
  residual_scale, user_interest_scale, item_interest_scale: standard deviations
    of the latent play propensity.
  item_interest_mean: mean over the catalogue (0 is the logged impressions').
  reach_scale: see `ResponseModel`.
  reach_mean, reach_item_scale, reach_pair_scale: mean of the reach over random
    pairs, standard deviation of its item part and of its personal part.
  interaction_play, interaction_reach, interaction_coupling: see
    `ResponseModel`.
  user_effect_weights, item_effect_weights: `[N, X]` mixing distributions of the
    interaction effects on `EFFECT_GRID`.
  """

  duration_quantiles: np.ndarray
  picture_share: float
  play_table: np.ndarray
  residual_scale: float
  user_interest_scale: float
  item_interest_scale: float
  item_interest_mean: float
  reach_scale: float
  reach_mean: float
  reach_item_scale: float
  reach_pair_scale: float
  interaction_play: np.ndarray
  interaction_reach: np.ndarray
  interaction_coupling: np.ndarray
  user_effect_weights: np.ndarray
  item_effect_weights: np.ndarray


def save_population(
  population: ResponsePopulation, path: str | os.PathLike, source: str
) -> None:
  """Writes a population as JSON, 5 significant digits a number.

  Args:
    population: the constants.
    path: file to write.
    source: where the constants come from, and their licence.
  """
  fields = {
    name: np.vectorize(lambda x: float(f"{x:.5g}"))(value).tolist()
    for name, value in population._asdict().items()
  }
  write_json(path, {"source": source, **fields}, indent=None)


def load_population(
  path: str | os.PathLike = _KUAIRAND,
) -> ResponsePopulation:
  """Reads a population, by default the embedded one.

  Raises:
    ValueError: the file is not JSON, or a field is missing or of another shape
      than expected.
  """
  try:
    fields = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
  except json.JSONDecodeError as error:
    raise ValueError(f"{path}: expected JSON, found {error}.") from error
  num = len(behaviours.INTERACTIONS)
  shapes = {
    "duration_quantiles": (len(fields.get("duration_quantiles", ())),),
    "play_table": (NUM_BUCKETS, response_lib.Z_POINTS),
    "interaction_play": (num, response_lib.PLAY_KNOTS),
    "interaction_reach": (num,),
    "interaction_coupling": (num, num),
    "user_effect_weights": (num, len(EFFECT_GRID)),
    "item_effect_weights": (num, len(EFFECT_GRID)),
  }
  values: dict[str, Any] = {}
  for name in ResponsePopulation._fields:
    found = np.asarray(fields.get(name, np.nan), np.float64)
    expected = shapes.get(name, ())
    if found.shape != expected or not np.isfinite(found).all():
      raise ValueError(
        f"{path}: {name}: expected finite numbers of shape {expected}, found"
        f" shape {found.shape}."
      )
    values[name] = found if expected else float(found)
  return ResponsePopulation(**values)


def synthetic_response(
  rng: np.random.Generator,
  num_users: int,
  num_items: int,
  population: ResponsePopulation | None = None,
) -> response_lib.ResponseModel:
  """Draws a response model of a population.

  Args:
    rng: the draws.
    num_users: `U`, positive.
    num_items: `I`, positive.
    population: constants, the embedded ones of KuaiRand-Pure if omitted.

  Returns:
    The model, numpy arrays of float32 and int32, of the same structure as a
    fitted one.

  Raises:
    ValueError: a count is not positive.
  """
  for name, value in (("num_users", num_users), ("num_items", num_items)):
    if value < 1:
      raise ValueError(f"{name}: expected at least 1, found {value}.")
  p = load_population() if population is None else population
  quantiles = p.duration_quantiles
  duration = np.interp(
    rng.random(num_items), np.linspace(0, 1, len(quantiles)), quantiles
  )
  duration[rng.random(num_items) < p.picture_share] = np.inf
  duration = duration.astype(np.float32)

  # The personal part of the reach is a product of normal factors; every user
  # has 1 for the last factor, the item's popularity.
  personal = NUM_FACTORS - 1
  scale = np.sqrt(p.reach_pair_scale / np.sqrt(personal))
  user_factors = rng.normal(0, scale, (num_users, NUM_FACTORS))
  item_factors = rng.normal(0, scale, (num_items, NUM_FACTORS))
  user_factors[:, -1] = 1.0
  item_factors[:, -1] = rng.normal(p.reach_mean, p.reach_item_scale, num_items)

  def effects(weights, size):
    return np.stack(
      [rng.choice(EFFECT_GRID, size, p=w / w.sum()) for w in weights], axis=1
    )

  model = response_lib.ResponseModel(
    user_interest=rng.normal(0, p.user_interest_scale, num_users),
    item_interest=rng.normal(
      p.item_interest_mean, p.item_interest_scale, num_items
    ),
    user_factors=user_factors,
    item_factors=item_factors,
    reach_scale=p.reach_scale,
    watch_shift=0.0,
    duration=duration,
    duration_bucket=duration_bucket(duration),
    play_table=p.play_table,
    residual_scale=p.residual_scale,
    interaction_play=p.interaction_play,
    interaction_reach=p.interaction_reach,
    interaction_coupling=p.interaction_coupling,
    user_interaction=effects(p.user_effect_weights, num_users),
    item_interaction=effects(p.item_effect_weights, num_items),
    interaction_shift=0.0,
  )
  return jax.tree.map(response_lib.as_leaf, model)
