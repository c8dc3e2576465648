"""Tables of a progressive run, and the report as Markdown."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from mtf_jax.evaluation import critic_check, segments
from mtf_jax.evaluation.statistics import mean_interval
from mtf_jax.evaluation.tables import Table
from mtf_jax.studies.progressive.comparisons import CONTESTS, IN_BOX

_LABELS = {contest.name: contest.label for contest in CONTESTS}


class Page(NamedTuple):
  """What is told of one learner under one seed and leaving model.

  title: heading.
  result: the learner's entry in the result of `play.play_group`.
  metrics: rows of its metrics file.
  """

  title: str
  result: Mapping[str, Any]
  metrics: Sequence[Mapping[str, Any]]

  def tables(self) -> list[Table]:
    """Rounds and contests first, then users, then values against the world."""
    return [
      result_table(self.title, self.result),
      segments.table(f"Users, {self.title}", self.result["segments"]),
      *(
        critic_check.table(
          f"Critics against the world, {name.replace('_', ' ')}, {self.title}",
          found,
        )
        for name, found in self.result["critic_check"].items()
      ),
    ]


def _shown(value: float | None, form: str) -> str:
  """A figure; None is one that is not defined, such as a gain over nothing."""
  return "undefined" if value is None else format(value, form)


def _cell(value: float | None, interval: Sequence[float | None]) -> str:
  low, high = (_shown(end, "+.2f") for end in interval)
  return f"{_shown(value, '+.2f')} [{low}, {high}]"


def gain_cell(figures: Mapping[str, Any], name: str) -> str:
  """A gain of `ab_test.figures`, percent, with its interval."""
  return _cell(figures[f"{name}_gain_pct"], figures[f"{name}_gain_ci95"])


def result_table(title: str, result: Mapping[str, Any]) -> Table:
  """The rounds of one seed and leaving model, and what to hold them against.

  Args:
    title: heading.
    result: as of `Page`.
  """
  header = ("policy", "reward % [95%]", "p", "valid %", "duration %")
  header += ("length %", "hate rate", "outside box", "exploring cost %")
  rows = []
  for figures in (*result["rounds"], result["single_batch"]):
    number = figures.get("round")
    rows.append(
      (
        f"round {number}" if number else _LABELS["single_batch_gain"],
        gain_cell(figures, "reward"),
        _shown(figures["reward_p_value"], ".1g"),
        *(
          _shown(figures[f"{n}_gain_pct"], "+.2f")
          for n in ("uvc", "udt", "session_length")
        ),
        _shown(figures["hate_rate"], ".5f"),
        _shown(figures["outside_share"], ".1%"),
        _shown(figures["exploration_cost_pct"], "+.2f") if number else "",
      )
    )
  shown = {row[0] for row in rows}
  blank = [""] * (len(header) - 2)
  for contest in CONTESTS:
    # A run of an earlier version has not all of them.
    found = result["contests"].get(contest.name)
    if contest.label not in shown and found is not None:
      rows.append((contest.label, _cell(found["pct"], found["ci95"]), *blank))
  # Earlier versions had a short evolution strategy.
  kind = "converged global weights" if IN_BOX in result["contests"] else "ES"
  note = (
    f"Relative to the baseline policy, {kind}, unless said otherwise, same users"
    " and sessions; 95% interval over users. Hate rate of the baseline:"
    f" {_shown(result['rounds'][0]['hate_rate_base'], '.5f')}."
  )
  return Table(title, note, header, rows)


# (leaving model, learner) -> seed -> figures as in `summary.json`.
Columns = Mapping[tuple[str, str], Mapping[int, Mapping[str, Any]]]


def column_names(columns: Columns) -> list[str]:
  """What tells the columns apart: learner, leaving model, or both."""
  several_models = len({leaving for leaving, _ in columns}) > 1
  several_learners = len({learner for _, learner in columns}) > 1
  return [
    ", ".join(
      [leaving] * (several_models or not several_learners)
      + [learner] * several_learners
    )
    for leaving, learner in columns
  ]


def overview_table(columns: Columns) -> Table:
  """Seeds by leaving models and learners, and what holds over the seeds.

  Args:
    columns: (leaving model, learner) -> seed -> figures as in `summary.json`.

  Returns:
    A row for each seed, then the rows over seeds.
  """
  header = ["seed", *column_names(columns)]
  seeds = list(next(iter(columns.values())))
  rows = [
    [
      str(seed),
      *(gain_cell(by_seed[seed], "reward") for by_seed in columns.values()),
    ]
    for seed in seeds
  ]

  def over_seeds(name, show):
    row = []
    for by_seed in columns.values():
      values = [figures[name] for figures in by_seed.values()]
      known = [value for value in values if value is not None]
      row.append(show(statistics.fmean(known)) if known else "none")
    return row

  def percent(value):
    return f"{value:+.2f}"

  if len(seeds) > 1:
    above, mean = [], []
    for by_seed in columns.values():
      lows = [figures["reward_gain_ci95"][0] for figures in by_seed.values()]
      count = sum(low is not None and low > 0 for low in lows)
      above.append(f"{count} of {len(seeds)}")
      gains = [figures["reward_gain_pct"] for figures in by_seed.values()]
      if None in gains:
        mean.append("undefined")
      else:
        mean.append(_cell(statistics.fmean(gains), mean_interval(gains)))
    rows.append(["interval above 0", *above])
    rows.append(["mean [95% over seeds]", *mean])
  for label, name in (
    *((contest.label, f"{contest.name}_pct") for contest in CONTESTS),
    ("valid %", "uvc_gain_pct"),
    ("duration %", "udt_gain_pct"),
    ("session length %", "session_length_gain_pct"),
    ("exploring cost %", "exploration_cost_pct"),
  ):
    rows.append([label, *over_seeds(name, percent)])
  for label, name in (
    ("share of the rounds' boxes", "share_of_in_box_optimum"),
    ("headroom reached", "headroom_reached"),
  ):
    rows.append([label, *over_seeds(name, "{:.0%}".format)])
  note = (
    "Session reward of the last round's policy over the baseline policy, %,"
    " with 95% intervals over users; below the seeds, means over those that have"
    " the figure. The headroom is what a short privileged search finds, no bound: a policy may"
    " exceed it."
  )
  (only, *others) = {leaving: None for leaving, _ in columns}
  title = "Overview" if others else f"Overview, leaving {only}"
  return Table(title, note, header, rows)


def seconds_table(seconds: Mapping[str, Mapping[str, float]]) -> Table:
  """Wall-clock split.

  Args:
    seconds: folder of seeds that ran side by side -> part -> seconds.
  """
  names = list(dict.fromkeys(name for x in seconds.values() for name in x))
  rows = [
    (
      folder,
      *(f"{spent[name]:.1f}" if name in spent else "" for name in names),
    )
    for folder, spent in seconds.items()
  ]
  note = "Seeds side by side share them; compilation counts where it happens."
  return Table("Seconds", note, ("run", *names), rows)
