"""xMTF: its two stages in float64, what is served, what it can learn."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtf_jax
from mtf_jax import networks
from mtf_jax.data import transitions
from mtf_jax.io import InputError
from mtf_jax.learners import integrated_rl, xmtf
from mtf_jax.learners.base import normalization_from
from mtf_jax.training import loop
from tests.learners import float64
from tests.learners import test_integrated_rl as ours
from tests.session_logs import log_of, random_log, with_candidates

K, B = float64.A, float64.B
SIZES = (5, 4)
CELLS_OF = functools.partial(networks.mlp_cells, hidden_sizes=SIZES)
LEARNER = xmtf.xmtf(float64.ACTOR, float64.CRITIC, CELLS_OF)
NUMBERS = {
  "discount": 0.9,
  "sharpness": 4.0,
  "penalty_scale": 0.3,
  "uncertainty_scale": 0.5,
  "group_weights": float64.WEIGHTS,
  "reward_shift": 0.2,
  "target_step_size": 0.2,
  "actor_learning_rate": 0.01,
  "critic_learning_rate": 0.02,
}


def _batch(seed):
  """Scores of candidates on cells that differ between rows."""
  batch = float64.make_batch(seed)
  rng = np.random.default_rng(100 + seed)
  log = with_candidates(random_log(num_rows=B, components=K), seed=seed)
  cells = log.candidates.cells
  stretch = rng.uniform(0.5, 2, cells.increments.shape).astype(np.float32)
  cells = cells._replace(increments=cells.increments * stretch)
  return batch._replace(candidates_tm1=log.candidates._replace(cells=cells))


def _start(**numbers):
  """A state whose cells differ between states and from those it began as."""

  def init(rng_key, example, hyperparams, normalization):
    candidates = ours.example_of(_batch(0)).candidates_tm1
    example = example._replace(candidates_tm1=candidates)
    return LEARNER.init(rng_key, example, hyperparams, normalization)

  return float64.start(
    LEARNER._replace(init=init), xmtf.Hyperparams(**NUMBERS, **numbers), grow=10
  )


def test_the_outer_stage_is_integrated_rl_bit_for_bit():
  """Whatever the cells do."""
  other = integrated_rl.integrated_rl(float64.ACTOR, float64.CRITIC)
  state = _start(cells_learning_rate=0.1)
  fields = integrated_rl.State._fields
  plain = integrated_rl.State(*(getattr(state, name) for name in fields))
  plain = plain._replace(hyperparams=integrated_rl.Hyperparams(**NUMBERS))
  plain = jax.tree.map(jnp.asarray, plain)
  plain = plain._replace(
    hyperparams=plain.hyperparams._replace(
      reward_shift=jnp.full(2, NUMBERS["reward_shift"])
    )
  )
  update, of_other = jax.jit(LEARNER.update), jax.jit(other.update)
  for seed in range(3):
    batch = _batch(seed)
    state, metrics = update(state, batch)
    plain, expected = of_other(plain, batch)
  assert metrics.outside_share > 0  # Both penalties count.
  for name in fields:
    if name != "hyperparams":
      jax.tree.map(
        np.testing.assert_array_equal,
        getattr(state, name),
        getattr(plain, name),
      )
  for name in expected._fields:
    np.testing.assert_array_equal(
      getattr(metrics, name), getattr(expected, name)
    )


class Reference:
  """The transfer in NumPy float64, from the equations of the docstring."""

  def __init__(self, state):
    state = float64.as_float64(state)
    self.base, self.norm = state.base, state.normalization
    self.params = state.cells_params
    self.rate = state.hyperparams.cells_learning_rate
    self.adam = float64.Adam(self.params)

  def cells(self, params, s):
    f = float64.mlp(params["params"]["MLP_0"], s)
    stretch = np.log1p(np.exp(f)).reshape(len(s), K, -1) / np.log(2)
    return self.base._replace(increments=self.base.increments * stretch)

  @staticmethod
  def fuse(scores, knots, start, increments, action):
    """`[C]` of one request."""
    z = 0
    for k in range(K):
      height = start[k] + np.concatenate([[0], np.cumsum(increments[k])])
      q = np.interp(scores[:, k], knots[k], height)
      reach = np.abs([height[0], height[-1]]).max()
      z = z + q * (1 + action[k] / (2 * reach) * q)
    return z

  def update(self, batch, actor_params):
    batch = float64.as_float64(batch)
    s = (batch.observation_tm1 - self.norm.mean) / self.norm.scale
    action = float64.actor(float64.as_float64(actor_params), s)
    scores, logged = batch.candidates_tm1
    outer = np.stack(
      [
        self.fuse(scores[b], *(leaf[b] for leaf in logged), action[b])
        for b in range(B)
      ]
    )
    ordered = outer[:, :, None] < outer[:, None, :]
    pairs = ordered.sum((1, 2))

    def inner_of(params):
      cells = self.cells(params, s)
      return np.stack(
        [
          self.fuse(
            scores[b], cells.knots, cells.start, cells.increments[b], 0 * s[0]
          )
          for b in range(B)
        ]
      )

    def loss_of(params):
      inner = inner_of(params)
      gap = inner[:, None, :] - inner[:, :, None]
      lost = np.log1p(np.exp(-gap)) * ordered
      return np.mean(lost.sum((1, 2)) / pairs)

    inner = inner_of(self.params)
    alike = ordered & (inner[:, :, None] < inner[:, None, :])
    same_order = np.mean(alike.sum((1, 2)) / pairs)
    return self.adam.step(self.params, loss_of, self.rate), same_order


def test_the_transfer_equals_an_independent_float64_implementation():
  state = _start(cells_learning_rate=0.02)
  reference, update = Reference(state), jax.jit(LEARNER.update)
  for seed in range(2):
    state, metrics = update(state, _batch(seed + 1))
    # The order is that of the actor after its own step.
    expected = reference.update(_batch(seed + 1), state.actor_params)
    np.testing.assert_allclose(
      (metrics.cells_loss, metrics.same_order), expected, rtol=1e-4
    )
    assert 0.5 < metrics.same_order < 1
  float64.assert_close(state.cells_params, reference.params)


def test_new_cells_are_those_in_service():
  dataset = transitions.device_dataset(with_candidates(random_log()))
  state = _init(LEARNER, dataset)
  observation = jnp.ones(3)
  found = LEARNER.cells(LEARNER.policy(state), observation)
  expected = jax.tree.map(lambda leaf: leaf[0], dataset.candidates.cells)
  for ours_, theirs in zip(found, expected, strict=True):
    np.testing.assert_allclose(ours_, theirs, rtol=0.03)
  np.testing.assert_array_equal(found.knots, expected.knots)


def _init(learner, dataset, **numbers):
  one = transitions.take_transitions(dataset, jnp.array([0]))
  return learner.init(
    jax.random.key(0),
    ours.example_of(one),
    xmtf.Hyperparams(**numbers),
    normalization_from(dataset),
  )


def _log_where_tastes_differ(sessions=2048):
  """The first feature decides whether the first task should count more or less.

  The outer action of the first task raises the reward of some users and lowers
  that of the others.
  """
  rng = np.random.default_rng(0)
  observation = rng.normal(size=(sessions, 3))
  observation[:, 0] = rng.choice([-1, 1], sessions)
  action = rng.uniform(-1, 1, (sessions, K))
  reward = 1 + (observation[:, 0] * action[:, 0])[:, None]
  reward = np.repeat(reward, 2, axis=1) + 0.1 * rng.normal(size=(sessions, 2))
  return with_candidates(log_of(observation, action, reward, half_width=1.0))


@functools.cache
def _trained():
  dataset = transitions.device_dataset(_log_where_tastes_differ())
  learner = xmtf.xmtf(
    networks.mlp_actor(K, (16,)),
    networks.mlp_critic(2, 2, (16,)),
    functools.partial(networks.mlp_cells, hidden_sizes=(16,)),
  )
  rates = ("actor_learning_rate", "critic_learning_rate", "cells_learning_rate")
  state = _init(learner, dataset, **dict.fromkeys(rates, 0.01))
  run = loop.train(
    learner, loop.start(jax.random.key(1), state), dataset, 600, batch_size=64
  )
  return learner, learner.policy(run.learner), dataset


def test_cells_rank_as_the_actor_does_and_differ_between_users():
  learner, params, dataset = _trained()
  observation = np.zeros((2, 3), np.float32)
  observation[:, 0] = [-1, 1]
  action = jax.vmap(learner.act, (None, 0, None))(
    params, observation, jax.random.key(0)
  )
  assert action[0, 0] < -0.5 and action[1, 0] > 0.5
  served = jax.tree.map(lambda leaf: leaf[0], dataset.candidates.cells)
  scores = np.random.default_rng(1).uniform(0, 1, (200, K)).astype(np.float32)
  fuse = mtf_jax.monotone_fused_score
  before = fuse(scores, served, jnp.zeros(K))
  for number in range(2):
    cells = learner.cells(params, observation[number])
    outer = fuse(scores, served, action[number])
    inner = fuse(scores, cells, jnp.zeros(K))
    off = 1 - xmtf._pairs_alike(inner, outer)
    assert off < 0.02
    # The order had to change by much more than what is left.
    assert 1 - xmtf._pairs_alike(before, outer) > 3 * off


def test_raising_a_score_never_lowers_what_trained_cells_serve():
  learner, params, _ = _trained()
  rng = np.random.default_rng(2)
  observation = rng.normal(scale=3, size=(64, 3)).astype(np.float32)
  scores = rng.uniform(-0.1, 1.1, (64, 40, K)).astype(np.float32)
  raised = scores + rng.uniform(0, 0.05, scores.shape).astype(np.float32)

  @jax.jit
  def serve(observation, scores):
    cells = learner.cells(params, observation)
    return mtf_jax.monotone_fused_score(scores, cells, jnp.zeros(K))

  low = jax.vmap(serve)(observation, scores)
  high = jax.vmap(serve)(observation, raised)
  assert np.all(high >= low) and np.mean(high > low) > 0.9


def test_transitions_without_scores_of_candidates_are_refused():
  batch = float64.make_batch(0)
  message = "^candidates: expected a log with scores .* xmtf .* found none"
  with pytest.raises(InputError, match=message):
    LEARNER.init(jax.random.key(0), ours.example_of(batch))
  state = LEARNER.init(jax.random.key(0), ours.example_of(_batch(0)))
  with pytest.raises(InputError, match=message):
    LEARNER.update(state, batch)


def test_a_learning_rate_out_of_range_is_refused():
  with pytest.raises(InputError, match="cells_learning_rate: expected a value"):
    LEARNER.init(
      jax.random.key(0),
      ours.example_of(_batch(0)),
      xmtf.Hyperparams(cells_learning_rate=-1.0),
    )
