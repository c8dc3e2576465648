"""How cost grows: exponents, regimes, what is left out, the picture."""

import collections
import pathlib

import jax
import pytest

from benchmarks import harness, learner
from benchmarks.growth import __main__ as launcher
from benchmarks.growth import curves, figure, rows, updates
from benchmarks.peers import workload


def _window(seconds):
  return lambda: workload.Window(2 * seconds, seconds)


def _axis(costs, expected=1.0):
  """An axis of made-up costs: curve -> size -> processor seconds."""
  ceiling = curves.Ceiling("product", _window(0.5), 10.0)
  cases = [
    curves.Case(curve, size, _window(seconds), 3.0, {"it": (ceiling, size)})
    for curve, points in costs.items()
    for size, seconds in points.items()
  ]
  return {"unit": "items", **curves.measure_axis(cases, 6, expected)}


def test_exponents_are_slopes_of_logarithms():
  sizes = [1, 2, 8, 10]
  # 1, then linear, then the square, with a machine twice as slow in round two.
  seconds = [[1, 2], [1, 2], [4, 8], [6.25, 12.5]]
  steps = curves.exponents(sizes, seconds)
  assert [(step["from"], step["to"]) for step in steps] == [
    *((1, 2), (2, 8), (8, 10)),
  ]
  found = [step["exponent"]["value"] for step in steps]
  assert found == pytest.approx([0, 1, 2])


def test_a_regime_is_the_longest_stretch_near_its_power():
  def found(expected, *exponents, spread=()):
    costs = [1.0]
    for exponent in exponents:
      costs.append(costs[-1] * 2**exponent)
    rounds = [[cost * 2**more for more in spread or [0.0]] for cost in costs]
    sizes = [2**n for n in range(len(costs))]
    stretch = curves.regime(sizes, rounds, expected)
    return stretch and (
      stretch["from"],
      stretch["to"],
      pytest.approx(stretch["exponent"]["value"]),
    )

  assert found(1, 0.3, 1.05, 0.95, 1.4, 1.0) == (2, 8, 1.0)
  assert found(1, 1.0, 2.0, 1.0) == (1, 2, 1.0)
  assert found(0, 0.05, 0.8) == (1, 2, 0.05)
  assert found(1, 0.5, 2.0) is None
  # What a whole round has more or less is no step's.
  assert found(1, 0.5, 1.0, spread=range(6)) == (2, 4, 1.0)
  # A step whose rounds do not agree does not speak against it.
  assert curves.regime([1, 2], [[1.0] * 6, [1.2, 1.2, 1.2, 1.3, 1.9, 2.5]], 1)


def test_an_axis_of_made_up_costs():
  axis = _axis({"few": {1: 0.1, 10: 1.0, 100: 20.0}, "many": {1: 1.0}})
  few, many = axis["curves"]
  assert axis["ceilings_per_s"] == {"product": 20.0}
  assert (few["regime"]["from"], few["regime"]["to"]) == (1, 10)
  assert many["regime"] is None
  assert [step["exponent"]["value"] for step in few["steps"]] == pytest.approx(
    [1, 1.30103], abs=1e-5
  )
  last = few["points"][2]
  assert last["per_s"] == pytest.approx(0.15)
  assert last["per_s_on_the_clock"] == pytest.approx(0.075)
  # 100 operations in 20 seconds, of 20 a second.
  assert last["share_of"]["it"]["value"] == pytest.approx(0.25)
  assert last["cost_over_first"]["value"] == pytest.approx(200)
  assert many["points"][0]["cost_over_first"]["value"] == pytest.approx(10)
  table = launcher.table(axis).splitlines()
  assert len(table) == 2 + 4
  assert "1.30 [1.30, 1.30] | 25% |" in table[4]


def test_the_picture_has_a_panel_an_axis(tmp_path):
  axis = _axis({"few": {1: 0.1, 10: 1.0}, "many": {1: 1.0, 10: 4.0}})
  drawn = figure.draw({"axes": dict.fromkeys("abcd", axis)})
  panels = [axes for axes in drawn.axes if axes.get_visible()]
  assert len(panels) == 4
  for axes in panels:
    assert axes.get_xscale() == axes.get_yscale() == "log"
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["few", "many"]
  with pytest.raises(KeyError, match="axes"):
    figure.draw({})


def test_a_window_is_shared_by_its_updates(monkeypatch):
  calls = []
  healthy = collections.namedtuple("state", "healthy")

  def compile_updates(size, dataset, num_updates):
    def run(state, rows):
      calls.append(rows)
      return state._replace(healthy=len(calls) < 4), None

    return run, healthy(True)

  # Compiles for half a minute.
  monkeypatch.setattr(learner, "compile_updates", compile_updates)
  monkeypatch.setattr(updates, "_budget", lambda: 1.0)
  monkeypatch.setattr(
    workload, "timed", lambda run, n: (run(n), _window(8)())[1]
  )
  ceilings = {"matrix_product": curves.matrix_product(64)}
  size = learner.Workload(ensemble_size=1, batch_size=8, seeds=2)
  case = updates._case("2 critics", 2, size, "rows", ceilings)
  assert case.done == 2 and case.facts["updates_of_a_window"] == 2
  # The first dispatch warms up.
  assert case.window() == workload.Window(8, 4) and calls == ["rows"] * 2
  of_shape, operations = case.shares["contraction of its shape"]
  # Two critics of two runs, batches of 8; 16 products one after another.
  assert of_shape.name == "contraction 4 x 8"
  assert of_shape.operations == 16 * 2 * 4 * 8 * 256**2
  assert operations == learner.flops(size)
  case.window()
  with pytest.raises(FloatingPointError, match="not finite"):
    case.window()


def test_logs_that_do_not_fit_are_named(monkeypatch, tmp_path):
  monkeypatch.setattr(rows, "_Updates", _Fake)
  usage = collections.namedtuple("usage", "free")
  # Room for 3,000 rows of 400 bytes and for one copy of 1,000.
  monkeypatch.setattr(rows.shutil, "disk_usage", lambda _: usage(2_000_000))
  monkeypatch.setattr(harness, "free_memory_bytes", lambda: 1_200_000)
  cases, left_out = rows._cases(tmp_path, (1000, 2000, 9000), 200, 1)
  found = [(case.curve, case.size) for case in cases]
  assert found == [("resident", 1000), ("streamed", 2000)]
  assert list(left_out) == ["2000 resident", "9000"]
  assert "GiB free" in left_out["9000"]
  # One folder for all sizes.
  assert len(list(pathlib.Path(tmp_path).glob("*.npz"))) == 10


class _Fake:
  """Trains on nothing."""

  def __init__(self, rows, num_updates):
    if not callable(rows):
      assert jax.tree.leaves(rows)
    self.bytes_read = []
    self.window = _window(1.0)
