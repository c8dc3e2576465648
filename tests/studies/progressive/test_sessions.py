"""Few and many sessions a round: parts of a round, sums over seeds."""

import pytest

from mtf_jax.studies.progressive import sessions


@pytest.mark.parametrize(
  ("size", "parts"),
  [(1, 1), (80_000, 1), (80_001, 3), (250_000, 4), (320_000, 4)],
)
def test_sessions_are_logged_in_parts_that_divide_them(size, parts):
  assert sessions.parts_of(size) == parts


def test_rows_of_seeds_are_summed_up_by_method_and_sessions():
  def row(method, size, gain, share):
    return {
      "method": method,
      "sessions_per_round": size,
      "gain_pct": gain,
      "share_of_in_box_optimum": share,
    }

  found = sessions.summary(
    [row("a", 1, 2.0, 0.5), row("a", 2, 9.0, None), row("a", 1, 4.0, 0.7)]
  )
  assert [each["seeds"] for each in found] == [2, 1]
  assert found[0]["gain_pct"] == 3.0
  assert found[0]["share_of_in_box_optimum"] == pytest.approx(0.6)
  low, high = found[0]["gain_ci95_over_seeds"]
  # Two seeds: Student's t with one degree of freedom, a standard error of 1.
  assert (low, high) == pytest.approx((3 - 12.706, 3 + 12.706))
  assert found[1]["gain_ci95_over_seeds"] is None
  assert found[1]["share_of_in_box_optimum"] is None
