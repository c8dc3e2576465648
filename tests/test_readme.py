"""The README's code and output are those of the repository."""

import pathlib
import re
import subprocess
import sys

_ROOT = pathlib.Path(__file__).parents[1]
_EXAMPLE = _ROOT / "experiments" / "plug_in.py"


def _blocks(language):
  text = (_ROOT / "README.md").read_text(encoding="utf-8")
  return re.findall(
    rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
  )


def _without_numbers(text):
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
  assert _without_numbers(printed) in map(_without_numbers, _blocks("text"))


def test_pictures_exist():
  text = (_ROOT / "README.md").read_text(encoding="utf-8")
  pictures = re.findall(r"!\[.*?\]\((.*?)\)", text)
  assert pictures
  for picture in pictures:
    assert (_ROOT / picture).is_file(), picture
