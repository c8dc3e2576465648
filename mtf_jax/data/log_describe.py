"""A schema file filled in for a platform's file, as far as its names tell."""

import json
import pathlib
import re
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtf_jax.data.log_tables import batches, column_types
from mtf_jax.io import InputError

# What a column is called by many; the first role that fits has it.
_ROLES = {
  "session": r"session",
  "step": r"(^|_)step$|request_(index|number)",
  "time": r"time|(^|_)(ts|date)$",
  "lower": r"lower|(^|_)min(_|\d|$)",
  "upper": r"upper|(^|_)max(_|\d|$)",
  "centre": r"baseline|centre|center",
  "powers": r"^power",
  "biases": r"^bias",
  "action": r"^action",
  "log_prob": r"log_?prob",
  "propensity": r"propensity",
  "held": r"held",
  "exit": r"exit|left|leave|terminal",
  "bootstrap_only": r"bootstrap",
  "reward": r"^reward",
  "behaviours": r"like|click|watch|play|follow|share|forward|comment|view|finish|hate|valid|seconds",
}
_MAX_VALUES = 20
_HEAD = """\
# What the columns of {path} are, guessed from their names and its first
# {rows} rows. Look at every line; docs/platform_log.md says what may stand
# there. A column that is in no table is not read.
"""


def describe(path: pathlib.Path) -> str:
  """Writes the text of a schema file.

  A role that no column seems to have is an empty name, which a reader of the
  schema refuses.

  Args:
    path: one of the files of a log.

  Returns:
    The text, TOML.

  Raises:
    InputError: the file cannot be read, or has no rows.
  """
  types = column_types(path)
  flat = [name for name, kind in types.items() if not pa.types.is_nested(kind)]
  vectors = [name for name in types if name not in flat]
  rows = next((part.rows for part in batches(path, list(types))), None)
  if rows is None:
    raise InputError(f"{path}: expected rows, found none.")
  roles: dict[str, list[str]] = {name: [] for name in _ROLES}
  rest = []
  for name in (*flat, *vectors):
    shown = name
    if name in vectors:
      length = pc.list_value_length(rows[name])[0].as_py() or 0
      shown = f"{name}[0:{length}]"
    for role, pattern in _ROLES.items():
      if re.search(pattern, name.lower()):
        roles[role].append(shown)
        break
    else:
      rest.append(shown)
  lines = [
    _HEAD.format(path=path, rows=rows.num_rows),
    f"[source]\nplatform = {_text(path.stem)}\n",
    _session(roles, rows),
    _order(roles, rows),
    *(_feature(name, rows) for name in rest),
    _action(roles),
    _exploration(roles),
    f"[feedback]\nbehaviours = {_list(roles['behaviours'])}\n",
    _reward(roles),
    "[end]  # without an exit: gap_minutes in [session]",
    f"exit = {_text(_first(roles['exit']))}  # true where the user left",
  ]
  if roles["bootstrap_only"]:
    lines.append(f"bootstrap_only = {_text(roles['bootstrap_only'][0])}")
  return "\n".join(lines) + "\n"


def _text(value: str) -> str:
  # A JSON string is a TOML one.
  return json.dumps(value, ensure_ascii=False)


def _list(values: Sequence[str]) -> str:
  return f"[{', '.join(map(_text, values))}]"


def _first(names: Sequence[str]) -> str:
  return names[0] if names else ""


def _session(roles: dict[str, list[str]], rows: pa.RecordBatch) -> str:
  name = _first(roles["session"])
  whole = bool(name) and pa.types.is_integer(rows[name].type)
  return (
    f"[session]\ncolumn = {_text(name)}\n"
    f'kind = "{"integer" if whole else "text"}"\n'
    "max_requests = 1000  # a longer session is refused\n"
  )


def _order(roles: dict[str, list[str]], rows: pa.RecordBatch) -> str:
  if roles["step"] and not roles["time"]:
    return f'[order]\ncolumn = {_text(roles["step"][0])}\nkind = "step"\n'
  name = _first(roles["time"])
  lines = [f'[order]\ncolumn = {_text(name)}\nkind = "time"']
  if name and (numbers := _numbers(rows[name])) is not None:
    middle = float(np.median(numbers)) if len(numbers) else 0.0
    unit = "us" if middle > 1e14 else "ms" if middle > 1e11 else "s"
    lines.append(f'unit = "{unit}"')
  else:
    lines.append('time_zone = "UTC"  # of times without one')
  return "\n".join(lines) + "\n"


def _numbers(array: pa.Array) -> np.ndarray | None:
  """Finite values of a column of numbers, also where they are texts."""
  try:
    values = array.cast(pa.float64(), safe=False).drop_null().to_numpy()
  except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
    return None
  if pa.types.is_timestamp(array.type):
    return None
  return values[np.isfinite(values)]


def _feature(name: str, rows: pa.RecordBatch) -> str:
  lines = [f"[[observation]]\ncolumn = {_text(name)}"]
  if name not in rows.schema.names:
    return lines[0] + "  # the elements of a vector\n"
  array = rows[name]
  if pa.types.is_dictionary(array.type):
    array = array.dictionary_decode()
  numbers = _numbers(array)
  if numbers is not None and len(numbers):
    # As they are, with some room: what is outside is counted and warned of.
    low, high = float(numbers.min()), float(numbers.max())
    room = (high - low) or 1.0
    lines.append(f"low = {low - room:.6g}\nhigh = {high + room:.6g}")
    lines.append("# missing = 0.0  # stands for an empty value")
  else:
    found = sorted({str(x) for x in pc.unique(array).to_pylist() if x})
    if len(found) <= _MAX_VALUES:
      lines.append(f"values = {_list(found)}")
      lines.append('unknown = "refuse"  # or "zeros"')
    else:
      lines.append(
        "buckets = 16  # hashed: too many different values for a list"
      )
  return "\n".join(lines) + "\n"


def _action(roles: dict[str, list[str]]) -> str:
  if roles["powers"] and not roles["action"]:
    action = (
      f"[action]\npowers = {_list(roles['powers'])}\n"
      f"biases = {_list(roles['biases'])}\n"
      "# The FusionSpec that made these weights: numbers, or one for each task.\n"
      "fusion_spec = { power_base = 1.0, power_rate = 1.5, bias_base = 0.1,"
      " bias_rate = 1.5 }\n"
    )
  else:
    action = f"[action]\ncolumns = {_list(roles['action'])}\n"
  if roles["centre"] and not roles["lower"]:
    box = f"centre = {_list(roles['centre'])}\nhalf_width = 0.15\n"
  else:
    box = f"lower = {_list(roles['lower'])}\nupper = {_list(roles['upper'])}\n"
  return f"{action}\n[box]\n{box}"


def _exploration(roles: dict[str, list[str]]) -> str:
  lines = ['[exploration]\nkind = "uniform"  # or "gaussian", "logged"']
  for role in ("log_prob", "propensity"):
    if roles[role]:
      lines.append(f"{role} = {_text(roles[role][0])}")
      break
  held = _text(roles["held"][0]) if roles["held"] else "false"
  lines.append(f"held = {held}  # one deviation for a session?")
  return "\n".join(lines) + "\n"


def _reward(roles: dict[str, list[str]]) -> str:
  if roles["reward"]:
    return f"[reward]\ncolumns = {_list(roles['reward'])}\n"
  weights = "\n".join(f"{_text(name)} = 1.0" for name in roles["behaviours"])
  return f"[reward.groups.all]  # weights of behaviours\n{weights}\n"
