"""Scores of candidates in logs: files, refusals, and the road to transitions."""

import json

import jax
import numpy as np
import pytest

from mtf_jax.data import candidate_scores, session_log, transitions
from mtf_jax.data.candidate_scores import CandidateScores
from mtf_jax.interop.side_rows import side_rows
from mtf_jax.io import InputError
from tests.session_logs import random_log, with_candidates, with_items
from tests.sharded_logs import parts_of, write_log


def _changed(log, name, index, value):
  cells = log.candidates.cells
  array = np.array(
    log.candidates.scores if name == "scores" else getattr(cells, name)
  )
  array[index] = value
  return _with(log, **{name: array})


def _with(log, **columns):
  cells = log.candidates.cells._replace(
    **{name: x for name, x in columns.items() if name != "scores"}
  )
  scores = columns.get("scores", log.candidates.scores)
  return log._replace(candidates=CandidateScores(scores, cells))


def test_round_trip(tmp_path):
  log = with_candidates(random_log())
  path = tmp_path / "log.npz"
  session_log.save_sessions(path, log)
  with np.load(path) as file:
    assert json.loads(str(file["header"]))["schema_version"] == 6
    assert set(candidate_scores.FIELDS) < set(file.files)
  loaded, _ = session_log.load_sessions(path)
  assert isinstance(loaded.candidates, CandidateScores)
  jax.tree.map(np.testing.assert_array_equal, loaded, log)
  assert session_log.fingerprint(loaded) == session_log.fingerprint(log)


@pytest.mark.parametrize(
  ("log", "version"), [(random_log(), 4), (with_items(random_log()), 5)]
)
def test_a_log_without_them_is_written_as_before_there_were_any(
  tmp_path, log, version
):
  path = tmp_path / "log.npz"
  session_log.save_sessions(path, log)
  with np.load(path) as file:
    assert json.loads(str(file["header"]))["schema_version"] == version
    assert not set(candidate_scores.FIELDS) & set(file.files)
  assert session_log.load_sessions(path)[0].candidates is None


def test_a_file_of_another_version_is_refused(tmp_path):
  """A version says which columns there are."""
  path = tmp_path / "log.npz"
  session_log.save_sessions(path, with_candidates(random_log()))
  with np.load(path) as file:
    arrays = dict(file)
  header = json.loads(str(arrays["header"]))
  arrays["header"] = np.asarray(json.dumps({**header, "schema_version": 4}))
  np.savez(path, **arrays)
  with pytest.raises(InputError, match=r"\['candidate_scores', 'cell_incr"):
    session_log.load_sessions(path)


def test_a_fingerprint_sees_them():
  log = with_candidates(random_log())
  prints = {session_log.fingerprint(log._replace(candidates=None))}
  prints.add(session_log.fingerprint(log))
  for name in ("scores", "knots", "start", "increments"):
    changed = _changed(log, name, (1, 0), 0.125)
    prints.add(session_log.fingerprint(changed))
  assert len(prints) == 6


@pytest.mark.parametrize(
  ("name", "value", "message"),
  [
    ("scores", np.nan, "candidate_scores not finite: 2 of 240 rows, first row"),
    ("knots", 0.5, "cell_knots not rising: 2 of 240 rows, first row 3"),
    ("increments", -1e-3, "cell_increments below 0: 2 of 240 rows"),
    ("start", np.inf, "cell_start not finite: 2 of 240 rows"),
  ],
)
def test_bad_rows_are_refused_with_counts(name, value, message):
  log = _changed(with_candidates(random_log()), name, [3, 5], value)
  with pytest.raises(InputError, match=message):
    session_log.validate(log)


@pytest.mark.parametrize(
  ("columns", "message"),
  [
    (
      {"scores": np.zeros((240, 3), np.float32)},
      r"candidate_scores: .*N, C, A",
    ),
    ({"start": np.zeros((240, 3), np.float32)}, r"cell_start: .* A = 2"),
    ({"knots": np.zeros((240, 2, 9), np.float32)}, r"cell_increments: .* J-1"),
  ],
)
def test_wrong_columns_are_refused_by_name(columns, message):
  log = _with(with_candidates(random_log()), **columns)
  with pytest.raises(InputError, match=message):
    session_log.validate(log)


def test_other_types_and_two_kinds_of_columns_are_refused():
  log = with_candidates(random_log())
  for candidates, message in (
    (tuple(log.candidates), "candidates: expected a value of type Candidate"),
    (log.candidates._replace(cells=None), "candidates.cells: .* MonotoneCells"),
  ):
    with pytest.raises(InputError, match=message):
      session_log.validate(log._replace(candidates=candidates))
  with pytest.raises(InputError, match=r"shown items or scores .* found both"):
    session_log.validate(with_items(log))


def test_transitions_have_those_of_their_request():
  log = with_candidates(random_log())
  dataset = transitions.device_dataset(log)
  batch = transitions.take_transitions(dataset, np.array([0, 4, 5]))
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(a, b[[0, 4, 5]]),
    batch.candidates_tm1,
    log.candidates,
  )
  plain = transitions.device_dataset(random_log())
  batch = transitions.take_transitions(plain, np.array([0]))
  assert plain.candidates is batch.candidates_tm1 is None
  with pytest.raises(InputError, match=r"^candidates: .* a learner .* none"):
    candidate_scores.require(batch.candidates_tm1, "a learner")


def test_who_has_no_place_for_them_refuses(tmp_path):
  (part,) = parts_of(1)
  with pytest.raises(InputError, match="without scores of candidates"):
    write_log(tmp_path / "log", [with_candidates(part)])
  with pytest.raises(InputError, match="columns of candidates' scores"):
    side_rows(with_candidates(random_log()))
  candidate_scores.check_actions_of_formula(None)
  with pytest.raises(InputError, match=r"^action: expected powers and biases"):
    candidate_scores.check_actions_of_formula(
      with_candidates(random_log()).candidates
    )
