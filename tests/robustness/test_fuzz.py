"""Two thousand damaged inputs: each is refused in a sentence, or harmless."""

import collections
import json

import numpy as np
import pytest

from mtf_jax import io
from tests.robustness import fuzz, mutate
from tests.robustness.kinds import ReadOnly

_CASES = 2000


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def kinds(folder):
  return fuzz.make_kinds([kind.name for kind in fuzz.KINDS], folder)


@pytest.mark.parametrize("name", [kind.name for kind in fuzz.KINDS])
@pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"  # of Orbax, see pyproject
)
def test_damage_is_refused_by_name_or_harmless(kinds, folder, name):
  outcomes = [
    fuzz.judge(kind, seed, folder / "case")
    for kind, seed in fuzz.seeds_of(kinds, _CASES)
    if kind.name == name
  ]
  found = fuzz.defects(outcomes)
  said = "\n".join(f"{n} x {fuzz.describe(one)}" for n, one in found)
  assert not found, said
  verdicts = collections.Counter(one.verdict for one in outcomes)
  assert verdicts["harmless"] and verdicts["refused"], fuzz.table(outcomes)


def test_the_shares_make_the_cases():
  assert sum(kind.share for kind in fuzz.KINDS) == 100


class _Careless(ReadOnly):
  """A reader of JSON that has each fault in turn."""

  name = "careless"
  share = 100

  def __init__(self, fault):
    self._fault = fault

  def mutate(self, rng):
    what, text = mutate.damage_json_text(rng, {"seed": 1, "sizes": [8, 8]})
    return what, {"run.json": text.encode()}

  def read(self, folder):
    path = folder / "run.json"
    try:
      found = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
      if self._fault == "traceback":
        raise
      name = "a file" if self._fault == "nameless" else path
      end = "\nagain." if self._fault == "lines" else "."
      raise io.InputError(f"{name}: expected JSON, found none{end}") from error
    if self._fault == "writes":
      path.write_text("{}")
    return found

  def difference(self, folder, found):
    if self._fault != "accepts":
      return ""
    return "" if found == {"seed": 1, "sizes": [8, 8]} else "another value"


@pytest.mark.parametrize(
  ("fault", "verdict", "told"),
  [
    ("none", None, None),
    ("traceback", "traceback", "JSONDecodeError"),
    ("nameless", "traceback", "no file is named"),
    ("lines", "traceback", "not one sentence"),
    ("writes", "traceback", "reading changed files: run.json"),
    ("accepts", "accepted though different", "another value"),
  ],
)
def test_a_careless_reader_is_caught(tmp_path, fault, verdict, told):
  outcomes = list(fuzz.run([_Careless(fault)], 60, tmp_path))
  found = fuzz.defects(outcomes)
  if verdict is None:
    assert not found
    return
  assert {one.verdict for _, one in found} == {verdict}
  assert any(told in one.told for _, one in found)
  # A case can be made again from its seed.
  first = found[0][1]
  again = fuzz.judge(_Careless(fault), first.seed, tmp_path / "case")
  assert (again.what, again.verdict) == (first.what, first.verdict)


def test_an_answer_that_does_not_come_is_a_defect(tmp_path, monkeypatch):
  monkeypatch.setattr(fuzz, "_SECONDS", 0.05)
  kind = _Careless("none")

  def wait(folder):
    while True:
      np.zeros(1000).sum()

  monkeypatch.setattr(kind, "read", wait)
  assert "no answer" in fuzz.judge(kind, 0, tmp_path / "case").told
