"""The score model: no leak through the encodings, and better than chance."""

import kuairand_files
import numpy as np
import pytest

from mtf_jax.data import behaviours, kuairand
from mtf_jax.io import InputError
from mtf_jax.ranking import features, ranker

_LIKES = behaviours.POSITIVE_INTERACTIONS


@pytest.fixture(scope="module")
def days(tmp_path_factory):
  folder = tmp_path_factory.mktemp("log")
  kuairand_files.write_folder(
    folder, num_users=200, num_items=150, num_rows=24_000
  )
  catalogue = kuairand.read_catalogue(folder)
  log, _ = kuairand.read_log(folder, catalogue)
  return catalogue, *kuairand.split_days(log, 20220430)


@pytest.fixture(scope="module")
def trained(days):
  catalogue, earlier, _ = days
  return ranker.train_ranker(earlier, catalogue, epochs=3, batch_size=256)


def test_encodings_leave_their_own_day_out(days):
  catalogue, earlier, _ = days
  _, rows = features.fit_encoder(earlier, catalogue)
  day = earlier.date == 20220427
  flipped = np.where(day, 300.0 - earlier.play_seconds, earlier.play_seconds)
  changed = earlier._replace(play_seconds=np.abs(flipped).astype(np.float32))
  _, other = features.fit_encoder(changed, catalogue)
  # The mean that all are shrunk to moves; shrunken deviations of that day move
  # by no more than that, those of the other days by the day's labels.
  count = features.ENCODED.index("valid")
  own = np.abs(other.numbers - rows.numbers)[:, count]
  weight = np.exp(rows.numbers[:, len(features.ENCODED)]) - 1 + 4.0
  shift = np.abs(
    features.labels(changed)["valid"].mean()
    - features.labels(earlier)["valid"].mean()
  )
  exact = shift * (1 - 4.0 / weight)
  np.testing.assert_allclose(own[day], exact[day], atol=1e-5)
  assert np.mean(np.abs(own[~day] - exact[~day])) > 0.01


def test_later_rows_use_all_training_days(days):
  catalogue, earlier, later = days
  encoder, _ = features.fit_encoder(earlier, catalogue)
  user = later.user[0]
  mine = earlier.user == user
  click = features.labels(earlier)["click"]
  expected = (click[mine].sum() + 4.0 * click.mean()) / (mine.sum() + 4.0)
  rows = features.encode(encoder, later.user, later.item, later.tab)
  assert rows.numbers[0, features.ENCODED.index("click")] == pytest.approx(
    expected - click.mean(), abs=1e-5
  )


def test_learns_what_the_simulated_users_do(days, trained):
  _, _, later = days
  report = ranker.evaluate(trained, later)
  assert set(report) == {*behaviours.TASKS, "click"}
  for name in ("valid", "long_view", "click", "finish"):
    assert report[name]["auc"] > 0.6, name
    assert report[name]["log_loss"] < report[name]["base_log_loss"], name
  assert (
    report["watch_time"]["log_loss"] < report["watch_time"]["base_log_loss"]
  )


def test_linear_scores_of_blocks(trained):
  users = np.array([3, 9])
  items = np.array([[1, 5, 7], [7, 1, 2]])
  scores = ranker.linear_scores(trained, users, items)
  assert scores.shape == (2, 3, len(behaviours.TASKS))
  assert scores.dtype == np.float32
  assert np.isfinite(scores).all()
  alone = ranker.linear_scores(trained, users[1:], np.array([2]))
  np.testing.assert_allclose(alone[0, 0], scores[1, 2], rtol=1e-4, atol=1e-5)
  shared = ranker.linear_scores(trained, users, np.array([7]))
  np.testing.assert_allclose(shared[0, 0], scores[0, 2], rtol=1e-4, atol=1e-5)


def test_same_seed_same_ranker(days, trained):
  catalogue, earlier, _ = days
  again, different = (
    ranker.train_ranker(earlier, catalogue, seed, epochs=3, batch_size=256)
    for seed in (0, 1)
  )
  first, second, other = (
    ranker.linear_scores(each, np.arange(5), np.arange(5))
    for each in (trained, again, different)
  )
  np.testing.assert_array_equal(first, second)
  assert not np.array_equal(first, other)


