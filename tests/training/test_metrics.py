import io
import json
from typing import NamedTuple

import numpy as np

from mtf_jax.training import metrics


class _Metrics(NamedTuple):
  loss: np.ndarray
  q_min: np.ndarray
  q_max: np.ndarray


def test_summary_of_a_chunk():
  row = metrics.summarize(
    _Metrics(
      np.array([1.0, 3.0], np.float32),
      np.array([[1.0, 5.0], [2.0, 4.0]], np.float32),
      np.array([[1.0, 5.0], [2.0, 4.0]], np.float32),
    )
  )
  assert row == {"loss": 2.0, "q_min": [1.0, 4.0], "q_max": [2.0, 5.0]}


def test_a_resumed_run_leaves_no_row_twice(tmp_path):
  path = tmp_path / "metrics.jsonl"
  writer = metrics.MetricsWriter(path, 0)
  for step in (10, 20, 30):
    writer.write({"step": step, "loss": 0.5})
  with path.open("a") as file:
    file.write('{"step": 4')
  writer = metrics.MetricsWriter(path, 20)
  writer.write({"step": 30, "loss": 0.25})
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert rows == [
    {"step": 10, "loss": 0.5},
    {"step": 20, "loss": 0.5},
    {"step": 30, "loss": 0.25},
  ]


class _Terminal(io.StringIO):
  def isatty(self):
    return True


def test_progress_shows_rate_and_time_left(monkeypatch):
  clock = iter([100.0, 110.0])
  monkeypatch.setattr(metrics.time, "monotonic", lambda: next(clock))
  terminal = _Terminal()
  progress = metrics.Progress(0, 1_000, terminal)
  assert progress.update(100) is None
  assert progress.update(300) == 20.0
  assert "300/1000 (30%), 20.0 updates/s, 0:00:35 left" in terminal.getvalue()


def test_progress_is_silent_in_a_file():
  stream = io.StringIO()
  metrics.Progress(0, 10, stream).update(10)
  assert not stream.getvalue()


def test_negative_targets_are_warned_of_once(caplog):
  warning = metrics.NegativeTargetWarning()
  warning.check({"negative_target_share": 0.0})
  warning.check({"actor_loss": 1.0})
  assert not caplog.records
  warning.check({"negative_target_share": 0.25})
  warning.check({"negative_target_share": 0.5})
  assert len(caplog.records) == 1
  assert "rewards leaving the box" in caplog.text
