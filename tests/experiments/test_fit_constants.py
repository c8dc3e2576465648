"""The shipped constants can be remade: same files, same keys."""

import json
import os
import pathlib
import subprocess
import sys

import kuairand_files
import numpy as np
import pytest

from mtf_jax.data import kuairand
from mtf_jax.fitting import population
from mtf_jax.studies.audit import marginals

_ROOT = pathlib.Path(__file__).parents[2]


def _run(*arguments, log_dir=""):
  """Runs the launcher; `log_dir` is the environment's folder."""
  return subprocess.run(
    (sys.executable, "-m", "experiments.fit_constants", *arguments),
    cwd=_ROOT,
    env={**os.environ, "MTF_JAX_KUAIRAND": str(log_dir)},
    capture_output=True,
    text=True,
  )


def _keys(value):
  """The names in a JSON value at every depth; lists are not looked into."""
  if not isinstance(value, dict):
    return None
  return {name: _keys(part) for name, part in value.items()}


def test_a_log_gives_the_files_that_are_shipped(tmp_path):
  folder, out_dir = tmp_path / "log", tmp_path / "constants"
  folder.mkdir()
  kuairand_files.write_folder(folder, num_rows=12_000)
  kuairand_files.set_value(folder, 3, "user_id", "77777")
  run = _run(
    f"--log_dir={folder}",
    f"--out_dir={out_dir}",
    "--source=a test",
    "--max_unknown_share=0.001",
  )
  assert run.returncode == 0, run.stderr
  assert "1 of 12000 rows are left out" in run.stderr
  for shipped in (
    "mtf_jax/fitting/kuairand_population.json",
    "mtf_jax/studies/audit/kuairand_reference.json",
  ):
    before = json.loads((_ROOT / shipped).read_text())
    made = json.loads((out_dir / pathlib.Path(shipped).name).read_text())
    assert list(made) == list(before)
    # Which behaviours occur together is a matter of the log.
    assert made.pop("lifts", {}).keys() <= before.pop("lifts", {}).keys()
    assert _keys(made) == _keys(before)
    assert made["source"] == (
      "a test; days 20220425 to 20220430; aggregates only"
    )
  # They are read as the shipped ones are, and say what the log says.
  constants = population.load_population(out_dir / "kuairand_population.json")
  model = population.synthetic_response(
    np.random.default_rng(0), 30, 20, constants
  )
  assert model.num_users == 30
  found = json.loads((out_dir / "kuairand_reference.json").read_text())
  assert found["rows"] == 11_999
  errors = marginals.marginal_errors(found, marginals.load_reference())
  assert errors["marginals_max_rel_error"] < 0.5


def test_the_folder_is_the_flags_or_the_environments(monkeypatch):
  monkeypatch.setenv("MTF_JAX_KUAIRAND", "there")
  assert kuairand.log_folder("here") == pathlib.Path("here")
  assert kuairand.log_folder() == pathlib.Path("there")
  monkeypatch.delenv("MTF_JAX_KUAIRAND")
  with pytest.raises(
    ValueError, match=r"found none; give one or set .*KUAIRAND"
  ):
    kuairand.log_folder()


def test_no_folder_is_said_in_a_sentence(tmp_path):
  run = _run(f"--out_dir={tmp_path}")
  assert run.returncode != 0
  assert "environment variable MTF_JAX_KUAIRAND." in run.stderr
  assert "Traceback" not in run.stderr
