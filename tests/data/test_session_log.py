import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax.data import session_log
from mtf_jax.io import InputError
from mtf_jax.kernels.exploration import ActionBox
from tests.session_logs import observation_only, random_log


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


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  """A whole file and its arrays, for all that change them."""
  path = tmp_path_factory.mktemp("log") / "log.npz"
  session_log.save_sessions(path, random_log(), {"world": "abc"})
  with np.load(path) as archive:
    return path.read_bytes(), dict(archive)


def _refusal(path):
  with pytest.raises(InputError) as error:
    session_log.load_sessions(path)
  message = str(error.value)
  assert message.startswith(f"{path}: ")
  assert message.count(str(path)) == 1 and "\n" not in message
  return message


def test_damaged_files_are_refused(saved, tmp_path):
  path, (whole, _) = tmp_path / "cut.npz", saved
  for kept in (0, 10, len(whole) // 2, len(whole) - 30):
    path.write_bytes(whole[:kept])
    assert "expected a session file (.npz), found" in _refusal(path)
  assert "no such file" in _refusal(tmp_path / "none.npz")


def test_one_wrong_byte_is_refused_or_harmless(saved, tmp_path):
  """Harmless are bytes that no reader uses: dates, the permissions."""
  path, (whole, _) = tmp_path / "flipped.npz", saved
  log = random_log()
  rng = np.random.default_rng(0)
  refused = 0
  for place in rng.integers(0, len(whole), 150):
    damaged = bytearray(whole)
    damaged[place] ^= 1 << rng.integers(8)
    path.write_bytes(damaged)
    try:
      loaded, metadata = session_log.load_sessions(path)
    except InputError as error:
      assert str(path) in str(error)
      refused += 1
    else:
      assert metadata == {"world": "abc"}
      jax.tree.map(np.testing.assert_array_equal, loaded, log)
  assert refused > 140


def _old(arrays, version=2, metadata=None, **changed):
  """Arrays of a file without digest, as version 2 had them."""
  header = {"schema_version": version, "metadata": metadata or {}}
  arrays = {**arrays, "header": np.asarray(json.dumps(header)), **changed}
  return {n: a for n, a in arrays.items() if n != "digest" and a is not None}


def _header(value):
  return np.asarray(value if isinstance(value, str) else json.dumps(value))


# What is changed of a file of version 2, and what the refusal says.
_WRONG = {
  "short array": (
    {"reward": np.zeros((239, 2), np.float32)},
    "reward: expected shape [N, G] with N = 240, found (239, 2)",
  ),
  "too few features of a box": (
    {"box_lower": np.zeros((240, 1), np.float32)},
    "box_lower: expected shape [N, A] with A = 2, found (240, 1)",
  ),
  "other byte order": (
    {"reward": np.zeros((240, 2), ">f4")},
    "reward: expected float32, found float32 in the other byte order",
  ),
  "text": (
    {"step": np.full(240, "0")},
    "step: expected int32, found str32",
  ),
  "missing": ({"reward": None}, "['reward'] missing and [] unknown"),
  "unknown": (
    {"rewards": np.zeros(3)},
    "[] missing and ['rewards'] unknown",
  ),
  "no header": ({"header": None}, "expected a header with schema_version"),
  "header no text": (
    {"header": np.zeros(3)},
    "header of type float64 and shape (3,) instead of a text",
  ),
  "header no JSON": ({"header": _header("{")}, "expected a header with"),
  "header a list": ({"header": _header([2])}, "expected a header with"),
  "header too deep": ({"header": _header("[" * 9999)}, "expected a header"),
  "unknown in the header": (
    {"header": _header({"schema_version": 2, "metadata": {}, "more": 1})},
    "expected a header with schema_version and metadata, found",
  ),
  "no metadata": (
    {"header": _header({"schema_version": 2})},
    "expected a header with schema_version and metadata, found",
  ),
  "metadata null": (
    {"header": _header({"schema_version": 2, "metadata": None})},
    "metadata: expected texts by name, found null",
  ),
  "metadata a list": (
    {"header": _header({"schema_version": 2, "metadata": ["a"]})},
    "metadata: expected texts by name, found list",
  ),
  "metadata a number": (
    {"header": _header({"schema_version": 2, "metadata": {"world": 3}})},
    "metadata: expected texts by name, found 'world' with a value of type int",
  ),
  "version 99": (
    {"header": _header({"schema_version": 99, "metadata": {}})},
    "expected schema version 1 to 6, found 99",
  ),
  "version true": (
    {"header": _header({"schema_version": True, "metadata": {}})},
    "expected schema version 1 to 6, found True",
  ),
  "version 3 without digest": (
    {"header": _header({"schema_version": 3, "metadata": {}})},
    "['digest'] missing",
  ),
  "not finite": (
    {"log_prob": np.full(240, np.nan, np.float32)},
    "log_prob not finite: 240 of 240 rows, first row 0",
  ),
}


@pytest.mark.parametrize("case", _WRONG)
def test_wrong_content_is_refused(case, saved, tmp_path):
  changed, message = _WRONG[case]
  path = tmp_path / "wrong.npz"
  np.savez(path, **_old(saved[1], **changed))
  assert message in _refusal(path)


@pytest.mark.parametrize(
  "name", ["reward", "exploration_held", "step", "header", "digest"]
)
def test_the_digest_is_of_the_whole(name, saved, tmp_path):
  """A file made anew from changed arrays, every checksum of the zip right."""
  arrays, path = dict(saved[1]), tmp_path / "changed.npz"
  if name == "header":
    arrays[name] = np.asarray(str(arrays[name]).replace("abc", "abd"))
  elif name == "digest":
    arrays[name] = np.asarray("0" * 64)
  else:
    array = arrays[name] = np.array(arrays[name])
    array[0] = array[0] + 1 if name == "reward" else ~array[0]
  np.savez(path, **arrays)
  assert "expected the digest " in _refusal(path)
  # Unchanged, but written by NumPy: still whole.
  np.savez(path, **saved[1])
  session_log.load_sessions(path)


@pytest.mark.parametrize("version", [2, 3])
def test_a_header_of_fewer_columns_is_refused(version, saved, tmp_path):
  """The rows after the first would all be misaligned."""
  path, wide = tmp_path / "narrow.npz", np.zeros((240, 25), np.float32)
  log = random_log()._replace(observation=wide)
  session_log.save_sessions(path, log)
  if version == 2:
    with np.load(path) as archive:
      np.savez(path, **_old(dict(archive)))
  whole = path.read_bytes()
  assert whole.count(b"(240, 25)") == 1
  path.write_bytes(whole.replace(b"(240, 25)", b"(240, 15)"))
  assert (
    "array observation of float32 and shape (240, 15), which is 14.06 KiB, in"
    " 23.44 KiB" in _refusal(path)
  )


@pytest.mark.parametrize(
  ("content", "found"),
  [
    (b"PAR1" + bytes(100), "a Parquet file"),
    (b"", "an empty file"),
    (b"user,video\n", "text that begins with 'user,video'"),
    (b"\x1f\x8b" + bytes(20), "a gzip file"),
    (b"mtf_jax world 1 00\n", "a world file"),
    (b"\x80\x04K\x01.", "a pickle"),
  ],
)
def test_other_kinds_of_files_are_named(content, found, tmp_path):
  path = tmp_path / "other.npz"
  path.write_bytes(content)
  message = f"{path}: expected a session file (.npz), found {found}."
  assert _refusal(path) == message


def test_files_of_earlier_versions_are_read(saved, tmp_path):
  """Version 1 does not say whether exploration was held: counts as not held."""
  log, path = random_log(), tmp_path / "old.npz"
  for version, held in ((1, {"exploration_held": None}), (2, {})):
    for write in (np.savez, np.savez_compressed):
      write(path, **_old(saved[1], version, {"world": "abc"}, **held))
      loaded, metadata = session_log.load_sessions(path)
      assert metadata == {"world": "abc"}
      jax.tree.map(np.testing.assert_array_equal, loaded, log)
  # A file of this version must have the field, one of version 1 must not.
  for version, held in ((2, {"exploration_held": None}), (1, {})):
    np.savez(path, **_old(saved[1], version, **held))
    assert "['exploration_held']" in _refusal(path)


@pytest.mark.parametrize("field", ["action", "log_prob", "reward", "feedback"])
def test_rows_of_an_observation_hold_nothing_else(field, tmp_path):
  extra = np.zeros(240, bool)
  extra[3::4] = True
  log = random_log()._replace(terminal=np.zeros(240, bool))
  log = observation_only(log, extra)
  session_log.validate(log)
  for name, value in ((field, 0.1), ("exploration_held", True)):
    changed = _with(log, name, [7, 11], value)
    message = f"{name} not 0 beside bootstrap_only: 2 of 240 rows, first row 7"
    with pytest.raises(InputError, match=message):
      session_log.save_sessions(tmp_path / "log.npz", changed)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"box": None}, "box: expected a value of type ActionBox, found NoneType"),
    ({"reward": None}, "reward: expected float32, found object"),
    ({"reward": [[1.0], [1.0, 2.0]]}, "reward: expected an array, found"),
    (
      {"reward": np.ma.masked_less(random_log().reward, 0.01)},
      r"reward: expected an array without a mask, found \d+ of 480",
    ),
    (
      {"step": random_log().step.astype(">i4")},
      "step: expected int32, found int32 in the other byte order",
    ),
  ],
)
def test_fields_that_are_no_arrays_are_refused(changed, message):
  with pytest.raises(InputError, match=message):
    session_log.validate(random_log()._replace(**changed))


