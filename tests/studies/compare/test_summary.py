import numpy as np
import pytest

from mtf_jax.studies.compare.summary import (
  offline_against_truth,
  rank_correlation,
  ranks,
)


def _row(seed, gain, **metrics):
  return {
    "seed": seed,
    "leaving": "a",
    "reward_gain_pct": gain,
    "ncis": None,
    **metrics,
  }


def _found(rows, metric="dr"):
  entries = {found["metric"]: found for found in offline_against_truth(rows)}
  return entries[metric]


def test_ranks_share_ties():
  np.testing.assert_array_equal(ranks([3, 1, 3, 2]), [2.5, 0, 2.5, 1])


def test_rank_correlation_by_hand():
  # Squared differences of ranks 0, 1, 1, 0: 1 - 6 * 2 / (4 * 15).
  assert rank_correlation([1, 2, 3, 4], [10, 30, 20, 40]) == pytest.approx(0.8)
  assert rank_correlation([1, 2, 3], [1, 8, 27]) == pytest.approx(1)
  assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
  assert rank_correlation([1, 2], [5, 5]) is None
  assert rank_correlation([1], [5]) is None


def test_regret_is_what_the_choice_loses():
  rows = [_row(0, gain, dr=dr) for gain, dr in ((1, 5), (4, 2), (2, 3))]
  found = _found(rows)
  assert found["regret_pct"] == 3
  assert found["rank_correlation"] == pytest.approx(-1)
  assert (found["policies"], found["groups"]) == (3, 1)


def test_groups_are_averaged_and_give_the_interval():
  rows = [
    *(_row(0, gain, dr=gain) for gain in (1, 2, 3)),
    *(_row(1, gain, dr=-gain) for gain in (1, 2, 3)),
  ]
  found = _found(rows)
  assert found["rank_correlation"] == pytest.approx(0)
  assert found["regret_pct"] == pytest.approx(1)
  low, high = found["ci95"]
  assert low < -1 and high > 1


def test_one_group_has_an_interval_over_its_policies():
  rng = np.random.default_rng(0)
  gains = rng.normal(size=40)
  values = gains + 0.5 * rng.normal(size=40)
  rows = [
    _row(0, g, dr=v)
    for g, v in zip(gains.tolist(), values.tolist(), strict=True)
  ]
  found = _found(rows)
  low, high = found["ci95"]
  assert 0.3 < low < found["rank_correlation"] < high < 1
  assert found["regret_ci95"] == [None, None]


def test_rows_without_the_figure_do_not_count():
  rows = [_row(0, 1, dr=1), _row(0, 2, dr=None), {"seed": 0, "leaving": "a"}]
  found = _found(rows)
  assert found["policies"] == 1
  assert found["rank_correlation"] is None
  assert _found(rows, "ncis")["policies"] == 0
