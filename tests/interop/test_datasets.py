"""A log that went through d3rlpy or Minari is the same log."""

import importlib.util

import jax
import numpy as np
import pytest

from mtf_jax.interop import datasets
from mtf_jax.interop.side_rows import (
  load_side_rows,
  one_reward,
  save_side_rows,
  side_rows,
)
from mtf_jax.io import InputError
from mtf_jax.kernels.exploration import ActionBox
from tests.session_logs import log_of


def _needs(package):
  absent = importlib.util.find_spec(package) is None
  return pytest.mark.skipif(
    absent, reason=f"the extra `{package}` is not installed"
  )


needs_d3rlpy, needs_minari = _needs("d3rlpy"), _needs("minari")
_WEIGHTS = [0.7, 2.0]
# Rows of the sessions: left, cut and known, cut and not known, left at once.
_LENGTHS = (3, 4, 2, 1)
_ROUNDS = np.repeat([1, 1, 2, 3], _LENGTHS).astype(np.int32)


def _log():
  rng = np.random.default_rng(3)
  num_rows = sum(_LENGTHS)
  terminal, extra = np.zeros(num_rows, bool), np.zeros(num_rows, bool)
  terminal[[2, 9]] = True
  extra[6] = True
  log = log_of(
    rng.normal(size=(num_rows, 3)),
    rng.uniform(-0.1, 0.1, (num_rows, 2)),
    rng.uniform(0, 1, (num_rows, 2)),
    terminal=terminal,
    bootstrap_only=extra,
  )
  step = np.concatenate([np.arange(n) for n in _LENGTHS]).astype(np.int32)
  feedback = rng.uniform(0, 5, (num_rows, 4)).astype(np.float32)
  held = rng.uniform(size=num_rows) < 0.5
  feedback[extra], held[extra] = 0, False
  return log._replace(
    step=step,
    session_id=np.repeat([7, 8, 9, 12], _LENGTHS).astype(np.int32),
    feedback=feedback,
    exploration_held=held,
  )


def _check_same(ours, log):
  def check(found, expected):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)

  jax.tree.map(check, ours, log)


def test_side_rows_go_through_a_file(tmp_path):
  side = side_rows(_log(), _WEIGHTS, _ROUNDS)
  path = tmp_path / "side.npz"
  save_side_rows(path, side)
  again = load_side_rows(path)
  assert isinstance(again.box, ActionBox)
  for found, expected in zip(
    [*again.box, *again[1:]], [*side.box, *side[1:]], strict=True
  ):
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
  whole = path.read_bytes()
  place = whole.index(side.policy_round.tobytes())
  path.write_bytes(whole[:place] + b"\x07" + whole[place + 1 :])
  with pytest.raises(InputError, match=r"side\.npz: expected a file of side"):
    load_side_rows(path)


def test_one_reward_is_the_weighted_sum():
  log = _log()
  np.testing.assert_allclose(
    one_reward(side_rows(log, _WEIGHTS)), log.reward @ _WEIGHTS, rtol=1e-6
  )
  np.testing.assert_allclose(
    one_reward(side_rows(log)), log.reward.sum(axis=1), rtol=1e-6
  )


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"reward_weights": [1.0]}, r"reward_weights: expected shape \(2,\)"),
    ({"reward_weights": [1.0, np.nan]}, "reward_weights: expected finite"),
    ({"policy_round": [1, 2]}, "policy_round: expected an integer or 10"),
    ({"policy_round": 0.5}, "policy_round: expected an integer"),
    ({"policy_round": 2**40}, "policy_round: expected 32-bit"),
  ],
)
def test_refusals_of_what_does_not_fit_the_log(settings, message):
  with pytest.raises(InputError, match=message):
    side_rows(_log(), **settings)


def test_a_log_that_is_not_valid_is_refused():
  log = _log()
  bad = log._replace(action=log.action + 1)
  with pytest.raises(InputError, match="action outside its own box"):
    datasets.to_d3rlpy(bad)
  with pytest.raises(InputError, match="action outside its own box"):
    datasets.to_minari("mtf_jax/log-v0", bad)


