"""The kernel benchmark covers every kernel and counts what it moves."""

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtf_jax
from benchmarks import harness, kernels, plain, scaling, serving
from benchmarks.workloads import WORKLOADS


def test_every_kernel_has_a_workload():
  exported = {
    name
    for name in mtf_jax.__all__
    if not inspect.isclass(getattr(mtf_jax, name))
  }
  assert exported <= set(WORKLOADS)


@pytest.mark.parametrize("name", list(WORKLOADS))
def test_workloads_trace(name):
  workload = WORKLOADS[name]
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
  args = jax.eval_shape(workload.batch, keys)
  output = jax.eval_shape(workload.batched(), *args)
  axis = -1 if workload.sessions_last else 0
  assert all(leaf.shape[axis] == 2 for leaf in jax.tree.leaves(output))
  assert workload.flops > 0


@pytest.mark.parametrize("name", list(plain.PLAIN))
def test_plain_lines_say_what_the_kernel_says(name):
  workload = WORKLOADS[name]
  args = jax.jit(workload.batch)(jax.random.split(jax.random.key(0), 8))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6),
    jax.jit(workload.batched())(*args),
    jax.jit(plain.PLAIN[name])(*args),
  )


def test_a_program_is_as_fast_as_itself():
  """No time is asked for: a ratio is one of the seconds that were found."""
  program, _ = harness.compile_ahead(jnp.sin, jnp.zeros(4))
  ratio = harness.time_ratio(program, program, jnp.zeros(4), repeats=3)
  assert 0 < ratio.lower <= ratio.median <= ratio.upper
  assert 0 < ratio.equals_lower <= ratio.equals_upper


def test_a_result_row():
  ceilings = harness.Ceilings(copy_bytes_per_s=1.0, matmul_flops_per_s=2.0)
  row = kernels.time_workload("exceedance", 3, ceilings, repeats=7)
  # Three times ten components of action, lower and upper in, one number out.
  assert row["bytes"] == 3 * 4 * (3 * 10 + 1)
  assert row["share_of_copy_ceiling"] == pytest.approx(
    row["bytes"] / row["median_s"]
  )


def test_results_are_written_whole_or_not_at_all(tmp_path):
  path = tmp_path / "new" / "result.json"
  harness.write_json(path, {"a": 1})
  with pytest.raises(ValueError, match="not JSON compliant"):
    harness.write_json(path, {"a": float("inf")})
  assert path.read_text() == '{\n "a": 1\n}\n'
  assert list(path.parent.iterdir()) == [path]


def test_serving_is_measured_beside_the_same_policy_in_numpy():
  params = serving._params()
  act, _ = serving._numpy_functions(params)
  (observation, *_) = serving._requests(3, 8)
  found = jax.vmap(serving._actor, (None, 0, None))(params, observation, None)
  np.testing.assert_allclose(act(observation)[0], found, atol=1e-5)
  result = serving.measure([2], [8], 20)
  kinds = ["floor", "in_process", "exported", "ahead", "checked", "numpy"]
  assert [(row["function"], row["kind"]) for row in result["rows"]] == [
    *(("act", kind) for kind in kinds),
    *(("serve", kind) for kind in kinds),
  ]
  for row in result["rows"]:
    assert 0 < row["p50_us"] <= row["p95_us"] <= row["p99_us"]
    assert row["requests_per_s"] == pytest.approx(2e6 / row["p50_us"])
    assert 0 < row["cpu_p50_us"] <= row["cpu_p95_us"] <= row["cpu_p99_us"]
  for found in result["cold_start"].values():
    assert found["load_and_self_test_s"] > 0
    assert found["load_and_self_test_cpu_s"] > 0
    assert found["numpy_mb"] < found["loaded_mb"] <= found["served_mb"]
  assert result["cold_start"]["prepared"]["prepare_s"] > 0


def test_speeds_on_paper_follow_from_bytes_and_links():
  machine = scaling.Machine(
    update_s=1.0,
    memory_bytes_per_s=36e3,
    node_size=2,
    node_bytes_per_s=8e3,
    network_bytes_per_s=4e3,
    latency_s=0.01,
  )
  program = {
    "bytes_of_update": 4000,
    "parameters": 100,
    "collectives": [None] * 10,
  }

  def seconds(axis, devices):
    found = scaling.on_paper(machine, axis, devices, program)
    assert found["devices"] == devices
    return found["communication_us"] / 1e6, 1 / found["strong_speedup"]

  assert seconds("data", 1) == (0, 1)
  # Half of the bytes twice over the node's links, and ten latencies.
  assert seconds("data", 2)[0] == pytest.approx(0.5 + 0.1)
  # Over two nodes besides half of a device's 2000 bytes twice.
  assert seconds("data", 4)[0] == pytest.approx(0.5 + 0.5 + 0.1)
  # A tenth of an update is Adam's, which data does not divide.
  assert seconds("data", 2)[1] == pytest.approx(0.1 + 0.45 + 0.6, rel=0.01)
  assert seconds("critic", 2)[1] == pytest.approx(0.5 + 0.6, rel=0.01)
