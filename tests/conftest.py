"""Strictness for every test: silent promotion and random flakes are errors."""

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The examples follow from the test's own code, so a run repeats itself; compile
# time makes the first example of a shape slow, hence no deadline.
hypothesis.settings.register_profile(
  "mtf_jax", derandomize=True, deadline=None, max_examples=60
)
hypothesis.settings.load_profile("mtf_jax")


@pytest.fixture(scope="session")
def small_world():
  """One small world for all tests that need one: building takes seconds."""
  from tests.small_world import small_world as make_small_world

  return make_small_world()
