import jax
import jax.numpy as jnp
import kuairand_files
import numpy as np
import pytest

from mtf_jax import policies
from mtf_jax.data import kuairand, session_log
from mtf_jax.fitting import kuairand_world
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

  def fit_response(log, catalogue, rng):
    days.append(np.unique(log.date).tolist())
    return truth, None

  for module in (kuairand_world, held_out_days):
    monkeypatch.setattr(module, "fit_response", fit_response)
  return days


def test_fit_to_a_folder_and_sessions_from_its_file(folder, tmp_path):
  fit = kuairand_world.fit_world(
    folder,
    test_from=20220429,
    num_users=100,
    pool_size=64,
    num_candidates=20,
    slate_size=4,
    seed=0,
  )
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
  facts = held_out_days.days_left_out(
    folder, days_per_fold=4, num_fits=1, seed=0
  )
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


def test_held_out_comparison_is_fitted_to_the_earlier_days(folder, fits):
  log, found = held_out_days.held_out_comparison(
    folder, test_from=20220429, seed=0
  )
  assert len(fits) > 1  # Posterior draws: one alone is noise.
  assert all(days == list(range(20220425, 20220429)) for days in fits)
  assert found["rows"] % log["rows"] == 0
  errors = log["standard_errors"]
  for name in ("valid", "click", "finish"):
    gap = abs(found["rates"][name] - log["rates"][name])
    assert gap < 4 * errors[name]
