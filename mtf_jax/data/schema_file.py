"""The schema file of a platform's log: which column is what (`schema.toml`)."""

import dataclasses
import math
import os
import tomllib
import zoneinfo
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mtf_jax.data.log_schema import (
  UNITS,
  Action,
  Box,
  Exploration,
  Feature,
  LogSchema,
  Order,
  Session,
)
from mtf_jax.data.schema_tables import VECTOR, Table, short
from mtf_jax.io import InputError, naming, require_file


def read_schema(path: str | os.PathLike[str]) -> LogSchema:
  """Reads and checks a schema file.

  Args:
    path: a TOML file.

  Returns:
    What the columns are.

  Raises:
    InputError: the file is missing, no TOML, names a column twice, or a value
      that is not as it should be; the message names the place.
  """
  content = require_file(path, "a schema file (.toml)").read_bytes()
  with naming(path):
    try:
      return parse_schema(content.decode("utf-8"))
    except UnicodeDecodeError as error:
      raise InputError(
        f"expected text in UTF-8, found {error.reason}."
      ) from error


def parse_schema(text: str) -> LogSchema:
  """As `read_schema`, of a file's text."""
  try:
    tables = tomllib.loads(text)
  except (tomllib.TOMLDecodeError, RecursionError) as error:
    raise InputError(f"expected TOML, found {str(error)[:100]}.") from error
  known = (
    *("source", "session", "order", "observation", "action", "box"),
    *("exploration", "feedback", "reward", "end"),
  )
  for name in tables:
    if name not in known:
      raise InputError(
        f"expected the tables {', '.join(known)}, found {name[:60]}."
      )

  def table(name: str) -> Table:
    return Table(name, tables.get(name, {}))

  session, order = _session(table("session")), _order(table("order"))
  if session.gap_minutes is not None and order.kind != "time":
    raise InputError(
      "[session] gap_minutes: expected an order by time, found one by step."
    )
  action = _action(table("action"))
  num_components = len(action.columns)
  box = _box(table("box"), num_components)
  feedback = table("feedback")
  behaviours = feedback.columns("behaviours")
  feedback.end()
  if not behaviours:
    raise feedback.refusal("behaviours", "a list of column names", None)
  groups, reward_columns = _reward(table("reward"), behaviours)
  end = table("end")
  exit_column, extra = (
    end.optional_text("exit"),
    end.optional_text("bootstrap_only"),
  )
  end.end()
  if exit_column is None and session.gap_minutes is None:
    raise InputError(
      "[end] exit: expected the column that is true where the user left, or"
      " gap_minutes in [session], found neither."
    )
  schema = LogSchema(
    source=_source(tables.get("source", {})),
    session=session,
    order=order,
    observation=_observation(tables.get("observation")),
    action=action,
    box=box,
    exploration=_exploration(table("exploration"), box, num_components),
    behaviours=behaviours,
    groups=groups,
    reward_columns=reward_columns,
    exit=exit_column,
    bootstrap_only=extra,
  )
  _refuse_twice(schema.columns, "column")
  _refuse_twice(schema.observation_names, "feature")
  return schema


def _refuse_twice(names: Iterable[str], what: str) -> None:
  seen: set[str] = set()
  for name in names:
    if name in seen:
      raise InputError(f"{what} {name}: expected once, found twice.")
    seen.add(name)


def _source(values: Any) -> dict[str, str]:
  if not isinstance(values, dict) or not all(
    isinstance(value, str) for value in values.values()
  ):
    raise InputError(
      f"[source]: expected texts by name, found {short(values)}."
    )
  return values


def _session(table: Table) -> Session:
  found = Session(
    column=table.text("column"),
    kind=table.text("kind", ("text", "integer")),
    max_requests=table.whole("max_requests", 1) or 0,
    gap_minutes=table.number("gap_minutes", 0, above=True),
  )
  if not found.max_requests:
    raise table.refusal("max_requests", "a whole number from 1", None)
  table.end()
  return found


