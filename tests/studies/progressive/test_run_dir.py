"""The folder of a run: its plan, and the folders that are refused."""

import dataclasses
import errno
import json

import pytest

from mtf_jax import folder_lock
from mtf_jax.io import InputError
from mtf_jax.studies.progressive import records, study
from mtf_jax.studies.progressive.config import PRESETS, ProgressiveConfig
from mtf_jax.studies.progressive.experiment import assemble
from mtf_jax.studies.progressive.run_dir import RunDir, RunDirError
from tests.tiny_run import TINY, tiny_plan

PLAN = tiny_plan(
  seeds=(3, 5, 4, 8),
  leaving=("net_exposure", "satisfaction_floor"),
  learners=("integrated_rl", "integrated_rl:mlp", "bc"),
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
  values["critics"] = values.pop("learners")
  path = tmp_path / "run.json"
  path.write_text(json.dumps(values))
  before = path.read_bytes()
  folder = RunDir(tmp_path)
  for use in (folder.plan, lambda: folder.resume(PLAN)):
    with pytest.raises(
      RunDirError, match="of layout version 3, found 1, which another"
    ):
      use()
  with pytest.raises(RunDirError, match="holds a run"):
    folder.claim(PLAN)
  assert _contents(folder) == {path.relative_to(tmp_path): before}


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
  assert group.read_result({}) is None


@pytest.fixture
def run(tmp_path):
  """A folder that was claimed, with a group of seeds begun."""
  folder = RunDir(tmp_path / "run")
  folder.claim(PLAN)
  folder.group("net_exposure", (3, 5)).path.mkdir()
  return folder


def _contents(folder):
  return {
    path.relative_to(folder.path): path.read_bytes()
    for path in sorted(folder.path.rglob("*"))
    if path.is_file() and path.name != folder_lock.FILE_NAME
  }


@pytest.mark.parametrize(
  ("damage", "found"),
  [
    (lambda text: "", "an empty file"),
    (lambda text: text[:300], "what is no JSON"),
    (lambda text: "\x00" * len(text), "what is no JSON"),
    (lambda text: "[]", "JSON of a list"),
    (lambda text: text.replace('"seeds"', '"seedz"'), "it is damaged"),
    (lambda text: text.replace('"smoke"', '"smoky"'), "it is damaged"),
  ],
)
def test_a_damaged_plan_is_refused_with_a_way_on(run, damage, found):
  path = run.path / "run.json"
  path.write_text(damage(path.read_text()))
  before = _contents(run)
  for use in (run.plan, lambda: run.resume(PLAN)):
    with pytest.raises(RunDirError, match=f"run.json: .*{found}") as caught:
      use()
    assert "move it away and give --resume with the flags" in str(caught.value)
  with pytest.raises(RunDirError, match="holds a run"):
    run.claim(PLAN)
  assert _contents(run) == before
  # The way on that the sentence names.
  path.rename(path.with_name("run.json.old"))
  with pytest.raises(RunDirError, match=r"net_exposure_seed_3_5.*add --resume"):
    run.claim(PLAN)
  run.resume(PLAN)
  assert run.plan() == PLAN


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("seeds", 7, "a value of another type"),
    ("seeds", ["3"], "seeds: expected an integer from 0 to"),
    ("parallel_seeds", 0, "parallel_seeds: expected"),
    ("parallel_seeds", "2", "a value of another type"),
    ("learners", ["never"], "learners: never: learner: expected one of"),
    ("config", [], "config: expected the fields"),
    ("config", {**TINY.to_json(), "train": 3}, "train: expected the fields"),
    ("config", {**TINY.to_json(), "tuned": 3}, "a value of another type"),
    ("config", {}, "config: expected the fields"),
    ("leaving", None, "a value of another type"),
    ("world", ..., "expected the field 'world', found none"),
  ],
)
def test_a_plan_with_other_values_is_refused(run, name, value, message):
  """Layout version 2 has no checksum, so that anything may be in it."""
  values = {**PLAN.to_json(), "layout_version": 2, name: value}
  if value is ...:
    del values[name]
  (run.path / "run.json").write_text(json.dumps(values))
  before = _contents(run)
  for use in (run.plan, lambda: run.resume(PLAN)):
    with pytest.raises(RunDirError, match=f"run.json: .*{message}"):
      use()
  assert _contents(run) == before


@pytest.mark.parametrize("seed", [-1, 2**32, 10**20, 1.0, True, "1"])
def test_seeds_that_no_key_can_be_made_from_are_refused(seed):
  """Of 2^32 `jax.random.key` makes the key of 0."""
  message = "seeds: expected an integer from 0 to 4294967295, found"
  with pytest.raises(InputError, match=message):
    dataclasses.replace(PLAN, seeds=(seed,), parallel_seeds=1)
  with pytest.raises(InputError, match=message):
    assemble(TINY, [None], [seed], None)
  assert dataclasses.replace(PLAN, seeds=(0, 2**32 - 1)).seeds


def test_one_process_at_a_time_has_the_folder(run):
  before = _contents(run)
  with folder_lock.hold(run.path):
    for use in (
      lambda: run.resume(PLAN),
      lambda: study.run_study(PLAN, run, None, print),
    ):
      with pytest.raises(InputError, match="held by process"):
        use()
  assert _contents(run) == before
  other = RunDir(run.path.with_name("other"))
  with folder_lock.hold(other.path), pytest.raises(InputError, match="held by"):
    other.claim(PLAN)
  assert not _contents(other)


def test_a_run_that_became_another_meanwhile_is_not_played(run):
  """Between claiming the folder and playing, another process may have it."""
  other = dataclasses.replace(PLAN, seeds=(1, 2))
  records.write(run.path / "run.json", other.to_json())
  with pytest.raises(RunDirError, match="has another seeds"):
    study.run_study(PLAN, run, None, print)


def test_a_full_disk_is_a_sentence_and_ends_the_lock(run, monkeypatch):
  def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")

  with monkeypatch.context() as patch:
    patch.setattr(study, "_run", full)
    with pytest.raises(InputError) as caught:
      study.run_study(PLAN, run, None, print)
  assert str(caught.value) == (
    f"{run.path} cannot be written to (No space left on device); what was done"
    " before is kept, and --resume goes on from there."
  )
  run.resume(PLAN)
  with monkeypatch.context() as patch:
    patch.setattr(
      study, "_run", lambda *args: (_ for _ in ()).throw(OSError(2))
    )
    with pytest.raises(OSError, match="2") as caught:
      study.run_study(PLAN, run, None, print)
  # A fault of the package's own is not called one of the folder's.
  assert not isinstance(caught.value, InputError)


def test_an_interrupted_run_ends_the_lock(run, monkeypatch):
  def interrupted(*args):
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(study, "_run", interrupted)
    with pytest.raises(KeyboardInterrupt):
      study.run_study(PLAN, run, None, print)
  run.resume(PLAN)
