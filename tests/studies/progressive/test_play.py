"""Rounds go on from what is whole; what is not is refused, nothing is lost.

Rounds are stood in for by additions, so that nothing is compiled; checkpoints,
metrics and records are those of a run.
"""

import dataclasses
import json
import types
from typing import NamedTuple

import numpy as np
import pytest

from mtf_jax.io import InputError
from mtf_jax.studies.progressive import play
from mtf_jax.studies.progressive.experiment import Experiment
from mtf_jax.studies.progressive.group_dir import GroupDir
from mtf_jax.training import machine
from mtf_jax.training.checkpoints import Checkpoints
from tests.tiny_run import TINY

SEEDS = (0, 1)
CONFIG = dataclasses.replace(TINY, rounds=3)
RECORD = {
  "config": CONFIG.to_json(),
  "worlds": ["abc"] * 2,
  "seeds": list(SEEDS),
}
EXPERIMENT = Experiment(
  **dict.fromkeys(Experiment._fields)
  | {"config": CONFIG, "seeds": SEEDS, "start": {"weight": np.zeros(2)}}
)


class _Metrics(NamedTuple):
  loss: np.ndarray


def _play_round(experiment, state, number, on_chunk):
  """A round of two chunks; its gain over nothing is undefined."""
  for step in (4, 8):
    loss = np.full((2, 4), number + step / 8, np.float32)
    on_chunk(types.SimpleNamespace(step=np.full(2, step)), _Metrics(loss))
  figures = {
    "round": number + 1,
    "reward_gain_pct": 1.5 + number,
    "reward_gain_ci95": [None, None],
  }
  return {"weight": state["weight"] + number + 1}, [figures, figures]


@pytest.fixture
def rounds(monkeypatch, tmp_path):
  """Plays all rounds of a learner in a folder; `killed_in` ends it there."""
  monkeypatch.setattr(play, "_check", lambda *_: None)

  def run(killed_in=None, config=CONFIG):
    def play_round(experiment, state, number, on_chunk):
      if number == killed_in:
        # Within the round, whose first chunk is written already.
        on_chunk(
          types.SimpleNamespace(step=np.full(2, 4)),
          _Metrics(np.full((2, 4), 9, np.float32)),
        )
        raise KeyboardInterrupt
      return _play_round(experiment, state, number, on_chunk)

    monkeypatch.setattr(play.rounds_lib, "play_round", play_round)
    folder = GroupDir(tmp_path).learner("bc")
    folder.path.mkdir(exist_ok=True)
    said = []
    experiment = EXPERIMENT._replace(config=config)
    record = {**RECORD, "config": config.to_json()}
    watch = play.Watch(48)
    state, figures, _ = play._play_rounds(
      experiment, record, folder, watch, said.append
    )
    return np.asarray(state["weight"]), figures, folder, said

  return run


def _killed_in(rounds, number):
  with pytest.raises(KeyboardInterrupt):
    rounds(killed_in=number)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_killed_in_any_round_the_figures_are_the_same(rounds, number):
  _killed_in(rounds, number)
  weight, figures, folder, said = rounds()
  np.testing.assert_array_equal(weight, [6, 6])
  assert [of_seeds[1]["reward_gain_pct"] for of_seeds in figures] == [
    *(1.5, 2.5, 3.5)
  ]
  assert figures[0][0]["reward_gain_ci95"] == [None, None]
  rows = folder.read_metrics(1, folder.metrics_sha256())
  assert [(row["step"], row["loss"]) for row in rows] == [
    *((4, 0.5), (8, 1), (12, 1.5), (16, 2), (20, 2.5), (24, 3))
  ]
  assert "[undefined, undefined] % over the baseline policy" in said[-1]
  # Once more: all is there.
  again, same, *_ = rounds()
  np.testing.assert_array_equal(again, weight)
  assert same == figures


@pytest.mark.parametrize("damage", ["cut", "change", "number"])
def test_metrics_that_a_kill_does_not_explain_are_refused(rounds, damage):
  _killed_in(rounds, 2)
  path = GroupDir(rounds()[2].path.parent).learner("bc").metrics
  whole = path.read_bytes()
  damaged = {
    "cut": whole[:60],
    "change": whole.replace(b'"loss": 1.5', b'"loss": 1.6', 1),
    "number": whole.replace(b'"loss": 1.5', b'"loss": 1.50', 1),
  }[damage]
  assert damaged != whole
  path.write_bytes(damaged)
  with pytest.raises(InputError, match=r"metrics\.jsonl: expected .*damaged;"):
    rounds()
  # The way on that the sentence names.
  path.rename(path.with_name("old"))
  weight, *_ = rounds()
  np.testing.assert_array_equal(weight, [6, 6])


