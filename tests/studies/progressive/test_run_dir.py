"""The folder of a run: its plan, and the folders that are refused."""

import dataclasses
import json

import pytest

from mtf_jax.studies.progressive.config import PRESETS, ProgressiveConfig
from mtf_jax.studies.progressive.run_dir import Plan, RunDir, RunDirError
from tests.tiny_run import TINY

PLAN = Plan(
  world="synthetic",
  preset="smoke",
  seeds=(3, 5, 4, 8),
  parallel_seeds=2,
  leaving=("net_exposure", "satisfaction_floor"),
  learners=("integrated_rl", "integrated_rl:mlp", "bc"),
  config=TINY,
)


@pytest.mark.parametrize("config", [TINY, *PRESETS.values()])
def test_a_configuration_comes_back_from_json(config):
  weights = {**config.train.hyperparams, "group_weights": (1.0, 2.0)}
  config = dataclasses.replace(
    config,
    train=dataclasses.replace(config.train, hyperparams=weights),
    tuned={
      "td3_bc:box": {
        "hidden_sizes": (8, 8),
        "hyperparams": {"group_weights": (2.0, 1.0)},
      }
    },
  )
  values = json.loads(json.dumps(config.to_json()))
  assert ProgressiveConfig.from_json(values) == config


def test_a_plan_comes_back_from_its_folder(tmp_path):
  folder = RunDir(tmp_path / "new" / "run")
  folder.claim(PLAN)
  assert folder.plan() == PLAN
  folder.resume(PLAN)
  assert PLAN.groups == ((3, 5), (4, 8))
  assert set(PLAN.configs) == set(PLAN.learners)
  for other, name in (
    (dataclasses.replace(PLAN, seeds=(3, 5, 4, 9)), "seeds"),
    (dataclasses.replace(PLAN, learners=("bc",)), "learners"),
    (
      dataclasses.replace(PLAN, config=dataclasses.replace(TINY, rounds=3)),
      "rounds",
    ),
  ):
    with pytest.raises(RunDirError, match=f"has another {name};"):
      folder.resume(other)
  with pytest.raises(RunDirError, match="holds a run; add --resume"):
    folder.claim(PLAN)


def test_a_folder_of_the_layout_before_is_refused(tmp_path):
  """Its run.json had no version, and critics where learners are named now."""
  values = PLAN.to_json()
  del values["layout_version"]
  values["critics"] = values.pop("learners")
  path = tmp_path / "run.json"
  path.write_text(json.dumps(values))
  before = path.read_bytes()
  folder = RunDir(tmp_path)
  for use in (folder.plan, lambda: folder.resume(PLAN)):
    with pytest.raises(
      RunDirError, match="expected a run of layout version 2, found 1"
    ):
      use()
  with pytest.raises(RunDirError, match="holds a run"):
    folder.claim(PLAN)
  assert path.read_bytes() == before
  assert list(tmp_path.iterdir()) == [path]


def test_there_is_nothing_to_read_or_resume(tmp_path):
  with pytest.raises(RunDirError, match="expected a progressive run"):
    RunDir(tmp_path).plan()
  with pytest.raises(RunDirError, match="there is no run"):
    RunDir(tmp_path / "none").resume(PLAN)
  assert not (tmp_path / "none").exists()


def test_names_of_learners_are_names_of_folders(tmp_path):
  group = RunDir(tmp_path).group("net_exposure", (3, 5))
  assert group.path == tmp_path / "net_exposure_seed_3_5"
  assert group.learner("integrated_rl:mlp").path.name == "integrated_rl_mlp"
  assert group.read_result() is None
