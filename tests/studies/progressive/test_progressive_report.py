import pytest

from mtf_jax.studies.progressive import report as progressive_report


def _figures(gain, headroom=0.5):
  return {
    "reward_gain_pct": gain,
    "reward_gain_ci95": [gain - 1, gain + 1],
    "single_batch_gain_pct": gain / 2,
    "over_single_batch_pct": gain / 3,
    "es_matched_budget_gain_pct": gain / 4,
    "over_es_matched_budget_pct": gain / 5,
    "reward_gain_uncut_pct": gain,
    "headroom_pct": 2 * gain,
    "uvc_gain_pct": 0.0,
    "udt_gain_pct": 0.0,
    "session_length_gain_pct": 0.0,
    "exploration_cost_pct": 0.1,
    "headroom_reached": headroom,
  }


def test_overview_counts_the_seeds_that_gain():
  table = progressive_report.overview_table(
    {
      ("floor", "box"): {n: _figures(g) for n, g in enumerate((0.5, 2, 3))},
      ("budget", "box"): {
        n: _figures(g, None) for n, g in enumerate((4, 4, 4))
      },
    }
  )
  assert list(table.header) == ["seed", "floor", "budget"]
  rows = {row[0]: list(row[1:]) for row in table.rows}
  assert rows["0"] == ["+0.50 [-0.50, +1.50]", "+4.00 [+3.00, +5.00]"]
  assert rows["interval above 0"] == ["2 of 3", "3 of 3"]
  assert rows["mean [95% over seeds]"][1] == "+4.00 [+4.00, +4.00]"
  assert rows["single batch of as much data"] == ["+0.92", "+2.00"]
  assert rows["last round over the single batch"] == ["+0.61", "+1.33"]
  assert rows["ES, matched budget"] == ["+0.46", "+1.00"]
  assert rows["last round over ES, matched budget"] == ["+0.37", "+0.80"]
  assert rows["headroom reached"] == ["50%", "none"]


@pytest.mark.parametrize(
  ("columns", "header", "title"),
  [
    ([("floor", "a")], ["floor"], "Overview, leaving floor"),
    ([("floor", "a"), ("floor", "b")], ["a", "b"], "Overview, leaving floor"),
    ([("floor", "a"), ("budget", "a")], ["floor", "budget"], "Overview"),
    (
      [("floor", "a"), ("floor", "b"), ("budget", "a"), ("budget", "b")],
      ["floor, a", "floor, b", "budget, a", "budget, b"],
      "Overview",
    ),
  ],
)
def test_columns_are_named_by_what_differs(columns, header, title):
  table = progressive_report.overview_table(
    {column: {3: _figures(1)} for column in columns}
  )
  assert list(table.header) == ["seed", *header]
  assert table.title == title


def test_one_seed_has_no_interval_over_seeds():
  table = progressive_report.overview_table(
    {("floor", "box"): {3: _figures(1)}}
  )
  labels = [row[0] for row in table.rows]
  assert labels[0] == "3" and "mean [95% over seeds]" not in labels
