import dataclasses
import json

import pytest

from mtf_jax.data import transitions
from mtf_jax.io import InputError
from mtf_jax.training.config import TrainConfig, make_learner
from tests.session_logs import random_log


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"critic": "linear"}, "critic: expected one of mlp, box"),
    (
      {"batch_size": 10, "critic_updates": 3},
      "batch_size: expected a multiple",
    ),
    ({"num_updates": 150}, "num_updates: expected a multiple of chunk_size"),
    ({"chunk_size": 0}, "expected 1 or more"),
    ({"seed": 2**32}, "seed: expected an integer from 0 to 4294967295, found"),
    ({"num_steps": 0}, "num_steps: expected 1 or more, found 0"),
    (
      {"num_steps": 2, "hyperparams": {"reward_shift": 0.5}},
      "reward_shift: expected 0 with num_steps = 2, found 0.5",
    ),
    ({"hyperparams": {"gamma": 0.9}}, "found gamma"),
    (
      {"learner": "sarsa"},
      "learner: expected one of integrated_rl, .*found 'sarsa'",
    ),
    (
      {"learner": "bc", "hyperparams": {"discount": 0.9}},
      "expected fields of bc's, actor_learning_rate, .* found discount",
    ),
  ],
)
def test_bad_configurations_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(TrainConfig(), **changes)


def test_an_odd_action_has_no_task_groups():
  dataset = transitions.device_dataset(random_log(components=3))
  with pytest.raises(ValueError, match="even number of action components"):
    make_learner(TrainConfig(actor="ple"), dataset)


def test_a_configuration_comes_back_from_json():
  config = TrainConfig(
    learner="td3_bc", hyperparams={"group_weights": (1.0, 0.5), "discount": 0.8}
  )
  values = json.loads(json.dumps(config.to_json()))
  assert TrainConfig.from_json(values) == config
  # One of a version that did not have a field yet.
  earlier = {k: v for k, v in values.items() if k != "critic_updates"}
  assert TrainConfig.from_json(earlier) == config
  before = {**values, "coefficients": values.pop("hyperparams")}
  with pytest.raises(
    ValueError, match=r"found .*coefficients.*; another version"
  ):
    TrainConfig.from_json(before)


@pytest.mark.parametrize(
  ("values", "message"),
  [
    (None, "expected the fields .*, found None; another version"),
    ({"hyperparams": [0.5]}, r"a JSON dict for hyperparams, found \[0\.5\]"),
    ({"hidden_sizes": 3}, "a JSON list for hidden_sizes, found 3"),
  ],
)
def test_values_of_another_kind_are_refused(values, message):
  with pytest.raises(InputError, match=message):
    TrainConfig.from_json(values)


def test_the_discount_is_the_learners():
  assert TrainConfig().discount == 0.9
  assert TrainConfig(hyperparams={"discount": 0.5}).discount == 0.5
  assert TrainConfig(learner="bc").discount == 1.0
