"""What a world must agree with at once: its log, its slates, random exposure."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax.data.behaviours import BEHAVIOURS, INDEX, TASKS
from mtf_jax.fitting import build, calibration, synthetic
from mtf_jax.fitting.calibration import Pairs, expected_rates
from mtf_jax.studies.audit.marginals import load_reference

_FREQUENT = ("valid", "finish", "click", "long_view", "like")


def _pairs(world, count=20_000):
  """Pairs like the log's and random ones, other draws than the calibration's."""
  return synthetic._pairs(world.response, np.random.default_rng(12345))


def test_users_do_on_pairs_like_the_logs_what_the_log_says(small_world):
  logged, _ = _pairs(small_world)
  rates = expected_rates(small_world.response, logged)
  reference = load_reference()["rates"]
  for name in _FREQUENT:
    # Items of a small catalogue are few: the like rate is known to 4%.
    assert rates[INDEX[name]] == pytest.approx(reference[name], rel=0.1), name


def test_default_slates_have_the_logs_rates(small_world):
  shown = calibration.default_slates(jax.random.key(8), small_world)
  reference = load_reference()["rates"]
  for name in _FREQUENT:
    found = shown.rates[INDEX[name]]
    assert found == pytest.approx(reference[name], rel=0.08), name
  np.testing.assert_allclose(shown.satisfaction_std, 1.0, atol=0.15)
  np.testing.assert_allclose(
    shown.log_duration, calibration.TARGET_LOG_DURATION, atol=0.1
  )


def test_random_videos_are_as_much_worse_as_published(small_world):
  shown = calibration.default_slates(jax.random.key(8), small_world)
  _, random = _pairs(small_world)
  rates = expected_rates(small_world.response, random)
  click, like = INDEX["click"], INDEX["like"]
  assert shown.rates[click] / rates[click] == pytest.approx(2.56, rel=0.1)
  assert shown.rates[like] / rates[like] == pytest.approx(3.8, rel=0.3)


def test_the_worse_the_retrieval_the_worse_the_slates(small_world):
  """The knob that candidates are set by does what it is there for."""
  clicks = []
  for noise in (0.1, 3.0, 50.0):
    pool = build.make_pool(
      small_world.response,
      build.Retrieval(256, noise),
      np.random.default_rng(0),
    )
    random = np.random.default_rng(1).integers(0, 256, (512, 20))
    items = np.take_along_axis(pool.astype(int), random, axis=1)
    user = np.repeat(np.arange(512), 20)
    rates = expected_rates(small_world.response, Pairs(user, items.reshape(-1)))
    clicks.append(rates[BEHAVIOURS.index("click")])
  assert clicks[0] > clicks[1] + 0.02
  assert clicks[1] > clicks[2] + 0.02


def test_biases_lie_around_each_tasks_own_scores(small_world):
  codes = np.asarray(small_world.scores.codes)
  values = np.asarray(small_world.scores.values)
  bias = np.asarray(small_world.fusion_spec.bias_base)
  for k, task in enumerate(TASKS):
    scores = values[k][codes[:, :, k]]
    # A level of the codes is many scores.
    assert (scores < bias[k]).mean() <= 0.5 <= (scores <= bias[k]).mean(), task


def test_powers_change_nothing_else(small_world):
  changed = calibration.with_powers(small_world, {"watch_time": 0.25})
  base = np.asarray(changed.fusion_spec.power_base)
  assert base[TASKS.index("watch_time")] == 0.25
  kept = changed.replace(fusion_spec=small_world.fusion_spec)
  assert jax.tree.all(
    jax.tree.map(lambda a, b: jnp.array_equal(a, b), kept, small_world)
  )
