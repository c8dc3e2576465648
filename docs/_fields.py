"""Reads the fields that a class's docstring describes, for the API reference.

NamedTuples and data classes here describe their fields as `name: text`, with no
heading above; the reference shows them as a list. The references of a module
stand on a line each.
"""

import re

import griffe

_FIELD = re.compile(r"^([a-z_][\w]*(?:(?:, | \.\.\. )[a-z_][\w]*)*): ?(.*)$")


def _list_fields(text: str) -> str:
  lines, heading, fields = [], "", False
  for line in text.splitlines():
    if re.match(r"^[A-Z]\w*:$", line):
      heading = line  # A section, whose own lines are indented.
    field = None if heading else _FIELD.match(line)
    if field:
      if not fields:
        lines.append("")
      fields = True
      names = re.sub(r"\w+", lambda name: f"`{name.group()}`", field[1])
      lines.append(f"- {names}: {field[2]}")
    elif fields and line.startswith("  "):
      lines.append(f"  {line}")
    else:
      fields = False
      lines.append(line)
  return "\n".join(lines)


class Fields(griffe.Extension):
  """Makes a list of them."""

  def on_module(self, *, mod: griffe.Module, **_) -> None:
    """Gives each of several references a paragraph."""
    if mod.docstring:
      mod.docstring.value = re.sub(
        r"(?<!:)\n(?=  \[\d+\] )", "\n\n", mod.docstring.value
      )

  def on_class(self, *, cls: griffe.Class, **_) -> None:
    """Rewrites the docstring of one class."""
    if cls.docstring:
      cls.docstring.value = _list_fields(cls.docstring.value)
