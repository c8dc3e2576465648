import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from mtf_jax.distributed import collectives
from mtf_jax.distributed import mesh as mesh_lib
from mtf_jax.io import InputError


def _mesh(**sizes):
  return AbstractMesh(
    tuple(sizes.get(axis, 1) for axis in mesh_lib.AXES), mesh_lib.AXES
  )


def test_axes_are_read():
  assert mesh_lib.parse_axes("data:4,critic:2") == {"data": 4, "critic": 2}


@pytest.mark.parametrize(
  "text",
  [
    "",
    "data",
    "data:0",
    "data:-1",
    "data:4,data:2",
    "model:2",
    "data:4;seed:2",
  ],
)
def test_what_names_no_axes_is_refused(text):
  with pytest.raises(InputError, match=r"^mesh: expected data, critic, "):
    mesh_lib.parse_axes(text)


def test_a_mesh_has_all_axes():
  mesh = mesh_lib.make_mesh()
  assert dict(mesh.shape) == {
    "data": len(jax.devices()),
    "critic": 1,
    "seed": 1,
  }


def test_more_devices_than_there_are_are_refused():
  with pytest.raises(InputError, match=r"^mesh: expected at most \d+ devices"):
    mesh_lib.make_mesh({"data": 99999})


def test_critics_are_divided_by_critic_and_the_rest_is_whole():
  state = {
    "critic_params": {"kernel": np.zeros((2, 6, 8, 3))},
    "target_critic_params": {"bias": np.zeros((2, 6, 8))},
    "critic_optimizer": {"count": np.zeros(())},
    "actor_params": {"kernel": np.zeros((4, 6))},
  }
  found = mesh_lib.state_shardings(_mesh(critic=3), state)
  specs = jax.tree.map(lambda sharding: sharding.spec, found)
  whole, split = PartitionSpec(), PartitionSpec(None, "critic")
  assert specs == {
    "critic_params": {"kernel": split},
    "target_critic_params": {"bias": split},
    "critic_optimizer": {"count": whole},
    "actor_params": {"kernel": whole},
  }


def test_runs_are_divided_by_seed():
  state = {"critic_params": np.zeros((4, 2, 6, 3)), "step": np.zeros(4)}
  found = mesh_lib.state_shardings(_mesh(critic=2, seed=2), state, many=True)
  assert found["step"].spec == PartitionSpec("seed")
  assert found["critic_params"].spec == PartitionSpec("seed", None, "critic")


@pytest.mark.parametrize(
  ("sizes", "sentence"),
  [
    ({"critic": 4}, "^mesh: .* critic that divides the 6 critics of a reward"),
    ({"seed": 4}, "^mesh: .* seed that divides the 2 seeds, found 4"),
  ],
)
def test_an_axis_that_divides_unevenly_is_refused(sizes, sentence):
  state = {"critic_params": np.zeros((2, 2, 6, 3))}
  with pytest.raises(InputError, match=sentence):
    mesh_lib.state_shardings(_mesh(**sizes), state, many=True)


@pytest.mark.parametrize(
  ("numbers", "sentence"),
  [
    ((256, 1, 1), "^mesh: .* divides 256, .* found 3"),
    ((96, 1, 8), "^mesh: .* divides num_strata = 8, found 3"),
    ((96, 16, 3), "^mesh: .* divides 6, .* found 4"),
  ],
)
def test_a_run_that_data_divides_unevenly_is_refused(numbers, sentence):
  batch_size, critic_updates, num_strata = numbers
  mesh = _mesh(data=4 if critic_updates > 1 else 3)
  with pytest.raises(InputError, match=sentence):
    mesh_lib.check_fits(
      mesh,
      batch_size=batch_size,
      critic_updates=critic_updates,
      num_strata=num_strata,
    )


def test_collectives_are_read_from_a_program():
  program = """
  %a = (f32[8,16]{1,0}, bf16[3]{0}) all-reduce(%x, %y), channel_id=1
  %b = f32[4,2]{1,0} all-gather-start(%a), dimensions={0}
  %c = f32[4,2]{1,0} all-gather-done(%b)
  %d = pred[] all-reduce(%z)
  %all-reduce.7 = f32[9]{0} add(%a, %b)
  ROOT %e = u32[2]{0} collective-permute(%all-reduce.7)
  """
  assert collectives.collectives_of(program) == [
    ("all-reduce", 2, 8 * 16 * 4 + 3 * 2),
    ("all-gather", 1, 32),
    ("all-reduce", 1, 1),
    ("collective-permute", 1, 8),
  ]
