"""Strictness for every test: silent promotion and random flakes are errors."""

import os
import shutil
import tempfile

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


def pytest_configure(config):
  """One folder of compiled programs for a run of the tests, and for no other.

  Workers and the programs that tests start inherit the environment; what one
  has compiled the others read.
  """
  if hasattr(config, "workerinput"):
    return
  config.compiled_programs = tempfile.mkdtemp(prefix="compiled_programs_")
  os.environ["JAX_COMPILATION_CACHE_DIR"] = config.compiled_programs
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
  # Here jax has read its environment already.
  jax.config.update("jax_compilation_cache_dir", config.compiled_programs)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_unconfigure(config):
  """Nothing is left behind."""
  if hasattr(config, "compiled_programs"):
    shutil.rmtree(config.compiled_programs, ignore_errors=True)


@pytest.fixture(scope="session")
def small_world():
  """One small world for all tests that need one: building takes seconds."""
  from tests.small_world import small_world as make_small_world

  return make_small_world()


@pytest.fixture(scope="module")
def quick_to_compile(small_world):
  """XLA optimises little, for modules whose programs run for moments only.

  What they test does not hang on how XLA fuses. Kernels, networks, learners and
  the building of worlds are tested as users run them: the world that tests
  share is built before, and nothing that was compiled stays.
  """
  del small_world
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)
  jax.clear_caches()
