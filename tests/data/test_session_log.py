import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax.data import session_log
from mtf_jax.kernels.exploration import ActionBox
from tests.session_logs import random_log


def _with(log, field, index, value):
  array = np.array(getattr(log, field))
  array[index] = value
  return log._replace(**{field: array})


def test_round_trip(tmp_path):
  log = random_log()
  path = tmp_path / "log.npz"
  session_log.save_sessions(path, log, {"world": "abc"})
  loaded, metadata = session_log.load_sessions(path)
  assert metadata == {"world": "abc"}
  jax.tree.map(np.testing.assert_array_equal, loaded, log)
  assert session_log.fingerprint(loaded) == session_log.fingerprint(log)
  assert [p.name for p in tmp_path.iterdir()] == ["log.npz"]


def test_fingerprint_sees_every_field():
  log = random_log()
  prints = {session_log.fingerprint(log)}
  for field in ("observation", "action", "log_prob", "reward", "feedback"):
    prints.add(session_log.fingerprint(_with(log, field, 1, 0.125)))
  for field in ("terminal", "bootstrap_only", "exploration_held"):
    flipped = ~getattr(log, field)[1]
    prints.add(session_log.fingerprint(_with(log, field, 1, flipped)))
  for field in ("session_id", "step"):
    prints.add(session_log.fingerprint(_with(log, field, 1, 77)))
  wider = log._replace(box=ActionBox(log.box.lower, log.box.upper + 1))
  prints.add(session_log.fingerprint(wider))
  assert len(prints) == 12


@pytest.mark.parametrize(
  ("field", "rows", "value", "message"),
  [
    ("observation", [3, 5], np.nan, "observation not finite: 2 of 240"),
    (
      "log_prob",
      [0],
      -np.inf,
      "log_prob not finite: 1 of 240 rows, first row 0",
    ),
    (
      "action",
      [4, 8, 9],
      5.0,
      "outside its own box: 3 of 240 rows, first row 4",
    ),
    ("step", [6], 9, "step not counting from 0 by 1: 1 of 240"),
    ("terminal", [1], True, "terminal before the session's last row: 1 of 240"),
    ("bootstrap_only", [2], True, "bootstrap_only not after .*: 1 of 240"),
  ],
)
def test_bad_rows_are_refused_with_counts(field, rows, value, message):
  with pytest.raises(ValueError, match=message):
    session_log.validate(_with(random_log(), field, rows, value))


def test_all_kinds_of_bad_rows_are_named():
  log = _with(_with(random_log(), "reward", 7, np.inf), "step", 6, 9)
  log.box.lower[11] = 3.0
  with pytest.raises(ValueError) as error:
    session_log.validate(log)
  for what in ("reward not finite", "step not", "box.lower above", "outside"):
    assert what in str(error.value)


def test_sessions_out_of_order_are_refused():
  log = random_log()
  session_id = np.array(log.session_id)
  session_id[8:12] = 0
  with pytest.raises(ValueError, match=r"earlier, closed session: 1 of 240"):
    session_log.validate(log._replace(session_id=session_id))


@pytest.mark.parametrize(
  ("field", "value", "message"),
  [
    ("reward", np.zeros((240, 2)), "reward: expected float32, found float64"),
    ("action", np.zeros(240, np.float32), r"action: expected shape \[N, A\]"),
    (
      "step",
      np.zeros(239, np.int32),
      r"step: expected shape \[N\] with N = 240",
    ),
    ("feedback", np.zeros((240, 0), np.float32), "feedback: expected no empty"),
  ],
)
def test_wrong_shapes_are_refused(field, value, message):
  with pytest.raises(ValueError, match=message):
    session_log.validate(random_log()._replace(**{field: value}))


def test_damaged_files_are_refused(tmp_path):
  path = tmp_path / "log.npz"
  session_log.save_sessions(path, random_log())
  whole = path.read_bytes()
  for kept in (0, 10, len(whole) // 2, len(whole) - 30):
    path.write_bytes(whole[:kept])
    with pytest.raises(ValueError, match=r"log\.npz: expected an .npz file"):
      session_log.load_sessions(path)
  with pytest.raises(FileNotFoundError):
    session_log.load_sessions(tmp_path / "none.npz")


def test_other_files_are_refused(tmp_path):
  path = tmp_path / "log.npz"
  session_log.save_sessions(path, random_log())
  with np.load(path) as archive:
    fields = dict(archive)
  np.savez(
    path,
    **{**fields, "header": json.dumps({"schema_version": 99, "metadata": {}})},
  )
  with pytest.raises(ValueError, match="schema version 1 to 2, found 99"):
    session_log.load_sessions(path)
  fields["rewards"] = fields.pop("reward")
  np.savez(path, **fields)
  with pytest.raises(
    ValueError, match=r"\['reward'\] missing and \['rewards'\]"
  ):
    session_log.load_sessions(path)
  np.savez(path, x=np.zeros(3))
  with pytest.raises(ValueError, match="expected a header"):
    session_log.load_sessions(path)


def test_files_of_version_1_are_read(tmp_path):
  """They do not say whether exploration was held: it counts as not held."""
  log = random_log()
  path = tmp_path / "log.npz"
  session_log.save_sessions(path, log, {"world": "abc"})
  with np.load(path) as archive:
    fields = dict(archive)
  del fields["exploration_held"]
  header = {"schema_version": 1, "metadata": {"world": "abc"}}
  np.savez(path, **{**fields, "header": json.dumps(header)})
  loaded, metadata = session_log.load_sessions(path)
  assert metadata == {"world": "abc"}
  assert not loaded.exploration_held.any()
  jax.tree.map(np.testing.assert_array_equal, loaded, log)
  # A file of this version must have the field, one of version 1 must not.
  for version, held in ((2, {}), (1, {"exploration_held": log.terminal})):
    header = {"schema_version": version, "metadata": {}}
    np.savez(path, **{**fields, **held, "header": json.dumps(header)})
    with pytest.raises(ValueError, match=r"\['exploration_held'\]"):
      session_log.load_sessions(path)


def test_nothing_is_written_for_a_bad_log(tmp_path):
  log = _with(random_log(), "reward", 7, np.nan)
  with pytest.raises(ValueError, match="reward not finite"):
    session_log.save_sessions(tmp_path / "log.npz", log)
  assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "log.npz"
  session_log.save_sessions(path, random_log(seed=0))
  before = path.read_bytes()

  def full(file, **arrays):
    file.write(b"half")
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(np, "savez", full)
  with pytest.raises(OSError, match="No space left"):
    session_log.save_sessions(path, random_log(seed=1))
  assert path.read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ["log.npz"]


def test_jax_arrays_are_welcome(tmp_path):
  log = jax.tree.map(jnp.asarray, random_log())
  session_log.save_sessions(tmp_path / "log.npz", log)
  loaded, _ = session_log.load_sessions(tmp_path / "log.npz")
  np.testing.assert_array_equal(loaded.reward, log.reward)
