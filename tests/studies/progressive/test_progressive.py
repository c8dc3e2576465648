import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax.data import session_log, transitions
from mtf_jax.evaluation import ab_test, known_weights
from mtf_jax.io import InputError
from mtf_jax.kernels.exploration import action_box
from mtf_jax.policies import EXPLORATIONS
from mtf_jax.studies.progressive import baselines, comparisons
from mtf_jax.studies.progressive import collect as collect_lib
from mtf_jax.studies.progressive import experiment as experiment_lib
from mtf_jax.studies.progressive import memory as progressive_memory
from mtf_jax.studies.progressive import rounds as progressive
from mtf_jax.worlds import returns as returns_lib
from mtf_jax.worlds import rollout as rollout_lib
from tests.small_world import small_world
from tests.tiny_run import TINY, tiny_study_learner

pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def world():
  return small_world()


@pytest.fixture(scope="module")
def experiment(world):
  return baselines.prepare(TINY, [world] * 2, [0, 1], tiny_study_learner())


def _first(tree):
  return experiment_lib.tree_index(tree, 0)


def _params(experiment, state, half_width=0.0):
  return _first(
    experiment_lib.policy_params(experiment.study_learner, state, half_width)
  )


def _collect(experiment, half_width=0.15, exploration="request"):
  return rollout_lib.rollout(
    jax.random.key(3),
    _first(experiment.world),
    experiment.study_learner.act,
    _params(experiment, experiment.start, half_width),
    TINY.sessions_per_round,
    TINY.max_requests,
    exploration,
  )


def _without_seconds(figures):
  return {name: x for name, x in figures.items() if name != "seconds"}


def _policy_actions(experiment, observation):
  """Actions `[N, A]` of the first run's policy in service, without a box."""
  learner = experiment.study_learner.learner
  return jax.vmap(learner.act, in_axes=(None, 0, None))(
    learner.policy(_first(experiment.start)),
    jnp.asarray(observation),
    jax.random.key(0),
  )


def test_rows_carry_the_box_around_the_policy_in_service(experiment):
  log = rollout_lib.pack(_collect(experiment))
  session_log.validate(log)
  policy = _policy_actions(experiment, log.observation)
  box = jax.vmap(action_box)(policy)
  np.testing.assert_allclose(log.box.lower, box.lower, atol=1e-6)
  np.testing.assert_allclose(log.box.upper, box.upper, atol=1e-6)
  served = ~log.bootstrap_only
  np.testing.assert_allclose(
    log.log_prob[served],
    -np.sum(np.log(log.box.upper - log.box.lower), axis=1)[served],
    rtol=1e-5,
  )
  deviation = (log.action - np.asarray(policy))[served]
  assert 0.1 < np.abs(deviation).max() <= 0.15 + 1e-6


def test_not_exploring_serves_the_policy_itself(experiment):
  log = rollout_lib.pack(_collect(experiment, half_width=0.0))
  served = ~log.bootstrap_only
  policy = _policy_actions(experiment, log.observation)
  np.testing.assert_allclose(
    log.action[served], np.asarray(policy)[served], atol=1e-6
  )


def _drawn_from(dataset):
  """What a batch may hold, in the log's order, `observation_t` where it is used."""
  count = int(dataset.num_transitions)
  row = np.asarray(dataset.start_row[:count])
  goes_on = np.asarray(dataset.discount)[row] > 0
  following = np.asarray(dataset.next_row)[row][goes_on]
  here = (
    *(dataset.observation, dataset.action, dataset.box.lower),
    *(dataset.box.upper, dataset.log_prob, dataset.exploration_held),
    *(dataset.reward, dataset.discount),
  )
  there = (dataset.observation, dataset.box.lower, dataset.box.upper)
  return (
    *(np.asarray(x)[row] for x in here),
    *(np.asarray(x)[following] for x in there),
  )


