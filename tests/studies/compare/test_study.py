import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import policies
from mtf_jax.data.transitions import sample_transitions
from mtf_jax.evaluation.mtf_gauc import Impressions, day_auc, mtf_gauc
from mtf_jax.io import InputError
from mtf_jax.kernels import fusion
from mtf_jax.learners import base, box_units, fqe
from mtf_jax.learners.es import Search
from mtf_jax.networks import box_critic
from mtf_jax.studies.compare import bench as bench_lib
from mtf_jax.studies.compare import cells, offline, report_html, study
from mtf_jax.studies.compare.config import DATA, PRESETS
from mtf_jax.studies.compare.methods import VERSIONS
from mtf_jax.studies.compare.plan import CompareDir, Plan
from mtf_jax.studies.log_gauc.held_out import HeldOut, global_score
from mtf_jax.worlds import env
from tests.small_world import small_world

pytestmark = pytest.mark.usefixtures("quick_to_compile")

_SIZES = dataclasses.replace(
  PRESETS["smoke"].sizes,
  sessions_per_round=64,
  num_users=32,
  max_requests=4,
  evaluation_sessions=128,
  es_search=Search(4, 16, noise=0.3),
  oracle_search=Search(2, 16, noise=0.05),
  train=dataclasses.replace(
    PRESETS["smoke"].sizes.train,
    hidden_sizes=(8,),
    batch_size=32,
    num_updates=4,
    chunk_size=4,
    checkpoint_every=4,
    num_steps=4,
  ),
)
_CONFIG = dataclasses.replace(
  PRESETS["smoke"],
  sizes=_SIZES,
  max_stages=1,
  test_sessions=96,
  fqe_updates=4,
)
_LEAVING = "satisfaction_floor"


def tiny_plan(**changes):
  values = {
    "world": "synthetic",
    "preset": "smoke",
    "seeds": (3,),
    "leaving": (_LEAVING,),
    "methods": ("td3_bc",),
    "versions": VERSIONS,
    "data": DATA,
    "config": _CONFIG,
    "tuned": {},
  }
  return Plan(**{**values, **changes})


def _silent(message):
  del message


@functools.cache
def _bench():
  bench, _ = bench_lib.prepare(_CONFIG, small_world(), 3, None, _silent)
  return bench


def test_the_baseline_alone_is_the_same_baseline():
  alone, kept = bench_lib.prepare(
    _CONFIG, small_world(), 3, None, _silent, baseline_only=True
  )
  assert list(alone.actions) == ["baseline"]
  np.testing.assert_array_equal(
    alone.actions["baseline"], _bench().actions["baseline"]
  )
  np.testing.assert_array_equal(
    alone.results["baseline"].reward, _bench().results["baseline"].reward
  )
  assert list(kept["sessions"]) == ["baseline"]


@functools.cache
def _test_log():
  return offline.collect_test(_bench())


def _fixed(params, observation, rng_key):
  del observation, rng_key
  return params


@functools.cache
def _fqe():
  return offline.answering_fqe(_SIZES.train, small_world())


def _offline(action):
  action = jnp.asarray(action, jnp.float32)
  return offline.offline_figures(_bench(), _fqe(), _test_log(), _fixed, action)


def test_a_chain_adds_one_box_after_another():
  act = cells.chain_act(
    lambda params, observation, key: box_units.in_frame(
      params.frame, params.actor_params
    )
  )
  link = box_units.Policy(
    actor_params=jnp.array([[1.0, -1.0], [0.5, -1.0], [9.0, 9.0]]),
    normalization=base.Normalization(jnp.zeros((3, 1)), jnp.ones((3, 1))),
    frame=box_units.Frame(jnp.zeros((3, 2)), jnp.zeros((3, 2))),
  )
  chain = cells.Chain(
    jnp.array([0.2, -0.8]),
    link,
    jnp.array([True, True, False]),
    jnp.array(True),
  )
  key = jax.random.key(0)
  found = act(chain, jnp.zeros(1), key)
  # The second component stops at the limit of the valid range.
  np.testing.assert_allclose(found, [0.2 + 0.15 + 0.075, -1.0], rtol=1e-6)
  # Told nothing, a link answers by itself.
  alone = chain._replace(
    active=jnp.array([False, True, False]), told_box=jnp.array(False)
  )
  np.testing.assert_allclose(act(alone, jnp.zeros(1), key), [0.5, -1.0])
  nothing = chain._replace(active=jnp.zeros(3, bool))
  np.testing.assert_allclose(act(nothing, jnp.zeros(1), key), chain.start)


