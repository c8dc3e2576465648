"""One small world for all tests that need one: building takes seconds."""

import functools

from mtf_jax.fitting import synthetic

TOLD = []  # What the builder told on the way.


@functools.cache
def small_world():
  return synthetic.synthetic_world(
    "small", world_seed=3, on_step=lambda *counts: TOLD.append(counts)
  )
