"""The commands and the code of the page on many devices, as written."""

import json
import os
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import policies
from mtf_jax.data import session_log, transitions
from mtf_jax.evaluation import ab_test
from mtf_jax.training import loop
from mtf_jax.worlds import io as world_io
from mtf_jax.worlds import returns as returns_lib
from tests.distributed import trained
from tests.session_logs import random_log

_ROOT = pathlib.Path(__file__).parents[2]
_PAGE = (_ROOT / "docs" / "many_devices.md").read_text(encoding="utf-8")


def _blocks(language):
  pattern = rf"^```{language}\n(.*?)^```$"
  return re.findall(pattern, _PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_world):
  """Where the commands were run, one block after the other."""
  folder = tmp_path_factory.mktemp("page")
  log = random_log(num_rows=250)
  session_log.save_sessions(folder / "log.npz", log, {"world": "w"})
  world_io.save_world(folder / "small.world", small_world)
  blocks = _blocks("bash")
  assert len(blocks) == 3
  for block in blocks:
    ended = subprocess.run(
      ("bash", "-e", "-c", block),
      cwd=folder,
      env={
        **os.environ,
        "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(_ROOT),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
      },
      capture_output=True,
      text=True,
      timeout=600,
    )
    assert ended.returncode == 0, ended.stderr
    with (folder / "printed").open("a") as printed:
      printed.write(ended.stdout)
  return folder


def test_its_commands_end_in_one_run_on_two_meshes(folder):
  printed = (folder / "printed").read_text().splitlines()
  # Two processes, one report. Gloo, which joins CPUs, prints as well, from threads
  # whose lines may cut each other.
  steps = [json.loads(line)["step"] for line in printed if line[:1] == "{"]
  assert steps == [200, 240]
  path = folder / "runs" / "a" / "checkpoints" / "240" / "record" / "metadata"
  machines = json.loads(path.read_text())["machines"]
  assert [
    (one["from_update"], one["mesh"]["data"], one["processes"])
    for one in machines
  ] == [(0, 8, 1), (200, 4, 2)]


def test_it_collects_any_number_of_sessions(folder):
  log, _ = session_log.load_sessions(folder / "collected.npz")
  assert len(np.unique(log.session_id)) == 99
  assert "\n99 sessions, " in (folder / "printed").read_text()


def _code():
  scope = {}
  for block in _blocks("python"):
    exec(block, scope)
  return scope


def test_its_code_judges_as_one_device_does(small_world):
  world = ab_test.evaluation_world(
    small_world.replace(population=small_world.population[:8])
  )
  table = returns_lib.expected_rewards(world)
  arguments = (
    *(jax.random.key(0), world, table),
    *(policies.fixed_action, jnp.full(10, 0.1), 12),
  )
  judged = _code()["judge"](*arguments)
  expected = ab_test.evaluate(*arguments, 20)
  np.testing.assert_array_equal(judged.user, expected.user)
  np.testing.assert_allclose(judged.reward, expected.reward, rtol=1e-5)


def test_its_code_trains_as_one_device_does():
  scope = _code()
  dataset = transitions.device_dataset(random_log(num_rows=250))
  learner = trained.learner_of("integrated_rl", 1)
  ends = [
    scope["train"](learner, trained.start(learner, dataset), dataset, 10, 16),
    loop.train(
      learner, trained.start(learner, dataset), dataset, 10, batch_size=16
    ),
  ]
  kernels = [
    np.asarray(end.learner.actor_params["params"]["MLP_0"]["Dense_0"]["kernel"])
    for end in ends
  ]
  # One device here, so one stratum: the batches are the same.
  np.testing.assert_allclose(*kernels, rtol=1e-5, atol=1e-6)
  begun = trained.start(learner, dataset).learner.actor_params
  before = begun["params"]["MLP_0"]["Dense_0"]["kernel"]
  assert np.abs(kernels[0] - before).max() > 1e-4
