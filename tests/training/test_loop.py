import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import networks
from mtf_jax.data import transitions
from mtf_jax.learners.base import Learner, normalization_from
from mtf_jax.learners.integrated_rl import Hyperparams, integrated_rl
from mtf_jax.training import loop
from mtf_jax.training.checkpoints import digest
from tests.session_logs import random_log

pytestmark = pytest.mark.usefixtures("quick_to_compile")

_LEARNER = integrated_rl(
  networks.mlp_actor(2, (8,)), networks.mlp_critic(2, 2, (8, 8))
)


def start(dataset, hyperparams=None, seed=0, learner=_LEARNER):
  batch = transitions.sample_transitions(jax.random.key(5), dataset, 1)
  example = jax.tree.map(lambda leaf: leaf[0], batch)
  network_key, batch_key = jax.random.split(jax.random.key(seed))
  state = learner.init(
    network_key, example, hyperparams, normalization_from(dataset)
  )
  return loop.start(batch_key, state)


@pytest.fixture(scope="module")
def dataset():
  return transitions.device_dataset(random_log())


def test_chunks_make_a_run(dataset):
  """A run in chunks draws what one update after the other draws."""
  seen = []
  state = loop.train(
    _LEARNER,
    start(dataset),
    dataset,
    30,
    batch_size=16,
    chunk_size=10,
    on_chunk=lambda state, metrics: seen.append(
      (int(state.step), metrics.critic_loss)
    ),
  )
  assert [step for step, _ in seen] == [10, 20, 30]
  expected = start(dataset)
  losses = []
  update = jax.jit(_LEARNER.update)
  for _ in range(30):
    rng_key, batch_key = jax.random.split(expected.rng_key)
    batch = transitions.sample_transitions(batch_key, dataset, 16)
    learner_state, metrics = update(expected.learner, batch)
    expected = expected._replace(learner=learner_state, rng_key=rng_key)
    losses.append(metrics.critic_loss)
  np.testing.assert_allclose(
    np.concatenate([loss for _, loss in seen]), losses, rtol=1e-4
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    state.learner,
    expected.learner,
  )


def test_stopping_between_chunks_changes_no_bit(dataset):
  options = {"batch_size": 16, "chunk_size": 10}
  whole = loop.train(_LEARNER, start(dataset), dataset, 40, **options)
  half = loop.train(_LEARNER, start(dataset), dataset, 20, **options)
  resumed = loop.train(_LEARNER, half, dataset, 40, **options)
  assert digest(resumed) == digest(whole)
  assert int(resumed.step) == 40


def test_a_chunk_cut_short_falls_back_into_step(dataset):
  steps = []
  half = loop.train(
    _LEARNER, start(dataset), dataset, 14, batch_size=16, chunk_size=10
  )
  loop.train(
    _LEARNER,
    half,
    dataset,
    30,
    batch_size=16,
    chunk_size=10,
    on_chunk=lambda state, _: steps.append(int(state.step)),
  )
  assert steps == [20, 30]
  with pytest.raises(ValueError, match="expected at least the 20 updates"):
    half = loop.train(
      _LEARNER, start(dataset), dataset, 20, batch_size=16, chunk_size=10
    )
    loop.train(_LEARNER, half, dataset, 10, batch_size=16, chunk_size=10)


def test_one_compilation_for_everything_that_is_a_number():
  """1,000 updates, each hyperparameter changed, another log of one size."""
  traces = []

  def update(state, batch):
    traces.append(None)
    return _LEARNER.update(state, batch)

  learner = _LEARNER._replace(update=update)
  first = transitions.device_dataset(random_log(seed=1))
  # Of the same size but with fewer transitions.
  log = random_log(seed=2)
  log = log._replace(terminal=np.zeros_like(log.terminal))
  second = transitions.device_dataset(log)
  assert int(second.num_transitions) < int(first.num_transitions)
  options = {"batch_size": 8, "chunk_size": 100}
  loop.train(learner, start(first), first, 1000, **options)
  one = len(traces)
  for number, name in enumerate(Hyperparams._fields):
    changed = Hyperparams()._replace(**{name: 0.01 * (number + 1)})
    loop.train(learner, start(first, changed), first, 100, **options)
  loop.train(learner, start(second), second, 100, **options)
  assert len(traces) == one
  # `scan` traces its body once to build it and once to check its types.
  assert one <= 2


