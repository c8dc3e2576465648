import jax
import numpy as np
import pytest

from mtf_jax.data import strata, transitions
from mtf_jax.io import InputError
from tests.session_logs import random_log

# 250 rows in sessions of 4: the last one is cut, and cuts fall within sessions.
_LOG = random_log(num_rows=250)


@pytest.fixture(scope="module", params=[1, 3], ids=["1 step", "3 steps"])
def dataset(request):
  return transitions.device_dataset(_LOG, num_steps=request.param, discount=0.5)


def _equal(found, expected):
  jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("num_strata", [1, 7, 8])
def test_every_transition_is_in_one_stratum(dataset, num_strata):
  total = int(dataset.num_transitions)
  parts = strata.stratify(dataset, num_strata).parts
  sizes = parts.num_transitions
  assert sizes.sum() == total and sizes.max() - sizes.min() <= 1
  expected = transitions.take_transitions(dataset, np.arange(total))
  found = [
    transitions.take_transitions(
      jax.tree.map(lambda leaf, n=n: leaf[n], parts), np.arange(sizes[n])
    )
    for n in range(num_strata)
  ]
  _equal(jax.tree.map(lambda *x: np.concatenate(x), *found), expected)


def test_rows_are_divided_not_copied(dataset):
  parts = strata.stratify(dataset, 8).parts
  num_rows = dataset.discount.shape[0]
  # Besides its eighth at most the rows of transitions over the cut.
  assert parts.discount.shape[1] <= num_rows // 8 + 1 + 3
  assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(parts))


def test_a_batch_has_as_many_of_each_stratum(dataset):
  divided = jax.tree.map(jax.numpy.asarray, strata.stratify(dataset, 8))
  batch = strata.draw_batch(jax.random.key(0), divided, 32)
  rows = np.asarray(dataset.observation)
  place = [
    int(np.flatnonzero((rows == one).all(axis=1))[0])
    for one in np.asarray(batch.observation_tm1)
  ]
  starts = np.asarray(dataset.start_row[: int(dataset.num_transitions)])
  cuts = np.arange(9) * starts.size // 8
  number = np.searchsorted(starts, place)
  stratum = np.searchsorted(cuts, number, side="right") - 1
  np.testing.assert_array_equal(stratum, np.repeat(np.arange(8), 4))


def test_transitions_of_a_stratum_are_equally_likely(dataset):
  divided = jax.tree.map(jax.numpy.asarray, strata.stratify(dataset, 8))
  keys = jax.random.split(jax.random.key(1), 200)
  draw = jax.vmap(
    lambda key: strata.draw_batch(key, divided, 40).observation_tm1
  )
  drawn = np.asarray(draw(keys)).reshape(200, 8, 5, -1)
  for n in range(8):
    counts = np.unique(
      drawn[:, n].reshape(1000, -1), axis=0, return_counts=True
    )
    size = int(divided.parts.num_transitions[n])
    assert counts[1].size == size
    chi = np.sum(np.square(counts[1] - 1000 / size)) * size / 1000
    # Mean size - 1, six deviations.
    assert chi < size - 1 + 6 * np.sqrt(2 * (size - 1))


def test_rows_without_strata_are_drawn_as_ever(dataset):
  key = jax.random.key(3)
  _equal(
    strata.draw_batch(key, dataset, 16),
    transitions.sample_transitions(key, dataset, 16),
  )


@pytest.mark.parametrize("num_strata", [0, 1000])
def test_more_strata_than_transitions_are_refused(dataset, num_strata):
  with pytest.raises(InputError, match=r"^num_strata: expected 1 to \d+, "):
    strata.stratify(dataset, num_strata)


def test_a_batch_that_strata_do_not_divide_is_refused(dataset):
  divided = strata.stratify(dataset, 8)
  with pytest.raises(InputError, match=r"^batch_size: .* 8 strata, found 20"):
    strata.draw_batch(jax.random.key(0), divided, 20)
