"""Slopes against what made the data, and rounds against each other."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax.data.transitions import Transition, device_dataset
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.learners import slope_regression, slope_statistics
from mtf_jax.learners.slope_regression import Hyperparams
from tests.session_logs import log_of

A, S, G = 4, 3, 2
HALF_WIDTH = 0.15
LEARNER = slope_regression.slope_regression()


def _batch(rng, rows, slopes, *, noise=0.0, moved=0.0, curvature=0.0):
  """Returns `3 + 2 x_0 + x_1^2 + slopes . u`, bent around the first policy."""
  x = rng.standard_normal((rows, S)).astype(np.float32)
  u = rng.uniform(-1, 1, (rows, A))
  d = np.broadcast_to(moved, (rows, A))
  phi = np.column_stack([np.ones(rows), x])
  gain = np.einsum("kf,nf,nk->n", slopes, phi, u + d)
  gain -= curvature / 2 * np.square(u + d).sum(axis=1)
  value = 3 + 2 * x[:, 0] + np.square(x[:, 1])
  reward = value + gain + noise * rng.standard_normal(rows)
  middle = 0.2 + HALF_WIDTH * d
  box = ActionBox(
    *(jnp.asarray(middle + s * HALF_WIDTH, jnp.float32) for s in (-1, 1))
  )
  return Transition(
    observation_tm1=jnp.asarray(x),
    action_tm1=jnp.asarray(middle + HALF_WIDTH * u, jnp.float32),
    box_tm1=box,
    # Two groups of different weight in the sum.
    r_t=jnp.asarray(np.stack([reward, 0.5 * reward], 1), jnp.float32),
    discount_t=jnp.zeros((rows,), jnp.float32),
    observation_t=jnp.asarray(x),
    box_t=box,
  )


def _start(batch, **numbers):
  example = jax.tree.map(lambda leaf: leaf[0], batch)
  return LEARNER.init(jax.random.key(0), example, Hyperparams(**numbers))


def _slopes(rng):
  return rng.standard_normal((A, S + 1))


def _solved(state):
  numbers = state.hyperparams
  return slope_statistics.solve(
    state.statistics, numbers.group_weights, numbers.curvature
  )


def test_without_noise_it_finds_what_made_the_data():
  rng = np.random.default_rng(0)
  slopes = _slopes(rng)
  batch = _batch(rng, 50_000, slopes)
  state, metrics = LEARNER.update(_start(batch), batch)
  found = _solved(state)
  # Of both groups together; an observation beyond 3 counts as 3.
  np.testing.assert_allclose(found.mean, 1.5 * slopes, atol=0.05)
  np.testing.assert_allclose(found.of_groups[1], 0.5 * slopes, atol=0.02)
  assert metrics.left_out == 0
  assert metrics.transitions == 50_000


def test_statistics_add_up():
  rng = np.random.default_rng(1)
  batch = _batch(rng, 600, _slopes(rng), noise=1.0)
  halves = [
    jax.tree.map(lambda leaf, h=h: leaf[h], batch)
    for h in (slice(0, 250), slice(250, 600))
  ]
  whole, _ = LEARNER.update(_start(batch), batch)
  state = _start(batch)
  for half in halves:
    state, _ = LEARNER.update(state, half)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-2),
    state.statistics,
    whole.statistics,
  )


def test_errors_are_those_of_repeated_logs():
  """Standard errors against the spread over logs, and over their size."""
  rng = np.random.default_rng(2)
  slopes = np.zeros((A, S + 1))
  logs = 60
  found, errors = [], []
  for _ in range(logs):
    batch = _batch(rng, 2000, slopes, noise=3.0)
    state, _ = LEARNER.update(_start(batch, group_weights=1.0), batch)
    solved = _solved(state)
    gram = np.asarray(state.statistics.gram[:, : S + 1, : S + 1])
    residual = np.asarray(state.statistics.moment) - np.einsum(
      "kiq,qg->kig", state.statistics.cross, solved.value
    )
    moment = residual[:, : S + 1].sum(axis=2)
    found.append(np.linalg.solve(gram, moment[..., None])[..., 0])
    errors.append(np.asarray(solved.error))
  spread = np.sqrt(np.mean(np.square(found)))
  assert 0.9 < np.sqrt(np.mean(np.square(errors))) / spread < 1.1
  # Nothing to find: shrinking leaves a part of the noise.
  assert np.abs(solved.mean).max() < 3 * np.max(errors)


def test_shrinking_is_by_groups():
  rng = np.random.default_rng(3)
  slopes = np.zeros((A, S + 1))
  slopes[: A // 2, 1:] = rng.standard_normal((A // 2, S))
  batch = _batch(rng, 4000, slopes, noise=10.0)
  state, _ = LEARNER.update(_start(batch), batch)
  prior = np.asarray(_solved(state).prior)
  personal_powers = prior[: A // 2, 1:].min()
  assert personal_powers > 3 * prior[:, 0].max()
  assert personal_powers > 3 * prior[A // 2 :].max()


def test_rounds_around_another_policy_tell_the_same_slopes():
  """Deviations count from the first policy; the curvature is known here."""
  rng = np.random.default_rng(4)
  slopes, curvature = _slopes(rng), 0.3
  moved = rng.uniform(-2, 2, A)
  first = _batch(rng, 20_000, slopes, curvature=curvature)
  later = _batch(rng, 20_000, slopes, moved=moved, curvature=curvature)
  state = _start(first)
  state, _ = LEARNER.update(state, first)
  mean = float(jnp.sum(_solved(state).mean_return))
  # The assumed curvature is a share of the mean return.
  numbers = state.hyperparams._replace(
    curvature=jnp.float32(1.5 * curvature / mean)
  )
  alone = LEARNER.update(_start(first)._replace(hyperparams=numbers), later)[0]
  # Its mean return is another one.
  alone_mean = float(jnp.sum(_solved(alone).mean_return))
  numbers = numbers._replace(
    curvature=jnp.float32(1.5 * curvature / alone_mean)
  )
  alone = alone._replace(hyperparams=numbers)
  np.testing.assert_allclose(_solved(alone).mean, 1.5 * slopes, atol=0.1)


def test_steps_stay_in_the_box_and_the_next_one_starts_there():
  rng = np.random.default_rng(5)
  slopes = 50 * _slopes(rng)
  batch = _batch(rng, 4000, slopes)
  state, _ = LEARNER.update(_start(batch), batch)
  observation = batch.observation_tm1[0]
  one = LEARNER.act(LEARNER.policy(state), observation, jax.random.key(0))
  assert np.all(np.abs(one - 0.2) <= HALF_WIDTH)
  assert np.all(np.abs(one - 0.2) > 0.99 * HALF_WIDTH)
  state = slope_regression.begin_round(state)
  # In service until more is known; then as far again.
  served = LEARNER.act(state.served, observation, jax.random.key(0))
  np.testing.assert_allclose(served, one, atol=1e-6)
  two = LEARNER.act(LEARNER.policy(state), observation, jax.random.key(0))
  np.testing.assert_allclose(two - 0.2, 2 * (one - 0.2), atol=1e-4)


def test_the_scale_of_returns_does_not_matter():
  rng = np.random.default_rng(9)
  batch = _batch(rng, 4000, _slopes(rng), noise=3.0)
  actions = []
  for scale in (0.01, 1.0, 100.0):
    scaled = batch._replace(r_t=scale * batch.r_t)
    state, _ = LEARNER.update(_start(scaled), scaled)
    params = LEARNER.policy(state)
    act = jax.vmap(LEARNER.act, in_axes=(None, 0, None))
    actions.append(act(params, batch.observation_tm1[:50], jax.random.key(0)))
  np.testing.assert_allclose(actions[0], actions[1], atol=1e-4)
  np.testing.assert_allclose(actions[2], actions[1], atol=1e-4)


def test_all_rounds_together_end_at_the_range_of_actions():
  rng = np.random.default_rng(10)
  batch = _batch(rng, 4000, 50 * _slopes(rng))
  state, _ = LEARNER.update(_start(batch), batch)
  for _ in range(slope_regression.MAX_ROUNDS - 1):
    state = slope_regression.begin_round(state)
  act = jax.vmap(LEARNER.act, in_axes=(None, 0, None))
  action = act(
    LEARNER.policy(state), batch.observation_tm1[:50], jax.random.key(0)
  )
  assert np.abs(action).max() == 1


def test_a_factorisation_never_waits_for_another():
  """JAX's threads of the CPU wait for each other in several at once."""
  batch = _batch(np.random.default_rng(9), 1, np.zeros((A, S + 1)))
  states = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), _start(batch))
  of_seeds = jax.jit(jax.vmap(LEARNER.policy)).trace(states)
  text = of_seeds.lower(lowering_platforms=("cpu",)).as_text()
  factorised = re.findall(r"@lapack\w*getrf.*: \(tensor<([\dx]+)xf32>\)", text)
  assert factorised
  assert all(shape.count("x") == 1 for shape in factorised), factorised