@pytest.mark.parametrize(
  ("num_steps", "exploration"), [(1, "request"), (4, "session")]
)
@pytest.mark.parametrize("cut", transitions.CUTS)
def test_a_round_and_its_file_give_the_same_rows(
  experiment, tmp_path, cut, num_steps, exploration
):
  rows = _collect(experiment, exploration=exploration)
  flat = collect_lib.flat_rows(rows)
  # Two seeds and room to spare, the second half of it filled.
  part = experiment_lib.tree_stack(
    [flat, jax.tree.map(lambda x: x[::-1], flat)]
  )
  first = jnp.asarray(part.terminal.shape[1], jnp.int32)
  whole = collect_lib.put_rows(collect_lib.empty_rows(part, 2), part, first)
  options = {"cut": cut, "num_steps": num_steps, "discount": 0.9}
  device = transitions.dataset_from(_first(whole), **options)
  log = rollout_lib.pack(rows)
  assert log.bootstrap_only.any() and log.terminal.any()
  session_log.save_sessions(tmp_path / "log.npz", log)
  loaded, _ = session_log.load_sessions(tmp_path / "log.npz")
  packed = transitions.device_dataset(loaded, **options)
  drawn = transitions.sample_transitions(jax.random.key(0), packed, 8)
  held = np.asarray(drawn.exploration_held_tm1)
  assert np.all(held == (exploration == "session"))
  found, expected = _drawn_from(device), _drawn_from(packed)
  for ours, theirs in zip(found, expected, strict=True):
    np.testing.assert_array_equal(ours, theirs)
  served, cuts = int((~log.bootstrap_only).sum()), log.bootstrap_only.sum()
  assert len(found[0]) == served - (cuts if cut == "drop" else 0)
  if cut == "end":
    # What a round is trained on.
    study = _first(collect_lib.as_dataset(whole, num_steps, 0.9))
    jax.tree.map(np.testing.assert_array_equal, study, device)


def test_actor_starts_at_the_baseline_policy(experiment):
  start = experiment.baseline_action[0]
  assert np.any(np.abs(start) > 0.01)
  for n in range(3):
    mean, scale = _first(experiment.start.normalization)
    observation = mean + scale * jax.random.normal(
      jax.random.key(n), mean.shape
    )
    np.testing.assert_allclose(
      _policy_actions(experiment, observation[None, :])[0], start, atol=0.05
    )
  network = experiment.start.actor_params["network"]
  still = experiment.start._replace(
    actor_params={
      **experiment.start.actor_params,
      "network": jax.tree.map(jnp.zeros_like, network),
    }
  )
  # The baseline policy is judged as a fixed action: the same sessions.
  results = experiment_lib.evaluate_state(experiment, still)
  np.testing.assert_allclose(results.reward, experiment.base.reward, rtol=1e-4)


def test_judging_pairs_users_and_keeps_the_reward(experiment):
  key = jax.random.key(9)

  evaluation_world, table, world = map(
    _first, (experiment.evaluation_world, experiment.table, experiment.world)
  )

  def evaluate(params):
    return ab_test.evaluate(
      key, evaluation_world, table, experiment.study_learner.act, params, 96, 6
    )

  service = _params(experiment, experiment.start)
  policy = evaluate(service)
  other = evaluate(_params(experiment, experiment.start, 0.15))
  np.testing.assert_array_equal(policy.user, other.user)
  assert not np.array_equal(policy.reward, other.reward)
  jax.tree.map(np.testing.assert_array_equal, policy, evaluate(service))
  assert set(np.asarray(policy.user)) <= set(np.asarray(world.population))
  returns = returns_lib.session_returns(
    key,
    world,
    returns_lib.expected_rewards(world),
    experiment.study_learner.act,
    service,
    96,
    6,
  )
  np.testing.assert_allclose(
    policy.reward, np.asarray(returns.expected).sum(axis=1), rtol=1e-4
  )
  np.testing.assert_allclose(policy.requests, returns.requests, rtol=1e-5)
  # The first group is watching time, a unit for 30 s.
  np.testing.assert_allclose(
    policy.outcome[:, 1] / 30, np.asarray(returns.expected)[:, 0], rtol=1e-4
  )


