"""The one command for an accelerator: its parts exist, and one may fail."""

import pathlib
import re
import subprocess
import sys

_ROOT = pathlib.Path(__file__).parents[1]
_SCRIPT = _ROOT / "benchmarks" / "accelerator.sh"


def _run(tmp_path, python):
  stub = tmp_path / "python"
  stub.write_text(f"#!/bin/bash\n{python}\n")
  stub.chmod(0o755)
  return subprocess.run(
    ["bash", _SCRIPT, tmp_path / "out"],
    env={"PYTHON": str(stub), "PATH": "/usr/bin:/bin"},
    capture_output=True,
    text=True,
  )


def test_every_part_takes_its_flags_and_all_end_in_eight_minutes(tmp_path):
  done = _run(tmp_path, f'exec {sys.executable} "$@" --only_check_args')
  assert done.returncode == 0, done.stdout
  parts = re.findall(r"^part (\w+) (\d+) ", _SCRIPT.read_text(), re.M)
  assert [line.split(":")[0] for line in done.stdout.splitlines()] == [
    name for name, _ in parts
  ]
  # Each may take 5 s more to end.
  assert sum(int(limit) + 5 for _, limit in parts) <= 480


def test_a_part_that_fails_is_named_and_the_others_go_on(tmp_path):
  done = _run(tmp_path, 'echo "$@" >&2; [ "$2" != benchmarks.rivals ]')
  assert done.returncode == 1
  *parts, last = done.stdout.splitlines()
  assert last == "not whole: rivals"
  assert len(parts) == 6 and "rivals: ended after" in parts[2]
  log = (tmp_path / "out" / "kernels.log").read_text()
  assert log.startswith(
    "-m benchmarks.kernels --sizes=32768,1048576 --json_out="
  )
