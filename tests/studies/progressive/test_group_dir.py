"""Results and metrics of seeds side by side, damaged and of other runs."""

import dataclasses
import json
import pathlib
import shutil

import pytest

from mtf_jax.io import InputError
from mtf_jax.studies.progressive import records, report, summary
from mtf_jax.studies.progressive.group_dir import (
  GroupDir,
  check_same_run,
  made_of,
)
from mtf_jax.studies.progressive.plan import Plan
from mtf_jax.studies.progressive.run_dir import RunDir, RunDirError
from tests.tiny_run import TINY

CONFIGS = {"integrated_rl": TINY}
OF = made_of(CONFIGS, ["abc"], [3])
RESULT = {"3": {"baseline_policy": {"action": [0.5, -0.25]}}}
LAYOUT_2 = pathlib.Path(__file__).parent / "layout_2"


def test_a_result_comes_back_and_says_what_it_is_of(tmp_path):
  group = GroupDir(tmp_path)
  assert group.read_result(OF) is None
  group.write_result(OF, RESULT)
  assert group.read_result(OF) == RESULT
  config = dataclasses.replace(TINY, num_users=33)
  for other, message in (
    (made_of(CONFIGS, ["abd"], [3]), r"worlds \['abd'\], found \['abc'\]"),
    (made_of({"bc": TINY}, ["abc"], [3]), "configs.bc.rounds 2, found None"),
    (
      made_of({"integrated_rl": config}, ["abc"], [3]),
      "configs.integrated_rl.num_users 33, found 32",
    ),
  ):
    with pytest.raises(
      RunDirError, match=f"result.json: expected {message}: it is of another"
    ):
      group.read_result(other)


def test_a_damaged_result_is_refused_with_a_way_on(tmp_path):
  group = GroupDir(tmp_path)
  group.write_result(OF, RESULT)
  path = tmp_path / "result.json"
  whole = path.read_text()
  for damaged, found in (
    ("", "an empty file"),
    (whole[:200], "what is no JSON"),
    ("null", "JSON of a NoneType"),
    (whole.replace("-0.25", "-0.26"), "it is damaged"),
    (whole.replace("baseline_policy", "baseline_polic_"), "it is damaged"),
    (json.dumps(RESULT), "with a checksum, found none"),
  ):
    path.write_text(damaged)
    with pytest.raises(
      RunDirError, match=f"result.json: expected .*{found}"
    ) as e:
      group.read_result(OF)
    assert "move it away and give --resume" in str(e.value)
    assert path.read_text() == damaged


def test_a_configuration_without_a_newer_field_is_as_its_default():
  config = TINY.to_json()
  expected = {"config": config, "configs": {"a": config}}
  del (older := dict(config))["collect_parts"]
  check_same_run("here", expected, {"config": older, "configs": {"a": older}})
  other = {**config, "collect_parts": 2}
  with pytest.raises(RunDirError, match=r"configs.a.collect_parts 2, found 1"):
    check_same_run("here", {"configs": {"a": other}}, {"configs": {"a": older}})
  # Without one that has no default there is nothing to go by.
  del older["rounds"]
  with pytest.raises(RunDirError, match=r"config.rounds 2, found None"):
    check_same_run("here", {"config": config}, {"config": older})


