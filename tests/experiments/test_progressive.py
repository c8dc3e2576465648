import json
import pathlib
import subprocess
import sys

import pytest
from absl import flags

from experiments import progressive as launcher
from mtf_jax.fitting import synthetic
from mtf_jax.io import InputError
from mtf_jax.studies.progressive import baselines, play, study
from tests.small_world import small_world
from tests.tiny_run import TINY, tiny_study_learner

pytestmark = pytest.mark.usefixtures("quick_to_compile")

_ROOT = pathlib.Path(__file__).parents[2]
_FLAGS = (
  *("resume", "rounds", "seeds", "leaving", "world"),
  *("parallel_seeds", "learners", "exploration", "tensorboard"),
)


@pytest.fixture
def launch(monkeypatch):
  """Runs the launcher with a tiny preset; all runs of a test compile once."""
  monkeypatch.setitem(launcher.config_lib.PRESETS, "smoke", TINY)
  world = small_world()
  monkeypatch.setattr(synthetic, "synthetic_world", lambda *_: world)
  monkeypatch.setattr(
    study.study_learner_lib,
    "make_study_learner",
    lambda config, world: tiny_study_learner(
      f"{config.learner}:{config.critic}"
    ),
  )
  # Compiling the privileged search takes as long as all the rest, and the
  # library's own tests run it.
  monkeypatch.setitem(
    baselines.RIVALS,
    "oracle",
    lambda experiment: baselines.Evaluated(
      experiment.base._replace(reward=1.04 * experiment.base.reward), [{}, {}]
    ),
  )

  def run(*args):
    flags.FLAGS.unparse_flags()
    for name in _FLAGS:
      flags.FLAGS[name].value = flags.FLAGS[name].default
    flags.FLAGS(["progressive", "--preset=smoke", *map(str, args)])
    launcher.main()

  return run


def _numbers(out_dir):
  summary = json.loads((out_dir / "summary.json").read_text())
  assert summary.pop("wall_s") > 0
  return summary


def _killed_in_call(function, nth):
  """The function, interrupted when it is called for the nth time."""
  calls = []

  def killed(*args):
    calls.append(None)
    if len(calls) == nth:
      raise KeyboardInterrupt
    return function(*args)

  return killed


