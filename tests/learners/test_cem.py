import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax.learners import cem

_BEST = np.array([0.5, -0.25, 0.75, 0.0], np.float32)
_EFFORT = cem.Effort(iterations=30, population=48, sessions=8, elite=8)


def _fitness(weights, event_key, policy_key):
  noise = jax.random.normal(event_key) + jax.random.normal(policy_key)
  return 10.0 + 0.02 * noise - jnp.sum(jnp.square(weights - _BEST))


@functools.partial(jax.jit, static_argnames="effort")
def _search(rng_key, limit, effort=_EFFORT):
  return cem.search(
    rng_key,
    jnp.zeros(4),
    _fitness,
    effort,
    lambda weights: jnp.clip(weights, -limit, limit),
  )


def test_it_finds_the_best_weights():
  found = _search(jax.random.key(0), 1.0)
  np.testing.assert_allclose(found, _BEST, atol=0.06)
  np.testing.assert_array_equal(found, _search(jax.random.key(0), 1.0))
  assert not np.array_equal(found, _search(jax.random.key(1), 1.0))


def test_the_projection_holds_for_draws_and_means():
  found = _search(jax.random.key(0), 0.4)
  np.testing.assert_allclose(found, np.clip(_BEST, -0.4, 0.4), atol=0.06)
  assert np.abs(found).max() <= 0.4


def test_the_floor_keeps_the_gaussian_moving():
  """Without it the deviation is gone before the mean has arrived."""
  start = _EFFORT._replace(stddev=0.02, min_stddev=1e-6)
  frozen = _search(jax.random.key(0), 1.0, start)
  moving = _search(jax.random.key(0), 1.0, start._replace(min_stddev=0.05))
  errors = [np.abs(found - _BEST).max() for found in (frozen, moving)]
  assert errors[0] > 0.3 > errors[1]


@pytest.mark.parametrize(
  "wrong", [{"elite": 1}, {"elite": 49}, {"sessions": 0}]
)
def test_counts_that_do_not_fit_are_refused(wrong):
  with pytest.raises(ValueError, match="elite: expected"):
    _search(jax.random.key(0), 1.0, _EFFORT._replace(**wrong))
