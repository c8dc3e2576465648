import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import policies
from mtf_jax.evaluation import off_policy
from mtf_jax.evaluation.logged_units import target_deviation, units_from
from mtf_jax.evaluation.off_policy import (
  doubly_robust,
  fit_slopes,
  linear_weights,
  mean_only,
  quadratic_weights,
)
from mtf_jax.evaluation.statistics import relative_gain
from mtf_jax.io import InputError
from mtf_jax.kernels import exploration
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.worlds import rollout
from tests.session_logs import log_of, observation_only

pytestmark = pytest.mark.usefixtures("quick_to_compile")

_HALF_WIDTH = 0.15


def _log(seed, sessions=600, features=2, components=3, outcome=None, noise=0.5):
  """Held sessions of two requests whose first reward is `outcome(x, u)`."""
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((sessions, features))
  u = rng.uniform(-1, 1, (sessions, components))
  first = outcome(x, u) + noise * rng.standard_normal(sessions)
  reward = np.stack([first, np.ones(sessions)], axis=1).reshape(-1, 1)
  log = log_of(
    np.repeat(x, 2, axis=0),
    np.repeat(_HALF_WIDTH * u, 2, axis=0),
    reward,
    session_length=2,
    half_width=_HALF_WIDTH,
  )
  return log._replace(exploration_held=np.ones(2 * sessions, bool))


_SLOPE = np.array([0.3, -0.2, 0.1])


def _linear(x, u):
  return 5 + x[:, 0] + u @ _SLOPE + 0.2 * x[:, 1] * u[:, 0]


def _policy(x):
  """Deviations in half-widths, all inside the box."""
  return np.stack(
    [0.5 * np.tanh(x[:, 0]), np.full(len(x), -0.4), np.zeros(len(x))], axis=1
  )


def _actions(units):
  return _HALF_WIDTH * _policy(units.observation)


def _true_value():
  """Of the linear outcome: x is normal, E[x_1 tanh(x_0)] = 0 and one request more."""
  return 5 + 0.2 * 0.4 + 1


_ESTIMATORS = {
  "linear": lambda units, action: doubly_robust(
    units, action, mean_only(units)
  ),
  "doubly_robust": lambda units, action: doubly_robust(
    units, action, fit_slopes(units)
  ),
  "quadratic": lambda units, action: doubly_robust(
    units, action, mean_only(units), quadratic_weights
  ),
}


@pytest.mark.parametrize("name", _ESTIMATORS)
def test_intervals_cover_the_truth_and_the_mean_is_unbiased(name):
  covered, errors, half_widths = 0, [], []
  for seed in range(200):
    units = units_from(_log(seed, outcome=_linear))
    found = _ESTIMATORS[name](units, _actions(units))
    covered += found.low <= _true_value() <= found.high
    errors.append(found.value - _true_value())
    half_widths.append(found.high - found.low)
  assert 180 <= covered <= 196, covered
  spread = np.std(errors)
  assert abs(np.mean(errors)) < 3 * spread / math.sqrt(200)
  assert np.mean(half_widths) == pytest.approx(3.92 * spread, rel=0.15)


def test_slopes_make_the_interval_shorter_as_the_formula_says():
  units = units_from(_log(0, sessions=4000, outcome=_linear))
  action = _actions(units)
  found = _ESTIMATORS["doubly_robust"](units, action)
  linear = _ESTIMATORS["linear"](units, action)
  assert found.high - found.low < 0.8 * (linear.high - linear.low)
  squares = np.square(_policy(units.observation)).sum(axis=1).mean()
  # The noise of .5, its weights, and what the policies of sessions differ in.
  of_noise = 0.5 * math.sqrt((1 + 3 * squares) / 4000)
  x, u = units.observation, _policy(units.observation)
  of_value = _linear(x, u).std() / math.sqrt(4000)
  expected = 3.92 * math.hypot(of_noise, of_value)
  assert found.high - found.low == pytest.approx(expected, rel=0.05)


