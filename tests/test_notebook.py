"""The notebook runs as it is, and shows what it drew."""

import os
import pathlib

import pytest

_NOTEBOOK = pathlib.Path(__file__).parents[1] / "docs" / "first_look.ipynb"


def _outputs(notebook):
  """`(cell number, output)` of all code cells."""
  return [
    (number, output)
    for number, cell in enumerate(notebook.cells)
    for output in cell.get("outputs", ())
  ]


def _pictures(notebook):
  """Numbers of the cells that show a picture."""
  return [
    number
    for number, output in _outputs(notebook)
    if "image/png" in output.get("data", {})
  ]


def test_the_first_look_runs_and_draws_its_figures(tmp_path, monkeypatch):
  nbclient = pytest.importorskip("nbclient", reason="nbclient is missing")
  nbformat = pytest.importorskip("nbformat", reason="nbformat is missing")
  pytest.importorskip("ipykernel", reason="ipykernel is missing")
  root = str(_NOTEBOOK.parents[1])
  monkeypatch.setenv("PYTHONPATH", root, prepend=os.pathsep)
  committed = nbformat.read(_NOTEBOOK, as_version=4)
  # As committed it was run from above to below, with a figure in every part
  # but the world's.
  shown = _pictures(committed)
  assert len(shown) == 4
  counts = [
    cell.execution_count for cell in committed.cells if "outputs" in cell
  ]
  assert counts == list(range(1, len(counts) + 1))
  again = nbformat.from_dict(committed)
  nbclient.NotebookClient(
    again,
    timeout=900,
    kernel_name="python3",
    resources={"metadata": {"path": str(tmp_path)}},
  ).execute()
  assert _pictures(again) == shown
  said = "".join(output.get("text", "") for _, output in _outputs(again))
  # Other processors round otherwise; more than that would be a fault.
  gain = said.split("reward ")[-1].split("%")[0]
  assert float(gain) > 0
  assert "slate [" in said
