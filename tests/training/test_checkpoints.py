import json
import os
import pathlib
import re
import resource
import signal
import subprocess
import sys
import tempfile
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax.io import InputError
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


def edit(**changes):
  """Damage: values of the record, written as JSON."""

  def damage(folder):
    file = folder / "record" / "metadata"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

  return damage


def cut_arrays(folder):
  largest = max(folder.rglob("d/*"), key=lambda path: path.stat().st_size)
  largest.write_bytes(largest.read_bytes()[:1000])


def cut_record(folder):
  file = folder / "record" / "metadata"
  file.write_bytes(file.read_bytes()[:20])


def rename_key(folder):
  file = folder / "record" / "metadata"
  file.write_text(file.read_text().replace('"config"', '"konfig"'))


DAMAGES = {
  "arrays cut": (cut_arrays, "DATA_LOSS|OUT_OF_RANGE"),
  "arrays gone": (
    lambda folder: (folder / "state" / "_METADATA").unlink(),
    "does not exist",
  ),
  "record cut": (cut_record, "its record is no JSON: Expecting value"),
  "record empty": (
    lambda folder: (folder / "record" / "metadata").write_bytes(b""),
    "its record is no JSON: Expecting value",
  ),
  "record a number": (
    lambda folder: (folder / "record" / "metadata").write_text("7"),
    "its record is no JSON object",
  ),
  "record gone": (
    lambda folder: (folder / "record" / "metadata").unlink(),
    "its record is missing",
  ),
  "digest": (edit(sha256="0" * 64), "content differs"),
  "figure": (edit(figures=[1.0, 2.5]), "content differs"),
  "key": (rename_key, "content differs"),
  "key impls": (edit(key_impls={}), "content differs"),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
  checkpoints, caplog, kind
):
  damage, reason = DAMAGES[kind]
  record = {"config": {"seed": 3}, "figures": [1.0, 2.0]}
  for step in (1, 2):
    checkpoints.save(step, state_of(step), record)
  directory = checkpoints._directory
  for aside in ("damaged.2", "damaged.2.1"):
    damage(directory / "2")
    state, found = checkpoints.restore(state_of(0))
    assert digest(state) == digest(state_of(1))
    assert found["figures"] == [1.0, 2.0]
    assert re.search(rf"2 is damaged \(.*({reason})", caplog.text)
    assert f"set aside as {aside}." in caplog.text
    assert (directory / aside).is_dir()
    # The run goes on and meets the same step again.
    checkpoints.save(2, state_of(2), record)
    assert digest(checkpoints.restore(state_of(0))[0]) == digest(state_of(2))


def test_no_run_starts_anew_beside_damaged_checkpoints(checkpoints):
  """Once when the last one is found damaged, and whenever after that."""
  checkpoints.save(1, state_of(1), {})
  edit(sha256="0" * 64)(checkpoints._directory / "1")
  with pytest.raises(CheckpointError) as caught:
    checkpoints.restore(state_of(0))
  directory = checkpoints._directory
  assert str(caught.value) == (
    f"{directory}: expected a whole checkpoint, found none but damaged ones"
    f" ({directory / '1'}: its content differs from its recorded SHA-256);"
    " restore one from a copy, or name another folder, or delete this one to"
    " start anew."
  )
  with pytest.raises(CheckpointError, match=r"damaged ones \(damaged\.1\);"):
    checkpoints.restore(state_of(0))


def another_key(state):
  return {**state, "rng_key": jax.random.key(0, impl="rbg")}


@pytest.mark.parametrize(
  ("template", "message"),
  [
    (
      lambda state: {**state, "params": jnp.zeros((64, 32))},
      r"params: expected float32 \[64, 32\] as this run has it, found float32"
      r" \[64, 64\]; another network, log or number of runs wrote it",
    ),
    (
      lambda state: {**state, "step": jnp.zeros((), jnp.int16)},
      r"step: expected int16 \[\] as this run has it, found int32 \[\]; another"
      r" precision wrote it \(JAX_ENABLE_X64\)",
    ),
    (
      lambda state: {**state, "bias": jnp.zeros(3)},
      "bias: expected an array of this name, found none; another learner",
    ),
    (
      lambda state: {name: state[name] for name in ("step", "rng_key")},
      "healthy: expected no such array in this run's state, found one",
    ),
    (
      another_key,
      "rng_key: expected a key of the implementation rbg, found one of"
      " threefry2x32; set JAX_DEFAULT_PRNG_IMPL=threefry2x32 to go on",
    ),
    (
      lambda state: {**state, "rng_key": jax.random.split(state["rng_key"])},
      r"rng_key: expected a key of uint32 \[2, 2\] as this run has it, found"
      r" uint32 \[2\]; another number of runs wrote it",
    ),
  ],
)
def test_a_state_of_another_kind_is_refused_by_name(
  checkpoints, template, message
):
  checkpoints.save(1, state_of(1), {})
  checkpoints.save(2, state_of(2), {})
  with pytest.raises(CheckpointError, match=message) as caught:
    checkpoints.restore(template(state_of(0)))
  assert str(caught.value).startswith(f"{checkpoints._directory / '2'}: ")
  # Nothing was renamed: asked rightly, it is there.
  state, _ = checkpoints.restore(state_of(0))
  assert digest(state) == digest(state_of(2))


