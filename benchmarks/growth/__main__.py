"""Measures how the cost of updates and sessions grows, axis by axis.

  taskset -c 0 python -m benchmarks.growth --json_out=growth.json

Cost is processor time: of an update of all runs that are trained at once, or of
a batch of sessions. An exponent is the slope from the size before on two
logarithmic axes, so 1 is in proportion and 0 is no growth. Results are written
after each axis, so that a run that is stopped has those.
"""

from typing import Any

from absl import flags

from benchmarks import harness
from benchmarks.growth import rows, sessions, updates
from experiments import launch
from mtf_jax.io import InputError

# name -> (unit of the size, what measures it in so many rounds).
AXES = {
  "critics": ("critics", updates.critics),
  "batch": ("transitions of a batch", updates.batch),
  "seeds": ("runs at once", updates.seeds),
  "sessions": ("sessions side by side", sessions.sessions),
  "candidates": ("candidates of a request", sessions.candidates),
  "slate": ("items of a slate", sessions.slate),
  "rows": ("rows of the log", rows.measure),
}
_AXES = flags.DEFINE_list("axes", list(AXES), "Which; all if omitted.")


def table(result: dict[str, Any]) -> str:
  """Every size of an axis with cost, exponent and shares of ceilings.

  Rates a second are in the result alone: they are this machine's.
  """
  columns = list(result["curves"][0]["points"][0]["share_of"])
  lines = []
  for curve in result["curves"]:
    for number, point in enumerate(curve["points"]):
      exponent = ""
      if number:
        step = curve["steps"][number - 1]["exponent"]
        exponent = harness.with_interval(**step)
      lines.append(
        [
          curve["curve"],
          f"{point['size']:,}",
          harness.with_interval(**point["cost_over_first"], spec=".3g"),
          exponent,
          *(f"{point['share_of'][name]['value']:.0%}" for name in columns),
        ]
      )
  return harness.markdown_table(
    [
      *("curve", result["unit"], "cost", "exponent"),
      *(f"of {name}" for name in columns),
    ],
    lines,
  )


def main() -> None:
  """Measures axis by axis, writes after each, prints tables."""
  if not _AXES.value or not set(_AXES.value) <= set(AXES):
    raise InputError(
      f"--axes: expected some of {', '.join(AXES)}, found"
      f" {','.join(_AXES.value)!r}."
    )
  # At the start: what is being measured is what was loaded.
  environment = harness.environment()
  axes: dict[str, Any] = {}
  for name in _AXES.value:
    harness.say(name)
    unit, measure = AXES[name]
    axes[name] = {"unit": unit, **measure(harness.REPEATS.value)}
    if harness.JSON_OUT.value:
      harness.write_json(
        harness.JSON_OUT.value,
        {"environment": environment, "axes": axes},
      )
    print(f"{name}\n\n{table(axes[name])}\n", flush=True)


if __name__ == "__main__":
  launch.run(main)
