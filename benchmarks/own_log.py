"""A fitted world beside the log that it was fitted to: three comparisons.

  python -m benchmarks.own_log --world=kuairand.world --log_dir=kuairand_pure \
    --json_out=own_log.json

What the world's own users do when they are asked for what the log really showed
them, what the slates of the default weights bring, and both against random
videos. Aggregates alone; `experiments.audit_world` has them among all else, at a
hundred times the cost. Needs the `data` extra.
"""

from absl import flags

from benchmarks import harness
from experiments import launch, worlds
from mtf_jax.data import kuairand
from mtf_jax.studies.audit import audit, held_out_days, marginals
from mtf_jax.worlds.world import fingerprint

_WORLD = launch.define_in_file(
  "world", "kuairand.world", "Fitted world file.", worlds.EXPECTED
)
_LOG_DIR = launch.define_in_dir(
  "log_dir",
  None,
  "Folder in KuaiRand's own layout; that of the environment variable"
  " MTF_JAX_KUAIRAND if not given.",
)
_FIT_BEFORE = flags.DEFINE_integer(
  "fit_before", None, "First day that the fit did not see, as in the fit.", 1
)
_JUDGE_FROM = flags.DEFINE_integer(
  "judge_from", None, "First day to compare on; all days if not given.", 1
)
_FREQUENT = ("valid", "click", "long_view", "finish", "like")
_SESSIONS, _REQUESTS = 8192, 8


def main() -> None:
  """Compares, prints a table and writes the figures."""
  world = worlds.load(_WORLD.value)
  with launch.refusals("--"):
    log_dir = kuairand.log_folder(_LOG_DIR.value)
  with launch.refusals():  # They name the flag, or file, row and column.
    log, answers = held_out_days.own_log_comparison(
      world,
      log_dir,
      fit_before=_FIT_BEFORE.value,
      judge_from=_JUDGE_FROM.value,
    )
  slates = audit.shown_under_defaults(world, _SESSIONS, _REQUESTS)

  def over_log(found, name):
    return f"{100 * (found['rates'][name] / log['rates'][name] - 1):+.1f} %"

  print(
    harness.markdown_table(
      ["rate", "log", "same impressions", "default slates"],
      [
        [
          name,
          f"{log['rates'][name]:.4f}",
          over_log(answers, name),
          over_log(slates, name),
        ]
        for name in _FREQUENT
      ],
    )
  )
  if harness.JSON_OUT.value:
    harness.write_json(
      harness.JSON_OUT.value,
      {
        "environment": harness.environment(),
        "fingerprint": fingerprint(world),
        "rows": log["rows"],
        "log": log["rates"],
        "same_impressions": answers["rates"],
        "default_slates": slates["rates"],
        "errors_same_impressions": marginals.marginal_errors(answers, log),
        "errors_default_slates": marginals.marginal_errors(slates, log),
        **audit.ranking_gain(world, slates),
      },
    )


if __name__ == "__main__":
  launch.run(main)
