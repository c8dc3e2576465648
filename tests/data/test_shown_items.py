"""Shown items in logs: files, refusals, and the road to transitions."""

import json

import jax
import numpy as np
import pytest

from mtf_jax.data import session_log, shown_items, transitions
from mtf_jax.data.shown_items import ShownItems, require
from mtf_jax.evaluation import importance, logged_units
from mtf_jax.interop.side_rows import side_rows
from mtf_jax.io import InputError
from mtf_jax.kernels.exploration import ActionBox
from tests.session_logs import observation_only, random_log, with_items
from tests.sharded_logs import parts_of, write_log


def _changed(log, column, index, value):
  array = np.array(getattr(log.items, column))
  array[index] = value
  return log._replace(items=log.items._replace(**{column: array}))


def _saved(path, log):
  session_log.save_sessions(path, log)
  with np.load(path) as file:
    return set(file.files), json.loads(str(file["header"]))["schema_version"]


def test_round_trip(tmp_path):
  log = with_items(random_log())
  _, version = _saved(tmp_path / "log.npz", log)
  loaded, _ = session_log.load_sessions(tmp_path / "log.npz")
  assert version == 5
  assert isinstance(loaded.items, ShownItems)
  jax.tree.map(np.testing.assert_array_equal, loaded, log)
  assert session_log.fingerprint(loaded) == session_log.fingerprint(log)


def test_a_log_without_items_is_written_as_before_there_were_any(tmp_path):
  names, version = _saved(tmp_path / "log.npz", random_log())
  assert version == 4
  assert not {name for name in names if name.startswith("item")}
  assert session_log.load_sessions(tmp_path / "log.npz")[0].items is None


def test_a_fingerprint_sees_the_items():
  log = with_items(random_log())
  prints = {session_log.fingerprint(log._replace(items=None))}
  prints.add(session_log.fingerprint(log))
  for column in ("features", "action"):
    prints.add(session_log.fingerprint(_changed(log, column, 1, 0.125)))
  assert len(prints) == 4


@pytest.mark.parametrize(
  ("column", "value", "message"),
  [
    (
      "features",
      np.nan,
      "item_features not finite: 2 of 240 rows, first row 3",
    ),
    ("action", 5.0, "item_action outside its own box: 2 of 240 rows"),
    (
      "action",
      0.125,
      "item_action of the first item not action: 2 of 240 rows",
    ),
  ],
)
def test_bad_items_are_refused_with_counts(column, value, message):
  log = _changed(with_items(random_log()), column, [3, 5], value)
  with pytest.raises(InputError, match=message):
    session_log.validate(log)


def test_inverted_boxes_and_actions_of_no_request_are_refused():
  log = with_items(random_log())
  log.items.box.lower[7, 1] = 3.0
  with pytest.raises(
    InputError, match="item_box_lower above item_box_upper: 1"
  ):
    session_log.validate(log)
  last = np.arange(240) % 4 == 3
  cut = random_log()._replace(terminal=np.zeros(240, bool))
  cut = with_items(observation_only(cut, last))
  session_log.validate(cut)
  with pytest.raises(InputError, match="item_action not 0 beside bootstrap"):
    session_log.validate(_changed(cut, "action", [3], 0.125))


@pytest.mark.parametrize(
  ("items", "message"),
  [
    ({"features": np.zeros((240, 3), np.float32)}, r"item_features: .*N, L, F"),
    ({"action": np.zeros((240, 2, 2), np.float32)}, r"item_action: .*L = 3"),
    ({"box": None}, "items.box: expected a value of type ActionBox"),
  ],
)
def test_wrong_columns_are_refused_by_name(items, message):
  log = with_items(random_log())
  with pytest.raises(InputError, match=message):
    session_log.validate(log._replace(items=log.items._replace(**items)))
  with pytest.raises(InputError, match="items: expected a value of type Shown"):
    session_log.validate(log._replace(items=tuple(log.items)))


def test_transitions_have_the_items_of_both_requests():
  log = with_items(random_log())
  dataset = transitions.device_dataset(log)
  batch = transitions.take_transitions(dataset, np.array([0, 4, 5]))
  for found, row in ((batch.items_tm1, [0, 4, 5]), (batch.items_t, [1, 5, 6])):
    jax.tree.map(
      lambda a, b, row=row: np.testing.assert_array_equal(a, b[row]),
      found,
      log.items,
    )
  several = transitions.device_dataset(log, num_steps=3)
  batch = transitions.take_transitions(several, np.array([4]))
  np.testing.assert_array_equal(batch.items_t.features, log.items.features[[7]])


def test_transitions_of_a_log_without_items_have_none():
  dataset = transitions.device_dataset(random_log())
  batch = transitions.take_transitions(dataset, np.array([0]))
  assert dataset.items is batch.items_tm1 is batch.items_t is None
  with pytest.raises(
    InputError, match=r"^items: expected .*item_features.*none"
  ):
    require(batch.items_tm1, "a learner")


def test_folders_and_side_rows_refuse_items(tmp_path):
  (part,) = parts_of(1)
  with pytest.raises(InputError, match="without shown items"):
    write_log(tmp_path / "log", [with_items(part)])
  with pytest.raises(InputError, match="columns of shown items"):
    side_rows(with_items(random_log()))


def test_draws_of_each_item_are_no_deviation_of_the_request():
  """Alike is what counts, in boxes of other widths and places too."""
  log = random_log()
  moved = with_items(log).items
  shown_items.check_deviate_alike(moved)
  box = moved.box
  middle, half_width = (box.upper + box.lower) / 2, (box.upper - box.lower) / 2
  half_width = half_width * np.array([1.0, 0.5, 0.1], np.float32)[:, None]
  u = (log.action - (log.box.lower + log.box.upper) / 2) / half_width[:, 0]
  alike = moved._replace(
    action=middle + half_width * u[:, None],
    box=ActionBox(middle - half_width, middle + half_width),
  )
  shown_items.check_deviate_alike(alike)
  shown_items.check_deviate_alike(None)
  one = np.array(alike.action)
  one[7, 2] = middle[7, 2] - half_width[7, 2]
  with pytest.raises(
    InputError,
    match=r"one deviation of all .* found 1 of 240 rows .* first row 7",
  ):
    shown_items.check_deviate_alike(alike._replace(action=one))
  # Whoever takes the action for a draw of the request asks.
  apart = random_log()._replace(items=alike._replace(action=one))
  with pytest.raises(InputError, match="item_action: expected one deviation"):
    logged_units.units_from(apart)
  with pytest.raises(InputError, match="item_action: expected one deviation"):
    importance.ncis(apart, apart.action)