@needs_d3rlpy
def test_d3rlpy_and_back(tmp_path):
  log = _log()
  dataset, side = datasets.to_d3rlpy(
    log, reward_weights=_WEIGHTS, policy_round=_ROUNDS
  )
  _check_same(datasets.from_d3rlpy(dataset, side), log)
  np.testing.assert_array_equal(side.policy_round, _ROUNDS)
  assert [episode.terminated for episode in dataset.episodes] == [
    *(True, False, False, True)
  ]
  # A session that was cut has no transition from its last row.
  counts = [episode.transition_count for episode in dataset.episodes]
  assert counts == [3, 3, 1, 1]
  known = dataset.transition_picker(dataset.episodes[1], 2)
  np.testing.assert_array_equal(known.next_observation, log.observation[6])
  assert not known.terminal
  # Through the files of both.
  import d3rlpy

  with (tmp_path / "log.h5").open("w+b") as file:
    dataset.dump(file)
  with (tmp_path / "log.h5").open("rb") as file:
    read = d3rlpy.dataset.ReplayBuffer.load(
      file, d3rlpy.dataset.InfiniteBuffer()
    )
  save_side_rows(tmp_path / "side.npz", side)
  again = datasets.from_d3rlpy(read, load_side_rows(tmp_path / "side.npz"))
  _check_same(again, log)


@needs_d3rlpy
def test_d3rlpy_refusals():
  log = _log()
  dataset, side = datasets.to_d3rlpy(log)
  with pytest.raises(InputError, match="reward: expected the weighted sums"):
    datasets.from_d3rlpy(dataset, side._replace(reward=side.reward + 1))
  fewer, _ = datasets.to_d3rlpy(jax.tree.map(lambda column: column[:9], log))
  with pytest.raises(InputError, match=r"dataset: expected 4 episodes .* 3"):
    datasets.from_d3rlpy(fewer, side)


@pytest.fixture
def minari_folder(tmp_path, monkeypatch):
  monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
  return tmp_path


@needs_minari
def test_minari_and_back(minari_folder):
  import minari

  log = _log()
  datasets.to_minari(
    "mtf_jax/log-v0",
    log,
    reward_weights=_WEIGHTS,
    policy_round=_ROUNDS,
    metadata={"world": "0123"},
    author="somebody",
  )
  read = minari.load_dataset("mtf_jax/log-v0")
  again, rounds, metadata = datasets.from_minari(read)
  _check_same(again, log)
  np.testing.assert_array_equal(rounds, _ROUNDS)
  assert metadata == {"world": "0123"}
  episodes = list(read.iterate_episodes())
  assert [len(episode) for episode in episodes] == [3, 3, 1, 1]
  ends = [
    (episode.terminations.sum(), episode.truncations.sum())
    for episode in episodes
  ]
  assert ends == [(1, 0), (0, 1), (0, 1), (1, 0)]
  np.testing.assert_array_equal(episodes[1].observations, log.observation[3:7])
  np.testing.assert_array_equal(episodes[2].observations, log.observation[7:9])
  # A selection of episodes is the log of these sessions.
  some, rounds, _ = datasets.from_minari(
    read.filter_episodes(lambda e: e.id > 0)
  )
  _check_same(some, _rows(log, slice(3, None)))
  np.testing.assert_array_equal(rounds, _ROUNDS[3:])


def _rows(log, rows):
  return jax.tree.map(lambda column: column[rows], log)


@needs_minari
def test_minari_refusals(minari_folder):
  log = _log()
  with pytest.raises(InputError, match="dataset_id: 'no version'"):
    datasets.to_minari("no version", log)
  with pytest.raises(InputError, match=r"session_id: .* 1 cut after .* row 7"):
    datasets.to_minari("mtf_jax/log-v0", _rows(log, slice(0, 8)))
  dataset = datasets.to_minari("mtf_jax/log-v0", log)
  dataset.storage.update_metadata(
    {"mtf_jax": {"reward_weights": [1.0, 3.0], "metadata": {}}}
  )
  with pytest.raises(InputError, match="reward: expected the weighted sums"):
    datasets.from_minari(dataset)
  dataset.storage.update_metadata({"mtf_jax": None})
  with pytest.raises(InputError, match="dataset: expected the metadata"):
    datasets.from_minari(dataset)


@pytest.mark.parametrize("package", ["d3rlpy", "minari"])
def test_a_missing_package_is_one_sentence(package, monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, package, None)
  with pytest.raises(InputError, match=rf"{package}: .*mtf-jax\[{package}\]"):
    if package == "d3rlpy":
      datasets.to_d3rlpy(_log())
    else:
      datasets.to_minari("mtf_jax/log-v0", _log())
