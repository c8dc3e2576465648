"""Audits a world: Markdown, PNG figures and `audit.json`.

  python -m experiments.audit_world --world=synthetic --preset=smoke \
    --out_dir=runs/audit
  python -m experiments.audit_world --world=kuairand.world --preset=full \
    --log_dir=kuairand_pure --out_dir=runs/audit_kuairand

Needs the `plots` extra; with `--log_dir` the `data` extra too.
"""

import pathlib

from absl import flags

from experiments import launch, worlds
from mtf_jax.fitting import synthetic
from mtf_jax.io import write_json, write_text
from mtf_jax.studies.audit import audit
from mtf_jax.studies.audit import effort as effort_lib
from mtf_jax.studies.audit import report as audit_report
from mtf_jax.training.metrics import shown_steps

_WORLD = worlds.define_world()
_SIZE = flags.DEFINE_enum(
  "size", None, list(synthetic.SIZES), "Size of the synthetic world."
)
_WORLD_SEED = launch.define_seed("world_seed", 0, "Of the synthetic world.")
_PRESET = flags.DEFINE_enum(
  "preset", "smoke", list(effort_lib.PRESETS), "Effort."
)
_LOG_DIR = launch.define_in_dir(
  "log_dir",
  None,
  "KuaiRand folder that the world was fitted to: its users are then asked for what"
  " they were really shown, and every day's rates are compared with fits to the"
  " others.",
)
_FIT_BEFORE = flags.DEFINE_integer(
  "fit_before", None, "First day that the fit did not see, as in the fit.", 1
)
_JUDGE_FROM = flags.DEFINE_integer(
  "judge_from", None, "First day to compare on; all days if not given.", 1
)
_MAX_UNKNOWN_SHARE = launch.define_max_unknown_share()
_OUT_DIR = launch.define_out_dir("runs/audit")


def main() -> None:
  """Audits, writes, prints the summary."""
  size = _SIZE.value or ("small" if _PRESET.value == "smoke" else "base")
  world = worlds.make_or_load(_WORLD.value, size, _WORLD_SEED.value)
  reference = found = days = None
  if _LOG_DIR.value is not None:
    from mtf_jax.studies.audit import held_out_days

    with launch.refusals():  # They name the flag, or file, row and column.
      reference, found = held_out_days.own_log_comparison(
        world,
        _LOG_DIR.value,
        fit_before=_FIT_BEFORE.value,
        judge_from=_JUDGE_FROM.value,
        max_unknown_share=_MAX_UNKNOWN_SHARE.value,
      )
      days = held_out_days.days_left_out(
        _LOG_DIR.value,
        days_per_fold=2,
        num_fits=2,
        seed=0,
        max_unknown_share=_MAX_UNKNOWN_SHARE.value,
        on_step=shown_steps("steps"),
      )
  result = audit.audit(
    world,
    effort_lib.PRESETS[_PRESET.value],
    reference=reference,
    found=found,
    on_step=shown_steps("sessions"),
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
  launch.run(main)