def _poisoned(log, row):
  reward = np.array(log.reward)
  reward[row] = np.nan
  return transitions.device_dataset(log._replace(reward=reward))


def test_training_stops_at_the_last_good_state():
  log = random_log(seed=3)
  bad = _poisoned(log, slice(0, 2))
  with pytest.raises(loop.NonFiniteError) as caught:
    loop.train(_LEARNER, start(bad), bad, 400, batch_size=4, chunk_size=100)
  error = caught.value
  assert error.metric == "critic_loss"
  assert "critic_loss: expected a finite value" in str(error)
  assert f"after step {error.step}" in str(error)
  assert 0 < error.step < 400
  assert int(error.state.step) == error.step
  # The same updates without the bad rows: equal up to the step named.
  good = transitions.device_dataset(log)
  expected = start(good)
  expected = loop.train(
    _LEARNER, expected, good, error.step, batch_size=4, chunk_size=100
  )
  np.testing.assert_array_equal(
    jax.random.key_data(error.state.rng_key),
    jax.random.key_data(expected.rng_key),
  )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    error.state.learner,
    expected.learner,
  )
  assert bool(error.state.healthy)


def test_a_gradient_that_overflows_is_named():
  log = random_log(seed=3)
  huge = log._replace(reward=log.reward * np.float32(1e19))
  dataset = transitions.device_dataset(huge)
  with pytest.raises(loop.NonFiniteError) as caught:
    loop.train(
      _LEARNER, start(dataset), dataset, 100, batch_size=4, chunk_size=50
    )
  assert caught.value.metric in ("critic_loss", "critic_gradient_norm")
  for leaf in jax.tree.leaves(caught.value.state.learner.critic_params):
    assert np.isfinite(leaf).all()


class _Doubling(NamedTuple):
  """A state that outgrows float32 at its 128th update; a bound is infinite."""

  weight: jax.Array
  hyperparams: dict


class _DoublingMetrics(NamedTuple):
  loss: jax.Array


def _doubling_learner():
  def update(state, batch):
    del batch
    state = state._replace(weight=state.weight * 2)
    return state, _DoublingMetrics(jnp.zeros(()))

  return Learner(
    init=lambda *args: None,
    update=update,
    policy=lambda state: state,
    act=lambda *args: None,
    value=None,
  )


def _doubling_start(weight):
  weight = jnp.asarray(weight)
  return _Doubling(weight, {"bound": jnp.full(weight.shape[:-1], jnp.inf)})


def test_a_state_that_is_not_finite_is_named(dataset):
  learner, steps = _doubling_learner(), []
  with pytest.raises(
    loop.NonFiniteStateError,
    match=r"learner\.weight: expected finite .* at step 130, and in 1 arrays",
  ):
    loop.train(
      learner,
      loop.start(jax.random.key(0), _doubling_start([0.0, 1.0])),
      dataset,
      200,
      batch_size=1,
      chunk_size=10,
      on_chunk=lambda state, _: steps.append(int(state.step)),
    )
  # What saves is not called with it.
  assert steps[-1] == 120


def test_of_many_runs_only_the_one_that_is_not_finite_stops(dataset, caplog):
  starts = jax.vmap(loop.start)(
    jax.random.split(jax.random.key(0), 2),
    _doubling_start([[0.0, 1.0], [0.0, 0.0]]),
  )
  state = loop.train_many(
    _doubling_learner(), starts, dataset, 150, batch_size=1, chunk_size=10
  )
  assert state.healthy.tolist() == [False, True]
  assert state.step.tolist() == [130, 150]
  assert "run 0: learner.weight is not finite at step 130; it" in caplog.text
  assert len(caplog.records) == 1


