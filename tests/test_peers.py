"""Our learners beside other trainers: turns, ratios, and others that fail."""

import subprocess
import sys

import pytest

from benchmarks import harness, learner
from benchmarks.peers import __main__ as launcher
from benchmarks.peers import measure, own, process, trainers, workload

# A trainer whose update takes as long as it is told, and which may die.
_FAKE = """
import sys
print("a banner", file=sys.stderr)
print("ready", '{"torch": "1"}', flush=True)
for turn, line in enumerate(sys.stdin):
  if turn == %d:
    sys.exit("out of memory")
  print(%r, flush=True)
"""


def _fake(answer, dies_at=-1, name="fake"):
  code = _FAKE % (dies_at, answer)
  return process.Peer(name, [sys.executable, "-c", code], updates=4)


@pytest.fixture
def fakes():
  made = []

  def make(*args, **kwargs):
    made.append(_fake(*args, **kwargs))
    return made[-1]

  yield make
  for peer in made:
    peer.close()


def test_a_peer_answers_with_the_seconds_of_an_update(fakes):
  peer = fakes("0.5 0.75")
  assert peer.versions == {"torch": "1"}
  assert [peer.window(), peer.window()] == [(0.5, 0.75)] * 2


def test_a_peer_that_dies_is_named_and_the_others_go_on(fakes):
  said = []
  found, failed = measure.race(
    {"good": fakes("1 2").window, "bad": fakes("1 1", 1, "bad").window},
    3,
    said.append,
  )
  assert found == {"good": [(1.0, 2.0)] * 3}
  sentence = "bad: ended with status 1, last line 'out of memory'."
  assert failed == {"bad": sentence} and said == [sentence]


def test_a_peer_that_does_not_start_is_named():
  code = "raise ImportError('no torch')"
  with pytest.raises(process.PeerError, match=r"^CORL: .* 'ImportError: no"):
    process.Peer("CORL", [sys.executable, "-c", code], updates=1)


def test_a_peer_that_hangs_is_ended_and_named():
  code = "import time; time.sleep(3600)"
  with pytest.raises(process.PeerError, match=r"^CORL: no answer within 0.2 s"):
    process.Peer("CORL", [sys.executable, "-c", code], updates=1, limit_s=0.2)


def test_a_peer_that_answers_nonsense_is_named(fakes):
  with pytest.raises(process.PeerError, match="expected seconds, found 'none'"):
    fakes("none").window()


def test_turns_go_forwards_and_backwards():
  order = []
  contestants = {name: lambda name=name: order.append(name) for name in "abc"}
  measure.race(contestants, 2, print)
  assert "".join(order) == "abccba"


def test_interval_of_a_median():
  # Of 9 values the second lowest and highest: 96% by the binomial law.
  found = measure.median_interval([3, 1, 2, 5, 4, 9, 8, 7, 6])
  assert found == {"value": 5, "ci95": [2, 8]}
  assert measure.median_interval(range(6))["ci95"] == [0, 5]
  assert measure.median_interval(range(5))["ci95"] is None


def test_ratios_are_of_the_same_round():
  windows = {
    "sac_n, box": [workload.Window(1.0, 1.0), workload.Window(10.0, 1.0)],
    "CORL": [workload.Window(2.0, 3.0), workload.Window(20.0, 3.0)],
  }
  rates = {"matrix_product": [1e12, 1e12]}
  size = workload.Size("sac_n", critics=2, actor_every=1, updates=1)
  row = measure._row("sac_n, box", windows, rates, size)
  assert row["speed_over"] == {"CORL": {"value": 2.0, "ci95": None}}
  assert row["processor_speed_over"]["CORL"]["value"] == 3.0
  assert row["ours"] and not measure._row("CORL", windows, rates, size)["ours"]


def test_the_box_critics_operations_are_fewer():
  for size in workload.SIZES:
    free_form, box = (measure._operations(size, c) for c in ("CORL", "box"))
    assert 0 < box < free_form


