"""Hand-computed cases and statistical tests of `mtf_jax.kernels.exploration`.

The keys are fixed, so a test here passes or fails for good. Were the keys drawn
anew, each statistical test would raise a false alarm with probability
`_FALSE_ALARM`; each is also shown to catch a sampler that is slightly wrong.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import mtf_jax

_FALSE_ALARM = 1e-6
_DRAWS = 200_000


def test_box_is_the_interval_clipped_to_valid_actions():
  box = mtf_jax.action_box(jnp.array([0.0, 0.95, -1.0]))
  np.testing.assert_allclose(box.lower, [-0.15, 0.8, -1.0], rtol=1e-6)
  np.testing.assert_allclose(box.upper, [0.15, 1.0, -0.85], rtol=1e-6)


def test_log_density_is_minus_the_log_volume():
  box = mtf_jax.ActionBox(jnp.zeros(2), jnp.array([0.5, 0.25]))
  for action in ([0.1, 0.1], [0.0, 0.0], [0.5, 0.25]):
    np.testing.assert_allclose(
      mtf_jax.box_log_prob(jnp.array(action), box), np.log(8), rtol=1e-6
    )
  for action in ([0.6, 0.1], [0.1, -0.01], [jnp.nan, 0.1]):
    assert mtf_jax.box_log_prob(jnp.array(action), box) == -jnp.inf


def test_a_component_that_does_not_explore_has_mass_one():
  box = mtf_jax.ActionBox(jnp.array([0.3, 0.0]), jnp.array([0.3, 0.5]))
  action = mtf_jax.sample_box(jax.random.key(0), box)
  assert action[0] == jnp.float32(0.3)
  np.testing.assert_allclose(mtf_jax.box_log_prob(action, box), np.log(2))
  elsewhere = action.at[0].set(0.31)
  assert mtf_jax.box_log_prob(elsewhere, box) == -jnp.inf


def test_paper_box_against_gaussian():
  # The paper's case for the box, in its 10 components: how often N(0, 0.2^2)
  # falls into +-0.15, which the box always does.
  box = mtf_jax.action_box(jnp.zeros(10))
  log_density = mtf_jax.box_log_prob(jnp.zeros(10), box)
  np.testing.assert_allclose(log_density, -10 * np.log(0.3), rtol=1e-5)
  actions = jnp.asarray(_draw(mtf_jax.sample_gaussian, jnp.zeros(10)))
  distance = jax.vmap(mtf_jax.exceedance, in_axes=(0, None))(
    actions.astype(jnp.float32), box
  )
  probability = (2 * stats.norm.cdf(0.15 / 0.2) - 1) ** 10
  inside = stats.binomtest(int(np.sum(distance == 0)), _DRAWS, probability)
  assert inside.pvalue > _FALSE_ALARM


def test_gaussian_density_by_hand():
  log_prob = mtf_jax.gaussian_log_prob(jnp.array([0.2, 0.0]), jnp.zeros(2), 0.2)
  # One component a standard deviation away, one at the mean.
  expected = -0.5 - 2 * np.log(0.2) - np.log(2 * np.pi)
  np.testing.assert_allclose(log_prob, expected, rtol=1e-6)


def test_zero_stddev_is_a_point_mass():
  mean = jnp.array([0.1, 0.2])
  action = mtf_jax.sample_gaussian(jax.random.key(0), mean, 0.0)
  np.testing.assert_array_equal(action, mean)
  assert mtf_jax.gaussian_log_prob(action, mean, 0.0) == 0
  assert mtf_jax.gaussian_log_prob(action + 0.1, mean, 0.0) == -jnp.inf


@pytest.mark.parametrize(
  "call",
  [
    lambda key, lower, upper: mtf_jax.sample_box(
      key, mtf_jax.ActionBox(upper, lower)
    ),
    lambda key, lower, upper: mtf_jax.box_log_prob(
      lower, mtf_jax.ActionBox(upper, lower)
    ),
    lambda key, lower, upper: mtf_jax.exceedance(
      lower, mtf_jax.ActionBox(upper, lower)
    ),
    lambda key, lower, upper: mtf_jax.action_box(lower, 0.1, -0.1),
    lambda key, lower, upper: mtf_jax.action_box(lower, low=1.0, high=-1.0),
    lambda key, lower, upper: mtf_jax.sample_gaussian(
      key, lower, 0.2, 1.0, -1.0
    ),
  ],
)
def test_inverted_limits_are_refused_where_concrete(call):
  arguments = (jax.random.key(0), jnp.zeros(2), jnp.ones(2))
  with pytest.raises(ValueError, match=r"expected at most .* found"):
    call(*arguments)
  # Inside `jit` too, where the limits are known: here all but the key.
  with pytest.raises(ValueError, match=r"expected at most .* found"):
    jax.jit(lambda key: call(key, *arguments[1:]))(arguments[0])


def test_negative_stddev_is_refused():
  for call in (
    lambda: mtf_jax.sample_gaussian(jax.random.key(0), jnp.zeros(2), -0.1),
    lambda: mtf_jax.gaussian_log_prob(jnp.zeros(2), jnp.zeros(2), -0.1),
  ):
    with pytest.raises(ValueError, match=r"^stddev: expected non-negative"):
      call()


@pytest.mark.parametrize("stddev", [np.nan, -0.2])
def test_a_wrong_stddev_inside_jit_is_nan_not_a_point_mass(stddev):
  log_prob = jax.jit(mtf_jax.gaussian_log_prob)
  assert np.isnan(log_prob(jnp.zeros(2), jnp.zeros(2), stddev))


def _draw(sampler, *args):
  keys = jax.random.split(jax.random.key(7), _DRAWS)
  return np.asarray(
    jax.jit(jax.vmap(sampler, in_axes=(0, *[None] * len(args))))(keys, *args),
    np.float64,
  )


_BOX = mtf_jax.action_box(jnp.array([0.0, 0.95, -0.3]))


def _box_p_values(actions, box):
  """Uniform margins and pairwise independence; one p-value a statistic."""
  lower, upper = np.asarray(box.lower), np.asarray(box.upper)
  unit = (actions - lower) / (upper - lower)
  p_values = [stats.kstest(column, "uniform").pvalue for column in unit.T]
  cells = np.minimum((4 * unit).astype(int), 3)
  for i, j in itertools.combinations(range(unit.shape[1]), 2):
    counts = np.bincount(4 * cells[:, i] + cells[:, j], minlength=16)
    p_values.append(stats.chisquare(counts).pvalue)
  return np.array(p_values)


def _alarm(p_values):
  return np.any(p_values < _FALSE_ALARM / len(p_values))  # Bonferroni.


def test_sample_box_is_uniform_and_independent():
  actions = _draw(mtf_jax.sample_box, _BOX)
  assert np.all(actions >= np.asarray(_BOX.lower))
  assert np.all(actions <= np.asarray(_BOX.upper))
  assert not _alarm(_box_p_values(actions, _BOX))


def test_corners_are_drawn_alike_and_independently():
  actions = _draw(mtf_jax.sample_corners, _BOX)
  lower, upper = (np.asarray(bound) for bound in _BOX)
  upwards = actions == upper
  assert np.all(upwards | (actions == lower))
  # Every corner as often as any other: chi-square over all of them.
  corner = upwards @ (1 << np.arange(upwards.shape[1]))
  counts = np.bincount(corner, minlength=1 << upwards.shape[1])
  expected = len(actions) / counts.size
  chi_square = np.sum(np.square(counts - expected) / expected)
  assert abs(chi_square - counts.size) < 5 * np.sqrt(2 * counts.size)


def test_the_propensity_of_a_corner_is_its_share_of_the_corners():
  box = mtf_jax.ActionBox(
    jnp.array([0.0, -0.5, 0.2]), jnp.array([1.0, 0.5, 0.2])
  )
  # The third component does not explore.
  for action in ([0.0, 0.5, 0.2], [1.0, 0.5, 0.2]):
    found = mtf_jax.corners_log_prob(jnp.array(action), box)
    np.testing.assert_allclose(found, -np.log(4), rtol=1e-6)
  for action in ([0.5, 0.5, 0.2], [0.0, 0.5, 0.3], [np.nan, 0.5, 0.2]):
    found = mtf_jax.corners_log_prob(jnp.array(action), box)
    assert found == -jnp.inf


@pytest.mark.parametrize(
  "wrong",
  [
    # One random number for all components.
    lambda key, box: (
      box.lower + jax.random.uniform(key) * (box.upper - box.lower)
    ),
    # A box that is 3% too narrow.
    lambda key, box: 0.97 * mtf_jax.sample_box(key, box) + 0.03 * box.lower,
    # Gaussian noise folded into the box.
    lambda key, box: jnp.clip(
      mtf_jax.sample_gaussian(key, (box.lower + box.upper) / 2, 0.2),
      box.lower,
      box.upper,
    ),
  ],
)
def test_the_uniformity_test_catches_a_wrong_sampler(wrong):
  assert _alarm(_box_p_values(_draw(wrong, _BOX), _BOX))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_samples_have_positive_density_in_their_own_box(dtype):
  # Narrow, wide and lopsided boxes, where rounding is at its worst.
  with jax.enable_x64(dtype == "float64"):
    rng = np.random.default_rng(0)
    lower = rng.uniform(-1, 1, (20_000, 3))
    width = rng.choice([0, 1e-7, 1e-3, 0.3, 1.0], (20_000, 3))
    boxes = mtf_jax.ActionBox(
      jnp.asarray(lower, dtype), jnp.asarray(lower + width, dtype)
    )
    keys = jax.random.split(jax.random.key(0), 20_000)
    actions = jax.jit(jax.vmap(mtf_jax.sample_box))(keys, boxes)
    log_prob = jax.jit(jax.vmap(mtf_jax.box_log_prob))(actions, boxes)
    assert np.all(np.isfinite(np.asarray(log_prob, np.float64)))


def _unit_box(dtype):
  return mtf_jax.ActionBox(jnp.zeros(1, dtype), jnp.ones(1, dtype))


@pytest.mark.parametrize(
  "sampler",
  [
    lambda key, dtype: mtf_jax.sample_box(key, _unit_box(dtype)),
    lambda key, dtype: mtf_jax.sample_gaussian(key, jnp.zeros(1, dtype)),
  ],
)
def test_samplers_use_the_bits_of_their_dtype(sampler):
  keys = jax.random.split(jax.random.key(0), 20_000)
  narrow = jax.vmap(lambda key: sampler(key, jnp.bfloat16))(keys)
  # bfloat16 random bits make at most 256 values, rounded float32 about 1000.
  assert len(np.unique(np.asarray(narrow, np.float32))) > 500
  with jax.enable_x64(True):
    wide = np.asarray(jax.vmap(lambda key: sampler(key, jnp.float64))(keys))
  assert np.mean(wide != wide.astype(np.float32)) > 0.99


def test_box_density_integrates_to_one():
  # Mean density over a larger cube times its volume, within 6 standard errors.
  rng = np.random.default_rng(0)
  points = jnp.asarray(rng.uniform(-1, 1, (_DRAWS, 3)), jnp.float32)
  log_prob = jax.vmap(mtf_jax.box_log_prob, in_axes=(0, None))(points, _BOX)
  mass = 8 * np.exp(np.asarray(log_prob, np.float64))
  assert abs(mass.mean() - 1) < 6 * mass.std() / np.sqrt(_DRAWS)


def _gaussian_p_values(actions, mean, stddev):
  """Mass on the limits, and the law between them, for each component."""
  p_values = []
  for column, center in zip(actions.T, mean, strict=True):
    law = stats.norm(center, stddev)
    below, above = law.cdf(-1), law.sf(1)
    inner = column[(column > -1) & (column < 1)]
    p_values += [
      stats.binomtest(int(np.sum(column == -1)), _DRAWS, below).pvalue,
      stats.binomtest(int(np.sum(column == 1)), _DRAWS, above).pvalue,
      stats.kstest(
        inner,
        lambda x, law=law, b=below, a=above: (law.cdf(x) - b) / (1 - a - b),
      ).pvalue,
    ]
  return np.array(p_values)


_MEAN = np.array([0.0, 0.9, -0.95])


def test_sample_gaussian_is_a_clipped_normal():
  actions = _draw(mtf_jax.sample_gaussian, jnp.asarray(_MEAN, jnp.float32))
  assert not _alarm(_gaussian_p_values(actions, _MEAN, 0.2))
  correlation = np.corrcoef(actions.T)[np.triu_indices(3, 1)]
  assert np.all(np.abs(correlation) * np.sqrt(_DRAWS) < 6)


def test_the_normality_test_catches_a_wrong_stddev():
  actions = _draw(
    lambda key, mean: mtf_jax.sample_gaussian(key, mean, 0.205),
    jnp.asarray(_MEAN, jnp.float32),
  )
  assert _alarm(_gaussian_p_values(actions, _MEAN, 0.2))


def test_gaussian_density_matches_its_samples():
  # Far from the limits nothing is clipped: the mean log density is minus the
  # entropy, within 6 standard errors.
  mean = jnp.zeros(3)
  actions = _draw(mtf_jax.sample_gaussian, mean, 0.1)
  log_prob = jax.vmap(
    lambda action: mtf_jax.gaussian_log_prob(action, mean, 0.1)
  )(jnp.asarray(actions, jnp.float32))
  entropy = 3 * stats.norm(0, 0.1).entropy()
  error = np.std(log_prob) / np.sqrt(_DRAWS)
  assert abs(np.mean(log_prob) + entropy) < 6 * error
