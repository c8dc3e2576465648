"""Metrics against their definitions by brute force."""

import numpy as np
import pytest

from mtf_jax.io import InputError
from mtf_jax.ranking import metrics


def _auc_by_pairs(score, label):
  gaps = score[label == 1][:, None] - score[label == 0][None, :]
  return np.mean((gaps > 0) + 0.5 * (gaps == 0))


def test_auc_counts_pairs_and_ties():
  rng = np.random.default_rng(0)
  score = rng.integers(12, size=200).astype(float)
  label = (rng.random(200) < 0.3).astype(int)
  assert metrics.auc(score, label) == pytest.approx(_auc_by_pairs(score, label))
  assert np.isnan(metrics.auc(score, np.ones(200)))


def test_gauc_weighs_users_by_impressions():
  rng = np.random.default_rng(1)
  user = rng.integers(20, size=300)
  score, label = rng.random(300), (rng.random(300) < 0.4).astype(int)
  label[user == 3] = 1  # a user of one class does not count
  total, weight = 0.0, 0
  for u in range(20):
    mine = user == u
    if 0 < label[mine].sum() < mine.sum():
      total += mine.sum() * _auc_by_pairs(score[mine], label[mine])
      weight += mine.sum()
  assert metrics.gauc(score, label, user) == pytest.approx(total / weight)
  # What only tells users apart has no GAUC.
  assert metrics.gauc(user, label, user) == pytest.approx(0.5)


def test_log_loss_and_calibration():
  label = np.array([1.0, 0, 0, 0])
  assert metrics.log_loss(np.full(4, 0.25), label) == pytest.approx(
    -(np.log(0.25) + 3 * np.log(0.75)) / 4
  )
  rng = np.random.default_rng(2)
  p = rng.random(50_000)
  event = (rng.random(50_000) < p).astype(float)
  assert metrics.calibration_error(p, event) < 0.02
  assert metrics.calibration_error(0.5 * p, event) == pytest.approx(
    0.5, abs=0.02
  )


def test_weighted_auc_counts_pairs_by_both_weights():
  rng = np.random.default_rng(4)
  group = rng.integers(9, size=400)
  score = rng.integers(6, size=400).astype(float)
  label = (rng.random(400) < 0.4).astype(int)
  weight = rng.gamma(1.0, size=400)
  label[group == 2] = 0
  weight[(group == 5) & (label == 0)] = 0  # a class that weighs nothing
  found = metrics.weighted_auc(score, label, weight, group)
  assert np.isnan(found[[2, 5]]).all()
  for g in (0, 1, 3, 4, 6, 7, 8):
    mine = group == g
    gaps = np.subtract.outer(
      score[mine & (label == 1)], score[mine & (label == 0)]
    )
    pairs = np.multiply.outer(
      weight[mine & (label == 1)], weight[mine & (label == 0)]
    )
    expected = np.sum(pairs * ((gaps > 0) + 0.5 * (gaps == 0))) / pairs.sum()
    assert found[g] == pytest.approx(expected)


_SCORE = np.array([0.1, 0.4, 0.3, 0.8])
_LABEL = np.array([0.0, 1, 0, 1])
_USER = np.array([0, 0, 1, 1])


def _with(array, value):
  array = np.array(array, float)
  array[2] = value
  return array


_METRICS = {
  "auc": lambda score, label: metrics.auc(score, label),
  "gauc": lambda score, label: metrics.gauc(score, label, _USER[: len(score)]),
  "weighted": lambda score, label: metrics.weighted_auc(
    score, label, np.ones(4), _USER
  ),
  "log_loss": metrics.log_loss,
  "calibration": metrics.calibration_error,
}
_MASKED = np.ma.masked_greater(_SCORE, 0.7)


@pytest.mark.parametrize("metric", _METRICS)
@pytest.mark.parametrize(
  ("score", "label", "message"),
  [
    (_with(_SCORE, np.nan), _LABEL, "expected finite values, found 1 of 4"),
    (_with(_SCORE, np.inf), _LABEL, "expected finite values, found 1 of 4"),
    (_SCORE, _with(_LABEL, np.nan), "label: expected finite values, found 1"),
    (_SCORE, _with(_LABEL, -np.inf), "label: expected finite values, found 1"),
    (_MASKED, _LABEL, "expected an array without a mask, found 1 of 4"),
    (_SCORE, np.ma.masked_less(_LABEL, 1), "label: .* a mask, found 2 of 4"),
    (_SCORE, _LABEL[:3], r"label: expected shape \[4\], found \(3,\)"),
    (_SCORE[:, None], _LABEL, r"expected shape \[4\], found \(4, 1\)"),
    (_SCORE, ["a", "b", "c", "d"], "label: expected numbers, found"),
  ],
)
def test_what_is_no_number_has_no_rank(metric, score, label, message):
  with pytest.raises(InputError, match=message):
    _METRICS[metric](score, label)


@pytest.mark.parametrize("metric", ["auc", "gauc", "weighted", "log_loss"])
def test_labels_are_0_or_1(metric):
  with pytest.raises(InputError, match="label: expected 0 or 1, found others"):
    _METRICS[metric](_SCORE, _with(_LABEL, 2))
  with pytest.raises(InputError, match=r"score|probability|label"):
    _METRICS[metric](_SCORE[:0], _LABEL[:0])


def test_weights_groups_and_probabilities_are_in_their_range():
  for weight, group, message in (
    (_with(_SCORE, -1), _USER, "weight: expected 0 or more"),
    (_with(_SCORE, np.nan), _USER, "weight: expected finite"),
    (_SCORE, _USER - 1, "group: expected 0 or more, found others in 2 of 4"),
    (_SCORE, _USER + 0.5, "group: expected integers, found float64"),
  ):
    with pytest.raises(InputError, match=message):
      metrics.weighted_auc(_SCORE, _LABEL, weight, group)
  with pytest.raises(InputError, match="probability: expected values from 0"):
    metrics.log_loss(_with(_SCORE, 1.5), _LABEL)


def test_a_behaviour_never_seen_has_no_calibration():
  assert np.isnan(metrics.calibration_error(_SCORE, np.zeros(4)))
  assert np.isnan(metrics.auc(_SCORE, np.zeros(4)))
  assert np.isnan(metrics.gauc(_SCORE, np.zeros(4), _USER))


def test_fewer_impressions_than_bins_are_a_bin_each():
  assert metrics.calibration_error(_SCORE, _LABEL) == pytest.approx(
    (0.1 + 0.6 + 0.3 + 0.2) / 4 / 0.5
  )


def test_no_rounding_takes_an_auc_above_1():
  """Small weights behind large ones: the groups are sums of one row."""
  rng = np.random.default_rng(0)
  group = np.repeat(np.arange(200), 20)
  label = np.tile([0, 1], 2000)
  weight = np.where(rng.random(4000) < 0.5, 1e-6, 1e3 * rng.random(4000))
  found = metrics.weighted_auc(label + rng.random(4000), label, weight, group)
  assert found.max() <= 1
  np.testing.assert_allclose(found, 1, atol=1e-5)
