import functools

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.learners import es

_BEST = np.array([[0.5, -0.25, 0.75], [-0.5, 0.0, 0.25]], np.float32)
_SEARCH = es.Search(iterations=60, sessions=64, noise=0.1, learning_rate=0.05)


def _fitness(weights, event_key, policy_key):
  """10 at the best weights, with noise that both signs of a pair share."""
  noise = jax.random.normal(event_key) + jax.random.normal(policy_key)
  return 10.0 + noise - jnp.sum(jnp.square(weights - _BEST))


@functools.partial(jax.jit, static_argnames="search")
def _ascend(rng_key, weights, stddev, limit, search=_SEARCH):
  return es.ascend(
    rng_key,
    weights,
    _fitness,
    search,
    stddev,
    lambda weights: jnp.clip(weights, -limit, limit),
  )


def test_it_finds_the_best_weights():
  start = jnp.zeros((2, 3))
  found = _ascend(jax.random.key(0), start, jnp.full((1, 3), 0.1), 1.0)
  np.testing.assert_allclose(found, _BEST, atol=0.05)
  again = _ascend(jax.random.key(0), start, jnp.full((1, 3), 0.1), 1.0)
  np.testing.assert_array_equal(found, again)
  other = _ascend(jax.random.key(1), start, jnp.full((1, 3), 0.1), 1.0)
  assert not np.array_equal(found, other)


def test_a_weight_without_noise_stays_and_the_projection_holds():
  start = jnp.full((2, 3), 0.1)
  stddev = jnp.array([[0.1, 0.0, 0.1]])
  found = _ascend(jax.random.key(0), start, stddev, 0.4)
  np.testing.assert_allclose(found[:, 1], 0.1, rtol=1e-6)
  expected = np.clip(_BEST, -0.4, 0.4)
  np.testing.assert_allclose(found[:, [0, 2]], expected[:, [0, 2]], atol=0.05)
  assert np.abs(found).max() <= 0.4 + 1e-6


def test_pairs_cancel_what_their_keys_decide():
  """The noise has deviation 1.4, the fitness changes by .01 in a step."""
  search = _SEARCH._replace(iterations=2, sessions=4096)
  start = jnp.asarray(_BEST) + 0.2
  found = _ascend(jax.random.key(2), start, jnp.full((1, 3), 0.01), 1.0, search)
  assert np.all(np.asarray(found) < np.asarray(start))


def test_traffic_of_its_own_for_both_of_a_pair():
  """A fitness that only the keys decide cancels where the pair shares them."""

  def luck(weights, event_key, policy_key):
    return 10.0 + jax.random.normal(event_key) + 0 * jnp.sum(weights)

  search = _SEARCH._replace(iterations=2, sessions=8)
  start = jnp.zeros((3,))

  def found(common):
    return es.ascend(
      jax.random.key(0), start, luck, search, 0.1 + start, lambda x: x, common
    )

  np.testing.assert_array_equal(found(True), start)
  assert np.all(np.abs(found(False)) > 1e-3)
