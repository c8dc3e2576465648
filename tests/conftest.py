"""Strictness for every test: silent promotion and random flakes are errors."""

import hypothesis
import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# The examples follow from the test's own code, so a run repeats itself; compile
# time makes the first example of a shape slow, hence no deadline.
hypothesis.settings.register_profile(
  "mtf_jax", derandomize=True, deadline=None, max_examples=60
)
hypothesis.settings.load_profile("mtf_jax")
