import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax.data.behaviours import BEHAVIOURS, INDEX
from mtf_jax.evaluation import oracle
from mtf_jax.evaluation import statistics as stats
from mtf_jax.learners.es import Search
from mtf_jax.studies.audit import audit, marginals, probe
from mtf_jax.studies.audit import effort as effort_lib
from mtf_jax.worlds import env
from mtf_jax.worlds import returns as returns_lib

pytestmark = pytest.mark.usefixtures("quick_to_compile")


def _facts(num_rows=4000, click=0.5, seed=0):
  rng = np.random.default_rng(seed)
  feedback = (rng.random((num_rows, len(BEHAVIOURS))) < 0.3).astype(np.float32)
  feedback[:, INDEX["click"]] = rng.random(num_rows) < click
  feedback[:, INDEX["long_view"]] = feedback[:, INDEX["click"]]
  feedback[:, INDEX["play_seconds"]] = np.linspace(0, 100, num_rows)
  user = np.arange(num_rows) // 40
  duration = np.full(num_rows, 60.0)
  duration[0] = np.inf
  return marginals.describe(feedback, duration, user, rng.permutation(user))


def test_describe_by_hand():
  facts = _facts()
  rate = facts["rates"]["click"]
  assert facts["rates"]["long_view"] == rate
  np.testing.assert_allclose(
    facts["lifts"]["click&long_view"]["lift"], 1 / rate
  )
  np.testing.assert_allclose(facts["play_deciles"], np.arange(10, 100, 10))
  assert abs(facts["icc"]["click_by_user"]) < 0.02
  json.dumps(facts, allow_nan=False)


def test_icc_of_known_heterogeneity():
  rng = np.random.default_rng(0)
  a, b = 3.0, 3.0
  groups = np.repeat(np.arange(2000), 20)
  event = rng.random(groups.size) < np.repeat(rng.beta(a, b, 2000), 20)
  np.testing.assert_allclose(marginals._icc(event, groups), 1 / 7, atol=0.02)


def test_compare_sees_each_kind_of_error():
  reference = _facts()
  same = marginals.marginal_errors(reference, reference)
  assert all(value == 0 for value in same.values())
  other = _facts(click=0.7)
  other["play_deciles"] = [2 * x for x in reference["play_deciles"]]
  errors = marginals.marginal_errors(other, reference)
  np.testing.assert_allclose(errors["marginals_max_rel_error"], 0.4, atol=0.05)
  np.testing.assert_allclose(errors["play_time_deciles_max_rel_error"], 1.0)


@pytest.fixture(scope="module")
def few(small_world):
  return audit.small_population(small_world, 64)


def test_search_finds_a_gain(few):
  table = returns_lib.expected_rewards(few)
  start = oracle.start_policy(few, env.observe, jnp.zeros(10), 2.0)
  start = oracle.blinded(start)
  found = oracle.optimise(
    jax.random.key(0),
    few,
    table,
    start,
    Search(10, 256, learning_rate=0.1),
    8,
    env.observe,
  )
  # A blind policy has learnt one action and nothing of the observation.
  assert not np.any(np.asarray(found.weights[:, 1:]))

  def value(policy):
    returns = returns_lib.session_returns(
      jax.random.key(9), few, table, oracle.linear_act, policy, 1024, 8
    )
    return np.asarray(returns.expected).sum(axis=1)

  assert stats.relative_gain(value(found), value(start)).low > 0


def test_sensitivity_is_nothing_at_the_best_action(few):
  """Weights that the grid holds: there the paired gain is 0, without error."""
  table = returns_lib.expected_rewards(few)
  best = oracle.blinded(
    oracle.start_policy(few, env.observe, jnp.zeros(few.num_actions), 1.0)
  )
  effort = effort_lib.PRESETS["smoke"]._replace(sessions=128, max_requests=4)
  counts = []
  found = audit.sensitivity(few, table, best, effort, counts.append)
  assert sum(counts) == 64 * 3 * few.num_actions
  assert found["grid"] == [-1.0, 0.0, 1.0]
  low, gain, high = (np.array(found[name]) for name in ("low", "gain", "high"))
  assert gain.shape == (few.num_actions, 3)
  for values in (low, gain, high):
    np.testing.assert_array_equal(values[:, 1], 0)
  # Every power moves some list, so its gain has an error; a bias may not.
  powers = few.num_actions // 2
  assert np.all((low < gain)[:powers, [0, 2]])
  np.testing.assert_allclose(gain - low, high - gain, atol=1e-9)


