"""Runs launchers in forks of one process that has imported what they import.

  python tests/forked_launchers.py < cases.json > results.json

A launcher takes seconds to import and defines its flags once a process. Here a
case costs some tens of milliseconds. Nothing may run in JAX before the forks.
"""

import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import traceback

_IMPORTED = (
  "matplotlib.pyplot",
  "mtf_jax.studies.audit.held_out_days",
  "mtf_jax.studies.audit.report",
  "mtf_jax.studies.log_gauc.held_out",
  "mtf_jax.studies.progressive.study",
  "mtf_jax.training.resumable",
)


def _run(name, args):
  """Runs a module, or a file if the name is one's, as the command would."""
  sys.argv = [name, *args]
  try:
    if name.endswith(".py"):
      runpy.run_path(name, run_name="__main__")
    else:
      runpy.run_module(name, run_name="__main__", alter_sys=True)
  except SystemExit as error:
    return error.code or 0
  except BaseException:
    traceback.print_exc()
    return 1
  return 0


def _in_fork(name, args):
  with tempfile.TemporaryFile("w+", errors="backslashreplace") as said:
    pid = os.fork()
    if pid == 0:
      signal.alarm(20)  # A launcher that is not refused would go on.
      os.dup2(said.fileno(), 1)
      os.dup2(said.fileno(), 2)
      status = _run(name, args)
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    said.seek(0)
    return status, said.read()


def run_all(cases, cwd):
  """Runs `(module or file, arguments)` each; `(status, output)` each."""
  root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  done = subprocess.run(
    [sys.executable, os.path.abspath(__file__)],
    input=json.dumps(cases),
    cwd=cwd,
    env={**os.environ, "PYTHONPATH": root, "MPLBACKEND": "agg"},
    stdout=subprocess.PIPE,
    text=True,
    check=True,
  )
  return json.loads(done.stdout)


if __name__ == "__main__":
  for module in _IMPORTED:
    importlib.import_module(module)
  json.dump([_in_fork(*case) for case in json.load(sys.stdin)], sys.stdout)
