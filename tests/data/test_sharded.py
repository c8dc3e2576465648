"""Folders of session files: what they hold, and every way they can be wrong."""

import json
import shutil

import jax
import numpy as np
import pytest

from mtf_jax.data import log_manifest, session_log, sharded
from mtf_jax.io import InputError
from tests.sharded_logs import parts_of, write_log


@pytest.fixture
def written(tmp_path):
  parts = parts_of()
  return write_log(tmp_path / "log", parts), parts


def _refusal(folder):
  with pytest.raises(InputError) as caught:
    sharded.open_log(folder).load_all()
  message = str(caught.value)
  assert message.endswith(".") and "\n" not in message
  return message


def test_what_was_written_is_read(written):
  log, parts = written
  whole = log.load_all()
  for part, loaded in zip(
    zip(*map(jax.tree.leaves, parts), strict=True),
    jax.tree.leaves(whole),
    strict=True,
  ):
    np.testing.assert_array_equal(np.concatenate(part), loaded)
  assert whole.session_id.dtype == np.int64
  assert whole.session_id.min() >= 2**40
  session_log.validate(whole)
  manifest = log.manifest
  assert (manifest.rows, manifest.sessions) == (120, 30)
  assert manifest.transitions == 120
  observation = whole.observation.astype(np.float64)
  np.testing.assert_allclose(manifest.mean, observation.mean(0), rtol=1e-9)
  np.testing.assert_allclose(manifest.stddev, observation.std(0), rtol=1e-9)


def test_a_shard_is_a_session_file(written):
  log, parts = written
  part, metadata = session_log.load_sessions(log.folder / "shard-00001.npz")
  np.testing.assert_array_equal(part.action, parts[1].action)
  assert metadata == {"import": "test"}


def test_transitions_are_those_of_the_dataset():
  (part,) = parts_of(1)
  ends = part.step == 3
  cut = part._replace(terminal=part.terminal & (np.arange(40) < 20))
  assert sharded.num_transitions(cut) == 40 - (ends & ~cut.terminal).sum()


def test_a_folder_without_manifest_is_no_log(written):
  log, _ = written
  (log.folder / "manifest.json").unlink()
  assert "found no manifest.json; an import that was interr" in _refusal(
    log.folder
  )
  assert "no such file" in _refusal(log.folder / "none")


def test_a_missing_or_cut_shard_is_refused(written):
  log, _ = written
  path = log.folder / "shard-00001.npz"
  content = path.read_bytes()
  path.write_bytes(content[:-1])
  assert f"{path}: expected {len(content)} bytes" in _refusal(log.folder)
  path.unlink()
  assert f"{path}: expected a session file of the log (No" in _refusal(
    log.folder
  )


def test_a_shard_of_another_import_is_refused(written, tmp_path):
  log, _ = written
  other = write_log(tmp_path / "other", parts_of()[::-1])
  shutil.copy(other.folder / "shard-00000.npz", log.folder)
  assert "shard-00000.npz: expected the session file of digest" in _refusal(
    log.folder
  )


def test_a_damaged_shard_is_refused(written):
  log, _ = written
  path = log.folder / "shard-00002.npz"
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)
  assert "shard-00002.npz: expected" in _refusal(log.folder)


def test_an_edited_manifest_is_refused(written):
  log, _ = written
  path = log.folder / "manifest.json"
  text = path.read_text()
  path.write_text(text.replace('"rows": 40', '"rows": 41', 1))
  assert "manifest.json: expected the bytes that its own" in _refusal(
    log.folder
  )
  path.write_text("[]")
  assert "is no JSON object (a list)" in _refusal(log.folder)
  path.write_text(text.replace('"format_version": 1', '"format_version": 2'))
  assert "expected format version 1, found 2; another" in _refusal(log.folder)


_WRONG = {
  "unknown": ({"more": 1}, "found more unknown"),
  "missing": ({"counts": None}, "found counts missing"),
  "type": ({"mean": ["a", 1.0, 1.0]}, "mean: expected tuple[float, ...]"),
  "no shards": ({"shards": []}, "expected shards, and a mean"),
  "path": ({"file": "../a.npz"}, "shards: expected a file name and whole"),
  "rows": ({"rows": -1}, "shards: expected a file name and whole numbers"),
  "fields": ({"extra": 1}, "shards: expected tuple"),
}


@pytest.mark.parametrize("case", _WRONG)
def test_a_forged_manifest_is_refused(case, written):
  changes, message = _WRONG[case]
  log, _ = written
  path = log.folder / "manifest.json"
  values = json.loads(path.read_text())
  del values["manifest_sha256"]
  for name, value in changes.items():
    if name in ("file", "rows", "extra"):
      values["shards"][0][name] = value
    elif value is None:
      del values[name]
    else:
      values[name] = value
  path.write_text(log_manifest._text(values))
  assert message in _refusal(log.folder)


def test_other_columns_than_the_manifests_are_refused(written):
  log, _ = written
  values = json.loads((log.folder / "manifest.json").read_text())
  del values["manifest_sha256"]
  values["action_names"].append("a2")
  (log.folder / "manifest.json").write_text(log_manifest._text(values))
  assert (
    "shard-00000.npz: expected sizes (S, A, G, E, N) of (3, 3,"
    in _refusal(log.folder)
  )