def test_quadratic_weights_are_exact_for_curved_outcomes_and_linear_are_not():
  def curved(x, u):
    return 3 - np.square(u[:, 0]) + 0.5 * u[:, 0] * u[:, 1]

  errors = {"linear": [], "quadratic": []}
  for seed in range(20):
    units = units_from(
      _log(seed, sessions=4000, outcome=curved, noise=0.1, components=2)
    )
    u = np.broadcast_to([0.8, -0.5], units.deviation.shape)
    truth = 3 - 0.64 - 0.2 + 1
    for name in errors:
      found = _ESTIMATORS[name](units, _HALF_WIDTH * u)
      errors[name].append(found.value - truth)
  mean = {name: np.mean(found) for name, found in errors.items()}
  error = np.std(errors["quadratic"]) / math.sqrt(20)
  assert abs(mean["quadratic"]) < 3 * error < 0.1
  # Linear weights answer the best line: 3 - 1/3 instead.
  assert mean["linear"] == pytest.approx(0.64 + 0.2 - 1 / 3, abs=0.05)


@pytest.mark.parametrize("weights", [linear_weights, quadratic_weights])
def test_weights_reproduce_the_moments_they_are_made_of(weights):
  # E[w(u) f(u)] = f(delta) for f in 1, u and, of the quadratic ones, products.
  units = units_from(
    _log(1, sessions=400_000, components=2, outcome=lambda x, u: u[:, 0])
  )
  delta = np.broadcast_to([0.7, -0.6], units.deviation.shape)
  weight = weights(units, delta)
  u = units.deviation
  assert weight.mean() == pytest.approx(1, abs=0.02)
  np.testing.assert_allclose(
    (weight[:, None] * u).mean(axis=0), [0.7, -0.6], atol=0.02
  )
  if weights is quadratic_weights:
    np.testing.assert_allclose(
      (weight[:, None] * u**2).mean(axis=0), [0.49, 0.36], atol=0.02
    )
    product = (weight * u[:, 0] * u[:, 1]).mean()
    assert product == pytest.approx(-0.42, abs=0.02)


@pytest.mark.parametrize("name", _ESTIMATORS)
def test_scale_constant_reward_and_duplicates(name):
  estimator = _ESTIMATORS[name]
  units = units_from(_log(0, outcome=_linear))
  action = _actions(units)
  found = estimator(units, action)
  scaled = estimator(units._replace(outcome=10 * units.outcome), action)
  np.testing.assert_allclose(scaled[:3], 10 * np.array(found[:3]), rtol=1e-6)
  constant = estimator(units._replace(outcome=np.full(600, 7.0)), action)
  np.testing.assert_allclose(constant[:3], 7, rtol=1e-6)
  # Each session twice, under one number: no more is known than before.
  twice = units._replace(
    **{name: np.repeat(value, 2, 0) for name, value in units._asdict().items()}
  )
  again = estimator(twice, np.repeat(action, 2, axis=0))
  # Slopes believe that rows are independent and are shrunk a little less.
  np.testing.assert_allclose(again[:3], found[:3], rtol=3e-4)


def test_the_centre_of_the_box_has_the_mean_of_the_log():
  units = units_from(_log(0, outcome=_linear))
  found = _ESTIMATORS["linear"](units, np.zeros((600, 3)))
  assert found.value == pytest.approx(units.outcome.mean(), rel=1e-9)
  assert found.effective_sample_size == pytest.approx(600)
  robust = _ESTIMATORS["doubly_robust"](units, np.zeros((600, 3)))
  assert robust.low < units.outcome.mean() < robust.high


