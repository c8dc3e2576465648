import io
import json
import pty
import resource
from typing import NamedTuple

import numpy as np
import pytest

from mtf_jax.io import InputError
from mtf_jax.steps import Steps
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


ROWS = b'{"step": 10}\n{"step": 20}\n'


@pytest.mark.parametrize(
  ("torn", "steps"),
  [
    (b'{"step": 4', [10, 20]),
    (b"\x00\x00\xff", [10, 20]),
    (b"30", [10, 20]),
    # All but its end.
    (b'{"step": 15}', [10, 20, 15]),
  ],
)
def test_what_a_kill_leaves_of_a_line_is_dropped(tmp_path, torn, steps):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(ROWS + torn)
  metrics.MetricsWriter(path, 20).write({"step": 30})
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  assert [row["step"] for row in rows] == [*steps, 30]


@pytest.mark.parametrize(
  ("line", "found"),
  [
    (b"7", "b'7'"),
    (b"[10]", r"b'\[10\]'"),
    (b'{"loss": 1.5}', "loss"),
    (b'{"step": "10"}', "step"),
    (b'{"step": true}', "step"),
    (b'{"step": 1\xff}', r"step.*\\xff"),
    (b"", "b''"),
    (b"[" * 100_000, r"\["),
  ],
)
@pytest.mark.parametrize("place", [1, 3])
def test_a_line_that_is_no_row_is_refused(tmp_path, line, found, place):
  """Rows before and after it are not lost on its account."""
  path = tmp_path / "metrics.jsonl"
  lines = ROWS.splitlines()
  lines.insert(place - 1, line)
  content = b"\n".join(lines) + b"\n"
  path.write_bytes(content)
  with pytest.raises(
    InputError,
    match=rf"metrics\.jsonl: expected .* in line {place}, found .*{found}.*;"
    " delete the line, or move the file away",
  ):
    metrics.MetricsWriter(path, 20)
  assert path.read_bytes() == content


def test_a_full_disk_is_a_sentence(tmp_path):
  """The file size limit makes writes fail as a full disk does."""
  path = tmp_path / "metrics.jsonl"
  writer = metrics.MetricsWriter(path, 0)
  writer.write({"step": 10})
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (16, limits[1]))
  try:
    with pytest.raises(InputError, match=r"jsonl: could not be written \(File"):
      writer.write({"step": 20})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  # The part that found room is dropped.
  metrics.MetricsWriter(path, 10).write({"step": 20})
  assert path.read_text() == '{"step": 10}\n{"step": 20}\n'


def test_a_mean_of_large_numbers_is_finite():
  large = np.full(4, 3e38, np.float32)
  row = metrics.summarize(_Metrics(large, large, large))
  assert row["loss"] == pytest.approx(3e38)


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


def test_progress_on_a_pseudo_terminal_overwrites_its_line(monkeypatch):
  clock = iter([0.0, 1.0, 2.0])
  monkeypatch.setattr(metrics.time, "monotonic", lambda: next(clock))
  reader, writer = pty.openpty()
  with open(reader, "rb", buffering=0) as shown, open(writer, "w") as terminal:
    progress = metrics.Progress(0, 40, terminal)
    for step in (10, 20, 40):
      progress.update(step)
    # The kernel hands over what was written a part at a time.
    found = b""
    while not found.endswith(b"\n"):
      found += shown.read(1000)
  text = found.decode()
  first, second, last = text.split("\r")[1:4]
  assert first.startswith("[#####---------------] 10/40 (25%), compiled")
  assert "20/40 (50%), 10.0 updates/s, 0:00:02 left" in second
  assert last.startswith("[####################] 40/40 (100%)")
  # One line, ended when all is done.
  assert "\n" not in first + second and text.count("\n") == 1


def test_progress_is_a_plain_line_every_half_minute_in_a_file(monkeypatch):
  clock = iter([0.0, 29.0, 31.0, 60.0, 62.0])
  monkeypatch.setattr(metrics.time, "monotonic", lambda: next(clock))
  stream = io.StringIO()
  progress = metrics.Progress(0, 100, stream)
  for step in (10, 20, 41, 60, 72):
    progress.update(step)
  assert stream.getvalue() == (
    "41/100 (41%), 1.0 updates/s, 0:00:59 left\n"
    "72/100 (72%), 1.0 updates/s, 0:00:28 left\n"
  )


def test_steps_that_are_counted_have_a_bar_each(monkeypatch):
  """From nothing on, in their own unit; the second does not go on in the first."""
  clock = iter([0.0, 40.0, 100.0, 110.0])
  monkeypatch.setattr(metrics.time, "monotonic", lambda: next(clock))
  terminal = _Terminal()
  on_step = metrics.shown_steps("sessions", terminal)
  for total, steps in ((8, 2), (50, 20)):
    Steps(total, on_step).count(steps)
  shown = [line.strip() for line in terminal.getvalue().split("\r")[1:]]
  assert shown == [
    "[--------------------] 0/8 (0%), begun",
    "[#####---------------] 2/8 (25%), 0.05 sessions/s, 0:02:00 left",
    "[--------------------] 0/50 (0%), begun",
    "[########------------] 20/50 (40%), 2.0 sessions/s, 0:00:15 left",
  ]


def test_negative_targets_are_warned_of_once(caplog):
  warning = metrics.NegativeTargetWarning()
  warning.check({"negative_target_share": 0.0})
  warning.check({"actor_loss": 1.0})
  assert not caplog.records
  warning.check({"negative_target_share": 0.25})
  warning.check({"negative_target_share": 0.5})
  assert len(caplog.records) == 1
  assert "rewards leaving the box" in caplog.text


def test_a_multiplier_that_stays_at_its_cap_is_said_once_a_group(caplog):
  warning = metrics.MultiplierAtCapWarning()
  warning.check({"actor_loss": 1.0})
  warning.check({"multiplier_at_cap": [0.0, 0.99]})
  assert not caplog.records
  for _ in range(2):
    warning.check({"multiplier_at_cap": [0.0, 1.0]})
  assert len(caplog.records) == 1
  assert "multiplier of reward group 1 is at its cap" in caplog.text
