"""Times updates of our learners and of other trainers, in turns.

  python -m benchmarks.peers --peers_dir=PEERS --json_out=peers.json

`docs/results/peers.md` says what each of them does in an update. Without the
others, which `benchmarks.peers.install` brings, it times ours alone.
"""

import pathlib
from typing import Any

from benchmarks import harness
from benchmarks.peers import measure, trainers, workload
from experiments import launch

_PEERS_DIR = launch.define_in_dir(
  "peers_dir", None, "Folder that benchmarks.peers.install filled."
)


def _table(result: dict[str, Any]) -> str:
  others = [row["trainer"] for row in result["rows"] if not row["ours"]]

  def over(found: dict[str, Any]) -> list[str]:
    return [
      harness.with_interval(**found[name]) if name in found else ""
      for name in others
    ]

  return harness.markdown_table(
    [
      *(f"{result['critics']} critics", "updates/s", "of matrix product"),
      *("of batched contraction", *(f"speed over {name}" for name in others)),
      *(f"processor, over {name}" for name in others),
    ],
    [
      [
        row["trainer"],
        f"{row['updates_per_s']:.1f}",
        *(f"{share:.0%}" for share in row["share_of"].values()),
        *over(row["speed_over"]),
        *over(row["processor_speed_over"]),
      ]
      for row in result["rows"]
    ],
  )


def main() -> None:
  """Measures size by size, writes after each, prints tables."""
  peers_dir = _PEERS_DIR.value and pathlib.Path(_PEERS_DIR.value)
  absent = trainers.missing(peers_dir)
  if absent:
    harness.say(absent)
    peers_dir = None
  sizes: list[dict[str, Any]] = []
  for size in workload.SIZES:
    harness.say(f"{size.critics} critics")
    sizes.append(
      measure.measure(size, peers_dir, harness.REPEATS.value, harness.say)
    )
    if harness.JSON_OUT.value:
      harness.write_json(
        harness.JSON_OUT.value,
        {
          "environment": harness.environment(),
          "commits": {
            name: trainer.source.commit
            for name, trainer in trainers.TRAINERS.items()
            if trainer.source is not None and not absent
          },
          "sizes": sizes,
        },
      )
    print(_table(sizes[-1]), "\n", flush=True)


if __name__ == "__main__":
  launch.run(main)
