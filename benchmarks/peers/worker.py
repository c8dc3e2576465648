"""One other trainer, in its own process and environment.

  python -m benchmarks.peers.worker NAME FOLDER '["sac_n", 48, 1, 16]'

It says `ready` and the versions of its packages, then answers each line
`run N` with the seconds of an update in a window of N, on the clock and of the
processor.
"""

import importlib
import importlib.metadata
import json
import os
import sys
import types

from benchmarks.peers import trainers, workload

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "distrax", "torch", "d3rlpy")


def main() -> None:
  """Builds the trainer and serves windows until its input ends."""
  name, modules, size = sys.argv[1:]
  # Whatever else is printed, by whatever the trainer imports, is no answer.
  answers = os.fdopen(os.dup(1), "w", buffering=1)
  os.dup2(2, 1)
  for stub in trainers.STUBS:
    sys.modules[stub] = types.ModuleType(stub)
  sys.path.insert(0, modules)
  # Some of them read the command line when they are imported.
  del sys.argv[1:]
  size = workload.Size(*json.loads(size))
  adapter = trainers.TRAINERS[name].adapter
  build = getattr(
    importlib.import_module(f"benchmarks.peers.{adapter}"), size.algorithm
  )
  run = build(size)
  versions = {
    package: importlib.metadata.version(package)
    for package in _PACKAGES
    if package in sys.modules
  }
  print("ready", json.dumps(versions), file=answers)
  for line in sys.stdin:
    updates = int(line.removeprefix("run "))
    print(*workload.timed(run, updates), file=answers)


if __name__ == "__main__":
  main()
