"""Forty kills: nothing is lost, and runs end as if there had been none.

The harness forks, which a process that has run JAX cannot: it is a program of its
own.
"""

import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parents[2]


def _python(*arguments):
  done = subprocess.run(
    [sys.executable, "-W", "error::RuntimeWarning", *arguments],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("target", ["train", "progressive"])
def test_twenty_kills_lose_nothing(target):
  status, said = _python(
    *("-m", "tests.robustness.kill", f"--target={target}", "--kills=20")
  )
  assert status == 0, said
  names, numbers = (line.split() for line in said.splitlines()[:2])
  row = dict(zip(names, numbers, strict=True))
  assert row["target"] == target
  assert int(row["kills"]) >= 20
  assert int(row["inside"]) > 0 and int(row["runs"]) > 0
  assert row["lost"] == row["faults"] == "0"


_TORN = """
import pathlib, sys
from tests.robustness import kill, kill_lives

folder = pathlib.Path(sys.argv[1])
kill_lives.compile_into(str(folder / "compiled"))
whole = kill.reference("progressive", folder, "whole")
run = kill.Run(folder / "run", whole)
# While the second checkpoint is written file by file.
moment = kill_lives.Moment("tear", 2, 0.05)
for when, saver in ((moment, "torn"), (None, "whole")):
  run.judge(kill_lives.live("progressive", run.path, when, 60, saver))
print("faults:", *run.faults, sep="\\n")
"""


def test_a_careless_saver_is_caught(tmp_path):
  status, said = _python("-c", _TORN, tmp_path)
  assert status == 0, said
  faults = said.partition("faults:")[2]
  assert "left over" in faults and "damaged.2" in faults, said
