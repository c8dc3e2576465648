"""Ways to damage bytes and JSON, drawn from a seed.

Each function takes a generator and says in words what it did, so that a defect
can be described.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

Rng = np.random.Generator

# Numbers and texts that readers stumble over.
_ODD_VALUES: tuple[Any, ...] = (
  *(None, True, False, 0, -1, 2**31, 2**63, -(2**63), 10**400, 1.5, 1e308),
  *(float("nan"), float("inf"), "", "x", "0", "NaN", "\x00", "é" * 300),
  *([], {}, [[]], {"": None}),
)
_OTHER_FILES = (
  b"",
  b"\n",
  b"PAR1" + bytes(60),
  b"\x89HDF\r\n\x1a\n" + bytes(60),
  b"\x80\x04\x95" + bytes(60),
  b"\x1f\x8b\x08\x00" + bytes(60),
  b"PK\x05\x06" + bytes(18),
  b"a,b,c\n1,2,3\n",
  b"{}",
  "\ufeffa,b\n".encode("utf-16"),
)


def pick(rng: Rng, items: Sequence[Any]) -> Any:
  return items[int(rng.integers(len(items)))]


def place(rng: Rng, size: int) -> int:
  """A position below `size`; headers and ends are met as often as the rest."""
  if size < 2:
    return 0
  kind = rng.integers(3)
  if kind == 0:
    return int(rng.integers(min(size, 256)))
  if kind == 1:
    return size - 1 - int(rng.integers(min(size, 256)))
  return int(rng.integers(size))


def damage_bytes(rng: Rng, content: bytes) -> tuple[str, bytes]:
  """Bit flips, cuts, insertions, blocks swapped, repeated or overwritten."""
  size = len(content)
  at = place(rng, size)
  length = int(2 ** rng.uniform(0, 9))
  what = pick(
    rng,
    (
      *("bits", "bits", "bits", "cut", "cut", "remove", "insert", "repeat"),
      *("swap", "zeros", "ones", "append", "other"),
    ),
  )
  block = content[at : at + length]
  if what == "bits":
    changed = bytearray(content)
    count = int(rng.integers(1, 5))
    for _ in range(count if size else 0):
      changed[place(rng, size)] ^= 1 << int(rng.integers(8))
    return f"{count} bits flipped", bytes(changed)
  if what == "cut":
    return f"cut after byte {at}", content[:at]
  if what == "remove":
    return f"{length} bytes removed at {at}", content[:at] + content[
      at + length :
    ]
  if what == "insert":
    new = rng.bytes(length)
    return f"{length} bytes inserted at {at}", content[:at] + new + content[at:]
  if what == "repeat":
    return f"{length} bytes at {at} repeated", content[:at] + block + content[
      at:
    ]
  if what == "swap":
    other = place(rng, size)
    first, second = sorted((at, other))
    length = min(length, second - first)
    changed = (
      content[:first]
      + content[second : second + length]
      + content[first + length : second]
      + content[first : first + length]
      + content[second + length :]
    )
    return f"{length} bytes at {first} and {second} swapped", changed
  if what in ("zeros", "ones"):
    fill = (b"\x00" if what == "zeros" else b"\xff") * len(block)
    return f"{len(block)} {what} at {at}", content[:at] + fill + content[
      at + len(block) :
    ]
  if what == "append":
    return f"{length} bytes appended", content + rng.bytes(length)
  other_file = pick(rng, _OTHER_FILES)
  return f"another file, {other_file[:12]!r}", other_file


def _places(value: Any, path: tuple = ()) -> list[tuple]:
  """Paths of all values inside a JSON value, its own among them."""
  found = [path]
  items: Any = ()
  if isinstance(value, dict):
    items = value.items()
  elif isinstance(value, list):
    items = enumerate(value)
  for key, inner in items:
    found += _places(inner, (*path, key))
  return found


def damage_json(rng: Rng, value: Any) -> tuple[str, Any]:
  """One value replaced or removed, one name changed, one entry added."""
  value = json.loads(json.dumps(value))
  inside = [path for path in _places(value) if path]
  if not inside or rng.integers(20) == 0:
    return "the whole replaced", pick(rng, _ODD_VALUES)
  *above, last = pick(rng, inside)
  holder = value
  for key in above:
    holder = holder[key]
  name = ".".join(map(str, (*above, last)))
  what = pick(rng, ("replace", "replace", "change", "remove", "rename", "add"))
  if what == "remove":
    del holder[last]
    return f"{name} removed", value
  if what == "rename" and isinstance(holder, dict):
    new = pick(rng, (f"{last}x", f"{last}"[:-1], f"{last}".upper(), ""))
    holder[new] = holder.pop(last)
    return f"{name} renamed {new!r}", value
  if what == "add" and isinstance(holder, dict):
    holder["added"] = pick(rng, _ODD_VALUES)
    return f"added beside {name}", value
  if what == "change":
    before = holder[last]
    if isinstance(before, bool):
      holder[last] = not before
    elif isinstance(before, int):
      holder[last] = before + int(rng.integers(1, 4))
    elif isinstance(before, float):
      holder[last] = before * 1.5 + 1
    elif isinstance(before, str) and before:
      at = int(rng.integers(len(before)))
      other = "0" if before[at] != "0" else "1"
      holder[last] = before[:at] + other + before[at + 1 :]
    else:
      holder[last] = pick(rng, _ODD_VALUES)
    return f"{name} changed from {before!r:.40}", value
  holder[last] = pick(rng, _ODD_VALUES)
  return f"{name} replaced by {holder[last]!r:.40}", value


def damage_json_text(rng: Rng, value: Any) -> tuple[str, str]:
  """`damage_json`, as text; sometimes the text is no JSON or absurdly deep."""
  kind = rng.integers(12)
  text = json.dumps(value)
  if kind == 0:
    deep = int(pick(rng, (200, 100_000)))
    return f"{deep} brackets deep", "[" * deep + "]" * deep
  if kind == 1:
    at = place(rng, len(text))
    return f"JSON cut after {at}", text[:at]
  if kind == 2:
    name = pick(rng, list(value)) if isinstance(value, dict) and value else "a"
    return f"{name} twice", f'{{"{name}": 1, {text[1:]}'
  what, changed = damage_json(rng, value)
  return what, json.dumps(changed)
