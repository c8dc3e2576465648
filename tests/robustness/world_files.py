"""World files, damaged and crafted; refused, or the very world.

A checksum covers the whole file and a fingerprint the whole world. Crafted files
have a right checksum over damaged members, or right checksum and fingerprint
over a world that no model allows.
"""

import hashlib
import io
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.behaviours import BEHAVIOURS, TASKS
from mtf_jax.fitting.population import synthetic_response
from mtf_jax.kernels.fusion import FusionSpec
from mtf_jax.worlds import io as world_io
from mtf_jax.worlds import leaving
from mtf_jax.worlds.satisfaction import Satisfaction
from mtf_jax.worlds.scores import ScoreTables
from mtf_jax.worlds.world import World, default_group_weights, fingerprint
from tests.robustness import mutate, mutate_npz
from tests.robustness.kinds import Files, ReadOnly

_NAME = "tiny.world"
_USERS, _ITEMS, _POOL = 6, 12, 8


def tiny_world() -> World:
  """A world of six users: nothing calibrated, all shapes and ranges right."""
  rng = np.random.default_rng(0)
  response = synthetic_response(rng, _USERS, _ITEMS)
  behaviours, tasks = len(BEHAVIOURS), len(TASKS)
  satisfaction = Satisfaction(
    taste=rng.uniform(0, 1, (_USERS, behaviours)).astype(np.float32),
    evening_taste=np.zeros(behaviours, np.float32),
    regret=rng.uniform(0, 1, _ITEMS).astype(np.float32),
    regretted=np.eye(behaviours, dtype=np.float32)[BEHAVIOURS.index("click")],
    center=np.zeros(_USERS, np.float32),
    scale=np.float32(1.0),
  )
  pool = np.stack([rng.permutation(_ITEMS)[:_POOL] for _ in range(_USERS)])
  values = np.sort(rng.uniform(0.01, 1, (tasks, 256)), axis=1)
  world = World(
    response=response,
    satisfaction=satisfaction,
    leaving=jax.tree.map(np.float32, leaving.make_leaving("net_exposure")),
    scores=ScoreTables(
      codes=rng.integers(0, 256, (_USERS, _POOL, tasks)).astype(np.uint8),
      values=values.astype(np.float32),
    ),
    fusion_spec=jax.tree.map(np.float32, FusionSpec()),
    group_weights=default_group_weights(),
    user_features=rng.normal(size=(_USERS, 3)).astype(np.float32),
    population=np.arange(_USERS, dtype=np.int32),
    pool=pool.astype(np.uint16),
    item_tag=rng.integers(0, 5, _ITEMS).astype(np.int32),
    feature_names=("a", "b", "c"),
    num_candidates=4,
    slate_size=2,
    name="tiny",
  )
  return jax.tree.map(jnp.asarray, world)