def _order(table: Table) -> Order:
  by_step = table.text("kind", ("step", "time"), keep=True) == "step"
  # What would not be read is refused.
  for key in ("unit", "time_zone") if by_step else ("first",):
    table.refuse_key(key, f'where kind = "{"step" if by_step else "time"}"')
  found = Order(
    column=table.text("column"),
    kind=table.text("kind", ("step", "time")),
    unit=table.optional_text("unit", tuple(UNITS)),
    time_zone=table.optional_text("time_zone"),
    first=table.whole("first", 0, 0) or 0,
    conflicts=table.optional_text("conflicts", ("refuse", "keep_first"))
    or "refuse",
  )
  if found.time_zone is not None:
    try:
      zoneinfo.ZoneInfo(found.time_zone)
    except (OSError, ValueError, zoneinfo.ZoneInfoNotFoundError) as error:
      raise table.refusal(
        "time_zone", "a name such as Asia/Shanghai", found.time_zone
      ) from error
  table.end()
  return found


def _observation(tables: Any) -> tuple[Feature, ...]:
  if not isinstance(tables, list) or not tables:
    raise InputError("[[observation]]: expected a table a column, found none.")
  features: list[Feature] = []
  for values in tables:
    table = Table("[observation]", values)
    column = table.text("column")
    vocabulary = table.take("values")
    if vocabulary is not None and (
      not isinstance(vocabulary, list)
      or not vocabulary
      or not all(isinstance(value, str) for value in vocabulary)
    ):
      raise table.refusal("values", "a list of texts", vocabulary)
    if vocabulary is not None or table.has("buckets"):
      for key in ("low", "high", "missing"):
        table.refuse_key(key, "beside values or buckets")
    if vocabulary is None:
      table.refuse_key("unknown", "without values")
    low, high = table.number("low"), table.number("high")
    feature = Feature(
      column=column,
      low=-math.inf if low is None else low,
      high=math.inf if high is None else high,
      missing=table.number("missing"),
      values=None if vocabulary is None else tuple(vocabulary),
      unknown=table.optional_text("unknown", ("refuse", "zeros")) or "refuse",
      buckets=table.whole("buckets", 1),
    )
    if feature.low > feature.high:
      raise table.refusal(
        "low", f"at most high = {feature.high:g}", feature.low
      )
    if feature.values is not None and feature.buckets is not None:
      raise table.refusal("buckets", "none beside values", feature.buckets)
    table.end()
    # A vector of numbers stands for its elements.
    vector = VECTOR.fullmatch(column)
    names = (
      [f"{vector[1]}[{n}]" for n in range(int(vector[2]), int(vector[3]))]
      if vector
      else [column]
    )
    features.extend(dataclasses.replace(feature, column=name) for name in names)
  return tuple(features)


def _action(table: Table) -> Action:
  columns, powers = table.columns("columns"), table.columns("powers")
  biases = table.columns("biases", len(powers))
  spec = table.take("fusion_spec")
  table.end()
  if columns and not (powers or biases or spec):
    return Action(columns)
  if columns or not powers or not biases:
    raise table.refusal(
      "columns", "them, or powers and biases with a fusion_spec", None
    )
  return Action((*powers, *biases), _fusion_spec(table, spec, len(powers)))


def _fusion_spec(
  table: Table, values: Any, num_tasks: int
) -> dict[str, tuple[float, ...]]:
  names = ("power_base", "power_rate", "bias_base", "bias_rate")
  if not isinstance(values, dict) or set(values) != set(names):
    raise table.refusal(
      "fusion_spec", f"numbers for {', '.join(names)}", values
    )
  spec = {}
  for name in names:
    value = values[name]
    numbers = value if isinstance(value, list) else [value] * num_tasks
    # A rate of 0 makes one weight of all actions; so does a bias of 0.
    if (
      len(numbers) != num_tasks
      or not all(
        type(x) in (int, float) and math.isfinite(x) and x != 0 for x in numbers
      )
      or (name == "bias_base" and min(numbers) < 0)
    ):
      raise table.refusal(
        f"fusion_spec.{name}",
        f"a number other than 0 that can be inverted, or {num_tasks}",
        value,
      )
    spec[name] = tuple(float(x) for x in numbers)
  return spec


