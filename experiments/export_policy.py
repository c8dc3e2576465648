"""Exports a policy of a progressive run, for serving without this package.

  python -m experiments.export_policy --run=runs/progressive --out_dir=policy
  python -m experiments.export_policy --run=runs/progressive --round=3 \
    --half_width=0 --out_dir=policy

The folder's programs are called with JAX alone, see docs/serve_policy.py. Needs
the `serving` extra. The run may still be going on.
"""

from absl import flags

from experiments import launch
from mtf_jax.kernels.exploration import HALF_WIDTH
from mtf_jax.serving.export import export_policy, require_new
from mtf_jax.serving.load import load_policy
from mtf_jax.serving.world_features import observation_features
from mtf_jax.studies.progressive.served import read_run_policy
from mtf_jax.training.metrics import shown_steps

_RUN = launch.define_in_dir(
  "run", "runs/progressive", "Folder of a progressive run."
)
_ROUND = flags.DEFINE_integer(
  "round", None, "Round whose policy to export; the last one if not given.", 1
)
_SEED = launch.define_seed("seed", None, "Seed, if not the run's first.")
_LEAVING = flags.DEFINE_string(
  "leaving", None, "Leaving model, if not the run's first."
)
_LEARNER = flags.DEFINE_string(
  "learner", None, "Learner, if not the run's first."
)
_HALF_WIDTH = flags.DEFINE_float(
  "half_width",
  HALF_WIDTH,
  "Of the box explored in around the policy; 0 does not explore.",
  0.0,
  2.0,
)
_OUT_DIR = launch.define_out_dir(None)


def main() -> None:
  """Reads the policy, exports it, and loads what was written."""
  require_new(_OUT_DIR.value)
  found = read_run_policy(
    _RUN.value,
    round_number=_ROUND.value,
    seed=_SEED.value,
    leaving=_LEAVING.value,
    learner=_LEARNER.value,
    half_width=_HALF_WIDTH.value,
    on_step=shown_steps("steps"),
  )
  export_policy(
    _OUT_DIR.value,
    found.served,
    observation_features(found.world),
    mean=found.normalization.mean,
    scale=found.normalization.scale,
    exploration=found.exploration,
    source=found.source,
  )
  manifest = load_policy(_OUT_DIR.value).manifest
  print(", ".join(f"{name} {value}" for name, value in manifest.source.items()))
  print(
    f"{len(manifest.features)} features to {2 * len(manifest.tasks)} weights;"
    f" its self-test holds; written to {_OUT_DIR.value}"
  )


if __name__ == "__main__":
  launch.run(main)