def _metrics(tmp_path):
  learner = GroupDir(tmp_path).learner("bc")
  learner.path.mkdir()
  rows = [{"seed": n % 2, "step": 4 + n // 2, "loss": 0.5} for n in range(4)]
  learner.metrics.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return learner, rows


def test_metrics_are_those_that_the_record_speaks_of(tmp_path):
  learner, rows = _metrics(tmp_path)
  sha256 = learner.metrics_sha256()
  assert learner.read_metrics(1, sha256) == rows[1::2]
  whole = learner.metrics.read_bytes()
  for damaged in (whole[:-9], whole + b"7\n", whole.replace(b"0.5", b"0.6", 1)):
    learner.metrics.write_bytes(damaged)
    with pytest.raises(
      RunDirError, match=r"metrics.jsonl: expected .* damaged"
    ):
      learner.read_metrics(1, sha256)
    with pytest.raises(RunDirError, match="move it away to go on without"):
      learner.check_metrics(sha256)
    assert learner.metrics.read_bytes() == damaged
  learner.metrics.unlink()
  learner.check_metrics(sha256)
  assert learner.read_metrics(1, sha256) == []
  learner.metrics.mkdir()
  with pytest.raises(InputError, match=r"metrics.jsonl: .*found a folder"):
    learner.read_metrics(1, sha256)


@pytest.mark.parametrize(
  "line", [b"7", b'{"step": 4}', b'{"seed": 0, "st', b"\xff\xfe", b"[", b"{}"]
)
def test_a_line_of_metrics_without_a_checksum_is_refused(tmp_path, line):
  learner, _ = _metrics(tmp_path)
  with learner.metrics.open("ab") as file:
    file.write(line)
  with pytest.raises(RunDirError, match=r"metrics.jsonl: .* in line 5, found"):
    learner.read_metrics(0)


@pytest.fixture
def layout_2(tmp_path):
  """A finished run of layout version 2, as 0.1.0 before checksums wrote it."""
  folder = tmp_path / "run"
  shutil.copytree(LAYOUT_2, folder)
  values = json.loads((folder / "run.json").read_text())
  del values["layout_version"]
  return RunDir(folder), Plan.from_json(values)


def test_a_run_of_layout_2_is_brought_up_to_date_when_resumed(layout_2):
  run_dir, plan = layout_2
  group = run_dir.group("satisfaction_floor", (7,))
  result = json.loads((group.path / "result.json").read_text())
  of = made_of(plan.configs, [result["7"]["fingerprint"]], (7,))
  # Reading changes nothing, so it cannot bring it up to date.
  with pytest.raises(RunDirError, match="version 3, found 2; give --resume"):
    run_dir.plan()
  with pytest.raises(RunDirError, match="in a run of an earlier version give"):
    group.read_result(of)
  for _ in range(2):
    run_dir.resume(plan)
    assert run_dir.plan() == plan
    assert group.read_result(of) == result
  # Its baseline policy was a short ES: no gain over converged weights.
  figures = summary.seed_summary(result["7"])
  assert figures["reward_gain_pct"] is not None
  assert figures["over_global_pct"] is figures["over_global_ci95"] is None
  page = report.result_table("old", result["7"]["learners"]["bc:mlp"])
  assert "baseline policy, ES, unless" in page.note
  rows = group.learner("bc:mlp").read_metrics(
    7, result["7"]["learners"]["bc:mlp"].get("metrics_sha256")
  )
  assert [row["step"] for row in rows] == [4, 8]
  with pytest.raises(RunDirError, match=r"configs.bc:mlp.rounds 2, found 1"):
    group.read_result(
      made_of(
        {"bc:mlp": dataclasses.replace(plan.configs["bc:mlp"], rounds=2)},
        of["worlds"],
        of["seeds"],
      )
    )


def test_a_killed_migration_goes_on(layout_2, monkeypatch):
  run_dir, plan = layout_2
  write = records.write

  def killed(path, content):
    if path.name == "run.json":
      raise KeyboardInterrupt
    write(path, content)

  monkeypatch.setattr(records, "write", killed)
  with pytest.raises(KeyboardInterrupt):
    run_dir.resume(plan)
  monkeypatch.undo()
  run_dir.resume(plan)
  assert run_dir.plan() == plan


@pytest.mark.parametrize(
  ("old", "new"),
  [
    ('"learners"', '"learnerz"'),
    ('"action"', '"actiom"'),
    ('"fingerprint"', '"fingerprinu"'),
    ('"bc:mlp"', '"bc:box"'),
    ('"7"', '"8"'),
    ('"reward_gain_pct"', '"reward_gain_pcu"'),
  ],
)
def test_a_result_of_layout_2_with_other_fields_is_refused(layout_2, old, new):
  run_dir, plan = layout_2
  path = run_dir.group("satisfaction_floor", (7,)).path / "result.json"
  damaged = path.read_text().replace(old, new)
  path.write_text(damaged)
  before = (run_dir.path / "run.json").read_bytes()
  with pytest.raises(RunDirError, match=r"result.json: .*found other fields"):
    run_dir.resume(plan)
  assert path.read_text() == damaged
  assert (run_dir.path / "run.json").read_bytes() == before
