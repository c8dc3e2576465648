import json
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from experiments import progressive as launcher
from mtf_jax.worlds import synthetic
from tests.small_world import small_world
from tests.tiny_run import TINY, tiny_algorithm

_ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture
def launch(monkeypatch):
  """Runs the launcher with a tiny preset; all runs of a test compile once."""
  monkeypatch.setitem(launcher.progressive.PRESETS, "smoke", TINY)
  world = small_world()
  monkeypatch.setattr(synthetic, "synthetic_world", lambda size, seed: world)
  monkeypatch.setattr(
    launcher.progressive,
    "make_algorithm",
    lambda config, world: tiny_algorithm(),
  )
  # Compiling the privileged search takes as long as all the rest, and the
  # library's own tests run it.
  monkeypatch.setattr(
    launcher.progressive,
    "headroom_figures",
    lambda run: {"headroom_pct": 4.0, "headroom_ci95": [3.0, 5.0]},
  )

  def run(*args):
    flags.FLAGS.unparse_flags()
    for name in ("resume", "rounds", "seeds", "leaving", "world"):
      flags.FLAGS[name].value = flags.FLAGS[name].default
    launcher.main(
      flags.FLAGS(["progressive", "--preset=smoke", *map(str, args)])
    )

  return run


def _numbers(out_dir):
  summary = json.loads((out_dir / "summary.json").read_text())
  assert summary.pop("wall_s") > 0
  return summary


def test_killed_and_resumed_ends_in_the_same_numbers(
  launch, tmp_path, monkeypatch, capsys
):
  whole = tmp_path / "whole"
  launch(f"--out_dir={whole}", "--seeds=0")
  printed = capsys.readouterr().out
  assert "round 2" in printed and "privileged optimum" in printed
  for name in ("summary.json", "report.md", "report.html"):
    assert str(whole / name) in printed
  page = (whole / "report.html").read_text()
  assert page.count("data:image/png;base64,") == 1
  assert "http" not in page and "<script" not in page

  summary = _numbers(whole)
  found = summary["seeds"]["0"]["satisfaction_floor"]
  assert {"fingerprint", "preset", "rounds"} <= summary.keys()
  assert {
    "reward_gain_pct",
    "reward_gain_ci95",
    "uvc_gain_pct",
    "udt_gain_pct",
    "session_length_gain_pct",
    "one_round_gain_pct",
    "headroom_reached",
    "exploration_cost_pct",
  } <= found.keys()

  killed = tmp_path / "killed"
  play_round = launcher.progressive.play_round

  def killed_in_second_round(run, state, number, on_chunk):
    if number == 1:
      raise KeyboardInterrupt
    return play_round(run, state, number, on_chunk)

  with monkeypatch.context() as patch:
    patch.setattr(launcher.progressive, "play_round", killed_in_second_round)
    with pytest.raises(KeyboardInterrupt):
      launch(f"--out_dir={killed}", "--seeds=0")
  assert not (killed / "summary.json").exists()
  launch(f"--out_dir={killed}", "--seeds=0", "--resume")
  assert "going on after round 1" in capsys.readouterr().err
  assert _numbers(killed) == summary
  folder = "seed_0_satisfaction_floor"
  rows = (killed / folder / "metrics.jsonl").read_text()
  assert rows == (whole / folder / "metrics.jsonl").read_text()
  steps = [json.loads(line)["step"] for line in rows.splitlines()]
  assert steps == [4, 8, 12, 16]

  with pytest.raises(launcher.app.UsageError, match="holds a run"):
    launch(f"--out_dir={whole}", "--seeds=0")
  with pytest.raises(launcher.app.UsageError, match="has another rounds"):
    launch(f"--out_dir={whole}", "--seeds=0", "--resume", "--rounds=3")
  with pytest.raises(launcher.app.UsageError, match="there is no run in"):
    launch(f"--out_dir={tmp_path / 'none'}", "--resume")


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--world=nowhere.world", "expected `synthetic` or a file that exists"),
    ("--rounds=0", "0 is not a positive integer"),
    ("--seeds=1,1", "different non-negative integers"),
    ("--seeds=x", "different non-negative integers"),
    ("--seeds=", "different non-negative integers"),
    ("--leaving=never", "different names of satisfaction_floor"),
    ("--preset=huge", "smoke"),
    ("--unknown=1", "Unknown command line flag"),
  ],
)
def test_bad_flags_are_refused(launch, tmp_path, flag, message):
  with pytest.raises(flags.Error, match=message):
    launch(f"--out_dir={tmp_path / 'run'}", flag)
  assert not (tmp_path / "run").exists()


def test_a_missing_world_fails_before_anything_runs(tmp_path):
  out_dir = tmp_path / "run"
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "experiments.progressive",
      "--world=nowhere.world",
      f"--out_dir={out_dir}",
    ],
    cwd=_ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert done.returncode != 0
  assert "expected `synthetic` or a file that exists" in done.stderr
  assert "Traceback" not in done.stderr
  assert not out_dir.exists()
