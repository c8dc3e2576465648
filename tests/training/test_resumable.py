"""A run in its folder: gone on from, refused, and never half another's."""

import dataclasses
import json
import pathlib
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mtf_jax import folder_lock
from mtf_jax.data import session_log, transitions
from mtf_jax.data.log_strata import LogStrata
from mtf_jax.distributed import mesh as mesh_lib
from mtf_jax.io import InputError
from mtf_jax.training import machine
from mtf_jax.training.checkpoints import CheckpointError, digest
from mtf_jax.training.config import PRESETS
from mtf_jax.training.metrics import Progress
from mtf_jax.training.resumable import train_in_folder
from tests.session_logs import random_log
from tests.sharded_logs import parts_of, write_log

LOG = random_log()
DATA = {"dataset": session_log.fingerprint(LOG), "world": "w1"}


# Left by the version before checkpoints had their record under the digest.
BEFORE = pathlib.Path(__file__).parent / "run_of_schema_2"
BEFORE_CHANGES = {
  "learner": "integrated_rl",
  "chunk_size": 10,
  "checkpoint_every": 10,
  "ensemble_size": 1,
  "hidden_sizes": (4,),
  "batch_size": 8,
  "data": {"dataset": "a log", "world": "a world"},
}


def train(out_dir, data=None, log=LOG, **changes):
  config = dataclasses.replace(
    PRESETS["smoke"], **{"num_updates": 20, "hidden_sizes": (8,), **changes}
  )
  dataset = transitions.device_dataset(
    log, num_steps=config.num_steps, discount=config.discount
  )
  return train_in_folder(config, dataset, out_dir, data or DATA)


@pytest.mark.parametrize(
  ("learner", "hyperparam", "metric"),
  [
    ("bc", "actor_learning_rate", "actor_loss"),
    ("td3_bc", "target_noise", "cloning_error"),
  ],
)
def test_a_run_goes_on_and_another_is_refused(
  tmp_path, capsys, learner, hyperparam, metric
):
  changes = {"learner": learner, "hyperparams": {hyperparam: 0.03}}
  for num_updates in (20, 40):
    state = train(tmp_path, num_updates=num_updates, **changes)
    assert state.step == num_updates
  said = capsys.readouterr().err.splitlines()
  assert said[0].endswith("starting at update 0.")
  assert said[-1] == "Going on from update 20."
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  assert [row["step"] for row in rows] == [20, 40]
  assert all(row[metric] > 0 for row in rows)
  # Nothing of what refuses may touch the folder.
  before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
  for other, message in (
    ({}, f"learner: expected '{learner}' as in the checkpoint"),
    ({**changes, "seed": 1}, "seed: expected 0 .* found 1"),
    ({**changes, "hyperparams": {}}, f"hyperparams: expected .*{hyperparam}"),
    ({**changes, "data": {**DATA, "dataset": "x"}}, "dataset: expected"),
    ({**changes, "data": {**DATA, "world": "w2"}}, "world: expected 'w1'"),
  ):
    with pytest.raises(ValueError, match=message):
      train(tmp_path, num_updates=60, **other)
  after = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
  assert after == before


def test_two_runs_do_not_share_a_folder(tmp_path):
  with (
    folder_lock.hold(tmp_path),
    pytest.raises(InputError, match="held by process"),
  ):
    train(tmp_path, learner="bc")
  assert [path.name for path in tmp_path.iterdir()] == [".lock"]


def test_no_checkpoint_is_whole(tmp_path):
  train(tmp_path, learner="bc")
  for path in (tmp_path / "checkpoints").rglob("_METADATA"):
    path.unlink()
  with pytest.raises(CheckpointError, match="expected a whole checkpoint"):
    train(tmp_path, learner="bc")


def test_a_checkpoint_of_the_layout_before_is_refused(tmp_path):
  train(tmp_path, learner="bc")
  for path in tmp_path.rglob("record/metadata"):
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "schema_version": 1}))
  with pytest.raises(
    ValueError, match="expected schema version 3 or 2, found 1"
  ):
    train(tmp_path, learner="bc")


def record_of(checkpoint):
  return json.loads((checkpoint / "record" / "metadata").read_text())


def test_a_run_of_the_version_before_goes_on(tmp_path, capsys):
  shutil.copytree(BEFORE, tmp_path, dirs_exist_ok=True)
  folder = tmp_path / "checkpoints"
  # With nothing left to do, the state is the checkpoint's.
  state = train(tmp_path, num_updates=20, **BEFORE_CHANGES)
  assert digest(state) == record_of(folder / "20")["sha256"]
  assert capsys.readouterr().err == "Going on from update 20.\n"
  state = train(tmp_path, num_updates=30, **BEFORE_CHANGES)
  assert state.step == 30
  record = record_of(folder / "30")
  assert record["schema_version"] == 3
  assert record["config"]["ensemble_size"] == 1
  assert record["world"] == "a world"
  rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert [json.loads(row)["step"] for row in rows] == [10, 20, 30]


