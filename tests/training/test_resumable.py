"""A run in its folder: gone on from, refused, and never half another's."""

import dataclasses
import json

import pytest

from mtf_jax.data import session_log, transitions
from mtf_jax.training.checkpoints import CheckpointError
from mtf_jax.training.config import PRESETS
from mtf_jax.training.resumable import train_in_folder
from tests.session_logs import random_log

LOG = random_log()
DATA = {"dataset": session_log.fingerprint(LOG), "world": "w1"}


def train(out_dir, data=None, **changes):
  config = dataclasses.replace(
    PRESETS["smoke"], **{"num_updates": 20, "hidden_sizes": (8,), **changes}
  )
  dataset = transitions.device_dataset(
    LOG, num_steps=config.num_steps, discount=config.discount
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
  with pytest.raises(ValueError, match="expected schema version 2, found 1"):
    train(tmp_path, learner="bc")
