import json
import pathlib
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax.training.checkpoints import CheckpointError, Checkpoints, digest

# When a read or a write fails, Orbax closes its event loop while the storage
# layer still has callbacks for it; their complaint belongs to no test.
pytestmark = pytest.mark.filterwarnings(
  "ignore::pytest.PytestUnraisableExceptionWarning"
)


def state_of(seed):
  rng_key = jax.random.key(seed)
  return {
    "params": jax.random.normal(rng_key, (64, 64)),
    "rng_key": rng_key,
    "step": jnp.array(seed, jnp.int32),
    "healthy": jnp.array(True),
  }


@pytest.fixture
def checkpoints(tmp_path):
  manager = Checkpoints(tmp_path / "checkpoints", keep=2)
  yield manager
  manager.close()


def files_of(checkpoints, step):
  directory = checkpoints._directory / str(step)
  return sorted(
    (path for path in directory.rglob("*") if path.is_file()),
    key=lambda path: path.stat().st_size,
  )


def test_everything_comes_back(checkpoints):
  assert checkpoints.restore(state_of(0)) is None
  checkpoints.save(3, state_of(3), {"round": 1, "config": {"a": [1, 2]}})
  state, record = checkpoints.restore(state_of(0))
  assert digest(state) == digest(state_of(3))
  assert record["round"] == 1
  assert record["config"] == {"a": [1, 2]}
  assert state["params"].dtype == jnp.float32
  np.testing.assert_array_equal(
    jax.random.uniform(state["rng_key"]), jax.random.uniform(jax.random.key(3))
  )


def test_only_the_newest_are_kept(checkpoints):
  for step in (1, 2, 3):
    checkpoints.save(step, state_of(step), {})
  assert checkpoints.steps() == [2, 3]


def test_digest_sees_values_names_and_dtypes():
  state = state_of(0)
  others = [
    {**state, "step": jnp.array(1, jnp.int32)},
    {**state, "rng_key": jax.random.key(1)},
    {**state, "step": jnp.array(0, jnp.float32)},
    {("steps" if name == "step" else name): x for name, x in state.items()},
  ]
  assert len({digest(one) for one in [state, *others]}) == 5


def test_a_truncated_checkpoint_gives_way_to_the_one_before(
  checkpoints, caplog
):
  checkpoints.save(1, state_of(1), {})
  checkpoints.save(2, state_of(2), {})
  largest = files_of(checkpoints, 2)[-1]
  largest.write_bytes(largest.read_bytes()[:1000])
  state, _ = checkpoints.restore(state_of(0))
  assert digest(state) == digest(state_of(1))
  assert "2 is damaged" in caplog.text
  assert checkpoints.steps() == [1]
  # The run goes on and meets the same step again.
  checkpoints.save(2, state_of(2), {})
  assert checkpoints.steps() == [1, 2]


def test_changed_bytes_are_noticed(checkpoints, caplog):
  checkpoints.save(1, state_of(1), {})
  record = next(
    path
    for path in files_of(checkpoints, 1)
    if b"schema_version" in path.read_bytes()
  )
  content = json.loads(record.read_text())
  content["sha256"] = "0" * 64
  record.write_text(json.dumps(content))
  with pytest.raises(CheckpointError, match="expected a whole checkpoint") as e:
    checkpoints.restore(state_of(0))
  assert "its arrays differ from their recorded SHA-256" in str(e.value)
  assert str(checkpoints._directory / "1") in str(e.value)


def test_a_missing_record_is_damage_not_a_fresh_start(checkpoints):
  checkpoints.save(1, state_of(1), {})
  for path in files_of(checkpoints, 1):
    if b"schema_version" in path.read_bytes():
      path.unlink()
  with pytest.raises(CheckpointError, match="expected a whole checkpoint"):
    checkpoints.restore(state_of(0))


def test_another_version_is_refused(checkpoints, monkeypatch):
  checkpoints.save(1, state_of(1), {})
  monkeypatch.setattr("mtf_jax.training.checkpoints.SCHEMA_VERSION", 3)
  with pytest.raises(ValueError, match="expected schema version 3, found 2"):
    checkpoints.restore(state_of(0))
  assert checkpoints.steps() == [1]


def test_a_full_disk_leaves_the_last_checkpoint(checkpoints, tmp_path):
  """The file size limit makes writes fail as a full disk does."""
  checkpoints.save(1, state_of(1), {})
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
  try:
    with pytest.raises(CheckpointError, match="could not be written"):
      checkpoints.save(2, state_of(2), {})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  again = Checkpoints(tmp_path / "checkpoints", keep=2)
  assert again.steps() == [1]
  state, _ = again.restore(state_of(0))
  assert digest(state) == digest(state_of(1))
  again.save(2, state_of(2), {})
  assert again.steps() == [1, 2]
  again.close()


def test_half_written_directories_do_not_count(tmp_path):
  directory = tmp_path / "checkpoints"
  first = Checkpoints(directory)
  first.save(1, state_of(1), {})
  first.close()
  torn = directory / "2.orbax-checkpoint-tmp"
  torn.mkdir()
  (torn / "state").write_bytes(b"half")
  again = Checkpoints(directory)
  assert again.steps() == [1]
  state, _ = again.restore(state_of(0))
  assert digest(state) == digest(state_of(1))
  again.close()


def test_the_caller_may_refuse_a_record(checkpoints):
  checkpoints.save(1, state_of(1), {"dataset": "abc"})

  def refuse(record):
    raise ValueError(f"dataset: found {record['dataset']}")

  with pytest.raises(ValueError, match="dataset: found abc"):
    checkpoints.restore(state_of(0), check=refuse)
  assert pathlib.Path(checkpoints._directory / "1").exists()
