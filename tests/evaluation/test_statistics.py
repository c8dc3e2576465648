import numpy as np
import pytest
import scipy.stats

from mtf_jax.evaluation import statistics as stats
from mtf_jax.io import InputError


def test_interval_counts_users_not_sessions():
  rng = np.random.default_rng(0)
  base = rng.gamma(4.0, size=400)
  policy = base * (1.02 + 0.1 * rng.standard_normal(400))
  user = np.arange(400)
  once = stats.paired_comparison(policy, base, user)
  thrice = stats.paired_comparison(
    *(np.repeat(x, 3) for x in (policy, base, user))
  )
  np.testing.assert_allclose(once.gain, thrice.gain, rtol=1e-9)
  np.testing.assert_allclose(once.ci95, thrice.ci95, rtol=1e-9)
  assert once.ci95[0] < 2.0 < once.ci95[1]
  half_width = (once.ci95[1] - once.ci95[0]) / 2
  assert 0.5 < half_width < 2.0
  # At the edge of its interval a gain has p = 0.05.
  edge = stats.paired_comparison(
    policy - base.mean() * once.ci95[0] / 100, base, user
  )
  assert edge.p_value == pytest.approx(0.05, abs=0.01)
  same = stats.paired_comparison(base, base, user)
  assert same.gain == 0 and same.p_value == 1


def test_relative_gain_interval():
  rng = np.random.default_rng(0)
  covered = 0
  for _ in range(200):
    base = 10 + rng.standard_normal(400)
    better = 1.02 * base + 0.5 * rng.standard_normal(400)
    gain = stats.relative_gain(better, base)
    covered += gain.low < 2.0 < gain.high
  assert 180 < covered <= 199


@pytest.mark.parametrize("count", [2, 5, 10, 31, 32])
def test_mean_interval_is_student_s(count):
  values = np.random.default_rng(count).normal(2.0, 1.0, count)
  expected = scipy.stats.t.interval(
    0.95, count - 1, values.mean(), scipy.stats.sem(values)
  )
  found = stats.mean_interval(values.tolist())
  # Beyond 30 degrees of freedom the normal quantile is 4% too narrow at most.
  rtol = 1e-3 if count < 32 else 5e-2
  np.testing.assert_allclose(found, expected, rtol=rtol)


_ONES, _USER = np.ones(4), np.array([0, 0, 1, 1])
_BAD = [
  (np.array([1, np.nan, 1, 1]), "expected finite values, found 1 of 4 .* at 1"),
  (np.array([1, 1, np.inf, 1]), "expected finite values, found 1 of 4 .* at 2"),
  (np.ma.masked_less(np.arange(4), 1), "expected an array without a mask"),
  (np.ones(3), r"expected shape \[[34]\]"),
  (np.ones(1), r"expected shape \[[14]\]"),
]


@pytest.mark.parametrize(("bad", "message"), _BAD)
def test_returns_that_are_no_numbers_are_refused(bad, message):
  for values in ((bad, _ONES), (_ONES, bad)):
    with pytest.raises(InputError, match=message):
      stats.relative_gain(*values)
    with pytest.raises(InputError, match=message):
      stats.paired_comparison(*values, _USER)
  with pytest.raises(InputError, match=message):
    stats.paired_comparison(_ONES, _ONES, bad)


def test_a_gain_over_nothing_is_undefined():
  """It has neither a gain nor a p-value; 1 would say "no difference"."""
  gain = stats.relative_gain(_ONES, np.zeros(4))
  assert np.isnan([gain.percent, gain.error, gain.low, gain.high]).all()
  found = stats.paired_comparison(_ONES, np.array([1, -1, 2, -2.0]), _USER)
  assert np.isnan([found.gain, *found.ci95, found.p_value]).all()


def test_intervals_of_what_is_undefined():
  assert stats.interval(np.array([1.0, np.nan])) == [None, None]
  assert stats.interval(np.array([])) == [None, None]
  with pytest.raises(InputError, match="replicates: expected an array without"):
    stats.interval(np.ma.masked_less(np.arange(4.0), 1))
  with pytest.raises(InputError, match="values: expected two or more seeds"):
    stats.mean_interval([1.0])
  with pytest.raises(InputError, match="values: expected finite values"):
    stats.mean_interval([1.0, np.nan])
