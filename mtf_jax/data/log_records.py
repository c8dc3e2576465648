"""From a batch of a platform's log to records: rows of one binary layout.

Every check of a single row is made here; what needs the rows of a session
together is `log_sessions`' matter.

Letters: `N` rows, `S` state features, `A` action components, `G` reward groups,
`E` behaviours.
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtf_jax.data import log_values
from mtf_jax.data.log_schema import Feature, LogSchema
from mtf_jax.data.log_values import Batch
from mtf_jax.kernels.exploration import HALF_WIDTH

# How far outside its box rounding may put an action.
ROUNDING = 1e-6
# How far a logged log density may be from that of the box.
_DENSITY = 1e-3
_HALF_LOG_2PI = 0.5 * np.log(2 * np.pi)


def record_dtype(schema: LogSchema) -> np.dtype:
  """The layout of a record.

  `key` scatters sessions and `check` tells two of one key apart; rows are
  sorted by them, by `order`, and by `file` and `row`, from which they come.
  `session` is the number to keep.
  """
  features, components = (
    len(schema.observation_names),
    len(schema.action.columns),
  )
  return np.dtype(
    [
      ("key", np.uint64),
      ("check", np.uint64),
      ("order", np.int64),
      ("file", np.int32),
      ("row", np.int64),
      ("session", np.int64),
      ("exit", np.bool_),
      ("bootstrap_only", np.bool_),
      ("exploration_held", np.bool_),
      ("log_prob", np.float32),
      ("observation", np.float32, features),
      ("action", np.float32, components),
      ("box_lower", np.float32, components),
      ("box_upper", np.float32, components),
      ("reward", np.float32, len(schema.group_names)),
      ("feedback", np.float32, len(schema.behaviours)),
    ],
    align=True,
  )


# Of a record, where its row stands; two rows that differ in no other field are
# the same.
PLACE = ("file", "row")


def records_of(
  batch: Batch, schema: LogSchema, file: int, counts: dict[str, int]
) -> np.ndarray:
  """Checks a batch and makes records of it.

  Args:
    batch: rows.
    schema: what its columns are.
    file: number of the file.
    counts: added to: what was changed.

  Returns:
    Records `[N]` of `record_dtype(schema)`.

  Raises:
    InputError: a value that cannot be used; the message names file, row and
      column.
  """
  rows = batch.rows.num_rows
  records = np.zeros(rows, record_dtype(schema))
  records["file"] = file
  records["row"] = batch.first_row + np.arange(rows)
  _identify(batch, schema, records)
  if schema.bootstrap_only is not None:
    records["bootstrap_only"] = log_values.flags(batch, schema.bootstrap_only)
  request = ~records["bootstrap_only"]
  if schema.exit is not None:
    records["exit"] = log_values.flags(batch, schema.exit) & request
  start = 0
  for feature in schema.observation:
    stop = start + len(feature.names)
    values = records["observation"][:, start:stop]
    _observe(batch, feature, values, counts)
    start = stop
  feedback = _matrix(batch, schema.behaviours, request)
  records["feedback"] = feedback
  records["reward"] = _rewards(batch, schema, feedback, request)
  _act(batch, schema, records, counts)
  return records


def _identify(batch: Batch, schema: LogSchema, records: np.ndarray) -> None:
  """Session and order."""
  column = schema.session.column
  if schema.session.kind == "integer":
    ids = log_values.integers(batch, column)
    records["session"] = ids
    records["check"] = ids.view(np.uint64)
    records["key"] = log_values.mixed(ids.view(np.uint64))
  else:
    texts = log_values.texts(batch, column)
    if texts.null_count:
      empty = np.flatnonzero(texts.is_null().to_numpy(zero_copy_only=False))
      batch.refuse(int(empty[0]), column, "expected a session id, found none.")
    records["key"] = log_values.text_numbers(texts, seed=0)
    records["check"] = log_values.text_numbers(texts, seed=1)
    records["session"] = records["key"] >> np.uint64(1)
  if schema.order.kind == "time":
    records["order"] = log_values.times(batch, schema.order)
  else:
    steps = log_values.integers(batch, schema.order.column)
    first = schema.order.first
    bad = np.flatnonzero(steps < first)
    if bad.size:
      row = int(bad[0])
      batch.refuse(
        row,
        schema.order.column,
        f"expected a step from {first}, found {steps[row]}.",
      )
    records["order"] = steps - first


def _matrix(
  batch: Batch, columns: Sequence[str], needed: np.ndarray | None = None
) -> np.ndarray:
  """Columns of numbers, float64 `[N, columns]`."""
  found = [log_values.numbers(batch, column, needed) for column in columns]
  return np.stack(found, axis=1)


def _observe(
  batch: Batch, feature: Feature, values: np.ndarray, counts: dict[str, int]
) -> None:
  """Fills the features that a column makes."""
  column = feature.column

  def count(what: str, more: int) -> None:
    if more:
      counts[f"{column} {what}"] = counts.get(f"{column} {what}", 0) + more

  if feature.values is None and feature.buckets is None:
    instead = feature.missing
    missing = None
    if instead is not None:
      missing = (instead, lambda n: count(f"missing, set to {instead:g}", n))
    found = log_values.numbers(batch, column, missing=missing)
    values[:, 0] = found
    outside = (found < feature.low) | (found > feature.high)
    count(f"outside {feature.low:g} to {feature.high:g}", int(outside.sum()))
    return
  texts = log_values.texts(batch, column)
  rows = np.arange(len(texts))
  if feature.buckets is not None:
    # An empty value is a category like another.
    numbers = log_values.text_numbers(pc.fill_null(texts, ""), seed=2)
    values[rows, (numbers % np.uint64(feature.buckets)).astype(np.int64)] = 1
    return
  vocabulary = feature.values or ()
  place = pc.index_in(texts, pa.array(vocabulary, texts.type)).fill_null(-1)
  places = place.to_numpy()
  unknown = np.flatnonzero(places < 0)
  if unknown.size and feature.unknown == "refuse":
    row = int(unknown[0])
    found_text = texts[row].as_py()
    batch.refuse(
      row,
      column,
      f"expected one of {', '.join(vocabulary)[:200]}, found"
      f" {'none' if found_text is None else repr(found_text[:60])}; add it to"
      ' values, or set unknown = "zeros".',
    )
  count("not in the vocabulary", int(unknown.size))
  known = places >= 0
  values[rows[known], places[known]] = 1


def _rewards(
  batch: Batch, schema: LogSchema, feedback: np.ndarray, request: np.ndarray
) -> np.ndarray:
  if schema.reward_columns:
    return _matrix(batch, schema.reward_columns, request)
  weights = np.zeros((len(schema.behaviours), len(schema.groups)))
  for group, by_behaviour in enumerate(schema.groups.values()):
    for behaviour, weight in by_behaviour.items():
      weights[schema.behaviours.index(behaviour), group] = weight
  return feedback @ weights


def _normalised(
  batch: Batch, schema: LogSchema, columns: Sequence[str], needed: np.ndarray
) -> np.ndarray:
  """Columns in the units of the action, as normalised components `[N, A]`."""
  values = _matrix(batch, columns, needed)
  spec = schema.action.fusion_spec
  if spec is None:
    return values
  base = np.array((*spec["power_base"], *spec["bias_base"]))
  rate = np.array((*spec["power_rate"], *spec["bias_rate"]))
  ratio = values / base
  bad = (ratio <= 0) & needed[:, None]
  if bad.any():
    row, component = (int(n) for n in np.argwhere(bad)[0])
    sign = "positive" if base[component] > 0 else "negative"
    batch.refuse(
      row,
      columns[component],
      f"expected a {sign} weight, as its base in fusion_spec is, found"
      f" {values[row, component]:g}.",
    )
  return np.where(
    needed[:, None],
    np.log(np.where(bad | ~needed[:, None], 1, ratio)) / rate,
    0,
  )


def _act(
  batch: Batch, schema: LogSchema, records: np.ndarray, counts: dict[str, int]
) -> None:
  """Action, box, density."""
  request = ~records["bootstrap_only"]
  all_rows = np.ones(len(records), bool)
  lower, upper = _bounds(batch, schema, all_rows)
  action = _normalised(batch, schema, schema.action.columns, request)
  action, lower, upper = (
    values.astype(np.float32) for values in (action, lower, upper)
  )
  outside = np.maximum(lower - action, action - upper)
  worst = np.where(request, outside.max(axis=1), 0)
  far = np.flatnonzero(worst > ROUNDING)
  if far.size:
    row = int(far[0])
    component = int(outside[row].argmax())
    batch.refuse(
      row,
      schema.action.columns[component],
      f"expected an action in its box [{lower[row, component]:.7g},"
      f" {upper[row, component]:.7g}], found {action[row, component]:.7g};"
      f" {far.size} of the {len(records)} rows read together are outside by"
      f" more than {ROUNDING:g}.",
    )
  clipped = int((worst > 0).sum())
  if clipped:
    name = f"actions clipped to their box (at most {ROUNDING:g} outside)"
    counts[name] = counts.get(name, 0) + clipped
  action = np.clip(action, lower, upper)
  records["box_lower"], records["box_upper"] = lower, upper
  records["action"] = np.where(request[:, None], action, 0)
  log_prob = _log_density(batch, schema, records, request)
  records["log_prob"] = np.where(request, log_prob, 0)
  held = schema.exploration.held
  drawn_once = log_values.flags(batch, held) if isinstance(held, str) else held
  records["exploration_held"] = drawn_once & request


def _bounds(
  batch: Batch, schema: LogSchema, needed: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Normalised bounds, float64 `[N, A]` each."""
  box = schema.box
  if box.limits is not None:
    shape = (len(needed), len(schema.action.columns))
    return np.full(shape, box.limits[0]), np.full(shape, box.limits[1])
  if box.centre:
    centre = _normalised(batch, schema, box.centre, needed)
    width: float | np.ndarray = HALF_WIDTH
    if isinstance(box.half_width, tuple):
      width = _matrix(batch, box.half_width, needed)
      bad = width < 0
      if bad.any():
        row, component = (int(n) for n in np.argwhere(bad)[0])
        batch.refuse(
          row,
          box.half_width[component],
          f"expected a width from 0, found {width[row, component]:g}.",
        )
    elif box.half_width is not None:
      width = box.half_width
    return np.clip(centre - width, -1, 1), np.clip(centre + width, -1, 1)
  one = _normalised(batch, schema, box.lower, needed)
  other = _normalised(batch, schema, box.upper, needed)
  if schema.action.fusion_spec is not None:
    # A negative rate or base turns the order round.
    return np.minimum(one, other), np.maximum(one, other)
  bad = one > other
  if bad.any():
    row, component = (int(n) for n in np.argwhere(bad)[0])
    batch.refuse(
      row,
      box.lower[component],
      f"expected at most {box.upper[component]} = {other[row, component]:g},"
      f" found {one[row, component]:g}.",
    )
  return one, other