def _box(table: Table, num_components: int) -> Box:
  lower = table.columns("lower", num_components)
  upper = table.columns("upper", num_components)
  centre = table.columns("centre", num_components)
  half_width: Any = None
  limits = table.take("limits")
  if centre:
    value = table.take("half_width")
    if isinstance(value, list):
      half_width = Table("box", {"half_width": value}).columns(
        "half_width", num_components
      )
    else:
      half_width = Table("box", {"half_width": value}).number("half_width", 0)
    if half_width is None:
      raise table.refusal("half_width", "a number or columns", None)
  table.end()
  if limits is not None:
    if (
      not isinstance(limits, list)
      or len(limits) != 2
      or not all(type(x) in (int, float) and math.isfinite(x) for x in limits)
      or limits[0] > limits[1]
    ):
      raise table.refusal("limits", "two numbers in order", limits)
    limits = (float(limits[0]), float(limits[1]))
  ways = (bool(lower or upper), bool(centre), limits is not None)
  if sum(ways) != 1 or bool(lower) != bool(upper):
    raise InputError(
      "[box]: expected lower and upper, or centre and half_width, or limits,"
      " found none or several of them."
    )
  return Box(lower, upper, centre, half_width, limits)


def _exploration(table: Table, box: Box, num_components: int) -> Exploration:
  held = table.take("held")
  if held is None or not isinstance(held, bool | str) or held == "":
    raise table.refusal("held", "true, false or a column", held)
  found = Exploration(
    kind=table.text("kind", ("uniform", "gaussian", "logged")),
    mean=table.columns("mean", num_components),
    stddev=table.number("stddev", 0, above=True),
    log_prob=table.optional_text("log_prob"),
    propensity=table.optional_text("propensity"),
    held=held,
  )
  table.end()
  if found.log_prob and found.propensity:
    raise table.refusal("propensity", "none beside log_prob", found.propensity)
  density = found.log_prob or found.propensity
  if found.kind == "logged" and not density:
    raise table.refusal("log_prob", "a column, or propensity", None)
  if found.kind == "uniform" and box.limits is not None:
    raise table.refusal("kind", "gaussian or logged beside limits", "uniform")
  gaussian = bool(found.mean) or found.stddev is not None
  if found.kind == "gaussian" and (not found.mean or found.stddev is None):
    raise table.refusal("mean", "columns, and a stddev", None)
  if found.kind != "gaussian" and gaussian:
    raise table.refusal("mean", f"none where kind is {found.kind}", found.mean)
  if found.kind == "gaussian" and density:
    raise table.refusal("log_prob", "none where kind is gaussian", density)
  return found


def _reward(
  table: Table, behaviours: Sequence[str]
) -> tuple[dict[str, dict[str, float]], tuple[str, ...]]:
  columns, groups = table.columns("columns"), table.take("groups")
  table.end()
  if bool(columns) == bool(groups):
    raise InputError(
      "[reward]: expected columns, or groups with weights of behaviours, found"
      f" {'both' if columns else 'neither'}."
    )
  if columns:
    return {}, columns
  if not isinstance(groups, Mapping):
    raise table.refusal("groups", "a table a group", groups)
  for name, weights in groups.items():
    for behaviour, weight in (
      weights.items() if isinstance(weights, dict) else [(weights, None)]
    ):
      if behaviour not in behaviours:
        raise table.refusal(
          f"groups.{name}", f"weights of {', '.join(behaviours)}", behaviour
        )
      if not isinstance(weight, int | float) or not math.isfinite(weight):
        raise table.refusal(f"groups.{name}.{behaviour}", "a number", weight)
  return {name: dict(weights) for name, weights in groups.items()}, ()
