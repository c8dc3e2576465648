"""What crosses devices, read from a compiled program.

References:
  [1] OpenXLA, "Operation Semantics": AllReduce, AllGather, ReduceScatter,
  AllToAll, CollectivePermute, CollectiveBroadcast.
"""

import math
import re
from typing import NamedTuple

_KINDS = (
  "all-reduce",
  "all-gather",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
  "send",
  "recv",
)

# `%name = shape kind(operands)`; the start of an asynchronous one counts, its
# end does not.
_INSTRUCTION = re.compile(
  rf"= (?P<shape>\(.*?\)|\S+) (?P<kind>{'|'.join(_KINDS)})(-start)?\("
)
_ARRAY = re.compile(r"\b(pred|bf16|[a-z]+\d+\w*)\[([\d,]*)\]")


class Collective(NamedTuple):
  """One instruction by which devices exchange data.

  kind: its name in XLA [1].
  arrays: how many arrays it takes together.
  num_bytes: of its result on one device.
  """

  kind: str
  arrays: int
  num_bytes: int


def _item_bytes(dtype: str) -> float:
  if dtype == "pred":
    return 1
  match = re.search(r"\d+", dtype)
  assert match is not None
  return int(match[0]) / 8


def collectives_of(program: str) -> list[Collective]:
  """The collectives of a compiled program.

  One inside a loop is listed once: of `loop.update_chunk`, whatever the number
  of updates, the list is that of one update, with `critic_updates` those of one
  critic update.

  Args:
    program: text of the optimised program, `compiled.as_text()`.

  Returns:
    One entry for each instruction, in the order of the text.
  """
  found = []
  for match in _INSTRUCTION.finditer(program):
    arrays = [
      (dtype, [int(size) for size in shape.split(",") if size])
      for dtype, shape in _ARRAY.findall(match["shape"])
    ]
    num_bytes = sum(
      math.prod(shape) * _item_bytes(dtype) for dtype, shape in arrays
    )
    found.append(Collective(match["kind"], len(arrays), math.ceil(num_bytes)))
  return found
