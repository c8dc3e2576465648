import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.worlds import noise


def _draw(num_keys=64, requests=20, counters=100):
  keys = jax.random.bits(jax.random.key(0), (num_keys, 2), jnp.uint32)
  counter = jnp.arange(counters, dtype=jnp.int32)
  request = jnp.arange(requests, dtype=jnp.int32)
  by_request = jax.vmap(noise.counter_uniforms, in_axes=(None, 0, None))
  return np.asarray(
    jax.vmap(by_request, in_axes=(0, None, None))(keys, request, counter)
  )


def test_uniform_and_inside_the_open_interval():
  sample = _draw()
  assert sample.min() > 0
  assert sample.max() < 1
  counts, _ = np.histogram(sample, 64, (0, 1))
  expected = sample.size / 64
  chi_square = np.sum((counts - expected) ** 2 / expected)
  assert chi_square < 63 + 5 * np.sqrt(2 * 63)


def test_neighbours_are_uncorrelated():
  sample = _draw() - 0.5
  limit = 5 / np.sqrt(sample.size)
  for axis in range(3):
    for lag in (1, 2):
      moved = np.roll(sample, lag, axis=axis)
      assert abs(np.mean(sample * moved) / np.mean(sample**2)) < limit


def test_keys_that_differ_in_one_bit_share_nothing():
  counter = jnp.arange(20000, dtype=jnp.int32)
  request = jnp.zeros((), jnp.int32)
  base = noise.counter_uniforms(jnp.array([7, 9], jnp.uint32), request, counter)
  for key in ([6, 9], [7, 8], [7, 9 + 2**31], [7 + 2**31, 9]):
    other = noise.counter_uniforms(jnp.array(key, jnp.uint32), request, counter)
    correlation = np.corrcoef(np.asarray(base), np.asarray(other))[0, 1]
    assert abs(correlation) < 5 / np.sqrt(20000)
