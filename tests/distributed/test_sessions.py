"""Sessions of one device and of four are the same; so is a run that is moved."""

import collections
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from mtf_jax.worlds import io as world_io
from tests.distributed import played
from tests.tiny_run import TINY

_ROOT = pathlib.Path(__file__).parents[2]
_GROUP = "satisfaction_floor_seed_0_1"


def _play(folder, num_devices, mesh):
  devices = f"--xla_force_host_platform_device_count={num_devices}"
  done = subprocess.run(
    (
      sys.executable,
      "-m",
      "tests.distributed.played",
      folder / f"{num_devices}.npz",
      folder / "small.world",
      folder / f"run_{num_devices}",
      mesh,
    ),
    cwd=_ROOT,
    env={
      **os.environ,
      "XLA_FLAGS": devices,
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    },
    capture_output=True,
    text=True,
    timeout=1200,
  )
  assert done.returncode == 0, done.stderr
  return done.stderr


@pytest.fixture(scope="module")
def folder(small_world, tmp_path_factory):
  """What one device played, and four, which went on with its run."""
  folder = tmp_path_factory.mktemp("sessions")
  world_io.save_world(folder / "small.world", small_world)
  _play(folder, 1, "data:1")
  shutil.copytree(folder / "run_1_begun", folder / "run_4")
  (folder / "said").write_text(_play(folder, 4, "data:2,seed:2"))
  return folder


@pytest.fixture(scope="module")
def found(folder):
  return {n: dict(np.load(folder / f"{n}.npz")) for n in (1, 4)}


def _part(results, name):
  prefix = f"{name} ."
  return {
    key.removeprefix(prefix): value
    for key, value in results.items()
    if key.startswith(prefix)
  }


@pytest.mark.parametrize("name", ["rows", "judged", "search"])
def test_results_are_those_of_one_device(found, name):
  expected, result = _part(found[1], name), _part(found[4], name)
  assert expected.keys() == result.keys() and expected
  for leaf, value in expected.items():
    if np.issubdtype(value.dtype, np.floating):
      np.testing.assert_allclose(
        result[leaf], value, rtol=1e-5, atol=1e-5, err_msg=leaf
      )
    else:
      # Users, who leaves and when: the same sessions.
      np.testing.assert_array_equal(result[leaf], value, err_msg=leaf)


def test_sessions_differ(found):
  """Whatever compares them must be able to fail."""
  rows, judged = _part(found[1], "rows"), _part(found[1], "judged")
  assert rows["valid"].shape == (played.ODD_SESSIONS, played.REQUESTS + 1)
  assert len(np.unique(rows["log.reward"].sum(axis=(1, 2)))) > 20
  assert rows["log.terminal"].any() and np.ptp(judged["reward"]) > 1


def _collectives(found, name):
  kinds = collections.Counter()
  for kind, _, num_bytes in json.loads(str(found[4][f"{name} collectives"])):
    kinds[kind] += num_bytes
  return kinds


def test_nothing_crosses_devices_where_sessions_are_judged(found):
  assert not _collectives(found, "judged")
  assert found[4]["judged devices"] == 4 and not found[4]["judged whole"]


def test_a_search_sends_sums(found):
  kinds = _collectives(found, "search")
  # Slopes and levels of a step, and nothing of a session.
  assert set(kinds) == {"all-reduce"} and kinds["all-reduce"] <= 64


def test_the_rows_of_a_round_cross_once(found):
  """After the sessions, so that any row may be drawn anywhere."""
  kinds = _collectives(found, "part")
  of_seed = sum(value.nbytes for value in _part(found[4], "part").values()) // (
    played.SEEDS
  )
  assert set(kinds) == {"all-gather"}
  assert 0 < kinds["all-gather"] <= of_seed


def _figures(folder, run):
  result = json.loads((folder / run / _GROUP / "result.json").read_text())
  return result["content"]["seeds"]


@pytest.mark.parametrize("seed", ["0", "1"])
def test_a_run_goes_on_on_another_mesh(folder, seed):
  expected, moved = (
    _figures(folder, f"run_{n}")[seed]["learners"]["integrated_rl:box"]
    for n in (1, 4)
  )
  assert len(moved["rounds"]) == TINY.rounds
  # The first was one device's, for both.
  assert moved["rounds"][0] == expected["rounds"][0]
  for part in (lambda of: of["rounds"][1], lambda of: of["single_batch"]):
    gain, other = part(expected), part(moved)
    _assert_alike(other, gain)
    assert abs(gain["reward_gain_pct"]) > 0.1


def _assert_alike(found, expected):
  for figure in ("reward_gain_pct", "session_length_gain_pct"):
    np.testing.assert_allclose(found[figure], expected[figure], atol=1e-3)
  np.testing.assert_allclose(found["drift"], expected["drift"], atol=1e-5)


def test_a_learner_in_closed_form_is_played_on_a_mesh(folder):
  """On one device or four; with so few sessions most of its slopes are 0."""
  expected, found = (
    [
      round_
      for of_seed in _figures(folder, f"run_{n}").values()
      for round_ in of_seed["learners"]["slope_regression"]["rounds"]
    ]
    for n in (1, 4)
  )
  assert len(found) == len(expected) == 2 * TINY.rounds
  for other, gain in zip(found, expected, strict=True):
    _assert_alike(other, gain)
  assert any(np.max(gain["drift"]) > 1e-4 for gain in expected)


def test_the_folder_says_where_it_was_played(folder):
  said = (folder / "said").read_text()
  assert "The run goes on elsewhere" in said and "'seed': 2" in said
  (record,) = (folder / "run_4").glob(
    "*/integrated_rl_box/checkpoints/2/record/metadata"
  )
  machines = json.loads(record.read_text())["machines"]
  meshes = [machine.get("mesh") for machine in machines]
  assert meshes == [None, {"data": 2, "critic": 1, "seed": 2}]
  assert '"data": 2' in (folder / "run_4" / "report.md").read_text()
