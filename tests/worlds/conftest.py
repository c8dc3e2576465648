"""One small world for all tests of this folder: building takes seconds."""

import pytest

from tests.small_world import small_world as make_small_world


@pytest.fixture(scope="session")
def small_world():
  return make_small_world()
