"""What importing the package does, and what its public names promise."""

import inspect
import pathlib
import re
import subprocess
import sys

import pytest

import mtf_jax
from mtf_jax.kernels import (
  exploration,
  fusion,
  losses,
  monotone,
  relaxation,
  rewards,
)

_KERNEL_MODULES = (exploration, fusion, losses, monotone, relaxation, rewards)
_FUNCTIONS = [
  name
  for name in mtf_jax.__all__
  if not inspect.isclass(getattr(mtf_jax, name))
]


def _python(code):
  return subprocess.run(
    (sys.executable, "-c", code), capture_output=True, text=True, check=False
  )


def test_import_brings_no_network_library_and_sets_no_environment():
  result = _python(
    "import os, sys; before = dict(os.environ); import mtf_jax;"
    "assert dict(os.environ) == before;"
    "print([m for m in ('flax', 'optax', 'orbax') if m in sys.modules])"
  )
  assert result.stdout.strip() == "[]", result.stderr


def test_import_runs_no_computation():
  # A backend that does not exist fails at the first computation, not before.
  broken = "import jax; jax.config.update('jax_platforms', 'nowhere');"
  assert _python(broken + "import mtf_jax").returncode == 0
  assert _python(broken + "import jax.numpy as jnp; jnp.zeros(1)").returncode


def test_all_is_sorted_and_complete():
  public = {
    name
    for module in _KERNEL_MODULES
    for name, value in vars(module).items()
    if not name.startswith("_")
    and getattr(value, "__module__", None) == module.__name__
  }
  # A helper of the kernels, not of their users.
  assert public - {"box_arrays"} == set(mtf_jax.__all__)
  assert sorted(mtf_jax.__all__) == mtf_jax.__all__


@pytest.mark.parametrize("name", _FUNCTIONS)
def test_docstrings_tell_shapes_errors_and_source(name):
  function = getattr(mtf_jax, name)
  text = inspect.getdoc(function)
  args, returns = text.index("Args:"), text.index("Returns:")
  raises = text.index("Raises:")
  assert args < returns < raises
  assert "ValueError" in text[raises:]
  documented = text[args:returns]
  for parameter in inspect.signature(function).parameters:
    assert f"  {parameter}: " in documented
  shape = r"`\w* ?\[[\w, .*]+\]`|[Ss]calar|`\(mean \[G\]|The box|dtype"
  assert re.search(shape, text[returns:raises])
  module = inspect.getmodule(function)
  assert "arXiv 2404.17589" in module.__doc__
  # `rank_slate` is the one kernel that no equation of the paper defines.
  assert "[1]" in text or name == "rank_slate"


@pytest.mark.parametrize("name", _FUNCTIONS)
def test_everything_public_is_typed(name):
  signature = inspect.signature(getattr(mtf_jax, name))
  for parameter in signature.parameters.values():
    assert parameter.annotation is not inspect.Parameter.empty, parameter
  assert signature.return_annotation is not inspect.Signature.empty


def test_the_package_says_that_it_is_typed():
  assert (pathlib.Path(mtf_jax.__file__).parent / "py.typed").exists()