def test_implementations_of_one_size_are_told_apart(checkpoints):
  checkpoints.save(1, {"rng_key": jax.random.key(0, impl="rbg")}, {})
  with pytest.raises(CheckpointError, match="unsafe_rbg, found one of rbg;"):
    checkpoints.restore({"rng_key": jax.random.key(0, impl="unsafe_rbg")})


def test_another_precision_is_refused_both_ways(checkpoints):
  checkpoints.save(1, {"params": jnp.ones(3)}, {})
  with jax.enable_x64(True):
    double = {"params": jnp.ones(3)}
    with pytest.raises(CheckpointError, match=r"expected float64 .* float32"):
      checkpoints.restore(double)
    checkpoints.save(2, double, {})
    state, _ = checkpoints.restore(double)
    assert state["params"].dtype == jnp.float64
  with pytest.raises(CheckpointError, match=r"expected float32 .* float64"):
    checkpoints.restore({"params": jnp.ones(3)})
  assert checkpoints.steps() == [1, 2]


class Hyperparams(NamedTuple):
  discount: jax.Array
  sharpness: jax.Array


def test_a_new_hyperparameter_has_its_default(checkpoints, caplog):
  """One that an earlier version did not have; no other leaf may be missing."""
  saved = {"weight": jnp.ones(3), "hyperparams": {"discount": jnp.array(0.5)}}
  checkpoints.save(1, saved, {})
  now = {
    "weight": jnp.zeros(3),
    "hyperparams": Hyperparams(jnp.array(0.9), jnp.array(2.0)),
  }
  state, _ = checkpoints.restore(now)
  assert state["hyperparams"] == (0.5, 2.0)
  assert state["weight"].tolist() == [1, 1, 1]
  assert "before there was hyperparams.sharpness; going on" in caplog.text


@pytest.mark.parametrize("value", [0.5, 3, True])
def test_a_python_number_is_refused_by_name(checkpoints, value):
  state = {**state_of(1), "numbers": {"discount": value}}
  with pytest.raises(InputError, match=r"numbers\.discount: expected an array"):
    checkpoints.save(1, state, {})
  checkpoints.save(1, state_of(1), {})
  with pytest.raises(InputError, match=f"found {value}, a Python"):
    checkpoints.restore({**state_of(1), "step": value})


def test_two_leaves_of_one_name_are_refused(checkpoints):
  state = {"a": {"b": jnp.ones(2)}, "a.b": jnp.zeros(2)}
  with pytest.raises(InputError, match=r"a\.b: expected one leaf of this name"):
    checkpoints.save(1, state, {})


def test_a_key_missing_in_a_record_is_named(checkpoints):
  checkpoints.save(1, state_of(1), {"world": "w"})
  _, record = checkpoints.restore(state_of(0))
  with pytest.raises(CheckpointError, match="expected 'rounds' in its record"):
    record["rounds"]
  assert record.get("rounds", 0) == 0


@pytest.mark.parametrize("keep", [0, -1])
def test_no_checkpoint_kept_is_refused(tmp_path, keep):
  with pytest.raises(InputError, match=f"1 checkpoint or more .* found {keep}"):
    Checkpoints(tmp_path / "checkpoints", keep=keep)
  assert not list(tmp_path.iterdir())


def test_other_software_proves_no_damage(checkpoints, monkeypatch):
  checkpoints.save(1, state_of(1), {})
  cut_arrays(checkpoints._directory / "1")
  monkeypatch.setattr(
    "mtf_jax.training.checkpoints._software", lambda: "orbax-checkpoint 99"
  )
  with pytest.raises(
    CheckpointError,
    match=r"1: could not be decoded \(.*\), which orbax-checkpoint [0-9.]+,"
    r" tensorstore [0-9.]+ wrote and orbax-checkpoint 99 read; .* move it out",
  ):
    checkpoints.restore(state_of(0))
  assert checkpoints.steps() == [1]


@pytest.mark.parametrize("name", ["record", "state"])
def test_what_may_not_be_read_is_no_damage(name):
  """A folder of their own: pytest's is closed to others already."""
  with tempfile.TemporaryDirectory() as folder:
    os.chmod(folder, 0o755)
    checkpoints = Checkpoints(pathlib.Path(folder) / "checkpoints")
    checkpoints.save(1, state_of(1), {})
    closed = checkpoints._directory / "1" / name
    closed.chmod(0)
    is_root = os.geteuid() == 0
    if is_root:
      os.seteuid(65534)
    try:
      with pytest.raises(CheckpointError, match=r"read \(Permission denied\)"):
        checkpoints.restore(state_of(0))
    finally:
      if is_root:
        os.seteuid(0)
      closed.chmod(0o755)
    assert digest(checkpoints.restore(state_of(0))[0]) == digest(state_of(1))
    checkpoints.close()


