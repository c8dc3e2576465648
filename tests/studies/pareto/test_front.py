"""The front of a run: policies of other weights, judged as the run judged."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import networks
from mtf_jax.data import transitions
from mtf_jax.fitting import synthetic
from mtf_jax.io import InputError
from mtf_jax.learners.registry import LEARNERS
from mtf_jax.studies.pareto import front, picture
from mtf_jax.studies.progressive import play
from mtf_jax.studies.progressive.run_dir import RunDir
from mtf_jax.studies.progressive.served import read_single_batch
from mtf_jax.studies.progressive.watch import Watch
from tests.session_logs import random_log
from tests.tiny_run import TINY, tiny_plan, tiny_study_learner

_LEAVING = "temper_budget"
_LEARNER = "slope_regression"
# Returns are whole, and half of the slopes are not taken for noise.
_CONFIG = dataclasses.replace(
  TINY,
  rounds=1,
  sessions_per_round=512,
  tuned={"slope_regression:box": {"draw": "corners", "num_steps": 6}},
)
pytestmark = pytest.mark.usefixtures("quick_to_compile")


def _plan(learner):
  return tiny_plan(
    seeds=(3,),
    parallel_seeds=1,
    leaving=(_LEAVING,),
    learners=(learner,),
    config=_CONFIG,
  )


@pytest.fixture(scope="module")
def run(small_world, tmp_path_factory):
  """A finished run's folder, and its result."""
  plan = _plan(_LEARNER)
  run_dir = RunDir(tmp_path_factory.mktemp("pareto") / "run")
  run_dir.claim(plan)
  result = play.play_group(
    plan.configs,
    {_LEARNER: tiny_study_learner(f"{_LEARNER}:box")},
    [small_world.with_leaving(_LEAVING)],
    plan.seeds,
    run_dir.group(_LEAVING, plan.seeds),
    Watch(10),
    lambda _: None,
  )
  return run_dir.path, result["3"]


@pytest.fixture(autouse=True)
def one_world(small_world, monkeypatch):
  monkeypatch.setattr(
    synthetic, "synthetic_world", lambda size, seed, on_step: small_world
  )


@pytest.fixture
def found(run):
  return read_single_batch(run[0])


def test_the_middle_is_the_policy_of_the_run(run, found):
  _, of_seed = run
  told = []
  result = front.measure(
    found, (0.0, 1.0), on_step=lambda *counts: told.append(counts)
  )
  # The baseline and three weights.
  assert told == [(done, 4) for done in range(5)]
  single = of_seed["learners"][_LEARNER]["single_batch"]
  middle = result["rows"][1]
  for name, figure in (
    ("reward", "reward_gain_pct"),
    ("valid", "uvc_gain_pct"),
    ("watch", "udt_gain_pct"),
  ):
    assert middle[f"{name}_gain_pct"] == pytest.approx(single[figure], abs=1e-3)
  assert result["source"]["seed"] == 3
  assert [row["share"] for row in result["rows"]] == [0.0, 0.5, 1.0]
  assert middle["watch_over_equal_pct"] == 0.0
  for row in result["rows"]:
    ratio = (100 + row["valid_gain_pct"]) / (100 + middle["valid_gain_pct"])
    assert row["valid_over_equal_pct"] == pytest.approx(
      100 * (ratio - 1), abs=1e-6
    )
  # Another weight is another policy.
  assert result["rows"][0]["reward_gain_pct"] != pytest.approx(
    result["rows"][2]["reward_gain_pct"], abs=1e-4
  )
  low, high = result["hypervolume_ci95"]
  assert 0 <= low <= high
  assert len(front.table(result).rows) == 3


def test_an_end_is_the_learner_of_that_group_alone(found):
  learner = found.experiment.study_learner.learner
  state = jax.tree.map(lambda leaf: leaf[0], found.state)
  for share, alone in ((1.0, [1.0, 0.0]), (0.0, [0.0, 1.0])):
    hyperparams = state.hyperparams._replace(
      group_weights=jnp.asarray(alone, jnp.float32)
    )
    expected = learner.policy(state._replace(hyperparams=hyperparams))
    given = learner.policy(front.weighted(state, share))
    observation = found.experiment.normalization.mean[0] + 1.0
    key = jax.random.key(0)
    # Weights of 2 and of 1: float32 sums round otherwise before they cancel.
    np.testing.assert_allclose(
      learner.act(given, observation, key),
      learner.act(expected, observation, key),
      rtol=1e-4,
      atol=1e-6,
    )


def test_weights_as_an_input_are_the_shares():
  """Of seeds side by side, as a run has them."""
  learner = LEARNERS["preference_rl"].build(
    networks.mlp_actor(2, (4,)), networks.mlp_critic(2, 1, (4,))
  )
  dataset = transitions.device_dataset(random_log())
  one = transitions.sample_transitions(jax.random.key(0), dataset, 1)
  example = jax.tree.map(lambda leaf: leaf[0], one)
  states = jax.vmap(lambda key: learner.init(key, example))(
    jax.random.split(jax.random.key(1), 3)
  )
  served = jax.vmap(learner.policy)(front.weighted(states, 0.25))
  np.testing.assert_allclose(
    served.preference, np.tile([0.5, 1.5], (3, 1)), rtol=1e-6
  )
  assert LEARNERS["preference_rl"].any_weights
  assert not LEARNERS["integrated_rl"].any_weights


def test_the_interval_of_the_area_is_that_of_drawing_users_again():
  rng = np.random.default_rng(0)
  base = rng.gamma(4.0, size=(2, 4000))
  # Everybody gains 10% of one and 20% of the other: nothing is uncertain.
  sums = front.Sums(1.1 * base[:1], 1.2 * base[1:], *base)
  np.testing.assert_allclose(front.volume_interval(sums), [200, 200], rtol=1e-6)
  noise = rng.normal(1.0, 1.0, (2, 4000))
  sums = front.Sums(base[:1] * (1 + 0.1 * noise[0]), 1.2 * base[1:], *base)
  low, high = front.volume_interval(sums)
  error = np.std(base[0] * (0.1 * noise[0] - 0.1)) / base[0].mean() / 4000**0.5
  # The ends are quantiles of 1,000 draws, each within 5% of the width or so.
  assert high - low == pytest.approx(2 * 1.96 * 100 * error * 20, rel=0.15)
  assert low < 200 < high


def test_the_picture_is_a_png(found, tmp_path):
  pytest.importorskip("matplotlib")
  path = tmp_path / "front.png"
  picture.save(front.measure(found, (0.0, 0.5)), path)
  assert path.read_bytes()[:4] == b"\x89PNG"


def test_a_run_that_is_not_done_is_refused(tmp_path):
  run_dir = RunDir(tmp_path / "run")
  run_dir.claim(_plan(_LEARNER))
  with pytest.raises(InputError, match="expected a finished run"):
    read_single_batch(run_dir.path)


def test_a_learner_that_must_be_trained_again_is_refused(found):
  source = {**found.source, "learner": "integrated_rl"}
  with pytest.raises(InputError, match="slope_regression, found integrated_rl"):
    front.measure(found._replace(source=source))


def test_a_world_of_other_groups_is_refused(found):
  world = found.experiment.world
  weights = jnp.concatenate([world.group_weights] * 2, axis=1)
  experiment = found.experiment._replace(
    world=world.replace(group_weights=weights)
  )
  with pytest.raises(InputError, match="expected 2 reward groups"):
    front.measure(found._replace(experiment=experiment))
