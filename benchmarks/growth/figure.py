"""A panel for each axis: cost against size, both logarithmic."""

from typing import Any

from mtf_jax.studies import pages

_COLUMNS = 3
_COLOURS = (pages.BLUE, pages.ORANGE)


def _panel(axes: Any, name: str, axis: dict[str, Any]) -> None:
  """One axis: medians with intervals, and the expected power beside them."""
  for curve, colour in zip(axis["curves"], _COLOURS, strict=False):
    sizes = [point["size"] for point in curve["points"]]
    costs = [point["cost_over_first"] for point in curve["points"]]
    values = [cost["value"] for cost in costs]
    spread = [cost["ci95"] or [cost["value"]] * 2 for cost in costs]
    axes.errorbar(
      sizes,
      values,
      yerr=[
        [v - low for v, (low, _) in zip(values, spread, strict=True)],
        [high - v for v, (_, high) in zip(values, spread, strict=True)],
      ],
      fmt="o-",
      color=colour,
      markersize=4,
      linewidth=1.2,
      elinewidth=0.8,
      label=curve["curve"],
    )
    # Through the last point: where the curve is above it, small sizes are dear.
    power = axis["expected_exponent"]
    axes.plot(
      [sizes[0], sizes[-1]],
      [values[-1] * (sizes[0] / sizes[-1]) ** power, values[-1]],
      "--",
      color=colour,
      linewidth=0.8,
      alpha=0.6,
    )
  axes.set(
    title=f"{name} (dashed: power {axis['expected_exponent']:g})",
    xlabel=axis["unit"],
    ylabel="cost, first size = 1",
    xscale="log",
    yscale="log",
  )
  # A decade at least: what hardly grows shall look so.
  low, high = axes.get_ylim()
  if high < 10 * low:
    middle = (low * high) ** 0.5
    axes.set_ylim(middle / 10**0.5, middle * 10**0.5)
  axes.title.set_fontsize(10)
  axes.grid(True, which="major", linewidth=0.4, alpha=0.5)
  axes.spines[["top", "right"]].set_visible(False)
  axes.legend(frameon=False, fontsize=8, loc="lower right")


def draw(result: dict[str, Any]) -> Any:
  """A figure with a panel an axis.

  Args:
    result: as `benchmarks.growth` writes it.

  Raises:
    KeyError: it is another file's.
  """
  axes = result["axes"]
  columns = min(_COLUMNS, len(axes))
  lines = -(-len(axes) // columns)
  drawn = pages.figure(3.8 * columns, 3.4 * lines)
  panels = drawn.subplots(lines, columns, squeeze=False).ravel()
  for panel, (name, axis) in zip(panels, axes.items(), strict=False):
    _panel(panel, name, axis)
  for panel in panels[len(axes) :]:
    panel.set_visible(False)
  return drawn
