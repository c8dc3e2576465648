"""The policy of a round, as its export serves it."""

import jax
import numpy as np
import pytest

from mtf_jax.fitting import synthetic
from mtf_jax.io import InputError
from mtf_jax.serving.export import export_policy
from mtf_jax.serving.load import load_policy
from mtf_jax.serving.world_features import observation_features
from mtf_jax.studies.progressive import experiment as experiment_lib
from mtf_jax.studies.progressive.run_dir import RunDir
from mtf_jax.studies.progressive.served import read_run_policy
from mtf_jax.worlds.world import fingerprint
from tests.tiny_run import tiny_plan, tiny_study_learner

_LEAVING = "temper_budget"
pytestmark = pytest.mark.usefixtures("quick_to_compile")


@pytest.fixture(scope="module")
def run(small_world, tmp_path_factory):
  """A run's folder whose policies are as another draw of the network made them."""
  plan = tiny_plan(seeds=(3, 4), leaving=(_LEAVING,))
  run_dir = RunDir(tmp_path_factory.mktemp("run") / "run")
  run_dir.claim(plan)
  world = small_world.with_leaving(_LEAVING)
  config, learner = plan.configs["integrated_rl"], tiny_study_learner()
  experiment = experiment_lib.assemble(config, [world] * 2, plan.seeds, learner)
  experiment = experiment._replace(
    normalization=jax.tree.map(
      lambda leaf: leaf + 0.5, experiment.normalization
    ),
    baseline_action=experiment.baseline_action + 0.25,
  )
  record = {
    "config": config.to_json(),
    "worlds": [fingerprint(world)] * 2,
    "seeds": [3, 4],
  }
  folder = run_dir.group(_LEAVING, plan.seeds).learner("integrated_rl")
  checkpoints = folder.open_rounds(2)
  states = []
  for number in (1, 2):
    experiment = experiment._replace(
      keys={
        **experiment.keys,
        "network": jax.random.split(jax.random.key(number), 2),
      }
    )
    states.append(
      experiment_lib.with_study_learner(experiment, config, learner).start
    )
    checkpoints.save(number, states[-1], record)
  checkpoints.close()
  return run_dir.path, states


@pytest.fixture(autouse=True)
def one_world(small_world, monkeypatch):
  monkeypatch.setattr(
    synthetic, "synthetic_world", lambda size, seed, on_step: small_world
  )


def test_a_round_is_exported_as_it_was(run, small_world, tmp_path):
  path, states = run
  found = read_run_policy(path, round_number=1, seed=4)
  assert found.source == {
    "learner": "integrated_rl",
    "round": 1,
    "seed": 4,
    "leaving": _LEAVING,
    "world": fingerprint(small_world.with_leaving(_LEAVING)),
  }
  assert found.exploration == "session"
  export_policy(
    tmp_path / "policy",
    found.served,
    observation_features(found.world),
    mean=found.normalization.mean,
    scale=found.normalization.scale,
  )
  policy = load_policy(tmp_path / "policy")
  assert policy.manifest.mean == (0.5,) * len(small_world.observation_names)
  learner = tiny_study_learner().learner
  state = experiment_lib.tree_index(states[0], 1)
  rng = np.random.default_rng(0)
  observation = rng.normal(size=(5, len(policy.manifest.features)))
  observation = observation.astype(np.float32)
  expected = [
    learner.act(learner.policy(state), row, jax.random.key(0))
    for row in observation
  ]
  action = policy.act(observation)["baseline_action"]
  np.testing.assert_allclose(action, expected, atol=1e-6)
  # The last round is another policy.
  last = read_run_policy(path, seed=4)
  assert last.source["round"] == 2
  other = learner.act(last.served.params, observation[0], jax.random.key(0))
  assert np.abs(np.asarray(other) - expected[0]).max() > 1e-6


@pytest.mark.parametrize(
  ("choice", "message"),
  [
    ({"round_number": 3}, "round: expected one of 2, 1, as the run has"),
    ({"seed": 7}, "seed: expected one of 3, 4, as the run has them, found 7"),
    ({"leaving": "net_exposure"}, "leaving: expected one of temper_budget"),
    ({"learner": "bc"}, "learner: expected one of integrated_rl"),
  ],
)
def test_what_the_run_does_not_have_is_refused(run, choice, message):
  with pytest.raises(InputError, match=message):
    read_run_policy(run[0], **choice)


def test_another_world_is_refused(run, small_world, monkeypatch):
  monkeypatch.setattr(
    synthetic,
    "synthetic_world",
    lambda size, seed, on_step: small_world.replace(name="x"),
  )
  with pytest.raises(InputError, match=r"checkpoints: expected .*worlds"):
    read_run_policy(run[0])
