import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax.data import session_log, transitions
from mtf_jax.kernels.exploration import ActionBox
from tests.session_logs import log_of, random_log


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


def test_truncation_and_exit():
  """Row 1 exits, row 2 bootstraps from row 3, row 4 has no known successor."""
  log = log_of(
    np.arange(5.0)[:, None], np.zeros((5, 1)), np.ones((5, 1))
  )._replace(
    session_id=np.array([0, 0, 1, 1, 2], np.int32),
    step=np.array([0, 1, 0, 1, 0], np.int32),
    terminal=np.array([False, True, False, False, False]),
    bootstrap_only=np.array([False, False, False, True, False]),
  )
  session_log.validate(log)
  dataset = transitions.device_dataset(log)
  assert int(dataset.num_transitions) == 3
  batch = transitions.sample_transitions(jax.random.key(0), dataset, 200)
  start = np.asarray(batch.observation_tm1[:, 0])
  assert set(start) == {0.0, 1.0, 2.0}
  np.testing.assert_array_equal(batch.discount_t, start != 1)
  continuing = start != 1
  np.testing.assert_array_equal(
    np.asarray(batch.observation_t[:, 0])[continuing], start[continuing] + 1
  )


def test_next_box_is_the_next_row():
  log = random_log()
  dataset = transitions.device_dataset(log)
  batch = transitions.sample_transitions(jax.random.key(1), dataset, 50)
  for index in range(50):
    row = int(
      np.flatnonzero(
        (log.observation == np.asarray(batch.observation_tm1[index])).all(1)
      )[0]
    )
    np.testing.assert_array_equal(
      batch.box_tm1.lower[index], log.box.lower[row]
    )
    if batch.discount_t[index]:
      np.testing.assert_array_equal(
        batch.box_t.upper[index], log.box.upper[row + 1]
      )
      np.testing.assert_array_equal(
        batch.observation_t[index], log.observation[row + 1]
      )


def test_every_transition_is_drawn_alike():
  dataset = transitions.device_dataset(random_log(num_rows=40))
  batch = transitions.sample_transitions(jax.random.key(2), dataset, 40_000)
  _, counts = np.unique(batch.observation_tm1[:, 0], return_counts=True)
  assert counts.size == 40
  # 1,000 expected, standard deviation 31.
  assert np.all(np.abs(counts - 1000) < 160)


def test_a_log_without_transition_is_refused():
  log = random_log(session_length=1)
  log = log._replace(terminal=np.zeros(240, bool))
  with pytest.raises(ValueError, match="at least one transition"):
    transitions.device_dataset(log)


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


def _mixed_log(seed):
  """Sessions of 1 to 6 requests that end in each of the three ways."""
  rng = np.random.default_rng(seed)
  session_id, step, terminal, bootstrap_only = [], [], [], []
  for number in range(30):
    length = int(rng.integers(1, 7))
    end = ("left", "cut", "unknown")[number % 3]
    rows = length + (end == "cut")
    session_id += [number] * rows
    step += range(rows)
    terminal += [end == "left" and n == rows - 1 for n in range(rows)]
    bootstrap_only += [end == "cut" and n == rows - 1 for n in range(rows)]
  # One number of rows whatever the seed.
  size = 90
  log = random_log(seed, num_rows=size)._replace(
    session_id=np.array(session_id[:size], np.int32),
    step=np.array(step[:size], np.int32),
    terminal=np.array(terminal[:size]),
    bootstrap_only=np.array(bootstrap_only[:size]),
  )
  session_log.validate(log)
  return log


def _started(log, cut):
  """Rows that a transition starts from, and where nothing follows: a loop."""
  starts, ends = [], np.array(log.terminal)
  for row in range(len(log.step)):
    if log.bootstrap_only[row]:
      continue
    after = row + 1
    known = (
      after < len(log.step) and log.session_id[after] == log.session_id[row]
    )
    is_cut = not log.terminal[row] and not (
      known and not log.bootstrap_only[after]
    )
    if is_cut and (cut == "drop" or (cut == "bootstrap" and not known)):
      continue
    ends[row] |= is_cut and cut == "end"
    starts.append(row)
  return starts, ends


def _steps_by_hand(log, row, num_steps, discount, starts, ends):
  """`r_t`, `discount_t` and the next row of the transition from a row."""
  reward, weight = np.zeros(log.reward.shape[1]), 1.0
  for taken in range(num_steps):
    reward += discount**taken * log.reward[row]
    if ends[row]:
      return reward, 0.0, None
    weight = discount**taken
    row += 1
    if row not in starts:
      break
  return reward, weight, row


@pytest.mark.parametrize("cut", transitions.CUTS)
@pytest.mark.parametrize("num_steps", [1, 2, 3, 20])
def test_transitions_are_those_of_a_plain_loop(num_steps, cut):
  options = {"cut": cut, "num_steps": num_steps, "discount": 0.9}
  logs = [_mixed_log(seed) for seed in (0, 1)]
  rows = [transitions.rows_from(log) for log in logs]
  both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)
  found = jax.vmap(lambda r: transitions.dataset_from(r, **options))(both)
  for n, log in enumerate(logs):
    of_log = jax.tree.map(lambda x, n=n: np.asarray(x[n]), found)
    alone = transitions.device_dataset(log, **options)
    jax.tree.map(np.testing.assert_array_equal, alone, of_log)
    by_hand, ended = _started(log, cut)
    starts = of_log.start_row[: of_log.num_transitions]
    np.testing.assert_array_equal(starts, by_hand)
    seen = set()
    for row in starts:
      reward, weight, following = _steps_by_hand(
        log, row, num_steps, 0.9, by_hand, ended
      )
      np.testing.assert_allclose(of_log.reward[row], reward, rtol=1e-5)
      np.testing.assert_allclose(of_log.discount[row], weight, rtol=1e-5)
      if following is None:
        seen.add("ended")
        continue
      assert of_log.next_row[row] == following
      if num_steps == 20:
        # As far as the log goes: only the last row of a session follows.
        assert log.session_id[following] == log.session_id[row]
        assert following not in by_hand
      seen.add("cut" if log.bootstrap_only[following] else "going on")
    expected = {"ended", "going on"}
    if cut == "end" and num_steps == 20:
      expected = {"ended"}
    assert seen == (expected | {"cut"} if cut == "bootstrap" else expected)


def test_an_unknown_cut_is_refused():
  with pytest.raises(
    ValueError, match=r"cut: expected one of .*, found 'exit'"
  ):
    transitions.device_dataset(random_log(), cut="exit")


def test_propensities_are_drawn_with_the_action():
  log = random_log()
  log = log._replace(log_prob=log.action[:, 0] * 2)
  dataset = transitions.device_dataset(log)
  batch = transitions.sample_transitions(jax.random.key(0), dataset, 50)
  np.testing.assert_array_equal(batch.log_prob_tm1, batch.action_tm1[:, 0] * 2)


def test_steps_beyond_the_session_are_its_return():
  log = random_log(session_length=4)
  dataset = transitions.device_dataset(log, num_steps=9, discount=0.5)
  reward = log.reward.reshape(-1, 4, log.reward.shape[1])
  returns = np.einsum("slg,l->sg", reward, 0.5 ** np.arange(4))
  np.testing.assert_allclose(dataset.reward[::4], returns, rtol=1e-5)
  np.testing.assert_array_equal(dataset.discount, 0)


def test_no_steps_are_refused():
  with pytest.raises(ValueError, match="num_steps: expected 1 or more"):
    transitions.device_dataset(random_log(), num_steps=0)