def test_the_cost_of_exploring_is_that_of_the_noise_that_is_used(experiment):
  def evaluate(half_width, held):
    evaluation_world, table = map(
      _first, (experiment.evaluation_world, experiment.table)
    )
    params = _params(experiment, experiment.start, half_width)
    act = experiment.study_learner.act
    key = jax.random.key(9)
    return ab_test.evaluate(
      key, evaluation_world, table, act, params, 96, 6, held=jnp.asarray(held)
    )

  np.testing.assert_array_equal(
    evaluate(0.0, True).reward, evaluate(0.0, False).reward
  )
  held, anew = evaluate(0.15, True), evaluate(0.15, False)
  assert not np.array_equal(held.reward, anew.reward)


@pytest.mark.parametrize("exploration", EXPLORATIONS)
def test_rounds_log_the_exploration_that_is_asked_for(experiment, exploration):
  config = dataclasses.replace(TINY, exploration=exploration)
  split = jax.vmap(jax.random.split)(experiment.keys["round"])
  rows = progressive._collect(
    experiment._replace(config=config), split[:, 0], experiment.start
  )
  dataset = _first(rows)
  first = np.asarray(dataset.start_row[: int(dataset.num_transitions)])
  box = jax.tree.map(np.asarray, dataset.box)
  width = np.maximum(box.upper - box.lower, 1e-6)
  place = (np.asarray(dataset.action) - box.lower) / width
  pairs = first[:-1][np.diff(first) == 1]
  same_session = pairs[pairs % (TINY.max_requests + 1) < TINY.max_requests]
  assert same_session.size > 50
  change = np.abs(place[same_session + 1] - place[same_session]).max(axis=1)
  if exploration == "session":
    np.testing.assert_allclose(change, 0, atol=1e-4)
  else:
    assert np.median(change) > 0.2


def test_a_seed_has_its_figures_alone_and_beside_others(experiment, world):
  """To 1e-3: contractions are batched anew."""
  assert not np.allclose(
    experiment.baseline_action[0], experiment.baseline_action[1]
  )
  state, figures = progressive.play_round(experiment, experiment.start, 0)
  alone = baselines.prepare(TINY, [world], [1], experiment.study_learner)
  np.testing.assert_array_equal(
    alone.world.population[0], experiment.world.population[1]
  )
  np.testing.assert_array_equal(alone.base.user[0], experiment.base.user[1])
  np.testing.assert_allclose(
    alone.baseline_action[0], experiment.baseline_action[1], atol=1e-3
  )
  alone_state, (alone_figures,) = progressive.play_round(alone, alone.start, 0)
  assert alone_figures["rows"] == figures[1]["rows"]
  assert figures[0]["rows"] != figures[1]["rows"]
  for name in ("reward_gain_pct", "hate_rate", "drift", "exploration_cost_pct"):
    np.testing.assert_allclose(
      alone_figures[name], figures[1][name], rtol=1e-2, atol=1e-3
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a[0], b[1], rtol=1e-2, atol=1e-3),
    alone_state.actor_params,
    state.actor_params,
  )


def test_rounds_repeat_and_move_the_policy(experiment, world):
  state, figures = progressive.play_round(experiment, experiment.start, 0)
  for of_seed in figures:
    assert of_seed["rows"] > TINY.sessions_per_round
    assert max(of_seed["drift"]) > 1e-3
    assert 0 <= of_seed["outside_share"] <= 1
    histogram = np.array(of_seed["drift_histogram"])
    np.testing.assert_allclose(histogram.sum(axis=1), 1, rtol=1e-5)
  again = baselines.prepare(TINY, [world] * 2, [0, 1], experiment.study_learner)
  same_state, same = progressive.play_round(again, again.start, 0)
  for ours, theirs in zip(same, figures, strict=True):
    assert _without_seconds(ours) == _without_seconds(theirs)
  jax.tree.map(np.testing.assert_array_equal, same_state, state)
  _, following = progressive.play_round(experiment, state, 1)
  for ours, theirs in zip(following, figures, strict=True):
    assert ours["reward_gain_pct"] != theirs["reward_gain_pct"]
    # ES stays what policies are held against.
    assert ours["hate_rate_base"] == theirs["hate_rate_base"]


