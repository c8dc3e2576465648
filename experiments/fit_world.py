"""Fits the `kuairand` world to a log folder and writes one file.

  python -m experiments.fit_world --log_dir=kuairand_pure --out=kuairand.world

Needs the `data` extra.
"""

import json
from collections.abc import Sequence

from absl import app, flags

from mtf_jax.data import kuairand
from mtf_jax.fitting import kuairand_world
from mtf_jax.worlds import io as world_io

_LOG_DIR = flags.DEFINE_string(
  "log_dir",
  None,
  "Folder in KuaiRand's own layout; that of the environment variable"
  " MTF_JAX_KUAIRAND if not given.",
  allow_override=True,  # absl's logging has a flag of this name, unused here
)
_OUT = flags.DEFINE_string("out", "kuairand.world", "World file to write.")
_TEST_FROM = flags.DEFINE_integer(
  "test_from", 20220505, "First of the ranker's test days."
)
_NUM_USERS = flags.DEFINE_integer("num_users", 8192, "Users kept.", 1)
_POOL_SIZE = flags.DEFINE_integer("pool_size", 512, "Items found for a user.")
_CANDIDATES = flags.DEFINE_integer("candidates", 50, "Candidates a request.", 1)
_SLATE_SIZE = flags.DEFINE_integer("slate_size", 6, "Items shown of them.", 1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the fit.")


def main(argv: Sequence[str]) -> None:
  """Fits, prints the ranker's metrics, writes the file."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  try:
    fit = kuairand_world.fit_world(
      kuairand.log_folder(_LOG_DIR.value),
      test_from=_TEST_FROM.value,
      num_users=_NUM_USERS.value,
      pool_size=_POOL_SIZE.value,
      num_candidates=_CANDIDATES.value,
      slate_size=_SLATE_SIZE.value,
      seed=_SEED.value,
    )
  except ValueError as error:  # It names the flag, or file, row and column.
    raise app.UsageError(str(error)) from error
  print(f"rows {fit.num_rows}, exact duplicates dropped {fit.num_duplicates}")
  print("ranker on the test days:", json.dumps(fit.ranker_metrics, indent=2))
  fingerprint = world_io.save_world(_OUT.value, fit.world)
  print(f"world {fingerprint} written to {_OUT.value}")


if __name__ == "__main__":
  app.run(main)
