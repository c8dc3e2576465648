import pathlib
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import kuairand_files
import numpy as np
import pytest

from mtf_jax import policies
from mtf_jax.data import kuairand, session_log
from mtf_jax.fitting import kuairand_world
from mtf_jax.fitting.response_fit import NUM_STEPS
from mtf_jax.io import InputError
from mtf_jax.ranking import ranker as ranker_lib
from mtf_jax.studies.audit import held_out_days
from mtf_jax.worlds import io as world_io
from mtf_jax.worlds import rollout as rollout_lib


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("kuairand")
  kuairand_files.write_folder(path, num_users=120, num_items=100, num_rows=2400)
  return path


@pytest.fixture
def fits(monkeypatch):
  """Days of the logs fitted to; every fit answers the log's true model."""
  truth = kuairand_files.draw(120, 100, 2400)[0]
  days = []

  def fit_response(log, catalogue, rng, count):
    days.append(np.unique(log.date).tolist())
    count(NUM_STEPS)
    return truth, None

  for module in (kuairand_world, held_out_days):
    monkeypatch.setattr(module, "fit_response", fit_response)
  return days


def test_fit_to_a_folder_and_sessions_from_its_file(folder, tmp_path):
  told = []
  fit = kuairand_world.fit_world(
    folder,
    test_from=20220429,
    num_users=100,
    pool_size=64,
    num_candidates=20,
    slate_size=4,
    seed=0,
    on_step=lambda *counts: told.append(counts),
  )
  # A step each, the last one the last: 6 epochs, 6 heads, 7 of the responses, 1,
  # and 12 rounds, all of which ask everybody where users are few.
  assert told == [(done, 32) for done in range(33)]
  assert fit.num_rows == 2400
  assert set(fit.ranker_metrics) >= {"valid", "finish", "long_view"}
  path = tmp_path / "fitted.world"
  world_io.save_world(path, fit.world)
  world = world_io.load_world(path)
  rows = rollout_lib.rollout(
    jax.random.key(0), world, policies.explore_in_box, jnp.zeros(10), 32, 6
  )
  log = rollout_lib.pack(rows)
  session_log.validate(log)
  assert log.observation.shape[1] == len(world.observation_names)
  # The kept users are those with the most impressions, and open sessions as
  # often as they have impressions.
  catalogue = kuairand.read_catalogue(folder)
  impressions, _ = kuairand.read_log(folder, catalogue)
  most = np.sort(np.bincount(impressions.user))[::-1][:100]
  np.testing.assert_array_equal(np.bincount(world.population), most)


_SIZES = {
  "num_users": 100,
  "pool_size": 64,
  "num_candidates": 20,
  "slate_size": 4,
  "seed": 0,
}


def test_what_cannot_be_fitted_is_refused_before_the_fit(folder, fits):
  for changed, expected in (
    ({"test_from": 20220426}, "at least 2 training days before it, .* found 1"),
    ({"test_from": 20220501}, r"test_from: expected one of the log's 6 days"),
    ({"pool_size": 48}, "pool_size: expected a power of two of at most .* 100"),
    (
      {"pool_size": 128},
      "pool_size: expected a power of two of at most .* 100",
    ),
  ):
    with pytest.raises(InputError, match=expected):
      kuairand_world.fit_world(
        folder, **{"test_from": 20220429, **_SIZES, **changed}
      )
  assert not fits


def test_no_world_comes_of_a_broken_ranker(folder, fits, monkeypatch):
  train = ranker_lib.train_ranker

  def broken(*args, **named):
    ranker = train(*args, **named)
    # As features of a training set that were constant.
    return ranker._replace(scale=np.full_like(ranker.scale, 1e-6))

  monkeypatch.setattr(ranker_lib, "train_ranker", broken)
  with (
    np.errstate(over="ignore"),
    pytest.raises(InputError, match="one that is worse than none"),
  ):
    kuairand_world.fit_world(folder, test_from=20220429, **_SIZES)
  assert not fits


def test_a_log_of_random_exposure_alone_is_refused_by_file(folder, tmp_path):
  copy = shutil.copytree(folder, tmp_path / "random")
  (copy / "log_standard_a.csv.gz").unlink()
  place = kuairand_files.LOG_COLUMNS.index("is_rand")
  header, *rows = (line.split(",") for line in kuairand_files.lines_of(copy))
  for row in rows:
    row[place] = "1"
  kuairand_files.write_csv(copy / "log_standard_b.csv", header, rows)
  with pytest.raises(InputError, match=r"found none among 1200: .* standard"):
    kuairand_world.fit_world(copy, test_from=20220429, **_SIZES)


