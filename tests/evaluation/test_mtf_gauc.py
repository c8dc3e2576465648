import numpy as np
import pytest

from mtf_jax.evaluation import mtf_gauc
from mtf_jax.evaluation.mtf_gauc import Impressions
from mtf_jax.io import InputError


def _by_hand():
  """User 7 on two days, user 9 on one; user 9 also has a day of one label."""
  return Impressions(
    label=np.array([1, 0, 0, 1, 0, 1, 0, 1, 1]),
    reward=np.array([2.0, 1, 3, 1, 1, 4, 0.5, 1, 1]),
    day=np.array([0, 0, 0, 1, 1, 2, 2, 3, 3]),
    user=np.array([7, 7, 9, 9]),
  )


_SCORE = np.array([0.9, 0.5, 0.95, 0.2, 0.2, 0.3, 0.8, 0.1, 0.2])


def test_by_hand():
  impressions = _by_hand()
  auc = mtf_gauc.day_auc(_SCORE, impressions)
  # Day 0: the pair of weight 2 * 1 is in order, that of 2 * 3 is not. Day 1: a
  # tie. Day 2: out of order. Day 3 has one label.
  np.testing.assert_allclose(auc, [0.25, 0.5, 0.0, np.nan])
  assert mtf_gauc.mtf_gauc(auc, impressions) == pytest.approx(
    (3 * 0.25 + 2 * 0.5 + 2 * 0.0) / 7
  )


def test_impressions_that_earned_nothing_count_alike():
  label = np.array([1, 0, 0, 0, 1, 0, 0])
  impressions = Impressions(
    label=label,
    reward=np.array([1.0, 0, 0, 0, 1, 0, 2]),
    day=np.array([0, 0, 0, 0, 1, 1, 1]),
    user=np.array([0, 1]),
  )
  score = np.array([0.5, 0.1, 0.2, 0.9, 0.5, 0.1, 0.9])
  np.testing.assert_allclose(
    mtf_gauc.day_auc(score, impressions), [2 / 3, 0.0], atol=1e-5
  )


def test_no_increasing_normalisation_changes_it():
  impressions = _by_hand()
  power = np.array([0.3, 2.0, 5.0, 1.0])[impressions.day]
  np.testing.assert_allclose(
    mtf_gauc.day_auc(4 + power * np.log(_SCORE), impressions),
    mtf_gauc.day_auc(_SCORE, impressions),
  )


def test_intervals_are_over_users_and_paired():
  rng = np.random.default_rng(0)
  num_users, shown = 400, 6
  user = np.arange(num_users)
  impressions = Impressions(
    label=np.tile([1, 0], num_users * shown // 2),
    reward=np.ones(num_users * shown),
    day=np.repeat(user, shown),
    user=user,
  )
  noise = rng.standard_normal(num_users * shown)
  good = mtf_gauc.day_auc(noise + 0.5 * impressions.label, impressions)
  better = mtf_gauc.day_auc(noise + 0.6 * impressions.label, impressions)
  found = mtf_gauc.compare_policies(
    {"good": good, "better": better}, impressions, "good"
  )
  assert found["good"]["minus_base"] == 0
  assert found["good"]["gauc"] == mtf_gauc.mtf_gauc(good, impressions)
  low, high = found["good"]["ci95"]
  # All users weigh the same, so the bootstrap must give the error of a mean.
  error = good.std() / np.sqrt(num_users)
  assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)
  low, high = found["better"]["minus_base_ci95"]
  assert low > 0
  assert high - low < 0.5 * 2 * 1.96 * error
  # A user's days are drawn together: twice the days tell nothing new.
  twice = Impressions(
    *(np.tile(x, 2) for x in impressions[:2]),
    np.r_[impressions.day, impressions.day + num_users],
    np.tile(user, 2),
  )
  again = mtf_gauc.compare_policies({"good": np.tile(good, 2)}, twice, "good")
  np.testing.assert_allclose(again["good"]["ci95"], found["good"]["ci95"])


def test_what_cannot_be_compared_is_refused():
  impressions = _by_hand()
  auc = {"ES": mtf_gauc.day_auc(_SCORE, impressions)}
  with pytest.raises(ValueError, match=r"base: expected one of \['ES'\]"):
    mtf_gauc.compare_policies(auc, impressions, "es")
  alike = impressions._replace(label=np.ones(9))
  auc = {"ES": mtf_gauc.day_auc(_SCORE, alike)}
  assert np.isnan(mtf_gauc.mtf_gauc(auc["ES"], alike))
  with pytest.raises(ValueError, match="a user day with both labels"):
    mtf_gauc.compare_policies(auc, alike, "ES")


def _changed(array, value):
  array = np.array(array, float)
  array[4] = value
  return array


@pytest.mark.parametrize(
  ("field", "change", "message"),
  [
    ("reward", lambda a: _changed(a, np.nan), "impressions.reward: .* finite"),
    ("reward", lambda a: _changed(a, np.inf), "impressions.reward: .* finite"),
    ("reward", lambda a: -a, "impressions.reward: expected 0 or more, found 9"),
    ("reward", lambda a: np.ma.masked_less(a, 1), "reward: .* without a mask"),
    ("label", lambda a: _changed(a, np.nan), "label: expected finite values"),
    ("label", lambda a: _changed(a, 0.5), "label: expected 0 or 1"),
    ("day", lambda a: a[:5], r"group: expected shape \[9\]"),
    (
      "user",
      lambda a: a[:3],
      "expected impressions of each of the 3 user days",
    ),
    ("score", lambda a: _changed(a, np.nan), "score: expected finite values"),
    ("score", lambda a: np.ma.masked_less(a, 0.5), "score: .* without a mask"),
  ],
)
def test_a_day_is_not_dropped_for_a_bad_value(field, change, message):
  """The AUC of such a day would be NaN, as that of a day of one label."""
  impressions, score = _by_hand(), _SCORE
  if field == "score":
    score = change(score)
  else:
    impressions = impressions._replace(
      **{field: change(getattr(impressions, field))}
    )
  with pytest.raises(InputError, match=message):
    mtf_gauc.day_auc(score, impressions)


def test_policies_are_judged_on_the_same_days():
  impressions = _by_hand()
  auc = mtf_gauc.day_auc(_SCORE, impressions)
  worse = auc.copy()
  worse[0] = np.nan
  with pytest.raises(
    InputError, match=r"auc\['b'\]: expected NaN on the days of 'a'"
  ):
    mtf_gauc.compare_policies({"a": auc, "b": worse}, impressions, "a")
  for wrong in (auc[:3], auc * 10):
    with pytest.raises(InputError, match="auc: expected values from 0 to 1"):
      mtf_gauc.mtf_gauc(wrong, impressions)
