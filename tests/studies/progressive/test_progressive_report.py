import pytest

from mtf_jax.studies.progressive import comparisons, report_html, summary
from mtf_jax.studies.progressive import report as progressive_report


def _figures(gain, headroom=0.5):
  return {
    "reward_gain_pct": gain,
    "reward_gain_ci95": [gain - 1, gain + 1],
    "single_batch_gain_pct": gain / 2,
    "over_single_batch_pct": gain / 3,
    "es_gain_pct": gain / 4,
    "over_es_pct": gain / 5,
    "in_box_optimum_pct": 2 * gain,
    "share_of_in_box_optimum": headroom,
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
  assert rows["ES, as many sessions"] == ["+0.46", "+1.00"]
  assert rows["last round over that ES"] == ["+0.37", "+0.80"]
  assert rows["headroom reached"] == ["50%", "none"]
  assert rows["share of the rounds' boxes"] == ["50%", "none"]


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


def _undefined(figures):
  """The same where the baseline gets nothing: gains over it are undefined."""
  return {
    name: [None, None] if name.endswith("ci95") else None for name in figures
  }


def test_figures_that_are_undefined_are_shown_as_such():
  known = _figures(2)
  table = progressive_report.overview_table(
    {
      ("floor", "box"): {0: known, 1: _undefined(known)},
      ("floor", "mlp"): {0: known, 1: known},
    }
  )
  rows = {row[0]: list(row[1:]) for row in table.rows}
  assert rows["1"][0] == "undefined [undefined, undefined]"
  assert rows["interval above 0"] == ["1 of 2", "2 of 2"]
  assert rows["mean [95% over seeds]"] == [
    *("undefined", "+2.00 [+2.00, +2.00]")
  ]
  assert rows["valid %"] == ["+0.00", "+0.00"]


def test_a_run_whose_gains_are_undefined_has_its_report():
  """In a world where nobody likes anything, for example."""
  gain = {"reward_gain_pct": 1.0, "reward_gain_ci95": [0.5, 1.5]}
  others = {
    f"{name}_{figure}": value
    for name in ("uvc", "udt", "session_length")
    for figure, value in (("gain_pct", 0.0), ("gain_ci95", [0.0, 0.0]))
  }
  more = {"hate_rate": 0.0, "hate_rate_base": 0.0, "reward_p_value": 1.0}
  found = {**gain, **others, **more, "outside_share": 0.0}
  found |= {"exploration_cost_pct": 0.1, "gaussian_cost_pct": 0.1}
  figures = {**_undefined(found), "round": 1, "drift_histogram": [[1.0]] * 14}
  contest = {"pct": None, "ci95": [None, None]}
  result = {
    "rounds": [figures],
    "single_batch": _undefined(found),
    "contests": {c.name: contest for c in comparisons.CONTESTS},
    "critic_check": {},
    "segments": [],
  }
  shown = summary.learner_figures(result)
  assert shown["headroom_reached"] is None
  assert shown["exploration_cost_pct"] is None
  table = progressive_report.result_table("seed 0", result)
  assert table.rows[0][:4] == (
    *("round 1", "undefined [undefined, undefined]"),
    *("undefined", "undefined"),
  )
  assert table.rows[-1][1] == "undefined [undefined, undefined]"
  pytest.importorskip("matplotlib")
  assert "gain by round" in report_html._gains_picture(result)
  both = {("floor", "box"): {0: shown, 1: shown}}
  assert "gain by seed" in report_html._overview_picture(both)
  page = progressive_report.Page("seed 0", result, [])
  assert report_html._training_picture(page) == ""
