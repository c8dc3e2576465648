"""A request in, a row of the log out, and the log into the next round."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq

from mtf_jax import networks, policies
from mtf_jax.data import (
  behaviours,
  import_log,
  log_tables,
  log_values,
  schema_file,
  sharded,
  transitions,
)
from mtf_jax.io import InputError
from mtf_jax.learners.base import normalization_from
from mtf_jax.learners.bc import bc
from mtf_jax.serving import request
from mtf_jax.serving.export import Served, export_policy
from mtf_jax.serving.load import load_policy
from mtf_jax.serving.manifest import Feature, Manifest
from mtf_jax.serving.world_features import observation_features
from mtf_jax.training import loop
from mtf_jax.worlds import rollout as rollout_lib
from mtf_jax.worlds.rollout import session_keys
from tests.session_logs import random_log

_MANIFEST = Manifest(
  features=(
    Feature("age", "years", 0.0, 120.0, 30.0),
    Feature("hour", "cosine", -1.0, 1.0, 0.0),
  ),
  mean=(0.0, 0.0),
  scale=(1.0, 1.0),
  tasks=("a", "b"),
  fusion_spec={},
  half_width=0.15,
  exploration="session",
  slate_size=2,
  source={},
  versions={},
  sha256={},
)


def test_features_stand_where_the_manifest_says():
  found = request.observe(
    _MANIFEST, [{"hour": 0.5, "age": 20}, {"age": np.float32(3), "hour": True}]
  )
  np.testing.assert_array_equal(found.observation, [[20, 0.5], [3, 1]])
  assert found.observation.dtype == np.float32 and not found.replaced


_WRONG = {
  "missing": ({"age": 20}, "expected hour (cosine) from -1 to 1, found none."),
  "nan": ({"age": 20, "hour": float("nan")}, "from -1 to 1, found nan."),
  "high": ({"age": 121, "hour": 0}, "age (years) from 0 to 120, found 121."),
  "text": ({"age": "20", "hour": 0}, "from 0 to 120, found '20'."),
  "nothing": ({"age": None, "hour": 0}, "from 0 to 120, found None."),
}


@pytest.mark.parametrize("case", _WRONG)
def test_a_feature_that_cannot_be_used_is_refused_or_replaced(case):
  wrong, message = _WRONG[case]
  good = {"age": 1, "hour": 0}
  with pytest.raises(InputError) as caught:
    request.observe(_MANIFEST, [good, wrong])
  assert str(caught.value).startswith("request 1: expected ")
  assert str(caught.value).endswith(message)
  found = request.observe(_MANIFEST, [good, wrong], fallback="default")
  (replaced,) = found.replaced
  column = _MANIFEST.observation_names.index(replaced.feature)
  assert replaced.request == 1 and message.endswith(f"{replaced.found}.")
  assert found.observation[1, column] == _MANIFEST.features[column].default
  assert (
    found.observation[1, 1 - column]
    == wrong[_MANIFEST.observation_names[1 - column]]
  )


def test_unknown_features_and_empty_batches_are_refused():
  more = {"age": 1, "hour": 0, "mood": 2}
  with pytest.raises(InputError, match=r"request 0: .* found mood besides"):
    request.observe(_MANIFEST, [more])
  assert not request.observe(_MANIFEST, [more], fallback="default").replaced
  with pytest.raises(InputError, match="requests: expected one or more"):
    request.observe(_MANIFEST, [])
  with pytest.raises(InputError, match="fallback: expected one of refuse, def"):
    request.observe(_MANIFEST, [more], fallback="guess")


def test_what_was_not_served_is_not_logged():
  answer = {
    "log_prob": np.array([1.0, np.nan], np.float32),
    **{name: np.zeros((2, 4)) for name in ("action", "box_lower", "box_upper")},
  }
  arguments = {
    "session": ["a", "b"],
    "step": np.zeros(2),
    "feedback": {},
    "left": np.ones(2, bool),
  }
  with pytest.raises(InputError, match="served, found nan of request 1"):
    request.log_columns(_MANIFEST, np.zeros((2, 2)), answer, **arguments)
  answer["log_prob"] = np.zeros(2)
  arguments["left"] = np.ones(3, bool)
  with pytest.raises(
    InputError, match="left: expected 2 values, one a request"
  ):
    request.log_columns(_MANIFEST, np.zeros((2, 2)), answer, **arguments)


def _trained(log, actor):
  """A round of behaviour cloning on a log."""
  dataset = transitions.device_dataset(log)
  learner = bc(actor)
  example = transitions.sample_transitions(jax.random.key(0), dataset, 1)
  state = learner.init(
    jax.random.key(1),
    jax.tree.map(lambda leaf: leaf[0], example),
    normalization=normalization_from(dataset),
  )
  state = loop.train(
    learner,
    loop.start(jax.random.key(2), state),
    dataset,
    20,
    batch_size=64,
    chunk_size=20,
  )
  return learner, learner.policy(state.learner)


def _sorted(log, ids):
  """Rows by session and step; sessions by the ids given."""
  order = np.lexsort([log.step, ids])
  return jax.tree.map(lambda array: np.asarray(array)[order], log)


@pytest.mark.usefixtures("quick_to_compile")
def test_served_logged_imported_it_trains_the_next_round(small_world, tmp_path):
  """As the round that never left the process."""
  world = small_world
  components = 2 * len(behaviours.TASKS)
  actor = networks.mlp_actor(components, (16,))
  # Stands for the round before: only its sizes are those of the world.
  learner, params = _trained(
    random_log(features=len(world.observation_names), components=components),
    actor,
  )
  served = Served(learner.act, params, world.fusion_spec, world.slate_size)
  export_policy(tmp_path / "policy", served, observation_features(world))
  policy = load_policy(tmp_path / "policy")

  num_sessions = 2500
  rng_key = jax.random.key(3)
  rows = rollout_lib.rollout(
    rng_key,
    world,
    policies.explore_around(learner.act),
    policies.PolicyParams(params, jnp.float32(0.15), jnp.float32(0)),
    num_sessions,
    8,
    "session",
  )
  inside = rollout_lib.pack(rows)
  # A log of requests ends with the last one: what followed a cut is not in it.
  asked = np.flatnonzero(~inside.bootstrap_only)
  inside = jax.tree.map(lambda array: np.asarray(array)[asked], inside)
  assert len(inside.step) >= 10_000

  names = policy.manifest.observation_names
  requests = [
    dict(zip(names, observation, strict=True))
    for observation in inside.observation
  ]
  observed = request.observe(policy.manifest, requests)
  assert not observed.replaced
  _, policy_keys = session_keys(rng_key, num_sessions)
  words = np.asarray(jax.random.key_data(policy_keys))[inside.session_id]
  candidates = world.slate_size + 2
  scores = np.full(
    (len(words), candidates, len(behaviours.TASKS)), 0.5, np.float32
  )
  mask = np.ones(scores.shape[:2], bool)
  answer = policy.serve(observed.observation, scores, mask, words)
  ids = [f"session {number}" for number in inside.session_id]
  feedback = {
    name: inside.feedback[:, n] for n, name in enumerate(behaviours.BEHAVIOURS)
  }
  columns = request.log_columns(
    policy.manifest,
    observed.observation,
    answer,
    session=ids,
    step=inside.step,
    feedback=feedback,
    left=inside.terminal,
  )
  shuffled = np.random.default_rng(0).permutation(len(ids))
  pq.write_table(
    pa.table(columns).take(pa.array(shuffled)), tmp_path / "a.parquet"
  )
  groups = {
    f"group {number}": dict(
      zip(behaviours.BEHAVIOURS, np.asarray(weights).tolist(), strict=True)
    )
    for number, weights in enumerate(world.group_weights)
  }
  schema = schema_file.parse_schema(
    request.log_schema(policy.manifest, groups, max_requests=8)
  )
  report = import_log.import_log(
    schema,
    log_tables.input_files([str(tmp_path / "a.parquet")]),
    tmp_path / "log",
    rows_per_shard=3000,
  )
  assert report.counts["rows read"] == len(ids) and not report.warnings
  numbers = log_values.text_numbers(pa.array(ids), seed=0) >> np.uint64(1)
  outside = sharded.open_log(tmp_path / "log").load_all()
  outside = _sorted(outside, outside.session_id)
  inside = _sorted(inside, numbers)
  for name, rtol, atol in (
    ("observation", 0, 0),
    ("action", 1e-5, 1e-6),
    ("log_prob", 1e-4, 0),
    ("reward", 1e-5, 1e-6),
    ("feedback", 0, 0),
    ("terminal", 0, 0),
    ("exploration_held", 0, 0),
    ("step", 0, 0),
  ):
    np.testing.assert_allclose(
      getattr(outside, name),
      getattr(inside, name),
      rtol=rtol,
      atol=atol,
      err_msg=name,
    )
  np.testing.assert_allclose(outside.box.lower, inside.box.lower, atol=1e-6)
  _, from_outside = _trained(outside, actor)
  _, from_inside = _trained(inside, actor)
  for one, other in zip(
    jax.tree.leaves(from_outside), jax.tree.leaves(from_inside), strict=True
  ):
    np.testing.assert_allclose(one, other, atol=1e-4)


def test_exploration_of_a_request_is_logged_as_such():
  manifest = dataclasses.replace(_MANIFEST, exploration="request")
  groups = {"all": {"like": 1.0}}
  for found, held in ((manifest, False), (_MANIFEST, True)):
    text = request.log_schema(found, groups, max_requests=5)
    assert schema_file.parse_schema(text).exploration.held is held
