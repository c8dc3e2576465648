"""Trades seconds watched against valid consumption, from a run that is done.

  python -m experiments.pareto --run=runs/progressive --out_dir=runs/pareto

Of a learner in closed form, or of one that learnt with the weights as an input: its
single batch gives the policy of any weights of the two reward groups, and each is
judged on the run's sessions. Nothing is trained, and nothing in the run's folder
changes. Matplotlib (the `plots` extra) adds a picture.
"""

import importlib.util
import pathlib
import sys

from absl import flags

from experiments import launch
from mtf_jax.evaluation.tables import text as table_text
from mtf_jax.io import json_text, replacing
from mtf_jax.studies.pareto import front
from mtf_jax.studies.progressive.served import read_single_batch
from mtf_jax.training.metrics import shown_steps

_RUN = launch.define_in_dir(
  "run", "runs/progressive", "Folder of a progressive run."
)
_SEED = launch.define_seed("seed", None, "Seed, if not the run's first.")
_LEAVING = flags.DEFINE_string(
  "leaving", None, "Leaving model, if not the run's first."
)
_LEARNER = flags.DEFINE_string(
  "learner", None, "Learner, if not the run's first."
)
_OUT_DIR = launch.define_out_dir("runs/pareto")


def main() -> None:
  """Judges the policies, writes figures and picture, prints the table."""
  found = read_single_batch(
    _RUN.value,
    seed=_SEED.value,
    leaving=_LEAVING.value,
    learner=_LEARNER.value,
    on_step=shown_steps("steps"),
  )
  result = front.measure(found, on_step=shown_steps("policies"))
  out_dir = pathlib.Path(_OUT_DIR.value)
  out_dir.mkdir(parents=True, exist_ok=True)
  written = [out_dir / "pareto.json"]
  with replacing(written[0]) as file:
    file.write(f"{json_text(result, indent=1)}\n".encode())
  if importlib.util.find_spec("matplotlib") is None:
    print(
      "No pareto.png: matplotlib (the `plots` extra) is not installed.",
      file=sys.stderr,
    )
  else:
    from mtf_jax.studies.pareto import picture

    written.append(out_dir / "pareto.png")
    picture.save(result, written[-1])
  print(table_text(front.table(result)))
  print("\n".join(map(str, written)))


if __name__ == "__main__":
  launch.run(main)