def test_a_record_of_the_version_before_may_lack_what_came_later(tmp_path):
  """Read only: the record of that version is outside the digest."""
  shutil.copytree(BEFORE, tmp_path, dirs_exist_ok=True)
  file = tmp_path / "checkpoints" / "20" / "record" / "metadata"
  before = json.loads(file.read_text())

  def put(config, **changes):
    file.write_text(json.dumps({**before, "config": config, **changes}))

  config = dict(before["config"])
  # As if `critic_updates` were newer than the checkpoint.
  del config["critic_updates"]
  put(config)
  assert train(tmp_path, **BEFORE_CHANGES).step == 20
  with pytest.raises(CheckpointError, match="critic_updates: expected 1 as in"):
    train(tmp_path, **{**BEFORE_CHANGES, "critic_updates": 2})
  put({**config, "momentum": 0.5})
  with pytest.raises(CheckpointError, match=r"momentum: .* 0.5 .* found None"):
    train(tmp_path, **BEFORE_CHANGES)
  put([1])
  with pytest.raises(CheckpointError, match=r"config: .*, found \[1\]"):
    train(tmp_path, **BEFORE_CHANGES)
  file.write_text(file.read_text().replace('"config"', '"konfig"'))
  with pytest.raises(
    CheckpointError, match=r"20: expected 'config' in its record, found data"
  ):
    train(tmp_path, **BEFORE_CHANGES)
  put(before["config"], sha256="0" * 64)
  with pytest.raises(CheckpointError, match="move it out of the folder to go"):
    train(tmp_path, **BEFORE_CHANGES)
  put(before["config"])
  assert train(tmp_path, **BEFORE_CHANGES).step == 20


@pytest.mark.parametrize("keep", [0, -1])
def test_no_checkpoint_kept_is_refused_before_a_folder_is_made(tmp_path, keep):
  config = dataclasses.replace(PRESETS["smoke"], learner="bc")
  dataset = transitions.device_dataset(LOG)
  with pytest.raises(InputError, match=f"keep: .* found {keep}"):
    train_in_folder(config, dataset, tmp_path / "a", DATA, keep=keep)
  assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
  ("num_strata", "mesh", "refusal"),
  [
    (2, None, "expected a mesh and no stream, found no mesh"),
    (4, "data", "expected num_strata of them, 2, found 4"),
  ],
)
def test_strata_of_a_folder_that_do_not_fit_are_refused(
  tmp_path, num_strata, mesh, refusal
):
  config = dataclasses.replace(PRESETS["smoke"], learner="bc", num_strata=2)
  log = write_log(tmp_path / "log", parts_of(2))
  example = transitions.device_dataset(log.load(0))
  with pytest.raises(InputError, match=f"log_strata: {refusal}"):
    train_in_folder(
      config,
      example,
      tmp_path / "a",
      DATA,
      mesh=mesh and mesh_lib.make_mesh({mesh: 1}),
      log_strata=LogStrata(log, num_strata),
    )


def test_a_run_that_goes_on_elsewhere_says_so(tmp_path, caplog, monkeypatch):
  train(tmp_path, learner="bc")
  last = tmp_path / "checkpoints" / "20"
  here = {"from_update": 0, **machine.describe()}
  assert record_of(last)["machines"] == [here]
  monkeypatch.setattr(machine, "num_threads", lambda: 7)
  assert train(tmp_path, learner="bc", num_updates=40).step == 40
  assert (
    f"goes on elsewhere (threads {here['threads']} before, 7 now): it will"
    in caplog.text
  )
  last = tmp_path / "checkpoints" / "40"
  elsewhere = {**here, "from_update": 20, "threads": 7}
  assert record_of(last)["machines"] == [here, elsewhere]
  # Once more at the same place: nothing to say.
  caplog.clear()
  train(tmp_path, learner="bc", num_updates=60)
  last = tmp_path / "checkpoints" / "60"
  assert record_of(last)["machines"] == [here, elsewhere]
  assert "elsewhere" not in caplog.text


def test_rows_without_a_checkpoint_are_not_dropped(tmp_path):
  (tmp_path / "metrics.jsonl").write_text('{"step": 20}\n')
  with pytest.raises(InputError, match=r"metrics\.jsonl: expected no rows in"):
    train(tmp_path, learner="bc")
  assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 20}\n'
  assert not list((tmp_path / "checkpoints").iterdir())


def test_observations_beyond_float32_leave_no_folder(tmp_path):
  """Their deviation overflows, and no loss would see it."""
  huge = LOG._replace(observation=LOG.observation * np.float32(1e30))
  with pytest.raises(
    InputError,
    match=r"learner\.normalization\.scale: expected finite .* at step 0",
  ):
    train(tmp_path / "a", log=huge, learner="bc")
  assert not (tmp_path / "a").exists()


def test_a_key_of_another_implementation_is_named(tmp_path):
  train(tmp_path, learner="bc")
  with (
    jax.default_prng_impl("rbg"),
    pytest.raises(
      CheckpointError,
      match=r"20: rng_key: expected a key of the implementation rbg, found one"
      r" of threefry2x32; set JAX_DEFAULT_PRNG_IMPL=threefry2x32 to go on\.",
    ),
  ):
    train(tmp_path, learner="bc", num_updates=40)


def test_an_interrupt_leaves_a_whole_folder(tmp_path, monkeypatch):
  """Ctrl-C before a row is written, and in the midst of a save."""
  changes = {"learner": "bc", "num_updates": 60, "chunk_size": 10}
  whole = train(tmp_path / "whole", **changes)
  folder = tmp_path / "interrupted"
  update = Progress.update

  def interrupted_update(self, step):
    if step == 50:
      raise KeyboardInterrupt
    return update(self, step)

  def interrupted_save(self, step, **arguments):
    half = folder / "checkpoints" / f"{step}.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "state").write_bytes(b"half")
    raise KeyboardInterrupt

  for owner, name, interrupted, at in (
    (Progress, "update", interrupted_update, 40),
    (ocp.CheckpointManager, "save", interrupted_save, 60),
  ):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
      patch.setattr(owner, name, interrupted)
      # The second time it goes on from a checkpoint, so no save is before.
      train(folder, **changes)
    rows = (folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == at
    # Nobody holds the folder, and the last checkpoint is whole.
    assert (folder / ".lock").read_bytes() == b""
    names = [path.name for path in (folder / "checkpoints").iterdir()]
    assert "40" in names and "60" not in names
  assert digest(train(folder, **changes)) == digest(whole)