def test_a_round_takes_each_session_once_and_says_what_it_left_out():
  rng = np.random.default_rng(6)
  sessions, length = 300, 4
  observation = rng.standard_normal((sessions * length, S))
  action = np.repeat(rng.uniform(-0.15, 0.15, (sessions, A)), length, axis=0)
  reward = rng.standard_normal((sessions * length, G))
  log = log_of(observation, action, reward, session_length=length)
  held = log._replace(exploration_held=np.ones(sessions * length, bool))
  example = jax.tree.map(
    lambda leaf: leaf[0], _batch(rng, 1, np.zeros((A, S + 1)))
  )

  def fitted(log, num_steps):
    dataset = device_dataset(log, num_steps=num_steps)
    state = LEARNER.init(jax.random.key(0), example)
    _, metrics = jax.jit(LEARNER.fit)(state, dataset)
    total = float(metrics.transitions) + float(metrics.left_out)
    assert total == int(dataset.num_transitions)
    return float(metrics.transitions)

  assert fitted(held, length) == sessions
  # Drawn at each request, every request tells something.
  assert fitted(log, length) == sessions * length
  # No return of a short transition is whole but at a session's end.
  assert fitted(held, 1) == 0
  assert fitted(log, 1) == sessions


def test_value_tells_what_a_deviation_is_worth():
  rng = np.random.default_rng(7)
  slopes = _slopes(rng)
  batch = _batch(rng, 50_000, slopes)
  state, _ = LEARNER.update(_start(batch), batch)
  value = jax.jit(jax.vmap(LEARNER.value, in_axes=(None, 0, 0, 0)))
  few = jax.tree.map(lambda leaf: leaf[:200], batch)
  found = value(state, few.observation_tm1, few.action_tm1, few.box_tm1)
  error = np.asarray(found[:, 0]) - np.asarray(few.r_t[:, 0])
  assert np.sqrt(np.mean(np.square(error))) < 0.25


@pytest.mark.parametrize(
  ("field", "bad"), [("curvature", 0.0), ("curvature", -1.0)]
)
def test_numbers_out_of_range_are_refused(field, bad):
  batch = _batch(np.random.default_rng(8), 2, np.zeros((A, S + 1)))
  with pytest.raises(ValueError, match=field):
    _start(batch, **{field: bad})
