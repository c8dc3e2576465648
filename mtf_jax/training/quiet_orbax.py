"""Orbax undisturbed, and silent but for one exception.

Orbax writes and reads arrays side by side, in threads. The first failure is
logged with its traceback, raised, and closes the event loop, upon which each
operation that ends later complains that the loop is closed. The exception says
it all. An interrupt in the midst of that leaves threads that go on writing when
the caller has given the folder up, so it waits for the end.
"""

import contextlib
import logging
import signal
import sys
import threading
from collections.abc import Iterator

# Loggers by which the failure of one array is told: Orbax's, and that of tasks
# whose failure nobody asked for.
_LOGGERS = ("absl", "asyncio")


def _is_told_by_exception(record: logging.LogRecord) -> bool:
  from_orbax = "orbax" in record.pathname or record.name == "asyncio"
  return from_orbax and record.exc_info is not None


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
  """Ctrl-C in the block counts when the block has ended."""
  if threading.current_thread() is not threading.main_thread():
    yield  # Signals go to the main thread.
    return
  pending = []
  before = signal.signal(signal.SIGINT, lambda *_: pending.append(True))
  try:
    yield
  finally:
    # None: set by another language, which Python cannot put back.
    signal.signal(signal.SIGINT, before or signal.default_int_handler)
    if pending:
      signal.raise_signal(signal.SIGINT)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
  """What Orbax does in the block fails with an exception and nothing else.

  Ctrl-C counts when it has ended.
  """

  def keep(record: logging.LogRecord) -> bool:
    return not _is_told_by_exception(record)

  before = sys.unraisablehook

  def hook(unraisable):
    error = unraisable.exc_value
    if not (
      isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
    ):
      before(unraisable)

  for name in _LOGGERS:
    logging.getLogger(name).addFilter(keep)
  sys.unraisablehook = hook
  try:
    with _interrupts_wait():
      yield
    # After a failure the hook stays: the complaints come when the operations
    # that were under way have ended, and nothing tells when.
    sys.unraisablehook = before
  finally:
    for name in _LOGGERS:
      logging.getLogger(name).removeFilter(keep)
