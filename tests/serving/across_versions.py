"""Exports a small policy with one version of JAX, loads it with another.

  python -m tests.serving.across_versions export FOLDER
  python -m tests.serving.across_versions load FOLDER

Each in an environment of its own; CI calls them with the oldest and the newest
versions. Pytest collects nothing here.
"""

import sys

import jax
import jax.numpy as jnp

from mtf_jax.io import InputError
from mtf_jax.kernels.fusion import FusionSpec
from mtf_jax.serving.export import Served, export_policy
from mtf_jax.serving.load import load_policy
from mtf_jax.serving.manifest import Feature, read_manifest


def _act(params, observation, rng_key):
  del rng_key
  return jnp.tanh(params @ observation)


def _export(folder):
  weights = 0.5 * jax.random.normal(jax.random.key(0), (10, 3))
  features = [Feature(f"f{n}", "none", -5.0, 5.0, 0.0) for n in range(3)]
  export_policy(folder, Served(_act, weights, FusionSpec(), 4), features)
  return "exported"


def _load(folder):
  written = f"policy of JAX {read_manifest(folder).versions['jax']}"
  try:
    load_policy(folder)
  except InputError as error:
    if "expected a program that JAX" not in str(error):
      raise
    return f"{written} refused: {error}"
  return f"{written} passed its self-test"


if __name__ == "__main__":
  done = {"export": _export, "load": _load}[sys.argv[1]](sys.argv[2])
  print(f"JAX {jax.__version__}: {done}")
