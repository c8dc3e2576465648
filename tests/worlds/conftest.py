"""One small world for all tests of this folder: building takes seconds."""

import pytest

from mtf_jax.worlds import synthetic


@pytest.fixture(scope="session")
def small_world():
  return synthetic.synthetic_world("small", world_seed=3)
