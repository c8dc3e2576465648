"""Draws what a logged box means: where one explores, what leaving it costs.

  python -m experiments.plot_exploration --out=runs/exploration.png

Needs the `plots` extra.
"""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from absl import flags

import mtf_jax
from experiments import launch
from mtf_jax.io import replacing
from mtf_jax.kernels.exploration import HALF_WIDTH
from mtf_jax.studies.progressive.config import GAUSSIAN_STDDEV

_OUT = launch.define_out_file(
  "out",
  "runs/exploration.png",
  "Picture to write.",
  suffixes=(".png", ".svg", ".pdf"),
)
_SHARPNESS = flags.DEFINE_float(
  "sharpness", 10.0, "Sharpness of the penalty, per unit of action."
)
flags.register_validator(
  "sharpness",
  lambda value: 0 < value < np.inf,
  "expected a positive finite number.",
)

_BASELINE = jnp.zeros(1)
_BLUE, _ORANGE, _GREEN = "#1f5aa6", "#d9822b", "#3a8f5c"


def main() -> None:
  """Writes the picture."""
  box = mtf_jax.action_box(_BASELINE)
  action = jnp.linspace(-0.7, 0.7, 561)[:, None]
  sample_keys = jax.random.split(jax.random.key(0), 100_000)
  box_sample = jax.vmap(mtf_jax.sample_box, (0, None))(sample_keys, box)
  gaussian_sample = jax.vmap(mtf_jax.sample_gaussian, (0, None, None))(
    sample_keys, _BASELINE, GAUSSIAN_STDDEV
  )
  box_density = jnp.exp(jax.vmap(mtf_jax.box_log_prob, (0, None))(action, box))
  gaussian_density = jnp.exp(
    jax.vmap(mtf_jax.gaussian_log_prob, (0, None, None))(
      action, _BASELINE, GAUSSIAN_STDDEV
    )
  )
  distance = jax.vmap(mtf_jax.exceedance, (0, None))(action, box)
  penalty = jax.vmap(mtf_jax.relaxation_penalty, (0, None))(
    distance, _SHARPNESS.value
  )
  weight = jax.vmap(mtf_jax.bootstrap_weight, (0, None))(
    distance, _SHARPNESS.value
  )

  figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), dpi=120)
  bins = np.linspace(-0.7, 0.7, 57)
  for sample, density, color, label in (
    (
      gaussian_sample,
      gaussian_density,
      _ORANGE,
      f"Gaussian, sigma {GAUSSIAN_STDDEV}",
    ),
    (box_sample, box_density, _BLUE, f"bounded uniform, +-{HALF_WIDTH}"),
  ):
    left.hist(sample[:, 0], bins, density=True, color=color, alpha=0.3)
    left.plot(action[:, 0], density, color=color, label=label)
  left.set(
    title="exploration: densities and samples",
    xlabel="action - baseline, one component",
    ylabel="density",
  )
  right.axvspan(box.lower[0], box.upper[0], color=_BLUE, alpha=0.12)
  right.plot(action[:, 0], penalty, color=_ORANGE)
  right.plot(action[:, 0], weight, color=_GREEN)
  right.text(0.36, 3.2, "actor's penalty d", color=_ORANGE)
  right.text(0.36, 0.5, "bootstrap weight phi", color=_GREEN)
  right.text(0, 4.4, "box", color=_BLUE, ha="center")
  right.set(
    title="relaxation: free inside the box, priced outside",
    xlabel="action - baseline, one component",
    xlim=(-0.7, 0.9),
    ylim=(-0.1, 5),
  )
  left.legend(frameon=False, fontsize=8, loc="upper right")
  left.set_xlim(-0.7, 1.1)
  for axes in (left, right):
    axes.spines[["top", "right"]].set_visible(False)
  figure.tight_layout()
  out = pathlib.Path(_OUT.value)
  out.parent.mkdir(parents=True, exist_ok=True)
  with replacing(out) as file:
    figure.savefig(file, format=out.suffix[1:])
  print(f"wrote {out}")


if __name__ == "__main__":
  launch.run(main)
