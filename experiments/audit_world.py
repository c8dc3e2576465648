"""Audits a world: Markdown, PNG figures and `audit.json`.

  python -m experiments.audit_world --world=synthetic --preset=smoke \
    --out_dir=runs/audit
  python -m experiments.audit_world --world=kuairand.world --preset=full \
    --log_dir=kuairand_pure --out_dir=runs/audit_kuairand

Needs the `plots` extra; with `--log_dir` the `data` extra too.
"""

import pathlib
from collections.abc import Sequence

from absl import app, flags

from experiments import worlds
from mtf_jax.fitting import synthetic
from mtf_jax.io import write_json, write_text
from mtf_jax.studies.audit import audit
from mtf_jax.studies.audit import effort as effort_lib
from mtf_jax.studies.audit import report as audit_report

_WORLD = flags.DEFINE_string(
  "world", "synthetic", "A world file, or `synthetic`."
)
_SIZE = flags.DEFINE_enum(
  "size", None, list(synthetic.SIZES), "Size of the synthetic world."
)
_WORLD_SEED = flags.DEFINE_integer("world_seed", 0, "Of the synthetic world.")
_PRESET = flags.DEFINE_enum(
  "preset", "smoke", list(effort_lib.PRESETS), "Effort."
)
_LOG_DIR = flags.DEFINE_string(
  "log_dir",
  None,
  "KuaiRand folder: response models fitted to the days before `test_from` are"
  " then compared with the impressions of the days from it on, and with every"
  " day's after a fit to the others.",
  allow_override=True,  # absl's logging has a flag of this name, unused here
)
_TEST_FROM = flags.DEFINE_integer("test_from", 20220505, "First held-out day.")
_OUT_DIR = flags.DEFINE_string("out_dir", "runs/audit", "Folder to write into.")


def main(argv: Sequence[str]) -> None:
  """Audits, writes, prints the summary."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  size = _SIZE.value or ("small" if _PRESET.value == "smoke" else "base")
  world = worlds.make_or_load(_WORLD.value, size, _WORLD_SEED.value)
  reference = found = days = None
  if _LOG_DIR.value is not None:
    from mtf_jax.studies.audit import held_out_days

    try:
      reference, found = held_out_days.held_out_comparison(
        _LOG_DIR.value, test_from=_TEST_FROM.value, seed=0
      )
      days = held_out_days.days_left_out(
        _LOG_DIR.value, days_per_fold=2, num_fits=2, seed=0
      )
    except ValueError as error:  # It names the flag, or file, row and column.
      raise app.UsageError(str(error)) from error
  result = audit.audit(
    world, effort_lib.PRESETS[_PRESET.value], reference=reference, found=found
  )
  if days is not None:
    result["days_left_out"] = days
  out_dir = pathlib.Path(_OUT_DIR.value)
  out_dir.mkdir(parents=True, exist_ok=True)
  write_json(out_dir / "audit.json", result)
  audit_report.draw(result, out_dir)
  report = audit_report.markdown(result)
  write_text(out_dir / "audit.md", report)
  print(report)


if __name__ == "__main__":
  app.run(main)
