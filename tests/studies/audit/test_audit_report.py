import pytest

pytest.importorskip("matplotlib")

from mtf_jax.studies.audit import report as audit_report

_NAMES = ("click", "valid", "long_view", "finish", "like")


def _day(rows, **changed):
  facts = {
    "log": 0.5,
    "standard_error": 0.01,
    "held_out": 0.55,
    "in_sample": 0.495,
  }
  return {
    "rows": rows,
    **{name: {**facts, **changed.get(name, {})} for name in _NAMES},
  }


def test_days_left_out_also_where_a_day_has_no_like():
  days = {
    "days": [
      {"date": 20220422, **_day(40)},
      {"date": 20220423, **_day(30, like={"log": 0.0})},
    ],
    "all": _day(70),
  }
  lines = audit_report._days_left_out(days)
  text = "\n".join(lines)
  assert "fits without it and the day held out with it" in text
  header, _, first, second, total = lines[-5:]
  assert header.count("|") == first.count("|") == second.count("|")
  # 0.55 for 0.5 is 10% too much, 0.495 is 1% too little, 0.01 is 2%.
  cells = "+10.0 (2.0) | -1.0"
  assert first == f"| 20220422 | 40 | {' | '.join([cells] * 5)} |"
  assert second == (
    f"| 20220423 | 30 | {' | '.join([cells] * 4)} | none | none |"
  )
  assert total.startswith("| all | 70 | +10.0")
