"""What `mtf_jax.kernels.monotone` promises: order, Eq. 1, hand-computed cases."""

import functools

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtf_jax

_SHAPES = st.sampled_from([(1, 1, 2), (3, 2, 5), (20, 5, 16)])


@functools.cache
def _jit(kernel):
  return jax.jit(kernel)


def _fuse(*arguments):
  return np.asarray(_jit(mtf_jax.monotone_fused_score)(*arguments))


def _cells(start, increments, knots):
  return mtf_jax.MonotoneCells(*map(np.float32, (knots, start, increments)))


def _identity(num_tasks=1, low=-1.0, high=1.0):
  """Cells that answer the score itself between two ends."""
  knots = np.full((num_tasks, 2), [low, high])
  return _cells(np.full(num_tasks, low), np.diff(knots), knots)


def test_a_cell_is_linear_between_its_knots_and_constant_outside():
  cells = _cells([1.0], [[2.0, 4.0]], [[0.0, 1.0, 3.0]])
  scores = np.float32([[-5], [0], [0.5], [1], [2], [3], [9]])
  np.testing.assert_allclose(
    _fuse(scores, cells, np.zeros(1, np.float32)), [1, 1, 2, 3, 5, 7, 7]
  )


@pytest.mark.parametrize("action", [-1.0, -0.25, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("ends", [(-1, 1), (-3, 1), (0, 2), (-2, -1)])
def test_the_outer_curve_is_that_of_the_paper(action, ends):
  q = np.linspace(*ends, 9, dtype=np.float32)
  a = action / (2 * np.abs(ends).max())
  assert np.all(1 + 2 * a * q >= 0)
  np.testing.assert_allclose(
    _fuse(q[:, None], _identity(1, *ends), np.float32([action])),
    q * (1 + a * q),
    rtol=1e-6,
    atol=1e-6,
  )


def test_an_action_beyond_its_limit_counts_as_the_limit():
  scores = np.linspace(-1, 1, 9, dtype=np.float32)[:, None]
  for limit in np.float32([-1, 1]):
    at_limit = _fuse(scores, _identity(), limit[None])
    # Without the limit `q (1 + 5 q)` would turn round.
    np.testing.assert_array_equal(
      _fuse(scores, _identity(), 10 * limit[None]), at_limit
    )
    assert np.all(np.diff(at_limit) > 0)


def _elements(low, high, *edges):
  return st.one_of(
    st.floats(low, high, width=32, allow_subnormal=False),
    st.sampled_from([low, high, *edges]),
  )


@hypothesis.given(st.data())
def test_raising_any_score_never_lowers_the_fused_score(data):
  """To the last bit, for the candidate itself and against one that it beats."""
  c, k, j = data.draw(_SHAPES)

  def draw(shape, *elements):
    return data.draw(hnp.arrays(np.float32, shape, elements=elements[0]))

  size = np.float32(data.draw(st.sampled_from([1e-3, 1.0, 1e4])))
  steps = draw((k, j), _elements(2.0**-10, 2.0))
  cells = mtf_jax.MonotoneCells(
    knots=np.cumsum(steps, axis=1),
    start=size * draw(k, _elements(-3.0, 1.0, 0.0)),
    increments=size * draw((k, j - 1), _elements(0.0, 1.0)),
  )
  action = draw(k, _elements(-1.5, 1.5, -1.0, 0.0, 1.0))
  scores = draw((c, k), _elements(-1.0, 33.0, *cells.knots[0].tolist()))
  raised = scores + draw((c, k), _elements(0.0, 2.0, 2.0**-20))
  # The smallest step there is, too.
  nudged = np.where(raised > scores, raised, np.nextafter(scores, np.inf))
  for higher in (raised, nudged.astype(np.float32)):
    before, after = _fuse(scores, cells, action), _fuse(higher, cells, action)
    assert np.all(after >= before)
    both = _fuse(np.concatenate([scores, higher]), cells, action)
    assert np.all(both[c:] >= both[:c])


@hypothesis.given(st.integers(0, 2**32 - 1))
def test_the_smallest_step_up_never_lowers_the_fused_score(seed):
  """Where two formulas of one function would differ by a rounding."""
  rng = np.random.default_rng(seed)
  knots = np.cumsum(rng.uniform(0.1, 1, (1, 6)), axis=1)
  cells = _cells(rng.normal(size=1), rng.exponential(size=(1, 5)), knots)
  action = rng.choice(np.float32([-1, -0.9, -0.1, 0.1, 0.9, 1]), 1)
  scores = np.float32(rng.uniform(0, 6, (256, 1)))
  scores[:6] = cells.knots.T
  higher = np.nextafter(scores, np.float32(np.inf))
  assert np.all(_fuse(higher, cells, action) >= _fuse(scores, cells, action))
  ordered = _fuse(np.sort(np.concatenate([scores, higher]), 0), cells, action)
  assert np.all(np.diff(ordered) >= 0)


def _request(data, seed):
  """A request and weights of any sign of power, in float64."""
  c, k, _ = data.draw(_SHAPES)
  rng = np.random.default_rng(seed)
  scores = rng.choice(rng.exponential(size=(c, k)), c)  # Some are equal.
  weights = mtf_jax.FusionWeights(
    rng.normal(size=k), rng.choice([1e-6, 0.1, 5.0], k)
  )
  log_scores = mtf_jax.fused_log_score(scores, weights)
  return scores, weights, np.asarray(log_scores)


@hypothesis.given(st.data(), st.integers(0, 2**32 - 1))
def test_cells_with_knots_at_the_scores_have_the_order_of_equation_1(
  data, seed
):
  """`z` is Eq. 1's log score of every candidate, but for rounding.

  Which is what exactly means: in float64 to 2e-11 of the powers' sum, so that
  candidates have Eq. 1's order unless it holds them to be equal that nearly. A
  task with a negative power is a cell that rises in the negated score.
  """
  with jax.enable_x64(True):
    scores, weights, log_scores = _request(data, seed)
    sign = np.where(weights.power < 0, -1, 1)
    scores = scores * sign
    knots, start, increments = [], [], []
    for column, s, power, bias in zip(
      scores.T, sign, *map(np.asarray, weights), strict=True
    ):
      # Equal scores are one knot; more knots follow, where there are no scores.
      at = np.unique(column)
      more = at[-1] + np.arange(1, len(column) - len(at) + 2)
      values = power * np.log(s * at + bias)
      knots.append(np.concatenate([at, more]))
      start.append(values[0])
      increments.append(np.append(np.diff(values), np.zeros(len(more))))
    cells = mtf_jax.MonotoneCells(
      *map(np.array, (knots, start, np.maximum(increments, 0)))
    )
    z = _fuse(scores, cells, np.zeros(len(sign)))
  # Logarithms here are below 20 in size, and 1e-12 of them is what some 5,000
  # roundings of float64 may add up to.
  scale = 1e-12 * np.abs(weights.power).sum() * 20
  np.testing.assert_allclose(z, log_scores, rtol=0, atol=scale)
  order = np.sign(log_scores[:, None] - log_scores[None, :])
  order[np.abs(log_scores[:, None] - log_scores[None, :]) <= 2 * scale] = 0
  found = np.sign(z[:, None] - z[None, :])
  assert np.all((order == 0) | (found == order))


@hypothesis.given(st.integers(0, 2**32 - 1))
def test_cells_from_weights_stay_within_the_bound_between_knots(seed):
  with jax.enable_x64(True):
    rng = np.random.default_rng(seed)
    weights = mtf_jax.FusionWeights(
      rng.uniform(0, 3, 3), rng.uniform(0.01, 1, 3)
    )
    scores = rng.uniform(0, 1, (50, 3))
    # Evenly in the logarithm of `x + bias`, the ratio is everywhere the same.
    bias = weights.bias[:, None]
    knots = np.geomspace(weights.bias, 1 + weights.bias, 16, axis=1) - bias
    knots[:, -1] = 1
    cells = mtf_jax.cells_from_weights(weights, knots)
    z = _fuse(scores, cells, np.zeros(3))
    above = np.asarray(mtf_jax.fused_log_score(scores, weights)) - z
  ratio = np.log((1 + weights.bias) / weights.bias) / 15
  bound = np.sum(weights.power * ratio**2 / 8)
  assert np.all(above >= -1e-12) and np.all(above <= bound + 1e-12)


def test_weights_make_cells_that_meet_the_formula_at_the_knots():
  weights = mtf_jax.FusionWeights(jnp.array([2.0]), jnp.array([0.5]))
  cells = mtf_jax.cells_from_weights(weights, jnp.array([[0.0, 0.5, 1.5]]))
  np.testing.assert_allclose(cells.start, [2 * np.log(0.5)], rtol=1e-6)
  np.testing.assert_allclose(cells.increments, [2 * np.log([2, 2])], rtol=1e-6)


def test_a_score_of_nan_stays_visible_and_moves_no_other():
  scores = np.float32([[0.1], [np.nan], [0.2]])
  z = _fuse(scores, _identity(), np.float32([-0.5]))
  assert np.isnan(z[1]) and np.all(np.isfinite(z[[0, 2]]))


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"knots": jnp.zeros((1, 2))}, r"^cells.knots: expected to rise"),
    ({"increments": -jnp.ones((1, 1))}, r"^cells.increments: expected non-neg"),
  ],
)
def test_cells_that_could_fall_are_refused(changed, message):
  cells = _identity()._replace(**changed)
  with pytest.raises(ValueError, match=message):
    mtf_jax.monotone_fused_score(jnp.zeros((3, 1)), cells, jnp.zeros(1))


def test_weights_that_fall_are_refused():
  weights = mtf_jax.FusionWeights(-jnp.ones(1), jnp.ones(1))
  with pytest.raises(ValueError, match=r"^weights.power: expected non-neg"):
    mtf_jax.cells_from_weights(weights, jnp.array([[0.0, 1.0]]))
  rising = weights._replace(power=jnp.ones(1))
  with pytest.raises(ValueError, match=r"^knots: expected to rise"):
    mtf_jax.cells_from_weights(rising, jnp.array([[1.0, 1.0]]))
