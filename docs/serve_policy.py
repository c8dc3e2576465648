"""Serves an exported policy with JAX alone; mtf_jax need not be installed.

pip install jax flatbuffers
python serve_policy.py FOLDER
"""

import hashlib
import json
import pathlib
import sys

import jax
import numpy as np
from jax import export


def load(folder: pathlib.Path):
  """The manifest, and both programs once they have passed the self-test."""
  manifest = json.loads((folder / "manifest.json").read_text())
  for name, expected in manifest["sha256"].items():
    found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    if found != expected:
      raise SystemExit(f"{folder / name}: the file is damaged.")
  act, serve = (
    jax.jit(export.deserialize(bytearray((folder / name).read_bytes())).call)
    for name in ("act.stablehlo", "serve.stablehlo")
  )
  test = np.load(folder / "self_test.npz")
  inputs = [test[name] for name in ("observation", "scores", "mask", "key")]
  for name, value in {**act(inputs[0]), **serve(*inputs)}.items():
    np.testing.assert_allclose(
      value, test[f"expected_{name}"], rtol=1e-4, atol=1e-4
    )
  return manifest, act, serve


def main(folder: str) -> None:
  """Loads a policy and answers two requests of 20 candidates."""
  manifest, _, serve = load(pathlib.Path(folder))
  print(f"self-test passed on {jax.default_backend()}")
  rng = np.random.default_rng(0)
  defaults = [feature["default"] for feature in manifest["features"]]
  observation = np.tile(np.asarray(defaults, np.float32), (2, 1))
  scores = rng.uniform(0.01, 1, (2, 20, len(manifest["tasks"])))
  answer = serve(
    observation,
    scores.astype(np.float32),
    np.ones((2, 20), bool),
    rng.integers(2**32, size=(2, 2), dtype=np.uint32),
  )
  # Log these with the feedback: the next policy learns from them.
  for name, value in answer.items():
    print(name, np.asarray(value).round(3).tolist())


if __name__ == "__main__":
  main(sys.argv[1])