def test_many_runs_equal_separate_runs(dataset):
  """Seeds and hyperparameters at once, to 1e-4: contractions batched anew."""
  hyperparams = [
    Hyperparams(),
    Hyperparams(critic_learning_rate=1e-2, discount=0.5),
    Hyperparams(sharpness=2.0, penalty_scale=0.1),
  ]
  states = [
    start(dataset, numbers, seed=seed)
    for seed, numbers in enumerate(hyperparams)
  ]
  separate = [
    loop.train(
      _LEARNER,
      start(dataset, numbers, seed=seed),
      dataset,
      40,
      batch_size=16,
      chunk_size=20,
    )
    for seed, numbers in enumerate(hyperparams)
  ]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
  shapes = []
  many = loop.train_many(
    _LEARNER,
    stacked,
    dataset,
    40,
    batch_size=16,
    chunk_size=20,
    on_chunk=lambda _, metrics: shapes.append(metrics.q_mean.shape),
  )
  assert shapes == [(3, 20, 2)] * 2
  for run, one in enumerate(separate):
    np.testing.assert_array_equal(
      jax.random.key_data(many.rng_key)[run], jax.random.key_data(one.rng_key)
    )
    jax.tree.map(
      lambda a, b, run=run: np.testing.assert_allclose(
        a[run], b, rtol=1e-4, atol=1e-4
      ),
      many.learner,
      one.learner,
    )


def test_every_run_draws_from_its_own_dataset():
  datasets = [
    transitions.device_dataset(random_log(seed=seed)) for seed in (1, 2)
  ]
  options = {"batch_size": 16, "chunk_size": 10}
  stack = functools.partial(jax.tree.map, lambda *leaves: jnp.stack(leaves))
  many = loop.train_many(
    _LEARNER,
    stack(*(start(dataset) for dataset in datasets)),
    stack(*datasets),
    20,
    **options,
  )
  for run, dataset in enumerate(datasets):
    alone = loop.train(_LEARNER, start(dataset), dataset, 20, **options)
    jax.tree.map(
      lambda a, b, run=run: np.testing.assert_allclose(
        a[run], b, rtol=1e-4, atol=1e-4
      ),
      many.learner,
      alone.learner,
    )


def test_many_runs_may_be_one(dataset):
  options = {"batch_size": 16, "chunk_size": 10}
  alone = loop.train(_LEARNER, start(dataset), dataset, 20, **options)
  one = jax.tree.map(lambda leaf: leaf[None], start(dataset))
  rows = jax.tree.map(lambda leaf: leaf[None], dataset)
  many = loop.train_many(_LEARNER, one, rows, 20, **options)
  assert digest(jax.tree.map(lambda leaf: leaf[0], many)) == digest(alone)


def test_many_runs_survive_the_failure_of_one(dataset, caplog):
  def with_shift(shift):
    return start(dataset, Hyperparams(reward_shift=shift))

  states = [with_shift(0.0), with_shift(np.nan)]
  stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *states)
  options = {"batch_size": 16, "chunk_size": 10}
  many = loop.train_many(_LEARNER, stacked, dataset, 20, **options)
  np.testing.assert_array_equal(many.step, [20, 0])
  np.testing.assert_array_equal(many.healthy, [True, False])
  assert "run 1: critic_loss is not finite in the update after step 0" in (
    caplog.text
  )
  alone = jax.tree.map(lambda leaf: leaf[1:], many)
  with pytest.raises(FloatingPointError, match="none left of 1"):
    loop.train_many(_LEARNER, alone, dataset, 40, **options)


def test_networks_written_by_hand_are_enough(dataset):
  """No flax: a linear policy and critics of arrays."""

  def critic_init(rng_key, observation, action, box):
    size = observation.shape[0] + action.shape[0]
    return {"w": 0.1 * jax.random.normal(rng_key, (2, 3, size))}

  def critic_apply(params, observation, action, box):
    inputs = jnp.concatenate([observation, action], axis=1)
    return jnp.einsum("gmi,bi->bgm", params["w"], inputs)

  def actor_init(rng_key, observation):
    return jnp.zeros((observation.shape[0], 2))

  learner = integrated_rl(
    networks.Actor(actor_init, lambda w, s: jnp.tanh(s @ w)),
    networks.Critic(critic_init, critic_apply),
  )
  losses = []
  state = loop.train(
    learner,
    start(dataset, Hyperparams(critic_learning_rate=1e-2), learner=learner),
    dataset,
    200,
    batch_size=32,
    chunk_size=100,
    on_chunk=lambda _, metrics: losses.append(metrics.critic_loss.mean()),
  )
  assert losses[1] < losses[0]
  action = learner.act(
    learner.policy(state.learner), jnp.zeros(3), jax.random.key(0)
  )
  assert action.shape == (2,)