def test_slopes_are_those_of_the_outcome_and_noise_has_none():
  units = units_from(_log(0, sessions=4000, outcome=_linear, noise=0.01))
  slope = fit_slopes(units).slope
  expected = _SLOPE + np.stack(
    [0.2 * units.observation[:, 1], *np.zeros((2, 4000))], axis=1
  )
  np.testing.assert_allclose(slope, expected, atol=0.02)
  # A placebo: deviations of other sessions.
  rng = np.random.default_rng(0)
  gains = []
  for seed in range(20):
    units = units_from(_log(seed, outcome=_linear))
    shuffled = units._replace(deviation=rng.permutation(units.deviation))
    nuisance = fit_slopes(shuffled)
    base = doubly_robust(shuffled, np.zeros((600, 3)), nuisance)
    best = doubly_robust(
      shuffled, _HALF_WIDTH * np.sign(nuisance.slope), nuisance
    )
    gain = relative_gain(best.contributions, base.contributions)
    gains.append(gain.percent / gain.error if gain.error else 0.0)
  assert abs(np.mean(gains)) < 3 / math.sqrt(20)


def test_gain_of_two_policies_is_paired():
  units = units_from(_log(0, sessions=4000, outcome=_linear))
  nuisance = fit_slopes(units)
  policy = doubly_robust(units, _actions(units), nuisance)
  centre = doubly_robust(units, np.zeros((4000, 3)), nuisance)
  gain = relative_gain(policy.contributions, centre.contributions)
  true = 100 * (_true_value() / 6 - 1)
  assert gain.low < true < gain.high
  assert gain.error < 0.5 * 100 * (policy.high - policy.low) / 3.92 / 6


def test_what_is_outside_the_box_is_told():
  units = units_from(_log(0, outcome=_linear))
  action = np.zeros((600, 3))
  action[:150, 1] = 1.01 * _HALF_WIDTH
  found = _ESTIMATORS["linear"](units, action)
  assert found.outside_share == 0.25
  assert found.extrapolates
  action[:150, 1] = _HALF_WIDTH
  assert not _ESTIMATORS["linear"](units, action).extrapolates


def test_a_component_without_width_is_never_extrapolated_silently():
  log = _log(0, outcome=_linear)
  lower, upper = log.box.lower.copy(), log.box.upper.copy()
  action = log.action.copy()
  lower[:, 2] = upper[:, 2] = action[:, 2] = 0.25
  log = log._replace(
    action=action,
    box=log.box._replace(lower=lower, upper=upper),
    log_prob=np.full(1200, -2 * np.log(0.3), np.float32),
  )
  units = units_from(log)
  assert not units.explores[:, 2].any()
  target = np.tile([0.0, 0.0, 0.25], (600, 1))
  deviation, outside = target_deviation(units, target)
  assert not outside.any()
  np.testing.assert_array_equal(deviation, 0)
  # Three standard errors; a component that does not explore would add 1.25.
  assert quadratic_weights(units, deviation).mean() == pytest.approx(1, abs=0.2)
  assert np.isfinite(fit_slopes(units).slope).all()
  target[:, 2] = 0.26
  assert target_deviation(units, target)[1].all()


def test_units_of_a_held_log_are_sessions_and_of_another_requests():
  log = _log(0, sessions=20, outcome=_linear)
  units = units_from(log, discount=0.5)
  np.testing.assert_allclose(units.outcome, log.reward[::2, 0] + 0.5, rtol=1e-6)
  np.testing.assert_array_equal(units.session, np.arange(20))
  anew = log._replace(exploration_held=np.zeros(40, bool))
  units = units_from(anew)
  np.testing.assert_allclose(units.outcome, log.reward[:, 0], rtol=1e-6)
  np.testing.assert_array_equal(units.session, np.repeat(np.arange(20), 2))
  # What holds only an observation is no request.
  cut = observation_only(log, np.arange(40) % 4 == 1)
  units = units_from(cut)
  np.testing.assert_allclose(
    units.outcome, log.reward[::2, 0] + np.tile([0, 1], 10), rtol=1e-6
  )


