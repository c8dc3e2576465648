import math

import numpy as np
import pytest

from mtf_jax.evaluation.importance import (
  PUBLISHED_STDDEVS,
  box_kernel,
  ncis,
)
from mtf_jax.evaluation.logged_units import units_from
from mtf_jax.io import InputError
from tests.session_logs import log_of, observation_only, random_log

_HALF_WIDTH = 0.15


def _one_component(rows=400_000):
  """Evenly spread deviations in one component, reward 5 + u, one request each."""
  u = (np.arange(rows) + 0.5) / rows * 2 - 1
  return log_of(
    np.zeros((rows, 1)),
    _HALF_WIDTH * u[:, None],
    5 + u[:, None],
    half_width=_HALF_WIDTH,
  )


@pytest.mark.parametrize(
  ("stddev", "shift"),
  [
    (0.2, 0.093),
    (0.15, 0.164),
    (0.0866, 0.438),
    (0.075, 0.537),
    *zip(PUBLISHED_STDDEVS, (0.034, 0.748), strict=True),
  ],
)
def test_ncis_on_a_uniform_log_shows_the_langevin_share_of_a_step(
  stddev, shift
):
  log = _one_component()
  step = 0.5
  action = np.full_like(log.action, step * _HALF_WIDTH)
  found = ncis(log, action, stddev=stddev, cap=math.inf)
  x = step / (stddev / _HALF_WIDTH) ** 2
  langevin = 1 / math.tanh(x) - 1 / x
  assert found.value - 5 == pytest.approx(langevin, abs=1e-4)
  assert found.value - 5 == pytest.approx(shift, abs=1e-3)
  assert not found.extrapolates


def test_ncis_of_the_logger_is_the_mean_and_its_interval_that_of_sessions():
  log = random_log(num_rows=400)
  centre = (log.box.lower + log.box.upper) / 2
  found = ncis(log, centre)
  by_request = log.reward.sum(axis=1)
  assert found.value == pytest.approx(by_request.mean(), rel=1e-6)
  assert found.effective_sample_size == pytest.approx(400)
  of_sessions = by_request.reshape(-1, 4).mean(axis=1)
  error = of_sessions.std() / math.sqrt(100)
  assert found.high - found.low == pytest.approx(3.92 * error, rel=1e-6)


def test_ncis_constant_reward_scale_and_cap():
  log = random_log(num_rows=400)
  rng = np.random.default_rng(1)
  action = log.action + rng.uniform(-0.1, 0.1, log.action.shape)
  constant = log._replace(reward=np.ones_like(log.reward))
  np.testing.assert_allclose(ncis(constant, action, stddev=0.05)[:3], 2)
  once = ncis(log, action, stddev=0.05)
  tenfold = ncis(log._replace(reward=10 * log.reward), action, stddev=0.05)
  np.testing.assert_allclose(tenfold[:3], 10 * np.array(once[:3]), rtol=1e-6)
  sizes = [
    ncis(log, action, stddev=0.05, cap=cap).effective_sample_size
    for cap in (1e-3, 0.1, 1.0, 10.0, math.inf)
  ]
  assert sizes == sorted(sizes, reverse=True)
  assert sizes[0] == pytest.approx(400, rel=0.2)
  # A ratio that overflows is one at the cap.
  far = ncis(log, action, log.action + 50, stddev=0.05)
  assert np.isfinite(far.value)
  # Ratios that are all too small for a float: the nearest row is the largest.
  far = ncis(log, action + 50, stddev=0.05)
  distance = np.square(log.action - action - 50).sum(axis=1) - np.square(
    log.action - (log.box.lower + log.box.upper) / 2
  ).sum(axis=1)
  nearest = log.reward.sum(axis=1)[np.argmin(distance)]
  assert far.value == pytest.approx(nearest, rel=1e-6)
  assert far.effective_sample_size == pytest.approx(1)


def test_ncis_leaves_out_rows_that_are_no_request():
  log = random_log(num_rows=8)
  cut = observation_only(log, np.arange(8) == 3)
  action = log.action + np.float32(0.02)
  found = ncis(cut, action, stddev=0.1)
  keep = np.arange(8) != 3
  weight = np.exp(
    np.sum(
      np.square(log.action - (log.box.lower + log.box.upper) / 2)
      - np.square(log.action - action),
      axis=1,
    )
    / 0.02
  )[keep]
  reward = log.reward.sum(axis=1)[keep]
  assert found.value == pytest.approx(
    np.sum(weight * reward) / weight.sum(), rel=1e-5
  )


def test_ncis_of_a_log_without_a_request_is_refused():
  log = random_log(num_rows=8)
  nothing = observation_only(log, np.ones(8, bool))
  with pytest.raises(InputError, match="log: expected a request, found none"):
    ncis(nothing, log.action)


def test_kernel_of_the_whole_box_is_the_mean():
  units = units_from(random_log())
  centre = (units.lower + units.upper) / 2
  found = box_kernel(units, centre, bandwidth=1.0)
  assert found.value == pytest.approx(units.outcome.mean(), rel=1e-9)
  assert found.effective_sample_size == pytest.approx(240)


def test_kernel_is_the_mean_over_the_window_inside_the_box():
  units = units_from(_one_component(100_000))
  # From .6 to 1: the window is cut at the box, and its middle is .8.
  action = np.full((100_000, 1), 0.9 * _HALF_WIDTH)
  found = box_kernel(units, action, bandwidth=0.3)
  assert found.value == pytest.approx(5.8, abs=1e-3)
  assert found.effective_sample_size == pytest.approx(20_000, rel=1e-3)


def test_kernel_intervals_cover_the_blurred_value():
  covered = 0
  for seed in range(200):
    rng = np.random.default_rng(seed)
    u = rng.uniform(-1, 1, (500, 2))
    reward = 5 + u @ [0.5, -0.5] + 0.5 * rng.standard_normal(500)
    units = units_from(
      log_of(rng.normal(size=(500, 1)), _HALF_WIDTH * u, reward[:, None])
    )
    action = np.tile([0.25 * _HALF_WIDTH, -0.25 * _HALF_WIDTH], (500, 1))
    found = box_kernel(units, action, bandwidth=0.5)
    covered += found.low <= 5.25 <= found.high
  assert 180 <= covered <= 196, covered


def test_what_no_data_can_show_is_refused_or_told():
  units = units_from(_one_component(1000))
  far = np.full((1000, 1), 2 * _HALF_WIDTH)
  with pytest.raises(InputError, match=r"none within 0.5 half-widths"):
    box_kernel(units, far, bandwidth=0.5)
  near = box_kernel(units, 0.6 * far, bandwidth=0.5)
  assert near.outside_share == 1 and near.extrapolates
  assert ncis(_one_component(1000), far).outside_share == 1


def test_bad_numbers_are_refused():
  log, units = _one_component(1000), units_from(_one_component(1000))
  with pytest.raises(InputError, match=r"stddev: .* found 0"):
    ncis(log, log.action, stddev=0)
  with pytest.raises(InputError, match=r"cap: .* found nan"):
    ncis(log, log.action, cap=math.nan)
  with pytest.raises(InputError, match=r"bandwidth: .* found -1"):
    box_kernel(units, log.action, bandwidth=-1)
  with pytest.raises(InputError, match="behaviour_action: expected shape"):
    ncis(log, log.action, np.zeros((3, 1)))