def test_gaussian_logs_say_what_density_they_were_drawn_from():
  bench = _bench()
  rows = bench_lib.collect_log(bench, "gaussian")
  valid = np.asarray(rows.valid) & ~np.asarray(rows.bootstrap_only)
  action = np.asarray(rows.action)[valid].astype(np.float64)
  baseline = bench.actions["baseline"].astype(np.float64)
  standard = (action - baseline) / 0.2
  expected = -0.5 * np.square(standard).sum(axis=1)
  expected -= action.shape[1] * np.log(0.2 * np.sqrt(2 * np.pi))
  np.testing.assert_allclose(
    np.asarray(rows.log_prob)[valid], expected, rtol=1e-4, atol=1e-4
  )
  middle = (np.asarray(rows.box.lower) + np.asarray(rows.box.upper))[valid] / 2
  np.testing.assert_allclose(
    middle, np.broadcast_to(baseline, middle.shape), atol=0.08
  )
  # It leaves the box that the bounded exploration would have had.
  outside = np.abs(action - baseline).max(axis=1) > 0.15
  assert outside.mean() > 0.9
  in_box = bench_lib.collect_log(bench, "box")
  valid = np.asarray(in_box.valid) & ~np.asarray(in_box.bootstrap_only)
  action = np.asarray(in_box.action)[valid]
  assert np.all(action <= np.asarray(in_box.box.upper)[valid] + 1e-6)


def test_the_logger_is_worth_what_its_log_says():
  bench, test = _bench(), _test_log()
  found = _offline(bench.actions["baseline"])
  mean = test.units.outcome.mean()
  low, high = found["dr_ci95"]
  assert low < mean < high
  assert found["outside_share"] == 0
  reward = np.asarray(test.log.reward).sum(axis=1)
  reward = reward[~np.asarray(test.log.bootstrap_only)].mean()
  # Weights of 1: NCIS of the policy that the log was centred on.
  assert found["ncis"] == pytest.approx(reward, rel=1e-6)
  assert found["ncis_ess"] == pytest.approx(len(test.log.step), rel=0.2)
  far = _offline(np.clip(bench.actions["baseline"] + 0.5, -1, 1))
  assert far["outside_share"] == 1
  assert far["mtf_gauc"] != found["mtf_gauc"]
  assert far["ncis_narrow_ess"] < found["ncis_narrow_ess"]


def test_an_fqe_without_a_value_takes_no_other_metric_with_it(monkeypatch):
  def diverge(*args):
    raise FloatingPointError("critic_loss: found no finite value")

  whole = _offline(_bench().actions["es"])
  monkeypatch.setattr(offline, "_fitted_value", diverge)
  found = _offline(_bench().actions["es"])
  assert found.pop("fqe") is None
  assert "critic_loss" in found.pop("fqe_failed")
  assert found == {n: x for n, x in whole.items() if n != "fqe"}


def test_policies_answer_in_parts_as_they_would_at_once(monkeypatch):
  """Of 23 requests four parts of 5, and 3 that are left."""
  monkeypatch.setattr(offline, "_ANSWERS", 5)
  observation = jnp.arange(46.0).reshape(23, 2)
  key = jax.random.key(4)

  def act(params, observation, rng_key):
    return params * observation + jax.random.normal(rng_key, (2,))

  found = offline._answers(act, jnp.asarray(3.0), key, observation)
  expected = jax.vmap(act, (None, 0, 0))(
    jnp.asarray(3.0), observation, jax.random.split(key, 23)
  )
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_lists_are_those_of_the_log():
  """Two programs with one key: rewards of the lists sum to those logged."""
  test = _test_log()
  active = np.asarray(test.shown.active)
  request = ~np.asarray(test.log.bootstrap_only)
  np.testing.assert_allclose(
    np.asarray(test.shown.reward)[active].sum(axis=1),
    np.asarray(test.log.reward)[request].sum(axis=1),
    rtol=1e-4,
    atol=1e-5,
  )
  np.testing.assert_array_equal(
    np.asarray(test.shown.observation)[active],
    np.asarray(test.log.observation)[request],
  )


