from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax.data import transitions
from mtf_jax.learners.base import Learner
from mtf_jax.training import chunks, loop
from mtf_jax.training.checkpoints import digest
from tests.session_logs import random_log

pytestmark = pytest.mark.usefixtures("quick_to_compile")

_SIZE = 1237


class _State(NamedTuple):
  weight: jax.Array
  limit: jax.Array


class _Metrics(NamedTuple):
  loss: jax.Array


def _update(state, batch):
  """Adds rewards; the loss is not finite in the update that passes a limit."""
  weight = state.weight + jnp.mean(batch.r_t)
  loss = jnp.where(weight[0] > state.limit, jnp.inf, weight[0])
  return state._replace(weight=weight), _Metrics(loss)


_LEARNER = Learner(
  init=lambda *args: None,
  update=_update,
  policy=lambda state: state,
  act=lambda *args: None,
  value=None,
)


@pytest.fixture(scope="module")
def dataset():
  return transitions.device_dataset(random_log())


def _start(limit, seed=0):
  state = _State(jnp.zeros(_SIZE), jnp.asarray(limit, jnp.float32))
  return loop.start(jax.random.key(seed), state)


def _stack(*states):
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)


_OPTIONS = {"batch_size": 8, "num_updates": 20}


def _advance(state, dataset, *, many):
  return chunks.advance(
    _LEARNER, state, dataset, **_OPTIONS, mesh=None, many=many
  )


def test_an_update_without_the_freeze_chooses_nothing(dataset):
  def program(freeze):
    return chunks.update_chunk.lower(
      _LEARNER, _start(1e9), dataset, **_OPTIONS, freeze=freeze
    ).as_text()

  def selects(text):
    return sum(
      "stablehlo.select" in line and f"tensor<{_SIZE}xf32>" in line
      for line in text.splitlines()
    )

  assert selects(program(True)) == 1
  assert selects(program(False)) == 0


def test_a_healthy_chunk_is_the_same_with_and_without_the_freeze(dataset):
  frozen, metrics = loop.update_chunk(
    _LEARNER, _start(1e9), dataset, **_OPTIONS
  )
  state, without = _advance(_start(1e9), dataset, many=False)
  assert digest(state) == digest(frozen)
  np.testing.assert_array_equal(without.loss, metrics.loss)
  assert int(state.step) == 20
  assert bool(state.healthy)


def test_a_chunk_that_fails_ends_where_the_freeze_ends(dataset):
  # Mid-way between what two updates add up to.
  _, metrics = _advance(_start(1e9), dataset, many=False)
  limit = (metrics.loss[11] + metrics.loss[12]) / 2
  frozen, expected = loop.update_chunk(
    _LEARNER, _start(limit), dataset, **_OPTIONS
  )
  state, found = _advance(_start(limit), dataset, many=False)
  assert int(state.step) == 12
  assert not bool(state.healthy)
  assert digest(state) == digest(frozen)
  np.testing.assert_array_equal(found.loss, expected.loss)
  np.testing.assert_array_equal(state.learner.weight[0], metrics.loss[11])
  # It stays there in the next chunk.
  stays, _ = _advance(state, dataset, many=False)
  assert int(stays.step) == 12
  np.testing.assert_array_equal(stays.learner.weight[0], metrics.loss[11])


def test_of_many_runs_one_fails_and_the_others_go_on(dataset):
  alone = [_advance(_start(1e9, s), dataset, many=False)[1] for s in (0, 1)]
  limit = (alone[0].loss[4] + alone[0].loss[5]) / 2
  state = _stack(_start(limit, 0), _start(1e9, 1))
  state, metrics = _advance(state, dataset, many=True)
  assert state.step.tolist() == [5, 20]
  assert state.healthy.tolist() == [False, True]
  np.testing.assert_allclose(
    state.learner.weight[:, 0],
    [alone[0].loss[4], alone[1].loss[19]],
    rtol=1e-6,
  )
  np.testing.assert_allclose(metrics.loss[1], alone[1].loss, rtol=1e-6)
  state, _ = _advance(state, dataset, many=True)
  assert state.step.tolist() == [5, 40]


def test_no_chunk_runs_with_the_freeze_while_all_is_well(dataset, monkeypatch):
  calls = []

  def counted(*args, freeze, **kwargs):
    calls.append(freeze)
    return update_chunk(*args, freeze=freeze, **kwargs)

  update_chunk = chunks.update_chunk
  monkeypatch.setattr(chunks, "update_chunk", counted)
  options = {"batch_size": 8, "chunk_size": 20}
  state = loop.train(_LEARNER, _start(1e9), dataset, 60, **options)
  assert calls == [False] * 3
  # A limit that the next chunk meets.
  learner_state = state.learner._replace(limit=state.learner.weight[0] + 1e-3)
  state = state._replace(learner=learner_state)
  with pytest.raises(loop.NonFiniteError, match="loss: expected"):
    loop.train(_LEARNER, state, dataset, 80, **options)
  assert calls == [False] * 4 + [True]
