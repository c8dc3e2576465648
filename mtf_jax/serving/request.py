"""A platform's request in, a row of its log out, by the policy's manifest.

Letters: `B` requests of a batch, `S` state features, `A` action components, `E`
behaviours.
"""

import json
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import chex
import numpy as np

from mtf_jax.io import InputError, as_array
from mtf_jax.serving.manifest import Feature, Manifest

# What becomes of a feature that cannot be used.
FALLBACKS = ("refuse", "default")


class Replaced(NamedTuple):
  """A feature that its default stands for.

  request: place in the batch, from 0.
  feature: its name.
  found: what was there instead, in words.
  """

  request: int
  feature: str
  found: str


class Observed(NamedTuple):
  """Requests as the policy takes them.

  observation: float32 `[B, S]`.
  replaced: what defaults stand for; empty where nothing may be replaced.
  """

  observation: np.ndarray
  replaced: tuple[Replaced, ...]


def observe(
  manifest: Manifest,
  requests: Sequence[Mapping[str, Any]],
  *,
  fallback: str = "refuse",
) -> Observed:
  """Observations of requests that name their features.

  Args:
    manifest: of the policy.
    requests: of each request its features by name.
    fallback: "refuse" a feature that is missing, unknown, no finite number or
      outside its range; or "default": the manifest's stands for it, which is
      told, and unknown ones are not read.

  Returns:
    The observations, and what was replaced.

  Raises:
    InputError: no request, `fallback` is none of `FALLBACKS`, or a feature that
      is refused; the message names request and feature.
  """
  if fallback not in FALLBACKS:
    raise InputError(
      f"fallback: expected one of {', '.join(FALLBACKS)}, found {fallback!r}."
    )
  if not len(requests):
    raise InputError("requests: expected one or more, found none.")
  known = set(manifest.observation_names)
  observation = np.empty((len(requests), len(manifest.features)), np.float32)
  replaced = []
  for row, request in enumerate(requests):
    unknown = [name for name in request if name not in known]
    if unknown and fallback == "refuse":
      raise InputError(
        f"request {row}: expected the features of the policy's manifest, found"
        f" {str(unknown[0])[:60]} besides."
      )
    for column, feature in enumerate(manifest.features):
      found = _problem(request, feature)
      if found is None:
        observation[row, column] = request[feature.name]
        continue
      if fallback == "refuse":
        raise InputError(
          f"request {row}: expected {feature.name} ({feature.unit}) from"
          f" {feature.low:g} to {feature.high:g}, found {found}."
        )
      observation[row, column] = feature.default
      replaced.append(Replaced(row, feature.name, found))
  return Observed(observation, tuple(replaced))


def _problem(request: Mapping[str, Any], feature: Feature) -> str | None:
  """Why a feature cannot be used, None if it can."""
  if feature.name not in request:
    return "none"
  value = request[feature.name]
  if not isinstance(value, numbers.Real):
    return repr(value)[:60]
  number = float(value)
  if not math.isfinite(number) or not feature.low <= number <= feature.high:
    return f"{number:g}"
  return None


def log_columns(
  manifest: Manifest,
  observation: chex.Array,
  answer: Mapping[str, chex.Array],
  *,
  session: Sequence[str],
  step: chex.Array,
  feedback: Mapping[str, chex.Array],
  left: chex.Array,
) -> dict[str, Any]:
  """Rows of the log of served requests, which `log_schema` describes.

  Args:
    manifest: of the policy.
    observation: float32 `[B, S]`, what the policy was given.
    answer: of `LoadedPolicy.serve`.
    session: `B` ids.
    step: `[B]` requests of the session before, from 0.
    feedback: by behaviour `[B]` numbers, summed over the slate.
    left: bool `[B]`, whether the user left after the request.

  Returns:
    Columns by name, for a table that `experiments.import_log` reads.

  Raises:
    InputError: a request that was not served, or columns of other lengths.
  """
  observation = as_array(observation, "observation")
  log_prob = as_array(answer["log_prob"], "log_prob")
  unserved = np.flatnonzero(~np.isfinite(log_prob))
  if unserved.size:
    raise InputError(
      f"log_prob: expected requests that were served, found"
      f" {log_prob[unserved[0]]} of request {unserved[0]}."
    )
  columns: dict[str, Any] = {"session": list(session)}
  columns["step"] = as_array(step, "step")
  for column, name in enumerate(manifest.observation_names):
    columns[f"feature {name}"] = observation[:, column]
  for name in ("action", "box_lower", "box_upper"):
    values = as_array(answer[name], name)
    for component in range(values.shape[1]):
      columns[f"{name} {component}"] = values[:, component]
  columns["log_prob"] = log_prob
  for name, found in feedback.items():
    columns[f"behaviour {name}"] = as_array(found, name)
  columns["left"] = as_array(left, "left")
  for name, values in columns.items():
    if len(values) != len(observation):
      raise InputError(
        f"{name}: expected {len(observation)} values, one a request, found"
        f" {len(values)}."
      )
  return columns


def log_schema(
  manifest: Manifest,
  groups: Mapping[str, Mapping[str, float]],
  *,
  max_requests: int,
) -> str:
  """The schema file of such a log.

  Args:
    manifest: of the policy.
    groups: by reward group the weights of behaviours.
    max_requests: a longer session is refused.

  Returns:
    The text of a `schema.toml`. Rows of one session may be in any order.
  """
  text = json.dumps  # A JSON string is a TOML one.
  behaviours = list(dict.fromkeys(b for w in groups.values() for b in w))
  size = 2 * len(manifest.tasks)

  def components(name: str) -> str:
    return text([f"{name} {component}" for component in range(size)])

  lines = ["[source]"]
  for name, value in manifest.source.items():
    lines.append(f"{text(name)} = {text(str(value))}")
  lines += [
    '[session]\ncolumn = "session"\nkind = "text"',
    f"max_requests = {max_requests}",
    '[order]\ncolumn = "step"\nkind = "step"',
  ]
  for feature in manifest.features:
    lines.append(
      f"[[observation]]\ncolumn = {text(f'feature {feature.name}')}\n"
      f"low = {feature.low!r}\nhigh = {feature.high!r}"
    )
  lines += [
    f"[action]\ncolumns = {components('action')}",
    f"[box]\nlower = {components('box_lower')}",
    f"upper = {components('box_upper')}",
    '[exploration]\nkind = "uniform"\nlog_prob = "log_prob"',
    f"held = {text(manifest.exploration == 'session')}",
    f"[feedback]\nbehaviours = {text([f'behaviour {b}' for b in behaviours])}",
  ]
  for group, weights in groups.items():
    lines.append(f"[reward.groups.{text(group)}]")
    for behaviour, weight in weights.items():
      lines.append(f"{text(f'behaviour {behaviour}')} = {float(weight)!r}")
  return "\n".join([*lines, '[end]\nexit = "left"', ""])
