"""MTF-GAUC on a real log's held-out days: what ES and the policies order best.

  python -m experiments.log_gauc --world=kuairand.world \
    --log_dir=kuairand_pure --run=runs/progressive_kuairand \
    --out=runs/log_gauc.json

`--run` is the folder of `experiments.progressive --world=kuairand.world`; all
its seeds, leaving models and learners are evaluated. The ranker is trained again
as `fit_world` did; `--test_from`, `--fit_before` and `--seed` must be those of
the fit, `--judge_from` is free: from `--fit_before` on nothing was fitted. Needs
the `data` extra.
"""

import pathlib
from typing import Any

import numpy as np
from absl import flags

from experiments import launch, worlds
from mtf_jax.data import kuairand
from mtf_jax.evaluation import tables
from mtf_jax.io import write_json
from mtf_jax.steps import Steps
from mtf_jax.studies.log_gauc import held_out, log_gauc
from mtf_jax.studies.progressive import finished
from mtf_jax.training.metrics import shown_steps
from mtf_jax.worlds.world import World, fingerprint

_LOG_DIR = launch.define_in_dir(
  "log_dir",
  None,
  "Folder in KuaiRand's own layout; that of the environment variable"
  " MTF_JAX_KUAIRAND if not given.",
)
_WORLD = launch.define_in_file(
  "world", "kuairand.world", "Fitted world file.", worlds.EXPECTED
)
_RUN = launch.define_in_dir(
  "run", "runs/progressive", "Folder of a progressive run in that world."
)
_OUT = launch.define_out_file(
  "out", "runs/log_gauc.json", "JSON file to write."
)
_TEST_FROM = flags.DEFINE_integer(
  "test_from", 20220505, "Ranker's first held-out day, as in the fit.", 1
)
_FIT_BEFORE = flags.DEFINE_integer(
  "fit_before", None, "First day that the fit did not see, as in the fit.", 1
)
_JUDGE_FROM = flags.DEFINE_integer(
  "judge_from", None, "First day to judge on; --test_from if not given.", 1
)
_MAX_UNKNOWN_SHARE = launch.define_max_unknown_share()
_SEED = launch.define_seed("seed", 0, "Seed of the fit.")


def _read_policies(run_dir: str, world: World) -> dict[str, Any]:
  """Leaving model -> seed -> name -> policy."""
  policies: dict[str, Any] = {}
  with launch.refusals("--run: "):
    for found in finished.read_policies(run_dir, world):
      of_leaving = policies.setdefault(found.leaving, {})
      of_seed = of_leaving.setdefault(str(found.seed), {})
      of_seed[found.name] = (found.act, found.params)
  return policies


def _title(leaving: str, evaluated_on: np.ndarray, chosen_on: int) -> str:
  """Says where the best weights were chosen, and if that is in-sample."""
  title = f"{leaving}, days {', '.join(map(str, evaluated_on))}"
  title += f"; best weights chosen on {chosen_on}"
  return f"{title} (one of these days)" if chosen_on in evaluated_on else title


def main() -> None:
  """Evaluates all policies of the run, prints the tables, writes the JSON."""
  world = worlds.load(_WORLD.value)
  with launch.refusals("--"):
    log_dir = kuairand.log_folder(_LOG_DIR.value)
  policies = _read_policies(_RUN.value, world)
  with launch.refusals():  # They name the flags themselves.
    rows = held_out.read(
      log_dir,
      world,
      test_from=_TEST_FROM.value,
      seed=_SEED.value,
      fit_before=_FIT_BEFORE.value,
      judge_from=_JUDGE_FROM.value,
      max_unknown_share=_MAX_UNKNOWN_SHARE.value,
      on_step=shown_steps("epochs"),
    )
  dates = np.unique(rows.date)
  weights = log_gauc.references(rows.on(dates[:1]), world.fusion_spec)
  result = {
    "fingerprint": fingerprint(world),
    "run": _RUN.value,
    "note": log_gauc.note(_FIT_BEFORE.value),
    "chosen_on": int(dates[0]),
    "days": [],
  }
  parts = (dates[1:], dates)
  steps = Steps(len(parts) * len(policies), shown_steps("steps"))
  for evaluated_on in parts:
    part, figures = rows.on(evaluated_on), {}
    for leaving, runs in policies.items():
      figures[leaving] = log_gauc.evaluate(
        part, world.fusion_spec, weights, runs
      )
      steps.count(1)
    result["days"].append({"dates": evaluated_on.tolist(), "leaving": figures})
    for leaving, found in figures.items():
      title = _title(leaving, evaluated_on, dates[0])
      print(tables.text(log_gauc.table(title, found, _FIT_BEFORE.value)))
  out = pathlib.Path(_OUT.value)
  out.parent.mkdir(parents=True, exist_ok=True)
  write_json(out, result)
  print(out)


if __name__ == "__main__":
  launch.run(main)
