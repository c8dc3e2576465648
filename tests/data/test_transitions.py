import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax.data import session_log, transitions
from mtf_jax.io import InputError
from tests.session_logs import log_of, observation_only, random_log


def test_truncation_and_exit():
  """Row 1 exits, row 2 bootstraps from row 3, row 4 has no known successor."""
  log = log_of(
    np.arange(5.0)[:, None],
    np.zeros((5, 1)),
    np.ones((5, 1)),
    bootstrap_only=np.array([False, False, False, True, False]),
  )._replace(
    session_id=np.array([0, 0, 1, 1, 2], np.int32),
    step=np.array([0, 1, 0, 1, 0], np.int32),
    terminal=np.array([False, True, False, False, False]),
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
  # What follows row 2 is no request.
  np.testing.assert_array_equal(batch.action_logged_t, start == 0)


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
      np.testing.assert_array_equal(batch.action_t[index], log.action[row + 1])
    assert bool(batch.action_logged_t[index]) is not bool(log.terminal[row])


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
  log = observation_only(
    random_log(seed, num_rows=size), np.array(bootstrap_only[:size])
  )._replace(
    session_id=np.array(session_id[:size], np.int32),
    step=np.array(step[:size], np.int32),
    terminal=np.array(terminal[:size]),
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
      logged = following is not None and not log.bootstrap_only[following]
      assert of_log.next_is_request[row] == logged
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


def test_a_mask_is_refused():
  """JAX would take what is under it for values."""
  log = random_log()
  masked = np.ma.masked_less(log.reward, 0.01)
  with pytest.raises(InputError, match="reward: expected an array without a"):
    transitions.rows_from(log._replace(reward=masked))
  box = log.box._replace(lower=np.ma.masked_less(log.box.lower, 0))
  with pytest.raises(
    InputError, match=r"box\.lower: expected an array without"
  ):
    transitions.rows_from(log._replace(box=box))
