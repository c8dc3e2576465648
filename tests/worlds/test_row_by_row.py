"""Functions over rows: one result on every device, two programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax.worlds.row_by_row import row_by_row


def _score(table, code, shift):
  return jnp.log(table[code] + shift), code + 1


def _rows():
  rng = np.random.default_rng(0)
  tables = jnp.asarray(rng.uniform(0.1, 1.0, (3, 8)), jnp.float32)
  codes = jnp.asarray(rng.integers(0, 8, (5, 3, 4)), jnp.int32)
  return tables, codes, jnp.arange(1.0, 6.0)


def _batched(over):
  """Over rows of tables and codes; the shift is the session's."""

  def one(tables, codes, shift):
    return over(lambda table, code: _score(table, code, shift), tables, codes)

  return jax.vmap(one, in_axes=(None, 0, 0))


def _vmapped(function, *rows):
  return jax.vmap(function)(*rows)


def test_it_is_vmap():
  found = jax.jit(_batched(row_by_row))(*_rows())
  expected = jax.jit(_batched(_vmapped))(*_rows())
  # Logarithms of a vectorised loop and of a scalar one differ in the last bit.
  np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
  np.testing.assert_array_equal(found[1], expected[1])


@pytest.mark.parametrize(
  ("platform", "loops"), [("cpu", 1), ("cuda", 0), ("tpu", 0)]
)
def test_only_a_cpu_takes_one_row_after_the_other(platform, loops):
  traced = jax.jit(_batched(row_by_row)).trace(*_rows())
  text = traced.lower(lowering_platforms=(platform,)).as_text()
  assert text.count("stablehlo.while") == loops
