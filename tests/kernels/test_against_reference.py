"""Every kernel against its float64 NumPy reference, over shapes and edges."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

import mtf_jax
from tests import reference

_RTOL = 1e-5

# Few sizes, because each one compiles; they hold 1, odd, even and larger.
_TASKS = st.sampled_from([1, 2, 5])
_CANDIDATES = st.sampled_from([1, 3, 50])
_COMPONENTS = st.sampled_from([1, 3, 10])
_ENSEMBLES = st.sampled_from([(1, 1), (2, 1), (2, 3), (3, 24)])


@functools.cache
def _jit(kernel, *static):
  return jax.jit(kernel, static_argnames=static)


def _numbers(low, high, *edges):
  """Floats of float32 in [low, high], the given edges often among them."""
  return st.one_of(
    st.floats(low, high, width=32, allow_subnormal=False),
    st.sampled_from([np.float32(edge).item() for edge in (low, high, *edges)]),
  )


def _array(shape, elements):
  return hnp.arrays(np.float32, shape, elements=elements)


def _assert_close(actual, expected, scale):
  actual = np.asarray(actual, np.float64)
  expected = np.broadcast_to(expected, actual.shape)
  finite = np.isfinite(expected)
  np.testing.assert_array_equal(actual[~finite], expected[~finite])
  actual, expected = actual[finite], expected[finite]
  scale = np.broadcast_to(scale, finite.shape)[finite]
  error = np.abs(actual - expected)
  # The smallest normal float32: below it results may be flushed to 0.
  allowed = _RTOL * scale + 2e-38
  assert np.all(error <= allowed), (actual, expected, error, allowed)


def _wide(*arrays):
  return [np.asarray(array, np.float64) for array in arrays]


@hypothesis.given(st.data())
def test_weights_from_action(data):
  k = data.draw(_TASKS)
  action = data.draw(_array(2 * k, _numbers(-1, 1, 0)))
  spec = mtf_jax.FusionSpec(
    power_base=data.draw(_array(k, _numbers(-3, 3, 0))),
    power_rate=data.draw(_array(k, _numbers(0, 3, 1.5))),
    bias_base=data.draw(_array(k, _numbers(0, 5, 0))),
    bias_rate=data.draw(_array(k, _numbers(0, 3, 1.5))),
  )
  weights = _jit(mtf_jax.weights_from_action)(action, spec)
  expected, scale = reference.weights_from_action(*_wide(action, *spec))
  _assert_close(weights.power, expected[0], scale[0])
  _assert_close(weights.bias, expected[1], scale[1])


@hypothesis.given(st.data())
def test_fused_log_score(data):
  c, k = data.draw(_CANDIDATES), data.draw(_TASKS)
  scores = data.draw(_array((c, k), _numbers(0, 1e4, 1e-30, 1e-12, 1e-6, 1)))
  power = data.draw(_array(k, _numbers(-3, 3, 0)))
  bias = data.draw(_array(k, _numbers(0, 10, 1e-6)))
  actual = _jit(mtf_jax.fused_log_score)(
    scores, mtf_jax.FusionWeights(power, bias)
  )
  _assert_close(actual, *reference.fused_log_score(*_wide(scores, power, bias)))


@hypothesis.given(st.data())
def test_itemwise_log_score(data):
  c, k = data.draw(_CANDIDATES), data.draw(_TASKS)
  scores = data.draw(_array((c, k), _numbers(0, 1e4, 1e-30, 1e-12, 1e-6, 1)))
  power = data.draw(_array((c, k), _numbers(-3, 3, 0)))
  bias = data.draw(_array((c, k), _numbers(0, 10, 1e-6)))
  mask = data.draw(hnp.arrays(bool, c))
  actual = _jit(mtf_jax.itemwise_log_score)(
    scores, mtf_jax.FusionWeights(power, bias), mask
  )
  _assert_close(
    actual, *reference.itemwise_log_score(*_wide(scores, power, bias), mask)
  )


def _draw_knots(data, k):
  j = data.draw(st.sampled_from([2, 3, 16]))
  # Binary fractions: no two knots fall together in float32.
  steps = data.draw(_array((k, j), _numbers(2.0**-10, 4, 0.5)))
  return np.cumsum(steps, axis=1, dtype=np.float32) - np.float32(2)


@hypothesis.given(st.data())
def test_cells_from_weights(data):
  k = data.draw(_TASKS)
  power = data.draw(_array(k, _numbers(0, 3, 1)))
  bias = data.draw(_array(k, _numbers(0, 10, 1e-6, 2)))
  knots = _draw_knots(data, k)
  cells = _jit(mtf_jax.cells_from_weights)(
    mtf_jax.FusionWeights(power, bias), knots
  )
  start, increments = reference.cells_from_weights(*_wide(power, bias, knots))
  np.testing.assert_array_equal(cells.knots, knots)
  _assert_close(cells.start, *start)
  _assert_close(cells.increments, *increments)


@hypothesis.given(st.data())
def test_monotone_fused_score(data):
  c, k = data.draw(_CANDIDATES), data.draw(_TASKS)
  knots = _draw_knots(data, k)
  size = (k, knots.shape[1] - 1)
  cells = mtf_jax.MonotoneCells(
    knots=knots,
    start=data.draw(_array(k, _numbers(-10, 10, 0))),
    increments=data.draw(_array(size, _numbers(0, 10, 1))),
  )
  scores = data.draw(_array((c, k), _numbers(-5, 70, -2, 0, 1)))
  action = data.draw(_array(k, _numbers(-1.5, 1.5, -1, 0, 1)))
  _assert_close(
    _jit(mtf_jax.monotone_fused_score)(scores, cells, action),
    *reference.monotone_fused_score(*_wide(scores, *cells, action)),
  )


@hypothesis.given(st.data())
def test_ranking_transfer_loss(data):
  c = data.draw(_CANDIDATES)
  inner = data.draw(_array(c, _numbers(-100, 100, 0)))
  outer = data.draw(_array(c, _numbers(-3, 3, 0)))  # Some are equal.
  absent = data.draw(hnp.arrays(np.bool_, c))
  inner, outer = (
    np.where(absent, np.float32(np.nan), x) for x in (inner, outer)
  )
  _assert_close(
    _jit(mtf_jax.ranking_transfer_loss)(inner, outer),
    *reference.ranking_transfer_loss(*_wide(inner, outer)),
  )


@hypothesis.given(st.data())
def test_rank_slate(data):
  # 300 is beyond the walk: the other branch of the selection.
  c = data.draw(st.sampled_from([1, 3, 50, 300]))
  slate_size = data.draw(st.sampled_from(sorted({1, min(c, 6), min(c, 20)})))
  # Few values, so that ties are the rule. No subnormals: to XLA they may be 0.
  values = [-np.inf, np.finfo(np.float32).min, -1.0, -0.0, 0.0, 1.0, np.inf]
  elements = st.one_of(
    st.sampled_from([*values, np.nan]),
    st.floats(-2, 2, width=32, allow_subnormal=False),
  )
  log_scores = data.draw(_array(c, elements))
  mask = data.draw(hnp.arrays(np.bool_, c))
  actual = _jit(mtf_jax.rank_slate, "slate_size")(
    log_scores, slate_size=slate_size, mask=mask
  )
  expected = reference.rank_slate(log_scores, slate_size, mask)
  np.testing.assert_array_equal(actual, expected)


@hypothesis.given(st.data())
def test_list_reward(data):
  size, e = data.draw(st.sampled_from([(1, 1), (3, 2), (6, 12)]))
  g = data.draw(st.sampled_from([1, 2]))
  feedback = data.draw(_array((size, e), _numbers(0, 600, 0, 1)))
  group_weights = data.draw(_array((g, e), _numbers(-5, 5, 0, 0.02)))
  _assert_close(
    _jit(mtf_jax.list_reward)(feedback, group_weights),
    *reference.list_reward(*_wide(feedback, group_weights)),
  )


@hypothesis.given(st.data())
def test_discounted_returns(data):
  shape = data.draw(st.sampled_from([(1,), (4,), (20,), (5, 2)]))
  r_t = data.draw(_array(shape, _numbers(-100, 100, 0)))
  discount_t = data.draw(_array(shape[0], _numbers(0, 1, 0.9)))
  _assert_close(
    _jit(mtf_jax.discounted_returns)(r_t, discount_t),
    *reference.discounted_returns(*_wide(r_t, discount_t)),
  )


@hypothesis.given(st.data())
def test_action_box(data):
  a = data.draw(_COMPONENTS)
  baseline = data.draw(_array(a, _numbers(-1.5, 1.5, -1, 0, 0.9, 1)))
  lower_offset = data.draw(_numbers(-1, 0, -0.15))
  upper_offset = data.draw(_numbers(0, 1, 0.15))
  box = _jit(mtf_jax.action_box)(baseline, lower_offset, upper_offset)
  expected, scale = reference.action_box(
    *_wide(baseline), lower_offset, upper_offset, -1.0, 1.0
  )
  _assert_close(box.lower, expected[0], scale[0])
  _assert_close(box.upper, expected[1], scale[1])


def _draw_box(data, a):
  lower = data.draw(_array(a, _numbers(-1, 1, 0)))
  # No width is subnormal: XLA may flush it to 0 where NumPy does not.
  elements = st.one_of(st.just(0.0), _numbers(2.0**-20, 1, 0.3))
  width = data.draw(_array(a, elements))
  return mtf_jax.ActionBox(lower, lower + width)


@hypothesis.given(st.data())
def test_box_log_prob(data):
  a = data.draw(_COMPONENTS)
  box = _draw_box(data, a)
  # Inside, on a bound, and now and then a little outside.
  place = data.draw(_array(a, _numbers(0, 1, 0.5)))
  action = np.clip(
    box.lower + place * (box.upper - box.lower), box.lower, box.upper
  )
  action = action + data.draw(st.sampled_from([0, 0, 1e-3])) * place
  action = action.astype(np.float32)
  _assert_close(
    _jit(mtf_jax.box_log_prob)(action, box),
    *reference.box_log_prob(*_wide(action, *box)),
  )


@hypothesis.given(st.data())
def test_gaussian_log_prob(data):
  a = data.draw(_COMPONENTS)
  mean = data.draw(_array(a, _numbers(-1, 1, 0)))
  action = data.draw(st.one_of(_array(a, _numbers(-1, 1)), st.just(mean)))
  stddev = data.draw(_array(a, _numbers(0.125, 2, 0, 1e-3, 0.2)))
  _assert_close(
    _jit(mtf_jax.gaussian_log_prob)(action, mean, stddev),
    *reference.gaussian_log_prob(*_wide(action, mean, stddev)),
  )


@hypothesis.given(st.data())
def test_exceedance(data):
  a = data.draw(_COMPONENTS)
  box = _draw_box(data, a)
  action = data.draw(
    st.one_of(
      _array(a, _numbers(-100, 100, 0)), st.just(box.lower), st.just(box.upper)
    )
  )
  _assert_close(
    _jit(mtf_jax.exceedance)(action, box),
    *reference.exceedance(*_wide(action, *box)),
  )


_DISTANCE = _numbers(0, 1e6, 1e-30, 1e-6, 1, 2, 3, 1e4)
_SHARPNESS = _numbers(0, 100, 0.5, 10)


@pytest.mark.parametrize("name", ["relaxation_penalty", "bootstrap_weight"])
def test_relaxation(name):
  @hypothesis.given(_DISTANCE, _SHARPNESS)
  def check(distance, sharpness):
    _assert_close(
      _jit(getattr(mtf_jax, name))(distance, sharpness),
      *getattr(reference, name)(distance, sharpness),
    )

  check()


@hypothesis.given(st.data())
def test_ensemble_mean_std(data):
  shape = data.draw(_ENSEMBLES)
  q = data.draw(
    st.one_of(
      _array(shape, _numbers(-1e4, 1e4, 0)),
      _numbers(-100, 100, 0.1).map(lambda x: np.full(shape, x, np.float32)),
    )
  )
  mean, std = _jit(mtf_jax.ensemble_mean_std)(q)
  expected, scale = reference.ensemble_mean_std(*_wide(q))
  _assert_close(mean, expected[0], scale[0])
  _assert_close(std, expected[1], scale[1])


@hypothesis.given(st.data())
def test_td_targets(data):
  shape = data.draw(_ENSEMBLES)
  r_t = data.draw(_array(shape[0], _numbers(-100, 100, 0)))
  discount_t = data.draw(_numbers(0, 1, 0.9))
  weight = data.draw(_numbers(0, 1))
  q_t = data.draw(_array(shape, _numbers(-1e4, 1e4, 0)))
  if discount_t == 0:
    q_t = np.full_like(q_t, np.nan)  # Must not be read.
  _assert_close(
    _jit(mtf_jax.td_targets)(r_t, discount_t, weight, q_t),
    *reference.td_targets(*_wide(r_t, discount_t, weight, q_t)),
  )


@hypothesis.given(st.data())
def test_list_values_and_targets(data):
  shape = (data.draw(st.sampled_from([1, 2, 5])), *data.draw(_ENSEMBLES))
  r_t = data.draw(_array(shape[1], _numbers(-100, 100, 0)))
  discount_t = data.draw(_numbers(0, 1, 0.9))
  weight = data.draw(_array(shape[0], _numbers(0, 1)))
  q_t = data.draw(_array(shape, _numbers(-1e4, 1e4, 0)))
  value, size = (q.sum(axis=0) for q in (*_wide(q_t), *_wide(np.abs(q_t))))
  _assert_close(_jit(mtf_jax.list_value)(q_t), value, size)
  if discount_t == 0:
    q_t = np.full_like(q_t, np.nan)  # Must not be read.
  _assert_close(
    _jit(mtf_jax.list_td_targets)(r_t, discount_t, weight, q_t),
    *reference.list_td_targets(*_wide(r_t, discount_t, weight, q_t)),
  )


@hypothesis.given(st.data())
def test_critic_loss(data):
  shape = data.draw(_ENSEMBLES)
  q_tm1 = data.draw(_array(shape, _numbers(-100, 100, 0)))
  targets = data.draw(
    st.one_of(_array(shape, _numbers(-100, 100)), st.just(q_tm1))
  )
  _assert_close(
    _jit(mtf_jax.critic_loss)(q_tm1, targets),
    *reference.critic_loss(*_wide(q_tm1, targets)),
  )


@hypothesis.given(st.data())
def test_actor_loss(data):
  shape = data.draw(_ENSEMBLES)
  q = data.draw(_array(shape, _numbers(-100, 100, 0)))
  group_weights = data.draw(_array(shape[0], _numbers(0, 2, 1)))
  scalars = (
    data.draw(_numbers(0, 1e4, 1)),
    data.draw(_numbers(0, 10, 1)),
    data.draw(_numbers(0, 3, 1)),
  )
  _assert_close(
    _jit(mtf_jax.actor_loss)(q, group_weights, *scalars),
    *reference.actor_loss(*_wide(q, group_weights), *scalars),
  )