def test_killed_and_resumed_ends_in_the_same_numbers(
  launch, tmp_path, monkeypatch, capsys
):
  """Two seeds side by side, three learners; killed in each kind of round."""
  options = (
    "--seeds=0,1",
    "--parallel_seeds=2",
    "--learners=integrated_rl,td3_bc:mlp,bc",
  )
  whole = tmp_path / "whole"
  launch(f"--out_dir={whole}", *options)
  printed = capsys.readouterr().out
  assert "interval above 0" in printed and "round 2" not in printed
  for name in ("summary.json", "report.md", "report.html"):
    assert str(whole / name) in printed
  page = (whole / "report.html").read_text()
  assert page.count("data:image/png;base64,") == 1 + 3 * 6
  assert "<script" not in page and 'src="http' not in page
  assert "privileged search" in page

  summary = _numbers(whole)
  assert {"fingerprint", "preset", "rounds"} <= summary.keys()
  assert summary["seeds"].keys() == {"0", "1"}
  wanted = {
    "reward_gain_pct",
    "reward_gain_ci95",
    "uvc_gain_pct",
    "udt_gain_pct",
    "session_length_gain_pct",
    "reward_gain_uncut_pct",
    "single_batch_gain_pct",
    "headroom_reached",
    "exploration_cost_pct",
    "critic_value_correlation",
    "critic_value_slope",
    "critic_value_slope_ci95",
    "critic_advantage_correlation",
    "critic_advantage_slope",
    "critic_advantage_held_correlation",
  }
  for of_seed in summary["seeds"].values():
    found = of_seed["satisfaction_floor"]
    assert found["learner"] == "integrated_rl"
    assert wanted <= found.keys()
    others = found["other_learners"]
    assert wanted <= others["td3_bc:mlp"].keys()
    of_critics = {name for name in wanted if name.startswith("critic_")}
    assert wanted - of_critics <= others["bc"].keys()
    assert not of_critics & others["bc"].keys()
    gains = {row["reward_gain_pct"] for row in (found, *others.values())}
    assert len(gains) == 3
    for figures in (found, *others.values()):
      last = 1 + figures["reward_gain_pct"] / 100
      for rival in ("single_batch", "es"):
        other = 1 + figures[f"{rival}_gain_pct"] / 100
        over = 1 + figures[f"over_{rival}_pct"] / 100
        assert over == pytest.approx(last / other, rel=1e-6)
        low, high = figures[f"over_{rival}_ci95"]
        assert high - low > 0
  folder = "satisfaction_floor_seed_0_1"
  assert (whole / folder / "td3_bc_mlp" / "single_batch" / "1").is_dir()
  result = json.loads((whole / folder / "result.json").read_text())
  result = result["content"]["seeds"]
  logged = TINY.rounds * TINY.sessions_per_round
  assert result["1"]["rivals"]["platform_es"]["sessions"] == logged
  assert result["1"]["baseline_policy"]["stages"] >= 1
  checks = result["1"]["learners"]["td3_bc:mlp"]["critic_check"]
  assert checks["last_round"]["states"] == TINY.check_states
  means = {name: x["value"]["mean_true"] for name, x in checks.items()}
  # Other policies, and both worth something.
  assert means["last_round"] != means["single_batch"]
  assert min(means.values()) > 0
  report = (whole / "report.md").read_text()
  assert report.count("## Critics against the world, ") == 2 * 4

  killed = tmp_path / "killed"
  for name, nth in (
    ("play_round", 2),
    ("play_single_batch", 1),
    ("play_round", 1),
  ):
    resume = ["--resume"] if killed.exists() else []
    with monkeypatch.context() as patch:
      function = getattr(play.rounds_lib, name)
      patch.setattr(play.rounds_lib, name, _killed_in_call(function, nth))
      with pytest.raises(KeyboardInterrupt):
        launch(f"--out_dir={killed}", *options, *resume, "--tensorboard")
    assert not (killed / "summary.json").exists()
  # The first run has drawn these pictures.
  monkeypatch.setattr(study.report_html, "image", lambda figure, alt: alt)
  launch(f"--out_dir={killed}", *options, "--resume", "--tensorboard")
  said = capsys.readouterr().err
  assert "going on after round 1" in said and "going on after round 2" in said
  assert _numbers(killed) == summary
  for learner in ("integrated_rl", "td3_bc_mlp", "bc"):
    rows = (killed / folder / learner / "metrics.jsonl").read_text()
    assert rows == (whole / folder / learner / "metrics.jsonl").read_text()
    # A file of every start, and the final figures.
    board = killed / folder / learner / "tensorboard"
    assert list(board.glob("events*")) and list(board.glob("final/events*"))
  assert not (whole / folder / "bc" / "tensorboard").exists()
  found = [json.loads(line) for line in rows.splitlines()]
  assert [(row["step"], row["seed"]) for row in found] == [
    (step, seed) for step in (4, 8, 12, 16) for seed in (0, 1)
  ]

  with pytest.raises(InputError, match="holds a run"):
    launch(f"--out_dir={whole}", *options)
  with pytest.raises(InputError, match="has another rounds"):
    launch(f"--out_dir={whole}", *options, "--resume", "--rounds=3")
  with pytest.raises(InputError, match="has another learners"):
    launch(f"--out_dir={whole}", *options[:2], "--resume")
  with pytest.raises(InputError, match="has another config"):
    launch(f"--out_dir={whole}", *options, "--resume", "--exploration=request")
  with pytest.raises(InputError, match="there is no run in"):
    launch(f"--out_dir={tmp_path / 'none'}", "--resume")
  (tmp_path / "file").write_text("")
  damaged = f"--world={tmp_path / 'file'}"
  with pytest.raises(InputError, match="expected a world file"):
    launch(f"--out_dir={tmp_path / 'none'}", damaged)
  assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
  ("flag", "message"),
  [
    ("--world=nowhere.world", "expected `synthetic` or a world file, found no"),
    ("--rounds=0", "0 is not a positive integer"),
    ("--seeds=1,1", "different integers"),
    ("--seeds=x", "integers from 0 to 4294967295"),
    ("--seeds=", "integers from 0 to 4294967295"),
    ("--leaving=never", "different names of satisfaction_floor"),
    ("--preset=huge", "smoke"),
    ("--exploration=never", "session"),
    ("--parallel_seeds=2", "divides the number of seeds"),
    ("--unknown=1", "Unknown command line flag"),
  ],
)
def test_bad_flags_are_refused(launch, tmp_path, flag, message):
  with pytest.raises((flags.Error, InputError), match=message):
    launch(f"--out_dir={tmp_path / 'run'}", flag)
  assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
  ("names", "message"),
  [
    ("integrated_rl:cnn", "critic: expected one of mlp, box"),
    ("never", "learner: expected"),
    ("integrated_rl,integrated_rl", "different names"),
  ],
)
def test_unknown_learners_are_refused(launch, tmp_path, names, message):
  with pytest.raises(InputError, match=f"--learners: .*{message}"):
    launch(f"--out_dir={tmp_path / 'run'}", f"--learners={names}")
  assert not (tmp_path / "run").exists()


def test_more_rounds_than_there_is_room_for_are_refused(launch, tmp_path):
  out_dir = tmp_path / "run"
  with pytest.raises(
    InputError, match="--rounds: expected at most 16 for slope"
  ):
    launch(f"--out_dir={out_dir}", "--learners=slope_regression", "--rounds=17")
  assert not out_dir.exists()


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
  assert "expected `synthetic` or a world file, found no" in done.stderr
  assert "Traceback" not in done.stderr
  assert not out_dir.exists()
