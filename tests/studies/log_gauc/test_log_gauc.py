"""From a log folder, a fitted world and a run's folder to the table."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import kuairand_files
import numpy as np
import pytest

from mtf_jax import policies
from mtf_jax.data import kuairand
from mtf_jax.evaluation import mtf_gauc
from mtf_jax.fitting import kuairand_world
from mtf_jax.kernels import fusion
from mtf_jax.studies.log_gauc import held_out, log_gauc
from mtf_jax.studies.progressive import experiment as experiment_lib
from mtf_jax.studies.progressive import finished, records
from mtf_jax.studies.progressive import study_learner as study_learner_lib
from mtf_jax.studies.progressive.group_dir import made_of
from mtf_jax.studies.progressive.run_dir import RunDir
from mtf_jax.worlds import env
from mtf_jax.worlds import io as world_io
from mtf_jax.worlds.world import fingerprint
from tests.tiny_run import TINY, tiny_plan

pytestmark = pytest.mark.usefixtures("quick_to_compile")

_TEST_FROM = 20220429
_LEAVING = "satisfaction_floor"
_LEARNER = "integrated_rl"


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
  """A log folder and the world of 100 of its 120 users."""
  folder = tmp_path_factory.mktemp("kuairand")
  kuairand_files.write_folder(
    folder, num_users=120, num_items=100, num_rows=2400
  )
  fit = kuairand_world.fit_world(
    folder,
    test_from=_TEST_FROM,
    num_users=100,
    pool_size=64,
    num_candidates=20,
    slate_size=4,
    seed=0,
  )
  return folder, fit.world


@pytest.fixture(scope="module")
def rows(fitted):
  folder, world = fitted
  return held_out.read(folder, world, test_from=_TEST_FROM, seed=0)


def test_days_that_the_fit_did_not_see_are_judged(fitted):
  """Fit days and judged days are apart: nothing is refused, and fewer rows."""
  folder, _ = fitted
  fit = kuairand_world.fit_world(
    folder,
    test_from=_TEST_FROM - 1,
    fit_before=_TEST_FROM,
    num_users=100,
    pool_size=64,
    num_candidates=20,
    slate_size=4,
    seed=0,
  )
  same = {"test_from": _TEST_FROM - 1, "seed": 0, "fit_before": _TEST_FROM}
  found = held_out.read(folder, fit.world, judge_from=_TEST_FROM, **same)
  assert found.date.min() == _TEST_FROM
  whole = held_out.read(folder, fit.world, **same)
  assert whole.date.min() == _TEST_FROM - 1
  kept = whole.on(np.unique(found.date))
  np.testing.assert_allclose(kept.scores, found.scores, rtol=1e-5)
  with pytest.raises(ValueError, match="judge_from: expected a day from"):
    held_out.read(folder, fit.world, judge_from=_TEST_FROM - 2, **same)
  with pytest.raises(
    ValueError, match="judge_from: expected two days to judge"
  ):
    held_out.read(folder, fit.world, judge_from=_TEST_FROM + 1, **same)
  # As a world that saw all days its users would be others.
  with pytest.raises(ValueError, match="expected the log and the"):
    held_out.read(folder, fit.world, test_from=_TEST_FROM - 1, seed=0)


def test_rows_are_the_logs_held_out_days(fitted, rows):
  folder, _ = fitted
  catalogue = kuairand.read_catalogue(folder)
  log, _ = kuairand.read_log(folder, catalogue)
  _, later = kuairand.split_days(log, _TEST_FROM)
  shown = rows.impressions
  np.testing.assert_array_equal(shown.user[shown.day], later.user)
  np.testing.assert_array_equal(rows.date[shown.day], later.date)
  np.testing.assert_array_equal(shown.label, later.play_seconds > 10)
  assert rows.scores.shape == (len(later.user), 5)
  assert np.all(rows.scores > 0)
  interaction = later.like + later.comment + later.follow + later.forward > 0
  expected = (
    (later.play_seconds > 10)
    + 0.02 * later.play_seconds
    + 0.3 * (later.play_seconds >= later.duration)
    + 2 * interaction
  )
  np.testing.assert_allclose(shown.reward, expected, rtol=1e-5)
  last = rows.on(rows.date.max())
  assert set(last.date) == {later.date.max()}
  assert len(last.impressions.label) == np.sum(later.date == later.date.max())
  np.testing.assert_array_equal(
    last.impressions.user[last.impressions.day],
    later.user[later.date == later.date.max()],
  )


def test_policies_see_what_the_world_shows_at_a_sessions_start(fitted, rows):
  folder, world = fitted
  catalogue = kuairand.read_catalogue(folder)
  log, _ = kuairand.read_log(folder, catalogue)
  count = np.bincount(log.user, minlength=120)
  users = kuairand_world.most_active(count, 100)
  assert not rows.in_world.all()
  for day in np.flatnonzero(rows.in_world)[:5]:
    (own,) = np.flatnonzero(users == rows.impressions.user[day])
    first = np.flatnonzero(
      (log.user == users[own]) & (log.date == rows.date[day])
    )[0]
    hour = (log.time_ms[first] / 3.6e6 + 8) % 24 / 24
    state = env.reset(jax.random.key(5), world)._replace(
      user=jnp.asarray(own, jnp.int32), hour=jnp.asarray(hour, jnp.float32)
    )
    np.testing.assert_allclose(
      rows.observation[day], env.observe(world, state), atol=1e-4
    )


def test_an_action_fuses_alike_for_one_and_for_all(fitted, rows):
  _, world = fitted
  action = jnp.linspace(-0.5, 0.5, 10, dtype=jnp.float32)
  found = held_out.policy_score(
    rows, policies.fixed_action, action, world.fusion_spec
  )
  weights = fusion.weights_from_action(action, world.fusion_spec)
  np.testing.assert_allclose(
    found, held_out.global_score(rows, weights), rtol=1e-5
  )
  with pytest.raises(ValueError, match="expected finite actions, found"):
    held_out.policy_score(
      rows, policies.fixed_action, action * jnp.nan, world.fusion_spec
    )
  # Personal actions reach the impressions of their own day.
  personal = jax.random.uniform(
    jax.random.key(0), (len(rows.date), 10), minval=-1.0
  )
  day = rows.impressions.day
  found = held_out.fuse(rows.scores, day, personal, world.fusion_spec)
  for n in (0, len(day) // 2, len(day) - 1):
    weights = fusion.weights_from_action(personal[day[n]], world.fusion_spec)
    expected = fusion.fused_log_score(
      jnp.asarray(rows.scores[n : n + 1]), weights
    )
    np.testing.assert_allclose(found[n], expected[0], rtol=1e-5)


def test_chosen_weights_are_no_worse_where_they_were_chosen(fitted, rows):
  _, world = fitted

  def to_weights(point):
    return fusion.weights_from_action(
      point.astype(np.float32), world.fusion_spec
    )

  def value(weights):
    score = held_out.global_score(rows, weights)
    auc = mtf_gauc.day_auc(score, rows.impressions)
    return mtf_gauc.mtf_gauc(auc, rows.impressions)

  best = held_out.best_weights(
    rows, to_weights, 10, population=12, iterations=3
  )
  assert value(best) > value(to_weights(np.zeros(10)))


def test_another_ranker_or_day_than_the_fits_is_refused(fitted):
  folder, world = fitted
  with pytest.raises(ValueError, match="seed: expected the ranker that the"):
    held_out.read(folder, world, test_from=_TEST_FROM, seed=1)
  with pytest.raises(ValueError, match="test_from: expected the log and the"):
    held_out.read(folder, world, test_from=_TEST_FROM - 1, seed=0)
  with pytest.raises(
    ValueError, match="two days to judge on or more, found 2022"
  ):
    held_out.read(folder, world, test_from=_TEST_FROM + 1, seed=0)


_RAMP = np.linspace(-0.5, 0.5, 10, dtype=np.float32)
_SEEDS = (3, 4)


@pytest.fixture
def run_dir(fitted, tmp_path):
  """A run's folder; its policies answer a ramp and its opposite.

  The ramp of seed 4 is half as steep.
  """
  _, world = fitted
  folder = tmp_path / "run"
  study_learner = study_learner_lib.make_study_learner(TINY.train, world)
  plan = tiny_plan(
    world="fitted.world",
    seeds=tuple(_SEEDS),
    leaving=(_LEAVING,),
    learners=(_LEARNER,),
  )
  record = {"worlds": [fingerprint(world)] * 2, "seeds": _SEEDS}
  of = made_of(plan.configs, record["worlds"], _SEEDS)
  record["config"] = plan.configs[_LEARNER].to_json()
  run = experiment_lib.assemble(TINY, [world] * 2, _SEEDS, study_learner)
  state = experiment_lib.with_study_learner(run, TINY, study_learner).start
  zeros = jax.tree.map(jnp.zeros_like, state.actor_params["network"])
  state = state._replace(
    actor_params={**state.actor_params, "network": zeros},
    normalization=jax.tree.map(jnp.ones_like, state.normalization),
  )
  ramps = jnp.asarray(np.stack([_RAMP, _RAMP / 2]))
  figures = [[{"round": n + 1}] * 2 for n in range(TINY.rounds)]
  RunDir(folder).claim(plan)
  group = RunDir(folder).group(_LEAVING, plan.seeds)
  for checkpoints, actions in (
    (group.learner(_LEARNER).open_rounds(2), [0.9 * ramps, ramps]),
    (group.learner(_LEARNER).open_single_batch(), [-ramps]),
  ):
    for n, action in enumerate(actions, 1):
      of_rounds = {"rounds": figures[:n]} if len(actions) > 1 else {}
      params = {**state.actor_params, "start": action}
      checkpoints.save(
        n, state._replace(actor_params=params), {**record, **of_rounds}
      )
    checkpoints.close()
  group.write_result(
    of,
    {
      str(seed): {"baseline_policy": {"action": ramp.tolist()}}
      for seed, ramp in zip(_SEEDS, np.asarray(ramps), strict=True)
    },
  )
  return folder


def test_policies_come_from_the_runs_folder(fitted, run_dir):
  _, world = fitted

  def read(world):
    return list(finished.read_policies(run_dir, world))

  observation = jnp.zeros((len(world.observation_names),))
  policies = read(world.with_leaving("temper_budget"))
  assert {found.leaving for found in policies} == {_LEAVING}
  by_name = {(found.name, found.seed): found for found in policies}
  assert len(by_name) == len(policies) == 3 * 2
  for seed, ramp in ((3, _RAMP), (4, _RAMP / 2)):
    for name, expected in (
      ("baseline policy", ramp),
      (f"progressive, {_LEARNER}", ramp),
      (f"single batch, {_LEARNER}", -ramp),
    ):
      found = by_name[name, seed]
      decision = found.act(found.params, observation, jax.random.key(0))
      np.testing.assert_allclose(decision.action, expected, rtol=1e-5)
  other = world.replace(user_features=world.user_features + 1)
  with pytest.raises(ValueError, match="expected worlds"):
    read(other)
  (run_dir / f"{_LEAVING}_seed_3_4" / _LEARNER / "single_batch").rename(
    run_dir / "gone"
  )
  with pytest.raises(ValueError, match="single_batch: expected checkpoints"):
    read(world)
  with pytest.raises(ValueError, match="expected a progressive run"):
    next(finished.read_policies(run_dir / "gone", world))


# Orbax closes its event loop while the storage layer still has callbacks.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_earlier_rounds_policy_is_not_taken_for_the_last(fitted, run_dir):
  _, world = fitted
  folder = run_dir / f"{_LEAVING}_seed_3_4" / _LEARNER / "checkpoints"
  largest = max(
    (path for path in (folder / "2").rglob("*") if path.is_file()),
    key=lambda path: path.stat().st_size,
  )
  largest.write_bytes(largest.read_bytes()[:100])
  with pytest.raises(ValueError, match="expected rounds 2, found 1") as raised:
    list(finished.read_policies(run_dir, world))
  assert str(folder) in str(raised.value)
  # Who only reads renames nothing.
  assert sorted(path.name for path in folder.glob("*[0-9]")) == ["1", "2"]


def test_another_groups_checkpoints_are_refused(fitted, run_dir):
  _, world = fitted
  plan = dataclasses.replace(RunDir(run_dir).plan(), seeds=(4, 3))
  records.write(run_dir / "run.json", plan.to_json())
  (run_dir / f"{_LEAVING}_seed_3_4").rename(run_dir / f"{_LEAVING}_seed_4_3")
  with pytest.raises(ValueError, match=r"seeds \[4, 3\], found \[3, 4\]"):
    list(finished.read_policies(run_dir, world))


def _launch(**flags):
  # A process of its own: launchers share names of flags.
  return subprocess.run(
    [
      sys.executable,
      "-m",
      "experiments.log_gauc",
      *(f"--{name}={value}" for name, value in flags.items()),
    ],
    cwd=pathlib.Path(__file__).parents[3],
    capture_output=True,
    text=True,
    timeout=300,
  )


def test_launcher_writes_the_table(fitted, run_dir, tmp_path):
  folder, world = fitted
  world_io.save_world(tmp_path / "fitted.world", world)
  done = _launch(
    world=tmp_path / "fitted.world",
    log_dir=folder,
    run=run_dir,
    out=tmp_path / "out.json",
    test_from=_TEST_FROM,
  )
  assert done.returncode == 0, done.stderr
  assert "best powers chosen" in done.stdout
  titles = [
    line for line in done.stdout.splitlines() if "best weights chosen" in line
  ]
  chosen = f"best weights chosen on {_TEST_FROM}"
  assert titles[0].endswith(chosen)
  assert titles[1].endswith(f"{chosen} (one of these days)")
  assert "fitted to all days" in done.stdout
  assert [path.name for path in tmp_path.glob("*out.json*")] == ["out.json"]
  result = json.loads((tmp_path / "out.json").read_text())
  assert "fitted to all days" in result["note"]
  assert result["fingerprint"] == fingerprint(world)
  later, every = result["days"]
  assert later["dates"] == every["dates"][1:]
  judged = later["leaving"][_LEAVING]
  assert judged["users_in_world"] <= judged["users"]
  assert set(judged["mean"]) >= {"uniform powers", log_gauc.BASE}
  mean, runs = judged["mean"], judged["runs"]
  single = f"single batch, {_LEARNER}"
  progressive = f"progressive, {_LEARNER}"
  for name in (log_gauc.BASE, single, progressive):
    assert mean[name]["gauc"] == pytest.approx(
      (runs["3"][name]["gauc"] + runs["4"][name]["gauc"]) / 2
    )
  # These progressive policies are their own baseline.
  assert mean[progressive]["minus_base"] == 0
  assert mean[single]["minus_base"] != 0