def test_too_few_rows_or_days(days):
  catalogue, earlier, _ = days
  with pytest.raises(
    InputError, match=r"at least batch_size = 1024 .* found 10; .*--test_from"
  ):
    ranker.train_ranker(earlier.select(np.arange(0, 2000, 200)), catalogue)
  # Leaving its own day out, a row of the only day would have no features.
  first = earlier.select(earlier.date == 20220425)
  with pytest.raises(
    InputError,
    match=r"test_from: expected at least 2 training days before it, .*"
    r"found 1 \(20220425\); give a later --test_from",
  ):
    ranker.train_ranker(first, catalogue)


def test_a_constant_feature_does_not_blow_up_what_differs_from_it(days):
  catalogue, earlier, later = days
  # Nobody interacts on the training days.
  no = np.zeros_like(earlier.like)
  quiet = earlier._replace(like=no, comment=no, follow=no, forward=no)
  fitted = ranker.train_ranker(quiet, catalogue, epochs=3, batch_size=256)
  column = features.ENCODED.index("interaction")
  assert fitted.scale[column] == 1.0
  own = features.fit_encoder(quiet, catalogue)[1].numbers
  varying = own.std(axis=0) > 1e-6
  np.testing.assert_array_equal(fitted.scale[varying], own.std(axis=0)[varying])
  # Of a behaviour that was never seen there is no AUC, and no error.
  report = ranker.evaluate(
    fitted, later._replace(**dict.fromkeys(_LIKES, np.zeros_like(later.like)))
  )
  assert np.isnan(report["interaction"]["auc"])
  assert np.isnan(report["interaction"]["calibration_error"])
  ranker.refuse_broken(report, later)


def test_a_ranker_that_is_worse_than_none_is_refused(days, trained):
  _, _, later = days
  report = ranker.evaluate(trained, later)
  ranker.refuse_broken(report, later)
  for name, loss in (("click", 0.8), ("valid", np.nan), ("watch_time", 1e9)):
    broken = {**report, name: {**report[name], "log_loss": loss}}
    with pytest.raises(
      InputError, match=rf"before --test_from .* none: {name} has a loss of"
    ):
      ranker.refuse_broken(broken, later)
  # As good as answers of 0, or nearly: few updates, not a fault.
  weak = {**report, "click": {**report["click"], "log_loss": 0.7}}
  ranker.refuse_broken(weak, later)


def test_user_observations(days, trained):
  catalogue, _, _ = days
  values, names = features.user_observations(trained.encoder, catalogue)
  assert values.shape == (200, len(names))
  np.testing.assert_allclose(values.mean(axis=0), 0.0, atol=1e-5)
  np.testing.assert_allclose(
    values.std(axis=0)[: len(features.ENCODED)], 1.0, atol=1e-4
  )
  assert "user_click" in names
  assert "is_live_streamer" in names
  # What all users have alike is 0, not a rounding error blown up.
  alike = np.full_like(trained.encoder.user_numbers, 0.1)
  values, _ = features.user_observations(
    trained.encoder._replace(user_numbers=alike), catalogue
  )
  np.testing.assert_allclose(values[:, : alike.shape[1]], 0.0, atol=1e-6)


@pytest.mark.skipif(not kuairand_files.REAL.is_dir(), reason="no KuaiRand log")
def test_beats_the_gradient_boosting_reference():
  """AUC and GAUC of a gradient boosting on the same split of the excerpt."""
  catalogue = kuairand.read_catalogue(kuairand_files.REAL)
  log, _ = kuairand.read_log(kuairand_files.REAL, catalogue)
  earlier, later = kuairand.split_days(log, 20220505)
  report = ranker.evaluate(ranker.train_ranker(earlier, catalogue), later)
  for name, auc, gauc in (
    ("click", 0.714, 0.607),
    ("valid", 0.709, 0.610),
    ("finish", 0.811, 0.793),
    ("interaction", 0.810, 0.589),
    ("long_view", 0.705, 0.614),
  ):
    # Finish and interaction differ from it by about a standard error.
    assert report[name]["auc"] > auc - 0.01, name
    assert report[name]["gauc"] > gauc - 0.015, name
    assert report[name]["log_loss"] < report[name]["base_log_loss"], name
