"""Flags of launchers that run as several processes."""

import contextlib
from collections.abc import Iterator

from absl import flags

from mtf_jax.distributed import processes
from mtf_jax.io import InputError

flags.disclaim_key_flags()

_PROCESSES = flags.DEFINE_enum(
  "processes",
  None,
  ["auto"],
  "auto joins the processes that SLURM, Open MPI, Kubernetes or a TPU pod has"
  " started.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "host:port of process 0, to join by hand."
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes", None, "Processes that join by hand.", 1
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "Which of them this one is, from 0.", 0
)


def _by_hand() -> bool:
  given = {
    "coordinator": _COORDINATOR.value,
    "num_processes": _NUM_PROCESSES.value,
    "process_id": _PROCESS_ID.value,
  }
  missing = [f"--{name}" for name, value in given.items() if value is None]
  if len(missing) == len(given):
    return False
  if missing or _PROCESSES.value:
    raise InputError(
      "processes: expected --processes=auto, or --coordinator, --num_processes"
      f" and --process_id together, found {', '.join(missing) or 'both'}"
      f"{' missing' if missing else ''}."
    )
  if _PROCESS_ID.value >= _NUM_PROCESSES.value:
    raise InputError(
      f"--process_id: expected less than --num_processes ="
      f" {_NUM_PROCESSES.value}, found {_PROCESS_ID.value}."
    )
  return True


@contextlib.contextmanager
def joined() -> Iterator[None]:
  """Joins the other processes, if flags name any, while the block runs.

  Raises:
    InputError: flags contradict each other, or the others are not to be found.
  """
  by_hand = _by_hand()
  with processes.together(by_hand or _PROCESSES.value is not None):
    if by_hand:
      processes.join(
        _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
      )
    elif _PROCESSES.value:
      processes.join()
    yield
