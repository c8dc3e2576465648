"""The code and output of the README and the guide are the repository's."""

import pathlib
import re
import subprocess
import sys

import numpy as np

from mtf_jax.studies.progressive import comparisons, config

_ROOT = pathlib.Path(__file__).parents[1]
_EXAMPLE = _ROOT / "experiments" / "plug_in.py"
_GUIDE = "docs/guide.md"
_PAGES = (
  *sorted(_ROOT.glob("*.md")),
  *sorted((_ROOT / "docs").rglob("*.md")),
)


def _blocks(language, page="README.md"):
  text = (_ROOT / page).read_text(encoding="utf-8")
  return re.findall(
    rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL
  )


def _words(text):
  return re.sub(r"-?\d+(\.\d+)?", "N", text)


def test_set_up_is_two_commands():
  lines = _blocks("bash")[0].strip().splitlines()
  assert len(lines) == 2


def test_the_readme_shows_the_rows_that_a_run_prints():
  table = next(b for b in _blocks("text") if "\npolicy " in b)
  body = table.split("\npolicy ", 1)[1].split("\n\n")[0].splitlines()[1:]
  labels = [re.split(r"  +", line)[0] for line in body]
  rounds = config.PRESETS["cpu"].rounds
  contests = [contest.label for contest in comparisons.CONTESTS]
  assert labels == [f"round {n + 1}" for n in range(rounds)] + contests
  (learner,) = re.findall(r"^seed 0, .*, learner (\w+)$", table, re.MULTILINE)
  assert (learner,) == config.DEFAULT_LEARNERS["cpu"]


def test_the_readme_shows_whole_functions_of_the_example():
  (extract,) = _blocks("python")
  assert re.findall(r"^def (\w+)", extract, re.MULTILINE) == ["serve", "loss"]
  source = _EXAMPLE.read_text(encoding="utf-8")
  assert f"\n\n\n{extract}\n\n" in source


def test_the_example_is_the_file_and_prints_what_the_readme_shows():
  example, *_ = _blocks("python", _GUIDE)
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
  assert _blocks("text", _GUIDE) == [shown]
  assert _words(printed) == _words(shown)
  # The rewards, last on their lines; another machine rounds its own way.
  rewards = np.array([line.split()[-1] for line in printed.splitlines()[1:]])
  expected = [line.split()[-1] for line in shown.splitlines()[1:]]
  rewards, expected = rewards.astype(float), np.array(expected).astype(float)
  np.testing.assert_allclose(rewards, expected, rtol=2e-3)
  assert rewards[1] > rewards[0]


def _anchors(page):
  text = re.sub(
    r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S
  )
  headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
  return {
    re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings
  }


def test_links_and_pictures_of_all_pages_lead_somewhere():
  for page in _PAGES:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    assert targets, page
    for target in targets:
      if target.startswith("https://"):
        continue
      path, _, anchor = target.partition("#")
      linked = page.parent / path if path else page
      assert linked.is_file(), (page.name, target)
      assert not anchor or anchor in _anchors(linked), (page.name, target)
