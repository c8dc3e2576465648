"""What TensorBoard would read from the event files."""

import pathlib
import struct

import pytest

from mtf_jax.io import InputError
from mtf_jax.training import tensorboard
from mtf_jax.training.metrics import MetricsWriter

_WITHOUT = "the extra `tensorboard` is not installed"


def _events(folder):
  """All events of a folder's own files: length, check, event, check."""
  event_pb2 = pytest.importorskip("tensorboardX.proto.event_pb2")
  found = []
  for path in sorted(pathlib.Path(folder).glob("events*")):
    content = path.read_bytes()
    while content:
      (size,) = struct.unpack("<Q", content[:8])
      found.append(event_pb2.Event.FromString(content[12 : 12 + size]))
      content = content[16 + size :]
  return found


def _curves(folder):
  return {
    (value.tag, event.step): value.simple_value
    for event in _events(folder)
    for value in event.summary.value
    if value.WhichOneof("value") == "simple_value"
  }


def test_rows_are_curves_beside_the_file(tmp_path):
  pytest.importorskip("tensorboardX", reason=_WITHOUT)
  board = tensorboard.TensorBoard(tmp_path / "tensorboard", 0)
  writer = MetricsWriter(tmp_path / "metrics.jsonl", 0, board)
  writer.write({"step": 10, "time": 5.0, "loss": 0.5, "updates_per_s": None})
  writer.write({"step": 20, "seed": 3, "q_mean": [1.0, 2.0]})
  board.close()
  assert _curves(tmp_path / "tensorboard") == {
    ("loss", 10): 0.5,
    ("seed_3/q_mean/0", 20): 1.0,
    ("seed_3/q_mean/1", 20): 2.0,
  }
  assert (tmp_path / "metrics.jsonl").read_text().count("\n") == 2


def test_a_resumed_run_hides_what_came_after_its_checkpoint(tmp_path):
  pytest.importorskip("tensorboardX", reason=_WITHOUT)
  for step in (0, 20):
    board = tensorboard.TensorBoard(tmp_path, step)
    board.write({"step": step + 10, "loss": 1.0})
    board.close()
  starts = [
    event.step
    for event in _events(tmp_path)
    # 1 is START: readers drop earlier events from that step on.
    if event.HasField("session_log") and event.session_log.status == 1
  ]
  assert starts == [1, 21]


def test_settings_and_final_figures_are_hparams(tmp_path):
  pytest.importorskip("tensorboardX", reason=_WITHOUT)
  board = tensorboard.TensorBoard(tmp_path, 0)
  config = {"learner": "bc", "hyperparams": {"a": 0.5, "b": (1, 2)}}
  board.finish(config, {"loss": 0.25}, 40)
  board.close()
  final = tmp_path / "final"
  assert _curves(final) == {("final/loss", 40): 0.25}
  plugins = [
    value.metadata.plugin_data
    for event in _events(final)
    for value in event.summary.value
  ]
  content = b"".join(
    plugin.content for plugin in plugins if plugin.plugin_name == "hparams"
  )
  for text in (b"learner", b"hyperparams.a", b"hyperparams.b", b"(1, 2)"):
    assert text in content
  assert b"final/loss" in content


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  with pytest.raises(InputError, match=r"tensorboardX: .*`tensorboard` brings"):
    tensorboard.TensorBoard(tmp_path / "new", 0)
  assert not list(tmp_path.iterdir())