def test_what_is_missing_is_one_sentence_with_the_command(tmp_path):
  nothing = trainers.missing(None)
  assert "found no --peers_dir; install them with" in nothing
  assert nothing.endswith("-m benchmarks.peers.install --out_dir=PEERS")
  sentence = trainers.missing(tmp_path)
  assert f"no {tmp_path}/env/bin/python, no {tmp_path}/unifloral" in sentence
  assert sentence.endswith(f"--out_dir={tmp_path}")


def test_what_is_installed_is_not_missing(tmp_path, monkeypatch):
  python = trainers.python(tmp_path)
  python.parent.mkdir(parents=True)
  python.touch()
  folder = tmp_path / "it"
  git = ("git", "-c", "user.name=a", "-c", "user.email=b")
  subprocess.run(("git", "init", "-q", folder), check=True)
  subprocess.run(
    (*git, *("commit", "-q", "--allow-empty", "-m", "c")),
    cwd=folder,
    check=True,
  )
  commit = trainers.commit_of(folder)
  source = trainers.Source("someone/it", commit, ".")
  one = trainers.Trainer("corl_trainer", ("sac_n",), source)
  monkeypatch.setattr(trainers, "TRAINERS", {"it": one})
  assert trainers.missing(tmp_path) is None
  # Another commit than the one that is measured.
  other = one._replace(source=source._replace(commit="0" * 40))
  monkeypatch.setattr(trainers, "TRAINERS", {"it": other})
  assert f"no {folder} at 0000000" in trainers.missing(tmp_path)


# What the adapter of JAX-CORL needs of its module, which has no weights here.
_THEIRS = """
import sys
from typing import Any, NamedTuple
import d4rl, wandb

print("noise", len(sys.argv))

class Transition(NamedTuple):
  observations: Any
  actions: Any
  rewards: Any
  next_observations: Any
  dones: Any

class TD3BCConfig(NamedTuple):
  batch_size: int
  hidden_dims: tuple
  policy_freq: int
  n_jitted_updates: int = 2

def create_td3bc_train_state(key, observation, action, config):
  return observation[0]

class TD3BC:
  def update_n_times(self, state, data, key, config):
    return state + data.rewards[0], {}
"""


def test_a_worker_answers_for_a_trainer_of_another_folder(tmp_path):
  (tmp_path / "td3bc.py").write_text(_THEIRS)
  size = workload.Size("td3_bc", critics=2, actor_every=2, updates=4)
  command = process.command(tmp_path, "JAX-CORL", size)
  assert command[0] == str(tmp_path / "env" / "bin" / "python")
  assert command[4] == str(tmp_path / "JAX-CORL" / "algos")
  command[0], command[4] = sys.executable, str(tmp_path)
  peer = process.Peer("JAX-CORL", command, size.updates)
  try:
    assert peer.window().wall_s > 0
  finally:
    peer.close()
  assert "jax" in peer.versions


def test_ours_alone_are_measured(monkeypatch):
  size = workload.Size("td3_bc", critics=2, actor_every=2, updates=4)
  # Each compiles for seconds.
  monkeypatch.delitem(own.CRITICS, "free-form")
  monkeypatch.setattr(workload, "HIDDEN", 16)
  monkeypatch.setattr(workload, "BATCH", 8)
  monkeypatch.setattr(learner, "_ROWS", 256)
  monkeypatch.setattr(learner, "contraction_timer", lambda batch: lambda: 1e12)
  monkeypatch.setattr(harness, "matmul_flops_per_s", lambda size, repeats: 1e12)
  result = measure.measure(size, None, 2, print)
  names = [row["trainer"] for row in result["rows"]]
  assert names == ["td3_bc, box", "integrated_rl, box"]
  assert result["failed"] == {} and result["versions"] == {}
  assert all(row["updates_per_s"] > 0 for row in result["rows"])
  assert launcher._table(result).count("\n") == 3
