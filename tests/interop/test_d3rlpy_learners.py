"""d3rlpy's learners begin as ours and take the same steps."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax.data import transitions
from mtf_jax.interop import d3rlpy_learners, datasets
from mtf_jax.interop._extras import MissingExtra
from mtf_jax.learners.base import Normalization
from mtf_jax.studies.compare import elsewhere, elsewhere_log
from mtf_jax.studies.progressive.study_learner import initial_state
from mtf_jax.training import loop
from mtf_jax.training.config import TrainConfig
from tests.session_logs import random_log

_ABSENT = importlib.util.find_spec("d3rlpy") is None
needs_d3rlpy = pytest.mark.skipif(
  _ABSENT, reason="the extra `d3rlpy` is not installed"
)
_HIDDEN = (8, 6)
_START = np.asarray([[0.3, -0.2]], np.float32)
_NUMBERS = {
  "td3_bc": {"target_noise": 0.0},
  "iql": {"scale_advantage": 0.0, "inverse_temperature": 1.0},
  "cql": {"entropy_backup": 1.0},
}


def _setting(name):
  train = TrainConfig(
    learner=name,
    ensemble_size=2,
    hidden_sizes=_HIDDEN,
    batch_size=32,
    critic_updates=2 if name == "td3_bc" else 1,
    hyperparams={
      **_NUMBERS[name],
      "actor_learning_rate": 1e-3,
      "critic_learning_rate": 1e-3,
      "target_step_size": 0.05,
    },
  )
  learner = elsewhere.learner_of(train, 2)
  nothing = Normalization(np.zeros((1, 3), np.float32), np.ones((1, 3)))
  state = initial_state(
    learner,
    tuple(sorted(train.hyperparams.items())),
    jax.random.split(jax.random.key(3), 1),
    jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), nothing),
    jnp.asarray(_START),
    1,
  )
  return train, learner, jax.tree.map(lambda leaf: leaf[0], state)


def _begun(name):
  train, learner, state = _setting(name)
  algorithm = d3rlpy_learners.create(
    name,
    learner.hyperparams(**train.hyperparams),
    _HIDDEN,
    train.batch_size // train.critic_updates,
    train.critic_updates,
  )
  d3rlpy_learners.begin(name, algorithm, state)
  return train, learner, state, algorithm


@pytest.mark.skipif(not _ABSENT, reason="d3rlpy is installed")
def test_a_missing_package_is_named():
  with pytest.raises(MissingExtra, match=r"'mtf-jax\[d3rlpy\]'"):
    d3rlpy_learners.require()


@pytest.mark.parametrize("name", _NUMBERS)
def test_layers_with_the_start_in_the_bias_are_the_same_function(name):
  _, learner, state = _setting(name)
  params = learner.learner.policy(state).actor_params
  # Away from its small start, so that the observation plays a part.
  params["network"] = jax.tree.map(lambda leaf: leaf + 0.1, params["network"])
  observation = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
  hidden = observation
  *layers, (kernel, bias) = d3rlpy_learners.actor_layers(params)
  for inner, inner_bias in layers:
    hidden = np.maximum(hidden @ inner.T + inner_bias, 0)
  found = np.tanh(hidden @ kernel.T + bias)
  np.testing.assert_allclose(
    found, learner.actor.apply(params, observation), atol=1e-6
  )
  assert np.ptp(found, axis=0).min() > 0.01


@needs_d3rlpy
def test_transitions_are_those_that_d3rlpy_picks():
  dataset, _ = datasets.to_d3rlpy(random_log(groups=1))
  arrays = d3rlpy_learners.arrays_of(dataset)
  assert len(arrays.reward) == dataset.transition_count
  for number in range(0, dataset.transition_count, 3):
    picked = dataset.transition_picker(*dataset.buffer[number])
    for field, theirs in (
      ("observation", picked.observation),
      ("action", picked.action),
      ("reward", picked.reward),
      ("next_observation", picked.next_observation),
      ("next_action", picked.next_action),
      ("terminal", [picked.terminal]),
    ):
      np.testing.assert_array_equal(getattr(arrays, field)[number], theirs)


@needs_d3rlpy
@pytest.mark.parametrize("name", _NUMBERS)
def test_both_begin_with_the_same_actions_and_values(name):
  import torch

  _, learner, state, algorithm = _begun(name)
  log = random_log()
  own = learner.learner.policy(state).actor_params
  found = algorithm.predict(log.observation)
  np.testing.assert_allclose(
    found, learner.actor.apply(own, log.observation), atol=1e-6
  )
  back = d3rlpy_learners.actor_params(algorithm, _HIDDEN)
  np.testing.assert_allclose(
    found, learner.actor.apply(back, log.observation), atol=1e-6
  )
  value = jax.vmap(
    lambda s, a, box: learner.learner.value(state, s, a, box)[0]
  )(log.observation, log.action, log.box)
  both = [
    critic(torch.from_numpy(log.observation), torch.from_numpy(log.action))
    for critic in algorithm.impl.modules.q_funcs
  ]
  theirs = np.min([q.q_value.detach().numpy() for q in both], axis=0)[:, 0]
  np.testing.assert_allclose(theirs, value, atol=1e-5)


def _trained(name, num_updates):
  """Actions of both after the same updates, and of ours at the start."""
  train, learner, state, algorithm = _begun(name)
  log = random_log(groups=1)
  dataset = transitions.device_dataset(log, cut="end")
  key = jax.random.key(5)
  draw = elsewhere_log.draws_of(
    key, dataset.num_transitions, num_updates, train.batch_size
  )
  ours = loop.train(
    learner.learner,
    loop.start(key, jax.tree.map(jnp.copy, state)),
    dataset,
    num_updates,
    batch_size=train.batch_size,
    chunk_size=num_updates,
  ).learner
  arrays = d3rlpy_learners.arrays_of(datasets.to_d3rlpy(log)[0])
  d3rlpy_learners.train(
    algorithm, arrays, np.asarray(draw), train.critic_updates, seed=0
  )
  begin, own = (
    np.asarray(
      learner.actor.apply(
        learner.learner.policy(each).actor_params, log.observation
      )
    )
    for each in (state, ours)
  )
  return own, algorithm.predict(log.observation), begin


@needs_d3rlpy
@pytest.mark.parametrize(("name", "share"), [("td3_bc", 1e-3), ("iql", 0.02)])
def test_both_go_the_same_way_on_the_same_batches(name, share):
  """Without noise TD3+BC is the same to rounding, IQL to the order of V."""
  ours, theirs, begin = _trained(name, 100)
  way = np.sqrt(np.mean(np.square(ours - begin)))
  apart = np.sqrt(np.mean(np.square(ours - theirs)))
  assert way > 0.02
  assert apart < share * way