@pytest.mark.parametrize(
  ("old", "new"),
  [
    (b'"reward_gain_pct": 2.5', b'"reward_gain_pct": 9.5'),
    (b'"rounds"', b'"roundz"'),
    (b'"check"', b'"chequ"'),
    (b'"metrics_sha256"', b'"metrics_sha255"'),
    (b'"worlds"', b'"worldz"'),
    (b'"machines"', b'"machinez"'),
  ],
)
def test_a_record_that_was_changed_is_played_anew(rounds, old, new):
  """Its round is; those before it are whole."""
  _, figures, folder, _ = rounds()
  record = folder.rounds / "3" / "record" / "metadata"
  content = record.read_bytes()
  assert old in content
  record.write_bytes(content.replace(old, new))
  weight, again, _, said = rounds()
  assert "going on after round 2" in said[0]
  assert (folder.rounds / "damaged.3").is_dir()
  np.testing.assert_array_equal(weight, [6, 6])
  assert again == figures
  rows = folder.read_metrics(0, folder.metrics_sha256())
  assert [row["step"] for row in rows] == [4, 8, 12, 16, 20, 24]


def test_where_all_checkpoints_are_damaged_no_round_is_played(rounds):
  _, _, folder, _ = rounds()
  for path in folder.rounds.glob("*/record/metadata"):
    path.write_bytes(path.read_bytes()[:99])
  for _ in range(2):
    with pytest.raises(InputError, match="checkpoints: expected a whole check"):
      rounds()
  # Named where it can be found, and nothing of the rounds is gone.
  assert len(list(folder.rounds.glob("damaged.*/state"))) == 3


def test_checkpoints_of_another_run_are_refused_by_name(rounds):
  _, _, folder, _ = rounds()
  before = sorted(folder.rounds.rglob("*"))
  other = dataclasses.replace(CONFIG, num_users=33)
  with pytest.raises(
    InputError, match=r"checkpoints: expected config\.num_users 33, found 32:"
  ):
    rounds(config=other)
  assert sorted(folder.rounds.rglob("*")) == before


def _machines(folder):
  checkpoints = Checkpoints(folder.rounds)
  _, record = checkpoints.restore(EXPERIMENT.start)
  checkpoints.close()
  return record["machines"]


def test_gone_on_with_elsewhere_it_warns_and_keeps_both(
  rounds, monkeypatch, caplog, tmp_path
):
  _killed_in(rounds, 1)
  folder = GroupDir(tmp_path).learner("bc")
  here = machine.describe()
  assert _machines(folder) == [{"from_update": 0, **here}]
  there = {**here, "threads": 96}
  monkeypatch.setattr(machine, "describe", lambda mesh=None: there)
  weight, *_ = rounds()
  np.testing.assert_array_equal(weight, [6, 6])
  assert _machines(folder) == [
    {"from_update": 0, **here},
    {"from_update": 8, **there},
  ]
  threads = f"threads {here['threads']} before, 96 now"
  assert [threads in line for line in caplog.messages].count(True) == 1


def test_rounds_whose_checkpoints_are_gone_are_not_played_over(rounds):
  _killed_in(rounds, 0)
  _, _, folder, _ = rounds()  # Rows of the first round may have none yet.
  whole = folder.metrics.read_bytes()
  folder.rounds.rename(folder.path / "moved")
  with pytest.raises(
    InputError, match=r"rows up to update 8 .*, found update 24 of a later"
  ):
    rounds()
  assert folder.metrics.read_bytes() == whole
  folder.rounds.rmdir()
  (folder.path / "moved").rename(folder.rounds)
  assert "going on after round 3" in rounds()[3][0]


def test_checkpoints_of_another_kind_are_refused(rounds, tmp_path):
  folder = GroupDir(tmp_path).learner("bc").rounds
  checkpoints = Checkpoints(folder)
  checkpoints.save(1, EXPERIMENT.start, RECORD)
  checkpoints.close()
  with pytest.raises(InputError, match="that hold rounds, found one without"):
    rounds()


def test_a_finished_group_is_read_and_not_played(tmp_path, monkeypatch):
  """Another world or configuration has another result."""
  monkeypatch.setattr(play, "fingerprint", lambda world: world)
  group = GroupDir(tmp_path)
  configs = {"bc": CONFIG}
  of = play.made_of(configs, ["abc", "abc"], SEEDS)
  group.write_result(of, {"0": {"learners": {}}, "1": {"learners": {}}})
  arguments = ({}, ["abc", "abc"], SEEDS, group, play.Watch(8), print)
  found = play.play_group(configs, *arguments)
  assert (
    found
    == json.loads(json.dumps(found))
    == {
      "0": {"learners": {}},
      "1": {"learners": {}},
    }
  )
  other = ({}, ["abc", "abd"], SEEDS, group, play.Watch(8), print)
  with pytest.raises(InputError, match=r"expected worlds .*abd.*found"):
    play.play_group(configs, *other)
