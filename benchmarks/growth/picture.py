"""Draws what `benchmarks.growth` measured: cost against size, both logarithmic.

  python -m benchmarks.growth.picture \
    --results=benchmarks/results/growth_cpu.json \
    --out=experiments/figures/growth.png

Needs the `plots` extra.
"""

import pathlib

from benchmarks.growth import figure
from experiments import launch
from mtf_jax.io import InputError, read_json_object, replacing

_EXPECTED = "results of benchmarks.growth (.json)"
_RESULTS = launch.define_in_file("results", None, "What to draw.", _EXPECTED)
_OUT = launch.define_out_file(
  "out", "runs/growth.png", "Picture to write.", suffixes=(".png", ".svg")
)


def main() -> None:
  """Writes the picture."""
  result, _ = read_json_object(_RESULTS.value, _EXPECTED)
  try:
    drawn = figure.draw(result)
  except (KeyError, TypeError) as error:
    raise InputError(
      f"{_RESULTS.value}: expected {_EXPECTED}, found no {error}."
    ) from error
  out = pathlib.Path(_OUT.value)
  out.parent.mkdir(parents=True, exist_ok=True)
  with replacing(out) as file:
    drawn.savefig(file, format=out.suffix[1:], dpi=110)
  print(f"wrote {out}")


if __name__ == "__main__":
  launch.run(main)
