"""What a mesh cannot divide is refused, and what it does not divide has a place."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh

from mtf_jax.distributed import mesh as mesh_lib
from mtf_jax.io import InputError
from mtf_jax.studies.progressive import experiment as experiment_lib
from mtf_jax.studies.progressive import study
from tests.tiny_run import tiny_plan, tiny_study_learner

_PLAN = tiny_plan(learners=("integrated_rl:box", "slope_regression"))


def _mesh(**sizes):
  return AbstractMesh(
    tuple(sizes.get(axis, 1) for axis in mesh_lib.AXES), mesh_lib.AXES
  )


@pytest.mark.parametrize(
  ("sizes", "sentence"),
  [
    ({"data": 3}, "^mesh: .* data that divides 32, .* found 3"),
    ({"critic": 4}, "^mesh: .* critic that divides the 2 critics .* found 4"),
    ({"seed": 4}, "^mesh: .* seed that divides the 2 seeds side .* found 4"),
  ],
)
def test_what_an_axis_does_not_divide_is_refused(sizes, sentence):
  with pytest.raises(InputError, match=sentence):
    study.check_fits(_PLAN, _mesh(**sizes))
  study.check_fits(_PLAN, _mesh(data=4, critic=2, seed=2))
  study.check_fits(_PLAN, None)


def test_a_closed_form_draws_no_batches():
  plan = dataclasses.replace(_PLAN, learners=("slope_regression",))
  study.check_fits(plan, _mesh(data=3, critic=4))


def test_a_learner_in_closed_form_stays_on_one_device():
  mesh = mesh_lib.make_mesh({"data": 1})
  state = {"critic_params": jnp.zeros((2, 3, 4))}

  def placed(learner):
    experiment = experiment_lib.Experiment(
      **{
        **dict.fromkeys(experiment_lib.Experiment._fields),
        "study_learner": tiny_study_learner(learner),
        "mesh": mesh,
      }
    )
    assert experiment_lib.on_one_device(experiment, state)[
      "critic_params"
    ].devices() == {jax.devices()[0]}
    return experiment_lib.put_state(experiment, state)["critic_params"].sharding

  assert placed("integrated_rl:box").mesh == mesh
  assert isinstance(
    placed("slope_regression"), jax.sharding.SingleDeviceSharding
  )