def test_a_launcher_leaves_no_file_of_a_refused_fit(folder, tmp_path):
  run = subprocess.run(
    [
      *(sys.executable, "-m", "experiments.fit_world", "--test_from=20220426"),
      *(f"--log_dir={folder}", f"--out={tmp_path / 'new.world'}"),
      "--pool_size=64",
    ],
    cwd=pathlib.Path(__file__).parents[2],
    capture_output=True,
    text=True,
  )
  assert run.returncode != 0
  assert "give a later --test_from." in run.stderr
  assert "Traceback" not in run.stderr
  assert not list(tmp_path.iterdir())


def test_unknown_ids_are_tolerated_wherever_a_log_is_read(
  folder, fits, tmp_path
):
  copy = shutil.copytree(folder, tmp_path / "log")
  lines = kuairand_files.lines_of(copy)
  kuairand_files.write_lines(copy, [*lines, lines[3]])
  kuairand_files.set_value(copy, 1201, "video_id", "77777")
  with pytest.raises(InputError, match=r"row 1201: column video_id: .*77777"):
    held_out_days.days_left_out(copy, seed=0, days_per_fold=4, num_fits=1)
  facts = held_out_days.days_left_out(
    copy, days_per_fold=4, num_fits=1, seed=0, max_unknown_share=0.001
  )
  assert facts["all"]["rows"] == 2400


def test_all_days_are_not_held_out_together(folder, fits):
  with pytest.raises(InputError, match=r"more than 6 days, .* found 6 \(2022"):
    held_out_days.days_left_out(folder, days_per_fold=6, num_fits=1, seed=0)
  assert not fits


def test_describe_log_derives_thresholds_from_play_time(folder):
  catalogue = kuairand.read_catalogue(folder)
  log, _ = kuairand.read_log(folder, catalogue)
  facts = held_out_days.describe_log(log)
  play, duration = np.asarray(log.play_seconds), np.asarray(log.duration)
  np.testing.assert_allclose(facts["rates"]["valid"], np.mean(play > 10))
  np.testing.assert_allclose(
    facts["rates"]["finish"], np.mean(play >= duration)
  )
  np.testing.assert_allclose(facts["rates"]["like"], np.mean(log.like))


def test_every_day_is_left_out_of_the_fits_that_judge_it(folder, fits):
  told = []
  facts = held_out_days.days_left_out(
    folder,
    days_per_fold=4,
    num_fits=1,
    seed=0,
    on_step=lambda *counts: told.append(counts),
  )
  assert told == [(done * NUM_STEPS, 3 * NUM_STEPS) for done in range(4)]
  # All six days first, then without the first four, then without the last two.
  days = list(range(20220425, 20220431))
  assert fits == [days, days[4:], days[:4]]
  assert [day["date"] for day in facts["days"]] == days
  assert (
    sum(day["rows"] for day in facts["days"]) == facts["all"]["rows"] == 2400
  )
  # The model that drew the log answers within sampling error of it.
  for name in ("valid", "click", "long_view", "finish", "like"):
    rate = facts["all"][name]
    assert rate["held_out"] == pytest.approx(rate["in_sample"], rel=1e-5)
    assert abs(rate["held_out"] - rate["log"]) < 4 * rate["standard_error"]
    assert 0 < rate["standard_error"] < 0.03


@pytest.fixture(scope="module")
def early(folder):
  """A world that has not seen the log's last two days."""
  fit = kuairand_world.fit_world(
    folder, test_from=20220428, fit_before=20220429, **_SIZES
  )
  return fit.world


def test_a_world_is_held_against_what_its_own_users_were_shown(folder, early):
  log, found = held_out_days.own_log_comparison(
    early, folder, fit_before=20220429, judge_from=20220429
  )
  catalogue = kuairand.read_catalogue(folder)
  impressions, _ = kuairand.read_log(folder, catalogue)
  seen, later = kuairand.split_days(impressions, 20220429)
  users = kuairand_world.most_active(
    np.bincount(seen.user, minlength=len(catalogue.user_ids)), 100
  )
  kept = np.isin(later.user, users) & (later.is_rand == 0)
  assert log["rows"] == kept.sum()
  assert found["rows"] == 4 * kept.sum()
  # The answers are the world's: it was fitted to rates like the log's.
  assert found["rates"]["click"] == pytest.approx(
    log["rates"]["click"], rel=0.3
  )


def test_a_world_of_other_days_is_refused(folder, early):
  with pytest.raises(InputError, match="log_dir, fit_before: expected the log"):
    held_out_days.own_log_comparison(
      early, folder, fit_before=None, judge_from=None
    )
  with pytest.raises(InputError, match="judge_from: expected one of the log's"):
    held_out_days.own_log_comparison(
      early, folder, fit_before=20220429, judge_from=20220601
    )
