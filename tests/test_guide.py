"""The learner and the log that the guide writes are what it says they are."""

import dataclasses
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import networks, policies
from mtf_jax.data import session_log, transitions
from mtf_jax.fitting import synthetic
from mtf_jax.learners import registry
from mtf_jax.learners.base import Learner, normalization_from
from mtf_jax.studies.progressive.config import PRESETS
from mtf_jax.training import loop
from mtf_jax.training.config import TrainConfig
from mtf_jax.worlds import candidates, rollout
from tests.learners.test_conformance import Case
from tests.session_logs import log_of, random_log

_GUIDE = pathlib.Path(__file__).parents[1] / "docs" / "guide.md"


def _block_with(text):
  blocks = re.findall(
    r"^```python\n(.*?)^```$",
    _GUIDE.read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
  )
  (block,) = [block for block in blocks if text in block]
  return block


def test_the_log_of_the_guide_is_read(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  exec(_block_with("save_sessions("), {})
  log, _ = session_log.load_sessions("mine.npz")
  dataset = transitions.device_dataset(log)
  # The row after the cut is no request, and the last request leads to it.
  np.testing.assert_array_equal(dataset.start_row[:5], np.arange(5))
  assert dataset.num_transitions == 5
  np.testing.assert_array_equal(dataset.discount[:5], [1, 1, 0, 1, 1])
  assert dataset.next_row[4] == 5
  inside = (log.action >= log.box.lower) & (log.action <= log.box.upper)
  assert inside[~log.bootstrap_only].all()
  np.testing.assert_allclose(log.log_prob[:5], -10 * np.log(0.3), rtol=1e-5)


def test_a_policy_of_pairs_acts_as_the_guide_says(small_world):
  learner = types.SimpleNamespace(act=policies.global_action)
  given = {"policies": policies, "candidates": candidates, "rollout": rollout}
  given |= {"learner": learner, "params": jnp.zeros(10), "world": small_world}
  given |= {"key": jax.random.key(0)}
  exec(_block_with("policies.explore_each("), given)
  items = given["rows"].log.items
  assert items.features.shape[:3] == (256, 9, small_world.slate_size)


def test_other_weights_are_another_policy_as_the_guide_says():
  learner = registry.LEARNERS["preference_rl"].build(
    networks.mlp_actor(2, (8,)), networks.mlp_critic(2, 1, (8,))
  )
  dataset = transitions.device_dataset(random_log())
  one = transitions.sample_transitions(jax.random.key(0), dataset, 1)
  state = learner.init(
    jax.random.key(1), jax.tree.map(lambda leaf: leaf[0], one)
  )
  given = {"jnp": jnp, "learner": learner, "state": state}
  exec(_block_with("group_weights=jnp"), given)
  np.testing.assert_allclose(given["params"].preference, [0.5, 1.5])


def test_the_environment_of_the_guide_takes_a_step(small_world, monkeypatch):
  monkeypatch.setattr(synthetic, "synthetic_world", lambda *_: small_world)
  found = {}
  exec(_block_with("functional.make("), found)
  assert found["observation"].shape == (len(small_world.observation_names),)
  np.testing.assert_allclose(
    found["info"]["fusion_action"], 0.15 * found["action"], rtol=1e-6
  )
  assert found["reward"] > 0


def _learner_of_the_guide():
  module = types.ModuleType("rwr")
  exec(_block_with("base.Learner(init"), vars(module))
  return module


def test_the_learner_of_the_guide_trains():
  rwr = _learner_of_the_guide()
  learner = rwr.rwr(networks.mlp_actor(2, (8,)))
  assert isinstance(learner, Learner) and learner.value is None
  dataset = transitions.device_dataset(random_log())
  one = transitions.sample_transitions(jax.random.key(0), dataset, 1)
  state = learner.init(
    jax.random.key(1),
    jax.tree.map(lambda leaf: leaf[0], one),
    rwr.Hyperparams(actor_learning_rate=0.01),
    normalization_from(dataset),
  )
  before = jax.tree.map(np.array, learner.policy(state))
  losses = []
  state = loop.train(
    learner,
    loop.start(jax.random.key(2), state),
    dataset,
    2,
    batch_size=16,
    chunk_size=1,
    on_chunk=lambda _, metrics: losses.append(metrics.actor_loss),
  )
  assert state.step == 2 and np.all(np.isfinite(losses))
  after = learner.policy(state.learner)
  assert not np.array_equal(
    jax.tree.leaves(after.actor_params)[0],
    jax.tree.leaves(before.actor_params)[0],
  )
  action = learner.act(after, dataset.observation[0], jax.random.key(3))
  assert action.shape == (2,) and jnp.all(jnp.abs(action) <= 1)


def test_its_entry_is_all_that_configurations_need(monkeypatch):
  names = {"Entry": registry.Entry, "Case": Case}
  names["rwr"] = _learner_of_the_guide()
  entry_line, case_lines = _block_with("Entry(").split("\n", 1)
  entry = eval(f"{{{entry_line}}}", names)["rwr"]
  case = eval(f"{{{case_lines}}}", names)["rwr"]
  assert set(case.others) == set(entry.hyperparams._fields)
  monkeypatch.setitem(registry.LEARNERS, "rwr", entry)
  assert isinstance(entry.build(None, None, critic_updates=1), Learner)
  TrainConfig(learner="rwr", hyperparams={"temperature": 0.5})
  preset = PRESETS["cpu"]
  tuned = {"rwr:box": {"num_steps": 4, "hyperparams": {"temperature": 0.5}}}
  for numbers, num_steps, own in (
    ({}, preset.train.num_steps, {}),
    (tuned, 4, {"temperature": 0.5}),
  ):
    config = dataclasses.replace(preset, tuned=numbers)
    train = config.with_learner("rwr").train
    assert (train.learner, train.num_steps) == ("rwr", num_steps)
    rate = preset.train.hyperparams["actor_learning_rate"]
    assert train.hyperparams == {"actor_learning_rate": rate, **own}


def test_the_estimates_of_the_guide_are_printed(tmp_path, capsys):
  rng = np.random.default_rng(0)
  u = rng.uniform(-1, 1, (400, 2))
  log = log_of(
    rng.normal(size=(400, 3)),
    0.15 * u,
    (5 + u[:, :1] + 0.1 * rng.standard_normal((400, 1))),
  )
  session_log.save_sessions(tmp_path / "log.npz", log)
  scope = {}
  exec(_block_with("def report(path"), scope)
  params = jnp.asarray([0.075, 0.2], jnp.float32)
  scope["report"](tmp_path / "log.npz", lambda params, x, key: params, params)
  printed = capsys.readouterr().out
  (value, gain, outside, _, _) = printed.splitlines()
  assert float(value.split()[2]) == pytest.approx(5.5, abs=0.1)
  assert float(gain.split()[5].rstrip("%")) == pytest.approx(10, abs=1)
  assert outside == "outside its box 100.0%"