def _impossible(world: World) -> dict[str, World]:
  """Worlds of right types that no model allows, by what is wrong."""
  response, scores = world.response, world.scores
  taste = world.satisfaction.taste

  def of_response(**fields) -> World:
    return world.replace(response=response._replace(**fields))

  return {
    "NaN interest": of_response(
      user_interest=response.user_interest.at[0].set(jnp.nan)
    ),
    "infinite factors": of_response(
      item_factors=response.item_factors.at[0, 0].set(jnp.inf)
    ),
    "duration of -1": of_response(duration=response.duration.at[0].set(-1.0)),
    "bucket beyond the table": of_response(
      duration_bucket=response.duration_bucket.at[0].set(10_000)
    ),
    "negative bucket": of_response(
      duration_bucket=response.duration_bucket.at[0].set(-1)
    ),
    "an item less": of_response(duration=response.duration[1:]),
    "NaN taste": world.replace(
      satisfaction=world.satisfaction._replace(taste=taste.at[0].set(jnp.nan))
    ),
    "satisfaction of scale 0": world.replace(
      satisfaction=world.satisfaction._replace(scale=jnp.float32(0.0))
    ),
    "a user's taste less": world.replace(
      satisfaction=world.satisfaction._replace(taste=taste[1:])
    ),
    "NaN score": world.replace(
      scores=scores._replace(values=scores.values.at[0, 0].set(jnp.nan))
    ),
    "half the codes": world.replace(
      scores=scores._replace(codes=scores.codes[:, : _POOL // 2])
    ),
    "users beyond the last": world.replace(
      population=world.population.at[0].set(_USERS)
    ),
    "negative users": world.replace(population=world.population.at[0].set(-1)),
    "no users": world.replace(population=world.population[:0]),
    "users as fractions": world.replace(
      population=world.population.astype(jnp.float32)
    ),
    "items beyond the last": world.replace(
      pool=world.pool.at[0, 0].set(_ITEMS)
    ),
    "a pool of seven": world.replace(
      pool=world.pool[:, 1:], scores=scores._replace(codes=scores.codes[:, 1:])
    ),
    "a flat pool": world.replace(pool=world.pool.reshape(-1)),
    "NaN features": world.replace(
      user_features=world.user_features.at[0, 0].set(jnp.nan)
    ),
    "features of fewer names": world.replace(feature_names=("a", "b")),
    "NaN weights": world.replace(
      group_weights=world.group_weights.at[0].set(jnp.nan)
    ),
    "weights of a behaviour less": world.replace(
      group_weights=world.group_weights[:, 1:]
    ),
    "tags of an item less": world.replace(item_tag=world.item_tag[1:]),
    "no candidates": world.replace(num_candidates=0),
    "candidates below 0": world.replace(num_candidates=-1),
    "more candidates than the pool": world.replace(num_candidates=10**9),
    "an empty slate": world.replace(slate_size=0),
    "a slate beyond the candidates": world.replace(slate_size=5),
    "NaN in leaving": world.replace(
      leaving=world.leaving._replace(
        **{world.leaving._fields[0]: jnp.float32(jnp.nan)}
      )
    ),
    "NaN in the fusion": world.replace(
      fusion_spec=world.fusion_spec._replace(power_base=jnp.float32(jnp.nan))
    ),
  }


def _file_of(world: World) -> bytes:
  """A file with the right checksum and fingerprint, whatever the world."""
  header = {
    "feature_names": list(world.feature_names),
    "num_candidates": world.num_candidates,
    "slate_size": world.slate_size,
    "name": world.name,
    "leaving": "net_exposure",
    "fingerprint": fingerprint(world),
  }
  arrays: dict[str, Any] = {"header": json.dumps(header)}
  for path, leaf in jax.tree_util.tree_leaves_with_path(world):
    arrays["/".join(key.name for key in path)] = np.asarray(leaf)
  buffer = io.BytesIO()
  np.savez(buffer, **arrays)
  payload = buffer.getvalue()
  return _line(payload) + b"\n" + payload


class Worlds(ReadOnly):
  """World files: what `load_world` gives."""

  name = "worlds"
  share = 20

  def __init__(self, folder: pathlib.Path):
    """Writes the world, and those that are impossible."""
    self._world = tiny_world()
    self._fingerprint = fingerprint(self._world)
    path = folder / _NAME
    world_io.save_world(path, self._world)
    self._content = path.read_bytes()
    # Else what is crafted would be refused for its form.
    path.write_bytes(_file_of(self._world))
    if self.difference(folder, self.read(folder)):
      raise AssertionError("a world that is crafted right is another")
    self._crafted = {
      what: _file_of(world) for what, world in _impossible(self._world).items()
    }

  def mutate(self, rng: np.random.Generator) -> tuple[str, Files]:
    line, _, payload = self._content.partition(b"\n")
    kind = int(rng.integers(10))
    if kind < 3:
      what, content = mutate.damage_bytes(rng, self._content)
      return what, {_NAME: content}
    if kind < 5:
      what = mutate.pick(rng, list(self._crafted))
      return f"crafted: {what}", {_NAME: self._crafted[what]}
    if kind == 5:
      what, line = mutate.damage_bytes(rng, line)
      what = f"first line: {what}"
    elif kind == 6:
      what, payload = mutate.damage_bytes(rng, payload)
      what, line = f"payload: {what}", _line(payload)
    elif kind < 9:
      what, payload = mutate_npz.damage_archive(rng, payload)
      line = _line(payload)
    else:
      what, payload = self._other_header(rng, payload)
      line = _line(payload)
    return what, {_NAME: line + b"\n" + payload}

  def _other_header(self, rng, payload):
    members = mutate_npz.members_of(payload)
    (place,) = (
      n for n, member in enumerate(members) if member.name == "header.npy"
    )
    header = json.loads(str(np.load(io.BytesIO(members[place].content))))
    what, text = mutate.damage_json_text(rng, header)
    members[place] = mutate_npz.Member(
      "header.npy", mutate_npz.npy(np.asarray(text))
    )
    return f"header: {what}", mutate_npz.pack(members)

  def read(self, folder: pathlib.Path) -> Any:
    return world_io.load_world(folder / _NAME)

  def difference(self, folder: pathlib.Path, found: Any) -> str:
    del folder
    if fingerprint(found) != self._fingerprint:
      return f"a world of fingerprint {fingerprint(found)}"
    same = jax.tree.structure(found) == jax.tree.structure(self._world)
    return "" if same else "other static fields"


def _line(payload: bytes) -> bytes:
  """The file's first line, its checksum right."""
  checksum = hashlib.sha256(payload).hexdigest()
  return f"mtf_jax world {world_io.SCHEMA_VERSION} {checksum}".encode("ascii")
