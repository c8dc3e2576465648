import json

import pytest

from mtf_jax.studies.compare import tuning
from mtf_jax.studies.compare.methods import METHODS
from mtf_jax.studies.compare.plan import CompareDir
from tests.small_world import small_world
from tests.studies.compare.test_study import tiny_plan


def _trial(gain, seed=0, **numbers):
  return {
    "learner": "bc",
    "version": "as_published",
    "numbers": numbers,
    "seed": seed,
    "reward_gain_pct": gain,
  }


def test_the_largest_mean_wins():
  trials = [
    *(_trial(gain, n, rate=1.0) for n, gain in enumerate((0.0, 4.0))),
    *(_trial(gain, n, rate=2.0) for n, gain in enumerate((3.0, 2.0))),
  ]
  assert tuning.best_trials(trials) == {"bc:as_published": {"rate": 2.0}}


def test_numbers_that_failed_once_do_not_win():
  trials = [
    *(_trial(gain, n, rate=1.0) for n, gain in enumerate((9.0, None))),
    *(_trial(gain, n, rate=2.0) for n, gain in enumerate((-3.0, -2.0))),
  ]
  assert tuning.best_trials(trials) == {"bc:as_published": {"rate": 2.0}}
  assert not tuning.best_trials(trials[:2])


def test_every_trial_is_kept_and_a_killed_tuning_goes_on(tmp_path):
  folder = CompareDir(tmp_path / "run")
  plan = tiny_plan(methods=("bc",), data=("box",))
  said = []

  def say(message):
    said.append(message)
    if "3 of 8" in message:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    tuning.run_tuning(plan, folder, small_world(), say)
  again = []
  table = tuning.run_tuning(
    plan, folder, small_world(), again.append, resume=True
  )
  assert sum("trial_bc" in line for line in again) == 5
  result = json.loads((folder.path / "tuning.json").read_text())
  tried = [trial["numbers"] for trial in result["trials"]]
  assert tried == METHODS["bc"].trials()
  assert result["tuned"]["bc:as_published"] in tried
  assert table.rows[0][0] == "bc:as_published"
  assert table.rows[0][-1] == "8"
