"""Converged global weights on record, so that none is searched for twice.

The search takes minutes; its result hangs on the world, on the length of sessions
and on the effort alone. Those of the worlds that this project reports on are in
`known_weights.json`, written by `python -m benchmarks.known_weights`.
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from mtf_jax.evaluation.global_weights import Effort
from mtf_jax.io import write_json
from mtf_jax.worlds.world import World, fingerprint

PATH = pathlib.Path(__file__).with_name("known_weights.json")


@functools.cache
def _read() -> dict[str, Any]:
  return json.loads(PATH.read_text(encoding="utf-8"))


def _conditions(max_requests: int, effort: Effort) -> dict[str, Any]:
  """As JSON has them: another effort finds other weights."""
  search, first = effort.search._asdict(), effort.first._asdict()
  effort_json = {**effort._asdict(), "search": search, "first": first}
  return {"max_requests": max_requests, "effort": effort_json}


def find(
  world: World, max_requests: int, effort: Effort
) -> dict[str, Any] | None:
  """What a search under these conditions found, or None.

  Args:
    world: the world that sessions are run in, its leaving model included.
    max_requests: `T` of a session.
    effort: of the search.

  Returns:
    `global_weights.Converged.to_json()`.
  """
  entry = _read().get(fingerprint(world))
  if entry is None:
    return None
  conditions = _conditions(max_requests, effort)
  same = all(entry[name] == value for name, value in conditions.items())
  return entry["found"] if same else None


def entry(
  world: World, max_requests: int, effort: Effort, found: Mapping[str, Any]
) -> dict[str, Any]:
  """What `write` takes of one search: fingerprint -> entry."""
  conditions = _conditions(max_requests, effort)
  return {fingerprint(world): {**conditions, "found": dict(found)}}


def write(entries: Mapping[str, Any]) -> None:
  """Replaces the record."""
  write_json(PATH, dict(sorted(entries.items())))
  _read.cache_clear()
