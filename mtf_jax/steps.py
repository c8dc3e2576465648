"""Tells how far a long computation is, so that whoever waits for it can see."""

from collections.abc import Callable

# `(steps done, steps in all)`.
OnStep = Callable[[int, int], None]


# `Steps.count` of a computation, for a part of it.
Count = Callable[[int], None]


def nobody(done: int, total: int) -> None:
  """The `OnStep` of a computation that nobody watches."""


def uncounted(steps: int) -> None:
  """The `Count` of a part that is no part of anything counted."""


class Steps:
  """Counts the steps of a computation.

  Steps are told once they are done, and that none is at the start: the time of
  the first one is then known, too.

  Args:
    total: steps in all.
    on_step: told `(steps done, steps in all)`.
  """

  def __init__(self, total: int, on_step: OnStep):
    """Tells that nothing is done yet."""
    self._done, self._total, self._on_step = 0, total, on_step
    on_step(0, total)

  def count(self, steps: int) -> None:
    """So many more are done."""
    self._done += steps
    self._on_step(self._done, self._total)
