import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.fitting.float64 import in_float64


def test_computes_in_float64_and_leaves_the_mode_as_it_was():
  third = in_float64(jax.jit(lambda x, n: x["a"] / 3 + n))
  found = third({"a": jnp.ones(2, jnp.float32)}, jnp.asarray(1, jnp.int32))
  assert isinstance(found, np.ndarray) and found.dtype == np.float64
  np.testing.assert_allclose(found, 4 / 3, rtol=1e-15)
  assert jnp.zeros(1).dtype == jnp.float32
