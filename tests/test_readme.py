"""The README's code and output are those of the repository."""

import pathlib
import re
import subprocess
import sys

import numpy as np

_ROOT = pathlib.Path(__file__).parents[1]
_EXAMPLE = _ROOT / "experiments" / "plug_in.py"


def _blocks(language):
  text = (_ROOT / "README.md").read_text(encoding="utf-8")
  return re.findall(
    rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
  )


def _words(text):
  return re.sub(r"-?\d+(\.\d+)?", "N", text)


def test_set_up_is_two_commands():
  lines = _blocks("bash")[0].strip().splitlines()
  assert len(lines) == 2


def test_the_example_is_the_file_and_prints_what_the_readme_shows():
  (example,) = _blocks("python")
  assert example == _EXAMPLE.read_text(encoding="utf-8")
  # In a process of its own, as a reader runs it: optax's Adam does not hold to
  # the strict promotion of these tests.
  printed = subprocess.run(
    (sys.executable, "-m", "experiments.plug_in"),
    cwd=_ROOT,
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  shown = _blocks("text")[1]
  assert _words(printed) == _words(shown)
  # The rewards, last on their lines; another machine rounds its own way.
  rewards = np.array([line.split()[-1] for line in printed.splitlines()[1:]])
  expected = [line.split()[-1] for line in shown.splitlines()[1:]]
  rewards, expected = rewards.astype(float), np.array(expected).astype(float)
  np.testing.assert_allclose(rewards, expected, rtol=2e-3)
  assert rewards[1] > rewards[0]


def test_pictures_exist():
  text = (_ROOT / "README.md").read_text(encoding="utf-8")
  pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
  assert pictures
  for picture in pictures:
    assert (_ROOT / picture).is_file(), picture