def test_a_reader_changes_nothing(checkpoints, caplog):
  """Another process may be writing there."""
  for step in (1, 2):
    checkpoints.save(step, state_of(step), {})
  directory = checkpoints._directory
  edit(sha256="0" * 64)(directory / "2")
  torn = directory / "3.orbax-checkpoint-tmp"
  torn.mkdir()
  before = sorted(path.name for path in directory.iterdir())
  reader = Checkpoints(directory, read_only=True)
  state, _ = reader.restore(state_of(0))
  reader.close()
  assert digest(state) == digest(state_of(1))
  assert "2 is damaged" in caplog.text
  assert sorted(path.name for path in directory.iterdir()) == before
  nowhere = Checkpoints(directory / "missing", read_only=True)
  assert nowhere.restore(state_of(0)) is None
  assert not (directory / "missing").exists()


@pytest.mark.parametrize("text", ["5", "[" * 100_000])
def test_damage_that_orbax_meets_first_is_a_sentence(
  checkpoints, tmp_path, text
):
  checkpoints.save(1, state_of(1), {})
  checkpoints.close()
  path = tmp_path / "checkpoints" / "1" / "_CHECKPOINT_METADATA"
  path.write_text(text)
  before = sorted((tmp_path / "checkpoints").iterdir())
  with pytest.raises(CheckpointError) as error:
    Checkpoints(tmp_path / "checkpoints")
  said = str(error.value)
  assert said.startswith(f"{tmp_path / 'checkpoints'}: expected a folder of")
  assert "_CHECKPOINT_METADATA is damaged" in said and "\n" not in said
  assert sorted((tmp_path / "checkpoints").iterdir()) == before


def test_a_file_is_no_folder_of_checkpoints(tmp_path):
  (tmp_path / "checkpoints").write_text("mine")
  with pytest.raises(CheckpointError, match="of checkpoints, found a file"):
    Checkpoints(tmp_path / "checkpoints")
  with pytest.raises(CheckpointError, match=r"\(Not a directory\)"):
    Checkpoints(tmp_path / "checkpoints" / "below")


def test_another_version_is_refused(checkpoints):
  checkpoints.save(1, state_of(1), {})
  edit(schema_version=4)(checkpoints._directory / "1")
  with pytest.raises(
    CheckpointError, match="expected schema version 3 or 2, found 4, which"
  ):
    checkpoints.restore(state_of(0))
  assert checkpoints.steps() == [1]


def test_a_full_disk_leaves_the_last_checkpoint(checkpoints, tmp_path):
  """The file size limit makes writes fail as a full disk does."""
  checkpoints.save(1, state_of(1), {})
  second = state_of(2)
  soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
  try:
    with pytest.raises(CheckpointError, match="could not be written"):
      checkpoints.save(2, second, {})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
  again = Checkpoints(tmp_path / "checkpoints", keep=2)
  assert again.steps() == [1]
  state, _ = again.restore(state_of(0))
  assert digest(state) == digest(state_of(1))
  again.save(2, state_of(2), {})
  assert again.steps() == [1, 2]
  again.close()


FULL_DISK = """
import resource, sys
import jax.numpy as jnp
from mtf_jax.training.checkpoints import CheckpointError, Checkpoints
checkpoints = Checkpoints(sys.argv[1])
# Computed before: compiled programs are files as well.
state = {f"params_{n}": jnp.ones((40, 40)) for n in range(40)}
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
try:
  checkpoints.save(2, state, {})
except CheckpointError as error:
  print(error, file=sys.stderr)
"""


def test_a_full_disk_is_told_once(tmp_path):
  done = subprocess.run(
    [sys.executable, "-c", FULL_DISK, tmp_path],
    cwd=pathlib.Path(__file__).parents[2],
    stderr=subprocess.PIPE,
    text=True,
    check=True,
  )
  (line,) = done.stderr.splitlines()
  assert line.startswith(f"{tmp_path / '2'}: could not be written (")
  assert "File too large" in line


@pytest.mark.parametrize("name", ["save", "restore"])
def test_an_interrupt_waits_for_orbax(checkpoints, monkeypatch, name):
  """Its threads would write on in a folder that has been given up."""
  checkpoints.save(1, state_of(1), {})
  call = getattr(checkpoints._manager, name)

  def interrupted(*args, **kwargs):
    signal.raise_signal(signal.SIGINT)
    return call(*args, **kwargs)

  monkeypatch.setattr(checkpoints._manager, name, interrupted)
  handler = signal.getsignal(signal.SIGINT)
  with pytest.raises(KeyboardInterrupt):
    if name == "save":
      checkpoints.save(2, state_of(2), {})
    else:
      checkpoints.restore(state_of(0))
  assert signal.getsignal(signal.SIGINT) is handler
  monkeypatch.undo()
  newest = 2 if name == "save" else 1
  state, _ = checkpoints.restore(state_of(0))
  assert digest(state) == digest(state_of(newest))


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
