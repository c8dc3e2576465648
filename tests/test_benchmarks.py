"""The kernel benchmark covers every kernel and counts what it moves."""

import inspect

import jax
import pytest

import mtf_jax
from benchmarks import harness, kernels


def test_every_kernel_has_a_workload():
  exported = {
    name
    for name in mtf_jax.__all__
    if not inspect.isclass(getattr(mtf_jax, name))
  }
  assert exported <= set(kernels.WORKLOADS)


@pytest.mark.parametrize("name", list(kernels.WORKLOADS))
def test_workloads_trace(name):
  workload = kernels.WORKLOADS[name]
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
  args = jax.eval_shape(jax.vmap(workload.sample), keys)
  output = jax.eval_shape(jax.vmap(workload.kernel), *args)
  assert all(leaf.shape[0] == 2 for leaf in jax.tree.leaves(output))
  assert workload.flops > 0


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
    harness.write_json(path, {"a": float("nan")})
  assert path.read_text() == '{\n "a": 1\n}\n'
  assert list(path.parent.iterdir()) == [path]


def test_an_unwritable_result_path_is_refused_before_the_work(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="json_out"):
    harness.check_writable(tmp_path / "file" / "result.json")
