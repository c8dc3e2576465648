import jax
import jax.numpy as jnp
import kuairand_files
import numpy as np
import pytest

from mtf_jax.datasets import kuairand, sessions
from mtf_jax.worlds import files, kuairand_world, session


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp("kuairand")
  kuairand_files.write_folder(path, num_users=120, num_items=100, num_rows=2400)
  return path


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
  files.save_world(path, fit.world)
  world = files.load_world(path)
  rows = session.rollout(
    jax.random.key(0), world, session.explore_in_box, jnp.zeros(10), 32, 6
  )
  log = session.pack(rows)
  sessions.validate(log)
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
  facts = kuairand_world.describe_log(log)
  play, duration = np.asarray(log.play_seconds), np.asarray(log.duration)
  np.testing.assert_allclose(facts["rates"]["valid"], np.mean(play > 10))
  np.testing.assert_allclose(
    facts["rates"]["finish"], np.mean(play >= duration)
  )
  np.testing.assert_allclose(facts["rates"]["like"], np.mean(log.like))
