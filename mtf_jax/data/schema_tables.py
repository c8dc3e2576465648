"""Tables of a TOML file, taken apart; what nobody asks for is refused."""

import math
import re
from collections.abc import Sequence
from typing import Any

from mtf_jax.io import InputError

# `name[0:3]`, the elements of a vector.
VECTOR = re.compile(r"(.+)\[(\d+):(\d+)\]")


class Table:
  """One table, taken apart key by key.

  All methods raise `InputError` for a value that is not what they are to give.
  """

  def __init__(self, name: str, values: Any):
    """Takes the values as they were parsed.

    Raises:
      InputError: they are no table.
    """
    if not isinstance(values, dict):
      raise InputError(f"[{name}]: expected a table, found {short(values)}.")
    self._name, self._values = name, dict(values)

  def refusal(self, key: str, expected: str, found: Any) -> InputError:
    """The sentence that names a place, what stands there and what should."""
    what = "none" if found is None else short(found)
    return InputError(
      f"[{self._name}] {key}: expected {expected}, found {what}."
    )

  def has(self, key: str) -> bool:
    """Whether something stands there that nobody has taken."""
    return key in self._values

  def refuse_key(self, key: str, where: str) -> None:
    """Refuses what means nothing `where` it stands."""
    if key in self._values:
      raise self.refusal(key, f"none {where}", self._values[key])

  def text(
    self, key: str, allowed: Sequence[str] = (), *, keep: bool = False
  ) -> str:
    """A text, one of `allowed` if there are any; `keep` lets it stand."""
    there = self._values.get(key)
    value = self.optional_text(key, allowed)
    if keep:
      self._values[key] = there
    if value is None:
      raise self.refusal(key, one_of(allowed, "a text"), None)
    return value

  def optional_text(self, key: str, allowed: Sequence[str] = ()) -> str | None:
    """A text that need not be there."""
    value = self._values.pop(key, None)
    if value is not None and (
      not isinstance(value, str)
      or not value
      or (allowed and value not in allowed)
    ):
      raise self.refusal(key, one_of(allowed, "a text"), value)
    return value

  def number(
    self, key: str, low: float = -math.inf, above: bool = False
  ) -> float | None:
    """A finite number from `low`, or above it."""
    value = self._values.pop(key, None)
    if value is None:
      return None
    if (
      type(value) not in (int, float)
      or not math.isfinite(value)
      or value < low
      or (above and value == low)
    ):
      bound = (
        "" if low == -math.inf else f" {'above' if above else 'from'} {low:g}"
      )
      raise self.refusal(key, f"a finite number{bound}", value)
    return float(value)

  def whole(self, key: str, low: int, default: int | None = None) -> int | None:
    """A whole number from `low`."""
    value = self._values.pop(key, default)
    if value is not None and (type(value) is not int or value < low):
      raise self.refusal(key, f"a whole number from {low}", value)
    return value

  def columns(self, key: str, count: int | None = None) -> tuple[str, ...]:
    """Names; `a[0:3]` stands for the elements of a vector."""
    value = self._values.pop(key, [])
    what = "a list of column names" + (f", {count} of them" if count else "")
    if not isinstance(value, list) or not all(
      isinstance(x, str) and x for x in value
    ):
      raise self.refusal(key, what, value)
    names: list[str] = []
    for name in value:
      vector = VECTOR.fullmatch(name)
      if vector:
        places = range(int(vector[2]), int(vector[3]))
        names.extend(f"{vector[1]}[{place}]" for place in places)
      else:
        names.append(name)
    if value and count is not None and len(names) != count:
      raise self.refusal(key, what, value)
    return tuple(names)

  def take(self, key: str) -> Any:
    """Whatever stands there, for checks of its own."""
    return self._values.pop(key, None)

  def end(self) -> None:
    """Refuses what nobody asked for."""
    if self._values:
      raise InputError(
        f"[{self._name}]: expected no {', '.join(map(str, self._values))};"
        " docs/platform_log.md has what may stand there."
      )


def one_of(allowed: Sequence[str], otherwise: str) -> str:
  """What is expected where only some texts are allowed, or any."""
  return f"one of {', '.join(allowed)}" if allowed else otherwise


def short(value: Any) -> str:
  """A value as messages have it: it may be anything, of any length."""
  return repr(value)[:60]
