"""Fits the `kuairand` world to a log folder and writes one file.

  python -m experiments.fit_world --log_dir=kuairand_pure --out=kuairand.world

Needs the `data` extra.
"""

from absl import flags

from experiments import launch
from mtf_jax.data import kuairand
from mtf_jax.fitting import kuairand_world
from mtf_jax.io import InputError, json_text
from mtf_jax.training.metrics import shown_steps
from mtf_jax.worlds import io as world_io

_LOG_DIR = launch.define_in_dir(
  "log_dir",
  None,
  "Folder in KuaiRand's own layout; that of the environment variable"
  " MTF_JAX_KUAIRAND if not given.",
)
_OUT = launch.define_out_file("out", "kuairand.world", "World file to write.")
_TEST_FROM = flags.DEFINE_integer(
  "test_from", 20220505, "First of the ranker's test days.", 1
)
_FIT_BEFORE = flags.DEFINE_integer(
  "fit_before",
  None,
  "First day that neither ranker nor responses see, left to judge by; none if not"
  " given.",
  1,
)
_MAX_UNKNOWN_SHARE = launch.define_max_unknown_share()
_NUM_USERS = flags.DEFINE_integer("num_users", 8192, "Users kept.", 1)
_POOL_SIZE = flags.DEFINE_integer(
  "pool_size", 512, "Items found for a user, a power of two.", 1
)
_CANDIDATES = flags.DEFINE_integer("candidates", 50, "Candidates a request.", 1)
_SLATE_SIZE = flags.DEFINE_integer("slate_size", 6, "Items shown of them.", 1)
_SEED = launch.define_seed("seed", 0, "Seed of the fit.")


def _check_counts() -> None:
  """Refuses what would only fail after the fit."""
  pool, shown = _POOL_SIZE.value, _SLATE_SIZE.value
  if pool & (pool - 1):
    raise InputError(f"--pool_size: expected a power of two, found {pool}.")
  if not shown <= _CANDIDATES.value <= pool:
    raise InputError(
      "--candidates: expected at least --slate_size and at most --pool_size,"
      f" {shown} to {pool}, found {_CANDIDATES.value}."
    )


def main() -> None:
  """Fits, prints the ranker's metrics, writes the file."""
  _check_counts()
  with launch.refusals():  # They name the flag, or file, row and column.
    fit = kuairand_world.fit_world(
      kuairand.log_folder(_LOG_DIR.value),
      test_from=_TEST_FROM.value,
      num_users=_NUM_USERS.value,
      pool_size=_POOL_SIZE.value,
      num_candidates=_CANDIDATES.value,
      slate_size=_SLATE_SIZE.value,
      seed=_SEED.value,
      fit_before=_FIT_BEFORE.value,
      max_unknown_share=_MAX_UNKNOWN_SHARE.value,
      on_step=shown_steps("steps"),
    )
  print(f"rows {fit.num_rows}, repetitions dropped {fit.num_duplicates}")
  print("ranker on the test days:", json_text(fit.ranker_metrics, indent=2))
  fingerprint = world_io.save_world(_OUT.value, fit.world)
  print(f"world {fingerprint} written to {_OUT.value}")


if __name__ == "__main__":
  launch.run(main)
