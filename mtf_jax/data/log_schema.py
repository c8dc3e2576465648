"""What the columns of a platform's log are; `schema_file` reads it from a file.

Letters: `S` state features, `A` action components, `K` tasks, `G` reward
groups, `E` behaviours.
"""

import dataclasses
import math
import re

UNITS = {"s": 1_000_000, "ms": 1_000, "us": 1}  # microseconds of one
_PLACE = re.compile(r"(.+)\[(\d+)\]")


@dataclasses.dataclass(frozen=True)
class Feature:
  """One column of the observation; makes one feature or more.

  column: its name.
  low, high: plausible values of a number; what is outside is counted and
    warned of.
  missing: number that stands for an empty value; None refuses it.
  values: the vocabulary of a category, a feature each that is 0 or 1; None for
    a number.
  unknown: "refuse" a category outside the vocabulary, or "zeros".
  buckets: hash a category into so many features; None for the others.
  """

  column: str
  low: float = -math.inf
  high: float = math.inf
  missing: float | None = None
  values: tuple[str, ...] | None = None
  unknown: str = "refuse"
  buckets: int | None = None

  @property
  def names(self) -> tuple[str, ...]:
    """Names of the features that it makes."""
    if self.values is not None:
      return tuple(f"{self.column}={value}" for value in self.values)
    if self.buckets is not None:
      return tuple(f"{self.column}#{n}" for n in range(self.buckets))
    return (self.column,)


@dataclasses.dataclass(frozen=True)
class Session:
  """What a session is.

  column: id, unique over all files.
  kind: "integer" of 64 bits, kept as it is; or "text", which becomes a number.
  max_requests: a longer session is refused.
  gap_minutes: a session ends where the next request of the id comes later than
    that, or none at all; None if ids name sessions and `end` says how they end.
  """

  column: str
  kind: str
  max_requests: int
  gap_minutes: float | None = None


@dataclasses.dataclass(frozen=True)
class Order:
  """What orders the requests of a session.

  column: its name.
  kind: "step", whole numbers without gaps, or "time".
  unit: of times that are numbers, see `UNITS`.
  time_zone: of times without one.
  first: the step of a session's first request.
  conflicts: two rows of one session and step that differ: "refuse" them, or
    "keep_first", as the files have them.
  """

  column: str
  kind: str
  unit: str | None = None
  time_zone: str | None = None
  first: int = 0
  conflicts: str = "refuse"


@dataclasses.dataclass(frozen=True)
class Action:
  """Where the action is: components, or the fusion weights that it became.

  columns: `A` normalised components; or, with `fusion_spec`, `K` powers and
    then `K` biases.
  fusion_spec: by field the numbers of a `FusionSpec`, `K` each, that made the
    weights; None if the columns are normalised.
  """

  columns: tuple[str, ...]
  fusion_spec: dict[str, tuple[float, ...]] | None = None


@dataclasses.dataclass(frozen=True)
class Box:
  """Bounds of the exploration, in the units of the action's columns.

  lower, upper: `A` columns of bounds.
  centre: `A` columns of the action explored around.
  half_width: around the centre, normalised units: a number or `A` columns; the
    box ends at -1 and 1.
  limits: of valid actions, normalised units, where there is no box.
  """

  lower: tuple[str, ...] = ()
  upper: tuple[str, ...] = ()
  centre: tuple[str, ...] = ()
  half_width: float | tuple[str, ...] | None = None
  limits: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Exploration:
  """How actions were drawn.

  kind: "uniform" in the box; "gaussian" around `mean`; or "logged", some other
    way that the column `log_prob` or `propensity` has the density of.
  mean: `A` columns, in the units of the action's columns.
  stddev: of the Gaussian, normalised units.
  log_prob, propensity: column of the log density, or of the density, per unit
    of normalised action; checked against the box where it is "uniform".
  held: whether a session has one deviation; or the column that says so.
  """

  kind: str
  mean: tuple[str, ...] = ()
  stddev: float | None = None
  log_prob: str | None = None
  propensity: str | None = None
  held: bool | str = False


@dataclasses.dataclass(frozen=True)
class LogSchema:
  """What the columns of a platform's log are.

  source: where the log comes from, kept in the manifest.
  session, order, action, box, exploration: see their classes.
  observation: columns of the observation, in order.
  behaviours: `E` columns of feedback, summed over the shown list.
  groups: by reward group the weights of behaviours; empty if
    `reward_columns` has the rewards.
  reward_columns: `G` columns.
  exit: column that is true on the last request of a user who left; None if
    `session.gap_minutes` says who left.
  bootstrap_only: column that is true on a row that holds only what followed the
    cut; None if there are no such rows.
  """

  source: dict[str, str]
  session: Session
  order: Order
  observation: tuple[Feature, ...]
  action: Action
  box: Box
  exploration: Exploration
  behaviours: tuple[str, ...]
  groups: dict[str, dict[str, float]]
  reward_columns: tuple[str, ...]
  exit: str | None
  bootstrap_only: str | None

  @property
  def observation_names(self) -> tuple[str, ...]:
    """`S` names."""
    return tuple(name for part in self.observation for name in part.names)

  @property
  def group_names(self) -> tuple[str, ...]:
    """`G` names."""
    return tuple(self.groups) or self.reward_columns

  @property
  def columns(self) -> tuple[str, ...]:
    """Names of all columns that are read, elements of vectors among them."""
    half_width = self.box.half_width
    single = (
      self.exploration.log_prob,
      self.exploration.propensity,
      self.exploration.held,
      self.exit,
      self.bootstrap_only,
    )
    return (
      self.session.column,
      self.order.column,
      *(part.column for part in self.observation),
      *self.action.columns,
      *self.box.lower,
      *self.box.upper,
      *self.box.centre,
      *(half_width if isinstance(half_width, tuple) else ()),
      *self.exploration.mean,
      *self.behaviours,
      *self.reward_columns,
      *(name for name in single if isinstance(name, str)),
    )


def base_column(name: str) -> tuple[str, int | None]:
  """The column of `name[3]` and the place in its vectors, None if it is whole."""
  found = _PLACE.fullmatch(name)
  return (found[1], int(found[2])) if found else (name, None)