def test_an_audit_tells_of_all_the_sessions_it_announces(few, monkeypatch):
  """Nothing is played: what is counted is what the parts are asked to play."""
  zeros = np.zeros(4) + np.arange(4)
  monkeypatch.setattr(audit, "_totals", lambda *_, **__: (zeros + 1, 3.0))
  monkeypatch.setattr(audit, "explained_share", lambda *_: {})
  monkeypatch.setattr(
    audit, "linear_probe", lambda world, center, policy, effort: (policy, {})
  )
  monkeypatch.setattr(
    oracle, "optimise", lambda key, world, table, start, *_: start
  )
  effort = effort_lib.PRESETS["full"]
  counts = []
  audit.audit_leaving(few, None, effort, counts.append)
  assert sum(counts) == audit.num_sessions(effort, few.num_actions)
  # The searches, by what the optimiser plays in them.
  assert counts[0] == 120 * 2 * 4096
  assert counts[1:4] == [80 * 2 * 4096] * 3


def test_boxed_policy_stays_in_its_box(few):
  center = jnp.full(10, 0.9)
  policy = oracle.start_policy(few, env.observe, center, 0.15)
  policy = policy._replace(weights=policy.weights + 1.0)
  observation = jnp.linspace(-5, 5, len(few.observation_names))
  decision = oracle.linear_act(policy, observation, jax.random.key(0))
  np.testing.assert_allclose(decision.action, 1.0)


def test_start_policy_compiles_once_per_view(small_world):
  traces = []

  def observe_fn(world, state):
    traces.append(None)
    return env.observe(world, state)

  for number, other in enumerate((small_world, small_world.replace())):
    other = other.replace(group_weights=other.group_weights * (1.0 + number))
    action = jnp.full(10, 0.1 * number, jnp.float32)
    policy = oracle.start_policy(other, observe_fn, action, 0.15)
    np.testing.assert_allclose(policy.weights[:, 0], action)
  assert len(traces) == 1


def test_probe_errors_take_sessions_as_units(few):
  """Of 260 slopes next to none is far from 0 after so few sessions.

  With rows as units about 20 are: those of a session share their deviation.
  """
  center = jnp.zeros(10)
  scaling = oracle.start_policy(few, env.observe, center, 0.15)
  effort = effort_lib.PRESETS["smoke"]._replace(
    probe_sessions=2048, max_requests=12
  )
  policy, figures = probe.linear_probe(few, center, scaling, effort)
  assert figures["rows"] > 4 * 2048
  assert figures["coefficients"] == policy.weights.size == 260
  assert figures["beyond_3_sigma"] <= 6


def test_embedded_reference_has_what_the_audit_needs():
  reference = marginals.load_reference()
  assert set(reference["rates"]) == set(BEHAVIOURS) - {"play_seconds"}
  assert len(reference["play_deciles"]) == 9


def _falls_short(key, why):
  """A limit of version 1 that version 2 does not keep yet, see docs/limits.md."""
  return pytest.param(key, marks=pytest.mark.xfail(strict=True, reason=why))


@pytest.mark.parametrize(
  "key",
  [
    _falls_short("marginals", "likes of few users are 19% above the log"),
    _falls_short("deciles", "play times spread 16 to 20% more than the log's"),
    "lift",
  ],
)
def test_default_slates_look_like_the_log(small_world, key):
  """The small world; the base world's figures are in docs/results/worlds.md."""
  facts = audit.shown_under_defaults(small_world, 2048, 8)
  errors = marginals.marginal_errors(facts, marginals.load_reference())
  limit = {"marginals": 0.10, "deciles": 0.15, "lift": 0.35}[key]
  (value,) = (v for name, v in errors.items() if key in name)
  assert value < limit