def test_fqe_of_answers_is_fqe():
  """A policy in the observation, and the same policy as a function."""
  bench, test = _bench(), _test_log()
  action = jnp.asarray(bench.actions["es"])
  size = action.shape[0]
  critic = box_critic(
    bench.experiment.world.group_weights.shape[1],
    _SIZES.train.ensemble_size,
    _SIZES.train.hidden_sizes,
  )
  plain = fqe.fqe(_fixed, critic)
  normalization = jax.tree.map(
    lambda leaf: leaf[0], bench.experiment.normalization
  )
  batch = sample_transitions(jax.random.key(1), test.dataset, 16)
  example = jax.tree.map(lambda leaf: leaf[0], batch)
  state = plain.init(
    jax.random.key(0), example, None, normalization, policy_params=action
  )
  answers = jnp.broadcast_to(action, (16, size))
  wider = batch._replace(
    observation_tm1=jnp.concatenate([batch.observation_tm1, answers], 1),
    observation_t=jnp.concatenate([batch.observation_t, answers], 1),
  )
  more = base.Normalization(
    jnp.append(normalization.mean, jnp.zeros(size)),
    jnp.append(normalization.scale, jnp.ones(size)),
  )
  other = _fqe().init(
    jax.random.key(0),
    jax.tree.map(lambda leaf: leaf[0], wider),
    None,
    more,
    policy_params=(),
  )
  one, _ = jax.jit(plain.update)(state, batch)
  two, _ = jax.jit(_fqe().update)(other, wider)
  for a, b in zip(
    jax.tree.leaves(one.critic_params),
    jax.tree.leaves(two.critic_params),
    strict=True,
  ):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_told_the_box_it_starts_in_its_middle_and_stays_inside():
  bench, learners = _bench(), {}
  train = _CONFIG.train_of("td3_bc", "told_box", {})
  learner = cells.study_learner(learners, train, small_world())
  rows = bench_lib.collect_log(bench, "box")
  far = {**train.hyperparams, "actor_learning_rate": 1.0}
  for numbers, limit in (
    # An untrained network answers nearly 0.
    ({**far, "actor_learning_rate": 0.0}, 0.02),
    (far, 0.15 + 1e-6),
  ):
    own = dataclasses.replace(train, hyperparams=numbers)
    trained = cells.train_cell(bench, learner, own, rows)
    seen = _test_log().dataset.observation[:32]
    answer = jax.vmap(trained.act, in_axes=(None, 0, None))
    action = answer(trained.params, seen, jax.random.key(0))
    moved = np.abs(np.asarray(action) - bench.actions["baseline"]).max()
    assert moved <= limit
  # Numbers alone make no second program.
  assert len(learners) == 1


@pytest.fixture(scope="module")
def played(tmp_path_factory):
  """A comparison that was killed after some cells and went on."""
  folder = CompareDir(tmp_path_factory.mktemp("compare") / "run")
  plan, said = tiny_plan(), []

  def say(message):
    said.append(message)
    if sum("cells" in line for line in said) == 4:
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    study.run_study(plan, folder, small_world(), say)
  before = sorted(path.name for path in folder.path.rglob("td3_bc*"))
  again = []
  tables = study.run_study(
    plan, folder, small_world(), again.append, resume=True
  )
  return folder, plan, tables, before, again


def test_a_killed_comparison_goes_on_with_the_next_cell(played):
  folder, plan, _, before, again = played
  assert len(before) == 4
  assert sum("cells" in line for line in again) == len(plan.cells) - 4
  assert "6 of 6 cells" in again[-1]
  first = (folder.path / "compare.json").read_bytes()
  study.run_study(plan, folder, small_world(), _silent, resume=True)
  rows = [
    json.loads(text)["rows"]
    for text in (first, (folder.path / "compare.json").read_bytes())
  ]
  assert rows[0] == rows[1]


def test_rows_have_the_truth_beside_the_estimates(played):
  folder, plan, tables, _, _ = played
  result = json.loads((folder.path / "compare.json").read_text())
  rows = {(r["learner"], r["version"], r["data"]): r for r in result["rows"]}
  assert len(rows) == len(plan.cells) + 1 + len(bench_lib.GLOBAL)
  base = rows["baseline", "global", "search"]
  assert base["reward_gain_pct"] == 0
  best = rows["global_weights", "global", "search"]
  assert best["over_global_pct"] == 0
  for row in rows.values():
    for name in (*offline.METRICS, "outside_share", "over_global_ci95"):
      assert row[name] is not None
  metrics = [found["metric"] for found in result["metrics"]]
  assert metrics == list(offline.METRICS)
  assert {found["policies"] for found in result["metrics"]} == {len(rows)}
  assert [len(table.rows) for table in tables[:3]] == [len(rows)] * 3
  text = (folder.path / "report.md").read_text()
  assert text.count("TD3+BC, told box") == 12
  assert (folder.path / "report.html").read_text().count("<img") == 2


