"""Remakes the constants that the package ships from a log folder.

  python -m experiments.fit_constants --log_dir=kuairand_pure \
    --out_dir=runs/constants

writes `kuairand_population.json`, which synthetic worlds are drawn from, and
`kuairand_reference.json`, which audits compare with; aggregates alone. They take
effect once they replace `mtf_jax/fitting/kuairand_population.json` and
`mtf_jax/studies/audit/kuairand_reference.json`; every synthetic world, its
fingerprint included, is then another. Needs the `data` extra.
"""

import pathlib

import numpy as np
from absl import flags

from experiments import launch
from mtf_jax.data import kuairand
from mtf_jax.fitting import population as population_lib
from mtf_jax.fitting.response_fit import NUM_STEPS, fit_response
from mtf_jax.steps import Steps
from mtf_jax.studies.audit import held_out_days, marginals
from mtf_jax.training.metrics import shown_steps

_LOG_DIR = launch.define_in_dir(
  "log_dir",
  None,
  "Folder in KuaiRand's own layout; that of the environment variable"
  " MTF_JAX_KUAIRAND if not given.",
)
_MAX_UNKNOWN_SHARE = launch.define_max_unknown_share()
_OUT_DIR = launch.define_out_dir("runs/constants")
_SOURCE = flags.DEFINE_string(
  "source",
  "KuaiRand-Pure standard log (Gao et al., CIKM 2022, https://kuairand.com),"
  " CC BY-SA 4.0",
  "What the log is, and its licence; written into both files.",
)
_SEED = launch.define_seed("seed", 0, "Seed of the fit.")


def main() -> None:
  """Reads, fits, describes, writes both files."""
  with launch.refusals():  # They name the flag, or file, row and column.
    log_dir = kuairand.log_folder(_LOG_DIR.value)
    catalogue = kuairand.read_catalogue(log_dir)
    log, duplicates = kuairand.read_log(
      log_dir, catalogue, max_unknown_share=_MAX_UNKNOWN_SHARE.value
    )
    _, population = fit_response(
      log,
      catalogue,
      np.random.default_rng(_SEED.value),
      Steps(NUM_STEPS, shown_steps("steps")).count,
    )
  out_dir = pathlib.Path(_OUT_DIR.value)
  out_dir.mkdir(parents=True, exist_ok=True)
  days = f"{log.date.min()} to {log.date.max()}"
  source = f"{_SOURCE.value}; days {days}; aggregates only"
  population_lib.save_population(
    population, out_dir / "kuairand_population.json", source
  )
  marginals.save_reference(
    held_out_days.describe_log(log), out_dir / "kuairand_reference.json", source
  )
  print(f"rows {len(log.user)}, repetitions dropped {duplicates}")
  print(out_dir / "kuairand_population.json")
  print(out_dir / "kuairand_reference.json")


if __name__ == "__main__":
  launch.run(main)