def _log_density(
  batch: Batch, schema: LogSchema, records: np.ndarray, request: np.ndarray
) -> np.ndarray:
  """Log density of the actions, `[N]`."""
  exploration = schema.exploration
  if exploration.kind == "gaussian":
    mean = _normalised(batch, schema, exploration.mean, request)
    stddev = exploration.stddev or 1.0
    standard = (records["action"] - mean) / stddev
    logs = -0.5 * np.square(standard) - np.log(stddev) - _HALF_LOG_2PI
    return logs.sum(axis=1)
  column = exploration.log_prob or exploration.propensity
  logged = None
  if column is not None:
    logged = log_values.numbers(batch, column, request)
    if exploration.propensity is not None:
      bad = np.flatnonzero((logged <= 0) & request)
      if bad.size:
        row = int(bad[0])
        batch.refuse(
          row, column, f"expected a positive density, found {logged[row]:g}."
        )
      logged = np.log(np.where(request, logged, 1))
  if exploration.kind == "logged":
    assert logged is not None
    return logged
  width = records["box_upper"] - records["box_lower"]
  # A component without width does not explore: a mass of 1.
  logs = -np.log(np.where(width > 0, width, 1)).sum(axis=1, dtype=np.float32)
  if logged is not None:
    apart = np.abs(logged - logs) > _DENSITY * np.maximum(1, np.abs(logs))
    bad = np.flatnonzero(apart & request)
    if bad.size:
      row = int(bad[0])
      batch.refuse(
        row,
        str(column),
        f"expected the log density {logs[row]:.6g} of a uniform draw from the"
        f" box, found {logged[row]:.6g}; {bad.size} of the {len(records)} rows"
        " read together differ.",
      )
  return logs
