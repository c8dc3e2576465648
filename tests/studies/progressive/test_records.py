"""Records under a checksum: what was written comes back, or is refused."""

import json

import pytest

from mtf_jax.io import InputError
from mtf_jax.studies.progressive import records

CONTENT = {"seeds": [3, 5], "gain": -0.25, "of": {"name": "box", "none": None}}


def _read(path):
  return records.read(path, "a record", "move it away")


def test_every_changed_byte_is_refused_or_changes_nothing(tmp_path):
  path = tmp_path / "run.json"
  records.write(path, CONTENT)
  whole = path.read_bytes()
  assert _read(path) == (records.LAYOUT_VERSION, CONTENT)
  equal = refused = 0
  for place in range(len(whole)):
    for bit in (0x01, 0x20, 0x80):
      changed = bytearray(whole)
      changed[place] ^= bit
      path.write_bytes(changed)
      try:
        version, content = _read(path)
      except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        refused += 1
      else:
        assert (version, content) == (records.LAYOUT_VERSION, CONTENT)
        equal += 1
  # The spaces of indentation alone say nothing.
  assert refused > 10 * equal


@pytest.mark.parametrize("end", [0, 1, 20, 60, 120, -2])
def test_a_cut_record_is_refused(tmp_path, end):
  path = tmp_path / "run.json"
  records.write(path, CONTENT)
  path.write_bytes(path.read_bytes()[:end])
  found = "an empty file" if not end else "what is no JSON"
  with pytest.raises(
    records.RunDirError, match=f"run.json: expected a record, found {found}"
  ) as caught:
    _read(path)
  assert str(caught.value).endswith("; move it away.")


@pytest.mark.parametrize(
  ("text", "found"),
  [
    ("[1]", "JSON of a list"),
    ("7", "JSON of a int"),
    ("NaN", r"what is no JSON \(NaN is no JSON\)"),
    ('{"sha256": 1e999}', r"what is no JSON \(1e999 is no finite number\)"),
    ("[" * 100_000, "what is no JSON"),
    ('{"a": ' * 600 + "1" + "}" * 600, None),
    ("9" * 5_000, "what is no JSON"),
    ("PAR1", "what is no JSON"),
    ("\ufeff{}", "what is no JSON"),
  ],
)
def test_what_is_no_record_is_refused(tmp_path, text, found):
  path = tmp_path / "run.json"
  path.write_text(text, encoding="utf-8")
  if found is None:  # A file of the layouts before, which have no checksum.
    assert _read(path)[0] == 0
    text = f'{{"layout_version": 3, "sha256": "0", "content": {text}}}'
    path.write_text(text)
    found = "none: it is damaged"
  with pytest.raises(records.RunDirError, match=found):
    _read(path)


@pytest.mark.parametrize("name", ["layout_version", "sha256", "content"])
def test_a_renamed_field_is_refused_by_name(tmp_path, name):
  path = tmp_path / "run.json"
  records.write(path, CONTENT)
  path.write_text(path.read_text().replace(name, "other"))
  with pytest.raises(
    records.RunDirError, match=r"found .*other.*it is damaged"
  ):
    _read(path)


def test_a_later_version_is_named_and_not_called_damaged(tmp_path, monkeypatch):
  path = tmp_path / "run.json"
  with monkeypatch.context() as patch:
    patch.setattr(records, "LAYOUT_VERSION", 4)
    records.write(path, CONTENT)
  with pytest.raises(
    records.RunDirError, match="version 3, found 4, which ano"
  ):
    _read(path)
  # A version that was flipped is no other version.
  path.write_text(path.read_text().replace(": 4,", ": 3,"))
  with pytest.raises(records.RunDirError, match="it is damaged"):
    _read(path)


def test_a_folder_or_a_pipe_in_its_place_is_refused(tmp_path):
  with pytest.raises(records.RunDirError, match="found a folder; move it away"):
    _read(tmp_path)
  (tmp_path / "link").symlink_to(tmp_path / "gone")
  with pytest.raises(records.RunDirError, match=r"found a link to .*gone"):
    _read(tmp_path / "link")


def test_another_runs_record_is_refused_where_it_differs():
  expected = {"config": {"train": {"batch_size": 32}}, "seeds": [0, 1]}
  records.check_same("here", expected, {**expected, "rounds": []})
  for found, message in (
    ({"seeds": [0, 1]}, "config.train.batch_size 32, found None"),
    ({**expected, "seeds": [1, 0]}, r"seeds \[0, 1\], found \[1, 0\]"),
    (
      {"config": {"train": {"batch_size": 64}}, "seeds": [0, 1]},
      "here: expected config.train.batch_size 32, found 64",
    ),
    ({**expected, "config": 3}, "config.train.batch_size 32, found None"),
  ):
    with pytest.raises(records.RunDirError, match=message):
      records.check_same("here", expected, found)


def test_figures_that_are_undefined_come_back_as_they_went(tmp_path):
  nan, inf = float("nan"), float("inf")
  found = {"a": [1.5, nan, (2, -inf)], "b": {"c": inf, "d": "nan", "e": None}}
  figures = records.undefined_as_none(found)
  assert figures == {
    "a": [1.5, None, [2, None]],
    "b": {"c": None, "d": "nan", "e": None},
  }
  records.write(tmp_path / "result.json", figures)
  assert json.loads((tmp_path / "result.json").read_text())
  assert _read(tmp_path / "result.json")[1] == figures
