import pytest

from mtf_jax.io import InputError
from mtf_jax.learners.registry import LEARNERS
from mtf_jax.studies.compare.config import (
  DATA,
  PRESETS,
  cells,
  tuned_numbers,
)
from mtf_jax.studies.compare.methods import (
  ABLATIONS,
  METHODS,
  PARTS,
  VERSIONS,
)
from mtf_jax.studies.compare.plan import Plan

_CONFIG = PRESETS["cpu"]


def _plan(**changes):
  values = {
    "world": "synthetic",
    "preset": "cpu",
    "seeds": (0,),
    "leaving": ("satisfaction_floor",),
    "methods": ("td3_bc",),
    "versions": VERSIONS,
    "data": DATA,
    "config": _CONFIG,
    "tuned": {},
  }
  return Plan(**{**values, **changes})


def test_every_method_is_tuned_with_as_many_trials():
  counts = {len(method.trials()) for method in METHODS.values()}
  assert counts == {8}
  for method in METHODS.values():
    assert len({tuple(t.items()) for t in method.trials()}) == 8


def test_every_learner_that_knows_transitions_is_compared():
  compared = {method.learner for method in METHODS.values()}
  # Logs of requests have no shown items and no scores of candidates.
  requests = {name for name, entry in LEARNERS.items() if not entry.needs}
  # Without a bound, and at equal weights, they are one that is; neither a bound nor
  # other weights are a way to more reward.
  variants = {"constrained_rl", "preference_rl"}
  assert compared | variants == requests
  assert not compared & variants


@pytest.mark.parametrize("name", METHODS)
def test_versions_are_what_they_are_called(name):
  method = METHODS[name]
  fields = LEARNERS[method.learner].hyperparams._fields
  assert set(method.grid) | set(method.numbers) <= set(fields)
  published = _CONFIG.train_of(name, "as_published", {})
  assert (published.critic, published.num_steps) == ("mlp", 1)
  assert not published.hyperparam("told_box", 0.0)
  if method.num_critics is not None:
    assert published.ensemble_size == method.num_critics
  if "told_box" not in method.versions:
    return
  told = _CONFIG.train_of(name, "told_box", {})
  assert told.critic == _CONFIG.sizes.train.critic
  assert told.num_steps == _CONFIG.sizes.train.num_steps > 1
  if "told_box" in fields:
    assert told.hyperparam("told_box", 0.0) == 1
  # Both versions have as many updates of batches as large.
  for field in ("num_updates", "batch_size"):
    assert getattr(told, field) == getattr(published, field)


@pytest.mark.parametrize("part", PARTS)
def test_versions_in_between_have_one_part_or_all_but_one(part):
  tuned = {"td3:told_box": {"critic_learning_rate": 2e-3}}

  def parts(version):
    train = _CONFIG.train_of("td3", version, tuned)
    assert train.hyperparam("critic_learning_rate", None) == 2e-3
    return {
      "box_units": train.hyperparam("told_box", None) == 1,
      "box_critic": train.critic == "box",
      "session_return": train.num_steps > 1,
    }

  only, without = parts(f"only_{part}"), parts(f"without_{part}")
  assert only == {name: name == part for name in PARTS}
  assert without == {name: name != part for name in PARTS}
  assert not any(parts("only_numbers").values())


@pytest.mark.parametrize("name", METHODS)
def test_versions_of_a_method_are_different_ones(name):
  tuned = {f"{name}:told_box": METHODS[name].trials()[-1]}
  found = [
    _CONFIG.train_of(name, version, tuned).to_json()
    for version in (*VERSIONS, *ABLATIONS)
    if METHODS[name].has(version)
  ]
  assert all(found.count(one) == 1 for one in found)
  between = [v for v in ABLATIONS if METHODS[name].has(v)]
  told_nothing = name in ("integrated_rl", "slope_regression", "bc")
  assert between == ([] if told_nothing else list(ABLATIONS))


def test_tuned_numbers_hold_for_their_version_alone():
  tuned = {"td3_bc:told_box": {"value_scale": 7.0}}
  told = _CONFIG.train_of("td3_bc", "told_box", tuned)
  published = _CONFIG.train_of("td3_bc", "as_published", tuned)
  assert told.hyperparam("value_scale", None) == 7.0
  assert published.hyperparam("value_scale", None) == 2.5


def test_committed_numbers_are_trials():
  for name, numbers in tuned_numbers().items():
    method, version = name.split(":")
    assert version in METHODS[method].versions
    assert numbers in METHODS[method].trials()


def test_cells_are_methods_by_their_versions_by_logs():
  found = cells(("bc", "td3_bc"), VERSIONS, ("box", "gaussian"))
  assert len(found) == len(set(found)) == 6
  assert ("bc", "told_box", "box") not in found


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"methods": ("td3_bc", "sarsa")}, "learners: expected different names"),
    ({"methods": ()}, "learners: .* found none"),
    ({"data": ("box", "box")}, "data: expected different names of gaussian"),
    ({"versions": ("tuned",)}, "versions: expected"),
    ({"leaving": ("never",)}, "leaving: expected"),
    ({"seeds": (1, 1)}, "seeds: expected different"),
    ({"log_dir": "log"}, "log_dir: expected a --world that was fitted"),
    ({"tuned": {"td3_bc:told_box": {"colour": 1.0}}}, "hyperparams: expected"),
  ],
)
def test_plans_that_cannot_be_played_are_refused(changes, sentence):
  with pytest.raises((InputError, ValueError), match=sentence):
    _plan(**changes)
