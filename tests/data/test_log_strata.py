import dataclasses

import jax
import numpy as np
import pytest

from mtf_jax.data import strata, transitions
from mtf_jax.data.log_strata import LogStrata
from mtf_jax.data.sharded import ShardedLog
from mtf_jax.distributed import mesh as mesh_lib
from mtf_jax.io import InputError
from tests.sharded_logs import no_transition, parts_of, write_log


@pytest.fixture(scope="module", params=["even", "uneven"])
def log(request, tmp_path_factory):
  """Files of 40 rows, or of other sizes, one without a transition."""
  parts = parts_of(5)
  if request.param == "uneven":
    sizes = enumerate((40, 4, 12, 80))
    parts = [parts_of(n + 1, num_rows=size)[n] for n, size in sizes]
    parts.insert(1, no_transition())
  return write_log(tmp_path_factory.mktemp("logs") / "log", parts)


@pytest.mark.parametrize("num_steps", [1, 3])
@pytest.mark.parametrize("num_strata", [1, 3, 8])
def test_strata_are_those_of_the_whole_log(log, num_strata, num_steps):
  steps = {"num_steps": num_steps, "discount": 0.5}
  whole = transitions.device_dataset(log.load_all(), **steps)
  expected = strata.stratify(whole, num_strata).parts
  in_parts = LogStrata(log, num_strata, **steps)
  for number in range(num_strata):
    found = in_parts.load(number)
    size = int(found.num_transitions)
    assert size == expected.num_transitions[number]
    assert found.discount.shape == (in_parts.num_rows,)
    of_whole = jax.tree.map(lambda leaf, n=number: leaf[n], expected)
    jax.tree.map(np.testing.assert_array_equal, _taken(found), _taken(of_whole))


def _taken(part):
  """All transitions; nothing follows where the discount is 0."""
  taken = transitions.take_transitions(
    part, np.arange(int(part.num_transitions))
  )

  def known(column):
    goes_on = np.asarray(taken.discount_t) > 0
    return np.where(goes_on.reshape(-1, *[1] * (column.ndim - 1)), column, 0)

  after = ("observation_t", "box_t", "action_t", "action_logged_t")
  return taken._replace(
    **{name: jax.tree.map(known, getattr(taken, name)) for name in after}
  )


def test_rooms_are_little_larger_than_what_they_hold(log):
  whole = transitions.device_dataset(log.load_all(), num_steps=2)
  exact = strata.stratify(whole, 8).parts.discount.shape[1]
  rows = sum(shard.rows - shard.transitions for shard in log.manifest.shards)
  assert exact <= LogStrata(log, 8, num_steps=2).num_rows <= exact + rows + 2


def test_files_are_opened_where_they_hold_transitions(log, monkeypatch):
  opened = []
  load = ShardedLog.load

  def noted(self, number):
    opened.append(number)
    return load(self, number)

  monkeypatch.setattr(ShardedLog, "load", noted)
  in_parts = LogStrata(log, 8)
  in_parts.load(0)
  assert opened == [0]
  opened.clear()
  in_parts.load(7)
  assert opened == [len(log.manifest.shards) - 1]


def test_more_strata_than_transitions_are_refused(log):
  with pytest.raises(InputError, match=r"^num_strata: expected 1 to \d+, "):
    LogStrata(log, 1000)


def test_another_number_of_transitions_is_refused(log):
  shards = list(log.manifest.shards)
  shards[0] = shards[0]._replace(transitions=shards[0].transitions + 1)
  forged = log._replace(
    manifest=dataclasses.replace(log.manifest, shards=tuple(shards))
  )
  with pytest.raises(
    InputError, match=r"shard-00000\.npz.* as in the manifest"
  ):
    LogStrata(forged, 2).load(0)


def test_a_mesh_holds_all_of_them(log):
  mesh = mesh_lib.make_mesh({"data": 1})
  in_parts = LogStrata(log, 3)
  found = mesh_lib.put_strata(mesh, in_parts)
  for number in range(3):
    jax.tree.map(
      lambda leaf, one, n=number: np.testing.assert_array_equal(leaf[n], one),
      found.parts,
      in_parts.load(number),
    )
