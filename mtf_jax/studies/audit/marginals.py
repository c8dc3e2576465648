"""Marginal facts of impressions, real or simulated, and their errors.

Letters: `N` impressions, `E` behaviours.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.behaviours import BEHAVIOURS, INDEX, PICTURE_SECONDS
from mtf_jax.io import write_json
from mtf_jax.worlds import response as response_lib

_BINARY = tuple(name for name in BEHAVIOURS if name != "play_seconds")


# Behaviours with enough events for a relative error of a few percent; the rare
# ones are reported with their standard errors.
_FREQUENT = ("valid", "finish", "click", "long_view", "like")


_DECILES = np.arange(0.1, 0.95, 0.1)


# Play times under this, in seconds, are equal for the audit: the log has an
# atom at 0 and a user's thumb is no stopwatch.
_PLAY_FLOOR = 0.3


_DURATION_EDGES = (0, 15, 30, 60, 120, 240, np.inf)


_PLAY_EDGES = (0, 1, 3, 7, 18, 60, np.inf)


_REFERENCE = pathlib.Path(__file__).with_name("kuairand_reference.json")


def describe(
  feedback: np.ndarray, duration: np.ndarray, user: np.ndarray, item: np.ndarray
) -> dict[str, Any]:
  """Marginal facts of impressions, real or simulated, ready for JSON.

  Args:
    feedback: `[N, E]` behaviours.
    duration: `[N]` seconds, `inf` for pictures.
    user: `[N]` integer.
    item: `[N]` integer.

  Returns:
    Rates with standard errors, play-time deciles, rates by duration and by play
    time, co-occurrence lifts with their expected counts, and the intra-class
    correlation of clicks and likes by user and by item.
  """
  num_rows = len(feedback)
  play = feedback[:, INDEX["play_seconds"]]
  binary = {name: feedback[:, INDEX[name]] > 0 for name in _BINARY}
  rates = {name: float(event.mean()) for name, event in binary.items()}
  unit = np.where(np.isinf(duration), PICTURE_SECONDS, duration)

  def by(values, edges):
    place = np.digitize(values, edges[1:-1])
    return [
      {
        name: float(binary[name][place == n].mean())
        for name in ("finish", "valid", "click", "like")
      }
      if np.any(place == n)
      else None
      for n in range(len(edges) - 1)
    ]

  lifts = {}
  names = ("click", "long_view", "like", "comment", "follow", "forward")
  for n, a in enumerate(names):
    for b in names[n + 1 :]:
      both = float((binary[a] & binary[b]).mean())
      chance = rates[a] * rates[b]
      if chance > 0:
        lifts[f"{a}&{b}"] = {
          "lift": both / chance,
          "count": both * num_rows,
        }
  return {
    "rows": num_rows,
    "rates": rates,
    "standard_errors": {
      name: float(np.sqrt(rate * (1 - rate) / num_rows))
      for name, rate in rates.items()
    },
    "play_deciles": np.quantile(play, _DECILES).tolist(),
    "play_mean": float(play.mean()),
    "by_duration": by(unit, _DURATION_EDGES),
    "by_play": by(play, _PLAY_EDGES),
    "lifts": lifts,
    "icc": {
      f"{name}_by_{side}": _icc(binary[name], groups)
      for name in ("click", "like")
      for side, groups in (("user", user), ("item", item))
    },
  }


def _icc(event: np.ndarray, groups: np.ndarray) -> float:
  """Intra-class correlation of a 0/1 variable, analysis of variance."""
  _, code = np.unique(groups, return_inverse=True)
  size = np.bincount(code).astype(float)
  mean = np.bincount(code, event) / size
  total, num_groups = event.size, size.size
  if num_groups < 2 or total <= num_groups:
    return 0.0
  between = np.sum(size * (mean - event.mean()) ** 2) / (num_groups - 1)
  within = np.sum(size * mean * (1 - mean)) / (total - num_groups)
  typical = (total - np.sum(size**2) / total) / (num_groups - 1)
  total_variance = between + (typical - 1) * within
  return float((between - within) / total_variance) if total_variance else 0.0


def save_reference(
  facts: Mapping[str, Any], path: str | os.PathLike[str], source: str
) -> None:
  """Writes what `describe` found as JSON, 6 decimals a number.

  Args:
    facts: marginal facts of a log.
    path: file to write or replace.
    source: where the log comes from, and its licence.
  """
  write_json(path, {"source": source, **_rounded(dict(facts))})


def _rounded(value: Any) -> Any:
  if isinstance(value, dict):
    return {name: _rounded(part) for name, part in value.items()}
  if isinstance(value, list):
    return [_rounded(part) for part in value]
  return round(value, 6) if isinstance(value, float) else value


def load_reference() -> dict[str, Any]:
  """`describe` of KuaiRand-Pure's standard log, the aggregates alone."""
  return json.loads(_REFERENCE.read_text(encoding="utf-8"))


def marginal_errors(found: Mapping, reference: Mapping) -> dict[str, float]:
  """The three errors of the marginals, relative.

  Rates: the worst of the frequent behaviours. Deciles: the worst, play times
  below 0.3 s counting as equal. Lifts: the worst of the pairs whose lift in the
  reference is above 2 with at least 100 joint events.
  """
  rates = [
    abs(found["rates"][name] / reference["rates"][name] - 1)
    for name in _FREQUENT
  ]
  deciles = [
    abs(a - b) / max(b, _PLAY_FLOOR) if max(a, b) > _PLAY_FLOOR else 0.0
    for a, b in zip(
      found["play_deciles"], reference["play_deciles"], strict=True
    )
  ]
  lifts = [
    abs(found["lifts"].get(pair, {"lift": 0.0})["lift"] / entry["lift"] - 1)
    for pair, entry in reference["lifts"].items()
    if entry["lift"] > 2 and entry["count"] >= 100
  ]
  return {
    "marginals_max_rel_error": float(max(rates)),
    "play_time_deciles_max_rel_error": float(max(deciles)),
    "lift_max_rel_error": float(max(lifts, default=0.0)),
  }


@jax.jit
def _respond(uniforms, response, user, items):
  return jax.vmap(response_lib.sample_responses, in_axes=(0, None, 0, 0))(
    uniforms, response, user, items
  )[:, 0]


def respond_to(
  world_response: response_lib.ResponseModel,
  user: np.ndarray,
  item: np.ndarray,
  seed: int = 2,
) -> np.ndarray:
  """Sampled behaviours `[N, E]` on given impressions, no policy involved."""
  uniforms = jax.random.uniform(
    jax.random.key(seed), (len(user), 1, response_lib.NUM_UNIFORMS)
  )

  return np.asarray(
    _respond(
      uniforms,
      world_response,
      jnp.asarray(user, jnp.int32),
      jnp.asarray(item, jnp.int32)[:, None],
    )
  )