def test_what_is_no_log_is_refused():
  with pytest.raises(InputError, match="of type SessionLog, found dict"):
    session_log.validate(random_log()._asdict())


def test_metadata_is_checked_before_writing(tmp_path):
  with pytest.raises(InputError, match=r"metadata: .* 'seed' with .* type int"):
    session_log.save_sessions(tmp_path / "l.npz", random_log(), {"seed": 3})
  assert not list(tmp_path.iterdir())


def test_nothing_is_written_for_a_bad_log(tmp_path):
  log = _with(random_log(), "reward", 7, np.nan)
  with pytest.raises(ValueError, match="reward not finite"):
    session_log.save_sessions(tmp_path / "log.npz", log)
  assert not list(tmp_path.iterdir())


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
  path = tmp_path / "log.npz"
  session_log.save_sessions(path, random_log(seed=0))
  before = path.read_bytes()

  def full(file, arrays, digest_name):
    file.write(b"half")
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(session_log, "save_npz", full)
  with pytest.raises(OSError, match="No space left"):
    session_log.save_sessions(path, random_log(seed=1))
  assert path.read_bytes() == before
  assert [p.name for p in tmp_path.iterdir()] == ["log.npz"]


def test_jax_arrays_are_welcome(tmp_path):
  log = jax.tree.map(jnp.asarray, random_log())
  session_log.save_sessions(tmp_path / "log.npz", log)
  loaded, _ = session_log.load_sessions(tmp_path / "log.npz")
  np.testing.assert_array_equal(loaded.reward, log.reward)
