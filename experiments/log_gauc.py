"""MTF-GAUC on a real log's held-out days: what ES and the policies order best.

  python -m experiments.log_gauc --world=kuairand.world \
    --log_dir=../shared/data/kuairand_pure --run=runs/progressive_kuairand \
    --out=log_gauc.json

`--run` is the folder of `experiments.progressive --world=kuairand.world`, all of
its seeds, leaving models and critics are judged. The
ranker is trained again as `fit_world` did; `--test_from` and `--seed` must be
those of the fit. Needs the `data` extra.
"""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import app, flags, logging

from mtf_jax.evaluation import held_out, log_gauc
from mtf_jax.training import finished, progressive_report
from mtf_jax.worlds import files, session
from mtf_jax.worlds.world import fingerprint

_LOG_DIR = flags.DEFINE_string(
  "log_dir",
  os.environ.get("MTF_JAX_KUAIRAND", "../shared/data/kuairand_pure"),
  "Folder in KuaiRand's own layout.",
  allow_override=True,  # absl's logging has a flag of this name, unused here
)
_WORLD = flags.DEFINE_string("world", "kuairand.world", "Fitted world file.")
_RUN = flags.DEFINE_string(
  "run", "runs/progressive", "Folder of a progressive run in that world."
)
_OUT = flags.DEFINE_string("out", "log_gauc.json", "JSON file to write.")
_TEST_FROM = flags.DEFINE_integer(
  "test_from", 20220505, "First held-out day, as in the fit."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the fit.")


def main(argv: Sequence[str]) -> None:
  """Judges all policies of the run, prints the tables, writes the JSON."""
  if len(argv) > 1:
    raise app.UsageError(f"unexpected arguments: {argv[1:]}")
  # Orbax reports every step.
  logging.set_verbosity(logging.WARNING)
  world = files.load_world(_WORLD.value)
  # Leaving model -> seed -> name -> policy.
  policies: dict[str, Any] = {}
  for found in finished.read_policies(_RUN.value, world):
    of_leaving = policies.setdefault(found.leaving, {})
    of_leaving.setdefault(str(found.seed), {}).update(
      {
        log_gauc.BASE: (session.fixed_action, found.es),
        f"one round, critic {found.critic}": (found.act, found.one_round),
        f"progressive, critic {found.critic}": (found.act, found.progressive),
      }
    )
  rows = held_out.read(
    _LOG_DIR.value, world, test_from=_TEST_FROM.value, seed=_SEED.value
  )
  dates = np.unique(rows.date)
  if len(dates) < 2:
    raise app.UsageError(
      f"--test_from: expected two held-out days or more, found {dates}."
    )
  weights = log_gauc.references(rows.on(dates[:1]), world.fusion_spec)
  result = {
    "fingerprint": fingerprint(world),
    "run": _RUN.value,
    "chosen_on": int(dates[0]),
    "days": [],
  }
  for judged_on in (dates[1:], dates):
    part = rows.on(judged_on)
    figures = {
      leaving: log_gauc.judge(part, world.fusion_spec, weights, runs)
      for leaving, runs in policies.items()
    }
    result["days"].append({"dates": judged_on.tolist(), "leaving": figures})
    for leaving, found in figures.items():
      title = f"{leaving}, days {', '.join(map(str, judged_on))}"
      print(progressive_report.text(log_gauc.table(title, found)))
  text = json.dumps(result, indent=1, allow_nan=False)
  pathlib.Path(_OUT.value).write_text(text, encoding="utf-8")
  print(_OUT.value)


if __name__ == "__main__":
  app.run(main)