def test_sessions_are_collected_in_parts(experiment):
  whole = progressive._collect(
    experiment, experiment.keys["round"], experiment.start
  )
  config = dataclasses.replace(TINY, collect_parts=2)
  parts = progressive._collect(
    experiment._replace(config=config),
    experiment.keys["round"],
    experiment.start,
  )
  assert parts.observation.shape == whole.observation.shape
  for dataset in (whole, parts):
    count = np.asarray(dataset.num_transitions)
    assert np.all(count > TINY.sessions_per_round)
    # Half of the room is for the second round.
    assert np.all(dataset.start_row < dataset.discount.shape[1] // 2)
  assert not np.array_equal(whole.action, parts.action)


def test_single_batch_and_oracle_have_their_figures(experiment):
  state, once = progressive.play_single_batch(experiment)
  # Sessions of up to 8 requests instead of 6: another figure, and not far off.
  uncut = comparisons.compare_sessions(
    experiment_lib.evaluate_state(
      experiment, state, max_requests=TINY.uncut_requests
    ),
    baselines.evaluate_action(
      experiment, experiment.baseline_action, TINY.uncut_requests
    ),
    "reward",
  )
  for cut, longer in zip(once, uncut, strict=True):
    assert longer.gain != cut["reward_gain_pct"]
    assert abs(longer.gain - cut["reward_gain_pct"]) < 10
  assert state.actor_params["start"].shape == experiment.baseline_action.shape
  assert all(np.isfinite(figures["reward_gain_pct"]) for figures in once)
  best = baselines.privileged_optimum(experiment).results
  np.testing.assert_array_equal(best.user, experiment.base.user)
  assert not np.array_equal(best.reward, experiment.base.reward)
  # Held to the rounds' boxes it does something else.
  boxed = baselines.in_box_optimum(experiment).results
  np.testing.assert_array_equal(boxed.user, experiment.base.user)
  assert not np.array_equal(boxed.reward, experiment.base.reward)


def test_weights_on_record_are_not_searched_for(
  experiment, world, monkeypatch, tmp_path
):
  """The record is by world and effort; another effort searches."""
  path = tmp_path / "known_weights.json"
  monkeypatch.setattr(known_weights, "PATH", path)
  of_seed = experiment_lib.tree_index(experiment.world, 0)
  action = [0.125] * 10
  effort = TINY.global_search
  known_weights.write(
    known_weights.entry(
      of_seed, TINY.max_requests, effort, {"action": action, "stopped": True}
    )
  )
  found = baselines.prepare(TINY, [world], [0], experiment.study_learner)
  np.testing.assert_array_equal(found.baseline_action[0], action)
  (figures,) = baselines.baseline_figures(found)
  assert figures["stopped"] is True
  assert figures["reward_per_session"] > 0
  longer = effort._replace(max_stages=effort.max_stages + 1)
  assert known_weights.find(of_seed, TINY.max_requests, longer) is None
  assert known_weights.find(of_seed, TINY.max_requests + 1, effort) is None
  known_weights._read.cache_clear()


def test_platform_es_has_the_budget_of_the_rounds(experiment):
  found = baselines.platform_es(experiment)
  action = np.array([figures["action"] for figures in found.figures])
  for figures in found.figures:
    assert figures["sessions"] == TINY.rounds * TINY.sessions_per_round
  assert np.all(np.abs(action) <= 0.95)
  assert not np.any(np.all(action == experiment.baseline_action, axis=1))
  np.testing.assert_array_equal(found.results.user, experiment.base.user)


def test_a_seed_that_fails_is_named(experiment):
  hyperparams = experiment.start.hyperparams
  shift = hyperparams.reward_shift.at[1].set(np.nan)
  start = experiment.start._replace(
    hyperparams=hyperparams._replace(reward_shift=shift)
  )
  with pytest.raises(InputError, match="seed 1: expected finite"):
    progressive.play_round(experiment, start, 0)


def test_unknown_exploration_is_refused():
  with pytest.raises(ValueError, match="exploration: expected one of session"):
    dataclasses.replace(TINY, exploration="gaussian")


def test_a_learner_is_trained_as_it_was_tuned():
  own = {"num_steps": 3, "hyperparams": {"critic_learning_rate": 0.5}}
  config = dataclasses.replace(TINY, tuned={"integrated_rl:mlp": own})
  assert config.with_learner("integrated_rl").train == TINY.train
  assert config.with_learner("integrated_rl:box").train == TINY.train
  found = config.with_learner("integrated_rl:mlp").train
  assert (found.critic, found.num_steps) == ("mlp", 3)
  assert found.hyperparams == {
    **TINY.train.hyperparams,
    "critic_learning_rate": 0.5,
  }
  assert found.hidden_sizes == TINY.train.hidden_sizes
  with pytest.raises(ValueError, match="critic: expected one of"):
    config.with_learner("integrated_rl:plain")
  with pytest.raises(ValueError, match="learner: expected"):
    config.with_learner("plain")
  wrong = {"integrated_rl:mlp": {"hyperparams": {"speed": 1.0}}}
  with pytest.raises(ValueError, match="hyperparams: expected fields"):
    dataclasses.replace(TINY, tuned=wrong)


def test_empty_counts_are_refused():
  with pytest.raises(ValueError, match="rounds: expected 1 or more, found 0"):
    dataclasses.replace(TINY, rounds=0)
  with pytest.raises(ValueError, match="check_continuations: expected 2"):
    dataclasses.replace(TINY, check_continuations=1)
  with pytest.raises(ValueError, match="expected a multiple of collect_parts"):
    dataclasses.replace(TINY, collect_parts=3)


def test_memory_of_a_run_is_read_from_its_compiled_programs(experiment):
  result = progressive_memory.measure(experiment)
  # Two seeds, two rounds of 64 sessions of 6 requests and a row more.
  rows = 2 * 2 * 64 * 7
  features, actions, groups = experiment.normalization.mean.shape[1], 10, 2
  row = 4 * (features + 3 * actions + groups)
  put, chunk = (result["programs"][n] for n in ("put_rows", "update_chunk"))
  # Written in place. The density of the action, four flags and the step here;
  # in the dataset density, two flags, a discount, the step and two indices.
  assert put["alias_bytes"] == rows * (row + 12)
  assert put["output_bytes"] - put["alias_bytes"] < 1024
  # The learner has no use for densities.
  assert chunk["argument_bytes"] >= rows * (row + 12)
  assert result["resident_bytes"]["rows"] == rows * (row + 22) + 2 * 4
  # Three flags and the step.
  assert result["resident_bytes"]["row_flags"] == rows * 7
  search, table, drift = (
    result["programs"][n] for n in ("search", "expected_rewards", "drift")
  )
  assert table["output_bytes"] >= result["resident_bytes"]["reward_table"]
  assert search["argument_bytes"] >= result["resident_bytes"]["reward_table"]
  # Reads the actor of two states, and of the rows observation, box and start.
  assert drift["argument_bytes"] >= rows * 4 * (features + 2 * actions)
  fresh = max(
    x["output_bytes"] - x["alias_bytes"] + x["temp_bytes"]
    for x in result["programs"].values()
  )
  assert result["peak_bytes_of_these"] == fresh + sum(
    result["resident_bytes"].values()
  )