def test_group_weights():
  log = _log(0, sessions=20, outcome=_linear)
  two = log._replace(reward=np.repeat(log.reward, 2, axis=1))
  once = units_from(log).outcome
  weighted = units_from(two, group_weights=np.array([0.25, 0.5])).outcome
  np.testing.assert_allclose(weighted, 0.75 * once, rtol=1e-6)
  with pytest.raises(InputError, match=r"group_weights: .*\(2,\), .*\(3,\)"):
    units_from(two, group_weights=np.ones(3))


def test_bad_logs_and_actions_are_refused():
  log = _log(0, sessions=20, outcome=_linear)
  units = units_from(log)
  with pytest.raises(InputError, match=r"discount: .* found 1.5"):
    units_from(log, discount=1.5)
  with pytest.raises(InputError, match=r"discount: .* found nan"):
    units_from(log, discount=math.nan)
  density = log.log_prob.copy()
  density[5] = -8
  with pytest.raises(
    InputError, match=r"log_prob: .*1 of 40 .* 5: -8.0000 instead of 3.6119"
  ):
    units_from(log._replace(log_prob=density))
  mixed = log.exploration_held.copy()
  mixed[:2] = False
  with pytest.raises(InputError, match=r"exploration_held: .* 38 of 40"):
    units_from(log._replace(exploration_held=mixed))
  moved = log.action.copy()
  moved[3] += 0.01
  with pytest.raises(
    InputError, match=r"exploration_held: .*first at request 3"
  ):
    units_from(log._replace(action=moved))
  with pytest.raises(InputError, match=r"action: expected shape \(20, 3\)"):
    target_deviation(units, np.zeros((20, 2)))
  with pytest.raises(InputError, match="action: expected finite"):
    target_deviation(units, np.full((20, 3), np.nan))
  with pytest.raises(InputError, match="units or more for 14 coefficients"):
    fit_slopes(units)
  few = units_from(_log(0, sessions=9, outcome=_linear))
  with pytest.raises(InputError, match="10 sessions or more, found 9"):
    mean_only(few)


def test_folds_hold_whole_sessions():
  session = np.repeat(np.arange(23), 3)
  fold = off_policy._folds(session, 0)
  assert (fold.reshape(23, 3) == fold[::3][:, None]).all()
  assert set(fold) == set(range(off_policy.FOLDS))


def _moving(params, observation, rng_key):
  """A policy whose boxes move with the session, some of them cut at a limit."""
  del rng_key
  return jnp.tanh(params * jnp.sum(observation))


def _gaussian(params, observation, rng_key):
  """The exploration of a platform without boxes."""
  del observation
  action = exploration.sample_gaussian(rng_key, params, 0.1)
  limit = jnp.ones_like(params)
  log_prob = exploration.gaussian_log_prob(action, params, 0.1)
  return policies.Decision(action, ActionBox(-limit, limit), log_prob)


@pytest.mark.parametrize("held", [True, False])
def test_logs_of_a_world_are_read_and_gaussian_ones_refused(small_world, held):
  def log_of_policy(act, params):
    name = "session" if held else "request"
    rows = rollout.rollout(
      jax.random.key(0), small_world, act, params, 256, 5, name
    )
    return rollout.pack(rows)

  params = policies.PolicyParams(
    jnp.linspace(-1, 2, 10), jnp.float32(_HALF_WIDTH), jnp.float32(0)
  )
  log = log_of_policy(policies.explore_around(_moving), params)
  units = units_from(log)
  assert len(units.outcome) == (256 if held else np.sum(~log.bootstrap_only))
  widths = (log.box.upper - log.box.lower)[~log.bootstrap_only]
  assert widths.min() < 0.2 < 0.29 < widths.max()
  assert np.abs(units.deviation).max() <= 1 + 1e-4
  # Uniform: the second moment that the weights are made of.
  moment = np.square(units.deviation)[units.explores]
  error = np.sqrt(4 / 45 / moment.size)
  assert moment.mean() == pytest.approx(1 / 3, abs=4 * error)
  with pytest.raises(InputError, match="log_prob: expected the density of a"):
    units_from(log_of_policy(_gaussian, jnp.zeros(10)))
