"""Metrics against their definitions by brute force."""

import numpy as np
import pytest

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
