"""The study of successors: which arms there are, and one small game of it."""

import jax
import numpy as np
import pytest

from mtf_jax.evaluation.tables import text
from mtf_jax.io import InputError, json_text
from mtf_jax.learners.es import Search
from mtf_jax.learners.registry import LEARNERS
from mtf_jax.studies.successors import config as config_lib
from mtf_jax.studies.successors import study
from mtf_jax.studies.successors.config import Arm, arms_of
from mtf_jax.training.config import TrainConfig
from mtf_jax.worlds import candidates, env
from tests.session_logs import random_log, with_items

_BOTH = ("integrated_rl", "enhanced_rl")
_ONE = (("list",), ("request",), ("all",))

# Learners that stay where they begin: at the policy that was explored around.
_STILL = config_lib.SuccessorsConfig(
  sessions=64,
  max_requests=3,
  num_users=32,
  evaluation_sessions=64,
  search=Search(2, 16, noise=0.3, learning_rate=0.1),
  train=TrainConfig(
    hidden_sizes=(4,),
    ensemble_size=1,
    batch_size=4,
    num_updates=2,
    chunk_size=1,
    checkpoint_every=1,
    hyperparams={"actor_learning_rate": 0.0},
  ),
)


def test_arms_of_one_log_are_together_and_requests_need_a_common_deviation():
  arms = arms_of(_BOTH, ("list", "item"), ("request",), ("all", "attributes"))
  assert arms == [
    Arm("integrated_rl", "list", "request", None),
    Arm("enhanced_rl", "list", "request", "all"),
    Arm("enhanced_rl", "list", "request", "attributes"),
    Arm("enhanced_rl", "item", "request", "all"),
    Arm("enhanced_rl", "item", "request", "attributes"),
  ]
  cells = Arm("xmtf", "list", "request", None)
  kinds = (("list", "item"), ("request",), ("all",))
  assert arms_of(("xmtf", *_BOTH), *kinds) == [arms[0], arms[1], cells, arms[3]]
  assert arms[0].title == "integrated_rl"
  assert arms[1].title == "enhanced_rl, all"


@pytest.mark.parametrize(
  ("given", "message"),
  [
    ((("none",), *_ONE), "learners: expected different names of .* found none"),
    ((_BOTH, (), *_ONE[1:]), "shared: expected different names of list, item"),
    ((_BOTH, *_ONE[:2], ("all", "all")), "features: expected different names"),
    ((("slope_regression",), *_ONE), "learners: expected ones that are train"),
    ((_BOTH[:1], ("item",), *_ONE[1:]), "shared: expected list, which learn"),
    (
      (_BOTH[1:], ("item",), ("session",), ("all",)),
      "shared: expected list, .* held over a session, found item",
    ),
  ],
)
def test_what_cannot_be_played_is_refused(given, message):
  with pytest.raises(InputError, match=f"^{message}"):
    arms_of(*given)


@pytest.mark.usefixtures("quick_to_compile")
def test_learners_that_stay_where_they_begin_gain_nothing(small_world):
  said = []
  arms = [
    Arm("integrated_rl", "list", "request", None),
    Arm("enhanced_rl", "list", "request", "attributes"),
    Arm("xmtf", "list", "request", None),
  ]
  result = study.measure(small_world, _STILL, arms, 3, said.append)
  of_requests, of_pairs, of_cells = result["rows"]
  assert np.any(result["baseline_action"])
  for row in result["rows"]:
    # Small start weights of the actors are all that there is, on few sessions.
    assert abs(row["reward_gain_pct"]) < 1
    assert row["over_first_pct"] == pytest.approx(0, abs=0.5)
  assert "outside_shown" not in of_requests
  # It is compared with learners on logs that were drawn alike.
  assert of_cells["over_first_pct"] != 0
  assert of_pairs["outside_shown"] == of_pairs["outside_others"] == 0
  assert said[0] == "seed 3, list/request, integrated_rl: done"
  assert "enhanced_rl, attributes" in text(study.table(result))
  json_text(result)
  json_text(_STILL.to_json())


def test_what_an_arm_learns_from_is_what_it_sees_when_it_is_judged(small_world):
  """Features of a log's items, and of candidates, by their names."""
  state = env.reset(jax.random.key(0), small_world)
  whole = candidates.observe_candidates(small_world, state).features
  log = with_items(random_log(), features=whole.shape[1])
  names = np.array(candidates.FEATURE_NAMES)
  for features, kept in (
    ("all", names),
    ("attributes", np.array(["duration"])),
  ):
    columns = np.isin(names, kept)
    told = study._told(log, features).items.features
    np.testing.assert_array_equal(told, log.items.features[:, :, columns])
    seen = study._OBSERVE[features](small_world, state).features
    np.testing.assert_array_equal(seen, whole[:, columns])
  assert study._told(log, None).items is None


@pytest.mark.parametrize("preset", config_lib.PRESETS)
def test_presets_train_every_learner(preset):
  config = config_lib.PRESETS[preset]
  for learner, entry in LEARNERS.items():
    if not entry.closed_form:
      assert config.train_of(learner, 5).learner == learner