def test_a_cell_that_diverged_is_a_row_that_says_so():
  row = {
    "learner": "td3",
    "version": "as_published",
    "data": "box",
    "seed": 3,
    "leaving": _LEAVING,
    "failed": "seed 3: expected finite metrics",
  }
  tables = study.report.tables([row], [])
  assert tables[2].rows[0][-1] == "1 of 1"
  assert "TD3, as published" in report_html.html(tables, [row], "{}")


@pytest.mark.parametrize(
  ("resume", "changes", "sentence"),
  [
    (False, {}, "holds a comparison; add --resume"),
    (True, {"seeds": (4,)}, "of another run"),
    (True, {"data": ("box",)}, "of another run"),
  ],
)
def test_a_folder_of_another_comparison_is_refused(
  played, resume, changes, sentence
):
  folder = played[0]
  with pytest.raises(InputError, match=sentence):
    study.run_study(
      tiny_plan(**changes), folder, small_world(), _silent, resume=resume
    )


def test_cells_without_their_description_are_nobodys(played, tmp_path):
  shutil.copytree(played[0].path / "cells", tmp_path / "cells")
  for resume in (False, True):
    with pytest.raises(InputError, match=r"run.json is gone"):
      study.run_study(
        tiny_plan(),
        CompareDir(tmp_path),
        small_world(),
        _silent,
        resume=resume,
      )


def test_a_damaged_cell_is_named(played, tmp_path):
  folder, plan, _, _, _ = played
  path = next(folder.path.rglob("td3_bc_told_box_box.json"))
  whole = path.read_text()
  path.write_text(whole.replace('"outside_share": ', '"outside_share": 1', 1))
  try:
    with pytest.raises(InputError, match=r"td3_bc_told_box_box.*damaged"):
      study.run_study(plan, folder, small_world(), _silent, resume=True)
  finally:
    path.write_text(whole)
  with pytest.raises(InputError, match="there is no comparison"):
    study.run_study(
      plan, CompareDir(tmp_path / "x"), small_world(), _silent, resume=True
    )


def test_a_real_log_is_a_column_more(tmp_path):
  """What global weights get there is what their fused scores are worth."""
  world, rng = small_world(), np.random.default_rng(0)
  num_tasks, length, days = world.num_actions // 2, 6, 40
  count = days * length
  scores = rng.uniform(0.05, 0.95, (count, num_tasks)).astype(np.float32)
  shown = Impressions(
    label=(rng.uniform(size=count) < scores[:, 0]).astype(float),
    reward=rng.uniform(size=count),
    day=np.repeat(np.arange(days), length),
    user=np.arange(days) // 2,
  )
  observation = env.observe(world, env.reset(jax.random.key(0), world))
  held_out = HeldOut(
    shown,
    scores,
    np.tile(np.asarray(observation), (days, 1)),
    np.full(days, 20220506),
    np.ones(days, bool),
  )
  plan = tiny_plan(
    world="w.world", data=("box",), versions=("told_box",), log_dir="log"
  )
  folder = CompareDir(tmp_path / "run")
  tables = study.run_study(plan, folder, world, _silent, held_out=held_out)
  result = json.loads((folder.path / "compare.json").read_text())
  rows = {row["learner"]: row for row in result["rows"]}
  action = _bench().actions["baseline"]
  weights = fusion.weights_from_action(jnp.asarray(action), world.fusion_spec)
  auc = day_auc(global_score(held_out, weights), shown)
  expected = mtf_gauc(auc, shown)
  assert rows["baseline"]["log_gauc"] == pytest.approx(expected, abs=1e-6)
  assert 0.5 < expected < 1
  assert result["metrics"][-1]["metric"] == "log_gauc"
  assert tables[1].header[-1] == "MTF-GAUC, held-out days"
  assert f"{expected:.4f}" in tables[1].rows[0][-1]
  assert "td3_bc" in rows and rows["td3_bc"]["log_gauc"] is not None


def test_policies_are_judged_on_the_same_sessions():
  bench = _bench()
  action = bench.actions["cem"]
  act = policies.explore_around(_fixed)
  served = policies.PolicyParams(jnp.asarray(action), 0.0, 0.0)
  found = bench_lib.judge(bench, act, served)
  np.testing.assert_array_equal(found.user, bench.results["baseline"].user)
  np.testing.assert_allclose(
    found.reward, bench.results["cem"].reward, rtol=1e-5
  )
