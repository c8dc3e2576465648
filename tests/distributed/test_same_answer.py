"""One device, eight, and two processes with two each end in the same place."""

import collections
import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest

_ROOT = pathlib.Path(__file__).parents[2]
_LEARNERS = ("integrated_rl", "td3_bc", "iql")
# Those of learner, strata, critic updates and seeds that one device trains.
_ALONE = [
  *((name, 8, 1, 1) for name in _LEARNERS),
  ("integrated_rl", 1, 2, 1),
  ("integrated_rl", 8, 1, 4),
]


def _run(name, mesh, num_strata, critic_updates, num_seeds):
  return f"{name}/{mesh}/{num_strata}/{critic_updates}/{num_seeds}"


# Name of the place -> its runs.
_RUNS = {
  "one": [_run(name, "data:1", *rest) for name, *rest in _ALONE],
  "eight": [
    *(_run(name, "data:8", *rest) for name, *rest in _ALONE[:4]),
    _run("integrated_rl", "data:4,critic:2", 8, 1, 1),
    _run("integrated_rl", "data:2,critic:2,seed:2", 8, 1, 4),
  ],
  "processes": [_run(name, "data:4", 8, 1, 1) for name in _LEARNERS],
}


def _begin(out, place, num_devices, *of_process):
  flags = f"--xla_force_host_platform_device_count={num_devices}"
  return subprocess.Popen(
    (
      sys.executable,
      "-m",
      "tests.distributed.trained",
      out,
      ";".join(_RUNS[place]),
      *of_process,
    ),
    cwd=_ROOT,
    # The programs run for moments: what is compiled need not be fast.
    env={
      **os.environ,
      "XLA_FLAGS": flags,
      "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
  )


def _free_port():
  with socket.socket() as holder:
    holder.bind(("127.0.0.1", 0))
    return holder.getsockname()[1]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs")
  coordinator = f"127.0.0.1:{_free_port()}"
  begun = [
    _begin(folder / "one.npz", "one", 1),
    _begin(folder / "eight.npz", "eight", 8),
    *(
      _begin(folder / "processes.npz", "processes", 2, coordinator, "2", str(i))
      for i in range(2)
    ),
  ]
  for process in begun:
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
  return {place: dict(np.load(folder / f"{place}.npz")) for place in _RUNS}


def _part(results, run, kind):
  prefix = f"{run} {kind} "
  return {
    key.removeprefix(prefix): value
    for key, value in results.items()
    if key.startswith(prefix)
  }


_PAIRS = [
  (place, run, _run(run.split("/")[0], "data:1", *run.split("/")[2:]))
  for place in ("eight", "processes")
  for run in _RUNS[place]
]
each_pair = pytest.mark.parametrize(("place", "run", "alone"), _PAIRS)


@each_pair
def test_batches_are_the_same_bits(found, place, run, alone):
  expected = _part(found["one"], alone, "batch")
  batch = _part(found[place], run, "batch")
  assert expected["observation_tm1"].shape == (32, 3)
  assert batch.keys() == expected.keys()
  for name, value in expected.items():
    np.testing.assert_array_equal(batch[name], value, err_msg=name)


@each_pair
def test_ends_are_the_same_after_50_updates(found, place, run, alone):
  expected = _part(found["one"], alone, "end")
  end = _part(found[place], run, "end")
  assert end.keys() == expected.keys() and np.all(end["step"] == 50)
  for name, value in expected.items():
    np.testing.assert_allclose(
      end[name], value, rtol=1e-5, atol=1e-5, err_msg=name
    )
  np.testing.assert_array_equal(end["rng_key"], expected["rng_key"])


def test_the_learners_differ(found):
  """Whatever compares two of them must be able to fail."""
  ends = [
    _part(found["one"], _run(name, "data:1", 8, 1, 1), "end")
    for name in _LEARNERS[:2]
  ]
  name = "learner.actor_params.params.MLP_0.Dense_0.kernel"
  assert np.abs(ends[0][name] - ends[1][name]).max() > 1e-3


def _collectives(found, place, run):
  kinds = collections.Counter()
  for kind, _, num_bytes in json.loads(str(found[place][f"{run} collectives"])):
    kinds[kind] += num_bytes
  return kinds


@each_pair
def test_nothing_crosses_but_sums(found, place, run, alone):
  """Gradients, and means and extremes of the batch: no row, no parameter."""
  kinds = _collectives(found, place, run)
  assert set(kinds) == {"all-reduce"}
  assert not _collectives(found, "one", alone)


@pytest.mark.parametrize("name", _LEARNERS)
def test_the_sums_are_of_the_gradients_size(found, name):
  run = _run(name, "data:8", 8, 1, 1)
  end = _part(found["eight"], run, "end")
  trained = sum(
    value.nbytes
    for leaf, value in end.items()
    if "_params." in leaf and not leaf.startswith("learner.target_")
  )
  crossing = _collectives(found, "eight", run)["all-reduce"]
  # Besides them scalars and numbers of a group.
  assert trained <= crossing <= trained + 200
