"""A policy that leaves the process answers as it did inside."""

import io
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import policies
from mtf_jax.io import InputError
from mtf_jax.kernels import fusion
from mtf_jax.serving.export import Served, export_policy
from mtf_jax.serving.load import load_policy
from mtf_jax.serving.manifest import (
  FILES,
  MANIFEST,
  Feature,
  _text,
  file_digest,
  read_manifest,
)
from mtf_jax.serving.world_features import observation_features

_NAMES = ("age", "hour", "mood")
_FEATURES = tuple(Feature(name, "none", -5.0, 5.0, 0.0) for name in _NAMES)
_TASKS, _SLATE = 5, 4


def _act(params, observation, rng_key):
  del rng_key
  return jnp.tanh(params @ observation)


@pytest.fixture(scope="module")
def served():
  weights = 0.5 * jax.random.normal(
    jax.random.key(0), (2 * _TASKS, len(_FEATURES))
  )
  spec = fusion.FusionSpec(power_base=jnp.asarray([1.0, 2.0, 1.0, -0.5, 1.0]))
  return Served(_act, weights, spec, _SLATE, half_width=0.2)


@pytest.fixture(scope="module")
def folder(served, tmp_path_factory):
  folder = tmp_path_factory.mktemp("export") / "new" / "policy"
  export_policy(
    folder,
    served,
    _FEATURES,
    mean=[1.0, 2.0, 3.0],
    exploration="request",
    source={"learner": "bc", "round": 5},
  )
  return folder


@pytest.fixture(scope="module")
def policy(folder):
  return load_policy(folder)


def _requests(batch, candidates, seed=1):
  rng = np.random.default_rng(seed)
  return {
    "observation": rng.normal(size=(batch, len(_FEATURES))).astype(np.float32),
    "scores": rng.uniform(0.01, 1, (batch, candidates, _TASKS)).astype("f4"),
    "mask": rng.random((batch, candidates)) < 0.7,
    "key": rng.integers(2**32, size=(batch, 2), dtype=np.uint32),
  }


@pytest.mark.parametrize(("batch", "candidates"), [(1, 5), (7, 300)])
def test_the_exported_policy_answers_as_the_one_inside(
  served, policy, batch, candidates
):
  requests = _requests(batch, candidates)
  requests["mask"][0, 2:] = False  # fewer valid candidates than a slate
  params = policies.PolicyParams(
    served.params, jnp.float32(served.half_width), jnp.float32(0)
  )

  def inside(observation, scores, mask, key):
    decision = policies.explore_around(_act)(
      params, observation, jax.random.wrap_key_data(key)
    )
    weights = fusion.weights_from_action(decision.action, served.fusion_spec)
    fused = fusion.fused_log_score(scores, weights)
    return decision, fusion.rank_slate(fused, _SLATE, mask)

  decision, slate = jax.vmap(inside)(*requests.values())
  found = policy.serve(**requests)
  np.testing.assert_array_equal(found["slate"], slate)
  assert (slate[0, 2:] == -1).all() and (slate[0, :2] < 2).all()
  for name, value in (
    ("action", decision.action),
    ("box_lower", decision.box.lower),
    ("box_upper", decision.box.upper),
    ("log_prob", decision.log_prob),
  ):
    np.testing.assert_allclose(found[name], value, rtol=1e-5, atol=1e-6)
  answer = policy.act(requests["observation"])
  action = jax.vmap(lambda x: _act(served.params, x, None))(
    requests["observation"]
  )
  np.testing.assert_allclose(answer["baseline_action"], action, atol=1e-6)
  weights = jax.vmap(fusion.weights_from_action, (0, None))(
    action, served.fusion_spec
  )
  np.testing.assert_allclose(answer["power"], weights.power, rtol=1e-5)
  np.testing.assert_allclose(answer["bias"], weights.bias, rtol=1e-5)


def test_a_prepared_size_compiles_nothing_and_answers_the_same(folder, policy):
  prepared = load_policy(folder)
  prepared.prepare(2, 9)
  requests = _requests(2, 9)
  found = prepared.serve(**requests), prepared.act(requests["observation"])
  # Neither is of the self-test's size, and no program was traced for them.
  sizes = [program._cache_size() for program in prepared.programs]
  assert sizes == [1, 1]
  expected = policy.serve(**requests), policy.act(requests["observation"])
  jax.tree.map(np.testing.assert_array_equal, found, expected)
  # What is checked is checked there too, and other sizes are served.
  requests["observation"][1, 0] = np.nan
  with pytest.raises(InputError, match="found age = nan in request 1"):
    prepared.serve(**requests)
  assert prepared.serve(**_requests(1, 4))["slate"].shape == (1, _SLATE)
  with pytest.raises(InputError, match="batch_size: expected 1 or more, fou"):
    prepared.prepare(0, 9)
  with pytest.raises(InputError, match="num_candidates: expected 4 or more"):
    prepared.prepare(1, 3)


def test_the_manifest_says_what_is_needed(folder, served):
  manifest = read_manifest(folder)
  assert manifest.observation_names == _NAMES
  assert manifest.mean == (1.0, 2.0, 3.0) and manifest.scale == (1.0,) * 3
  assert manifest.fusion_spec["power_base"] == [1.0, 2.0, 1.0, -0.5, 1.0]
  assert manifest.fusion_spec["bias_rate"] == [1.5] * 5
  assert (manifest.half_width, manifest.slate_size) == (0.2, _SLATE)
  assert manifest.exploration == "request"
  assert manifest.source == {"learner": "bc", "round": 5}
  assert manifest.versions["jax"] == jax.__version__
  assert sorted(x.name for x in folder.iterdir()) == sorted((*FILES, MANIFEST))


def test_one_wrong_byte_anywhere_is_refused(folder, tmp_path):
  rng = np.random.default_rng(0)
  for name in (*FILES, MANIFEST):
    content = (folder / name).read_bytes()
    for place in (0, len(content) - 1, *rng.integers(len(content), size=6)):
      changed = bytearray(content)
      changed[place] ^= 1
      copy = tmp_path / "copy"
      shutil.copytree(folder, copy)
      (copy / name).write_bytes(changed)
      with pytest.raises(InputError, match=name.replace(".", r"\.")):
        load_policy(copy)
      shutil.rmtree(copy)


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_a_missing_file_is_named(folder, tmp_path, name):
  copy = tmp_path / "copy"
  shutil.copytree(folder, copy)
  (copy / name).unlink()
  with pytest.raises(InputError, match=rf"{name}.*found no such file"):
    load_policy(copy)


def _edit(folder, copy, **changes):
  """A folder whose manifest says otherwise, under its own right digest."""
  shutil.copytree(folder, copy)
  values = json.loads((copy / MANIFEST).read_text())
  del values["manifest_sha256"]
  values = {**values, **changes}
  (copy / MANIFEST).write_text(_text(values) + "\n")


def test_another_format_is_refused(folder, tmp_path):
  _edit(folder, tmp_path / "newer", format_version=2)
  with pytest.raises(InputError, match="format version 1, found 2"):
    load_policy(tmp_path / "newer")
  (tmp_path / MANIFEST).write_text("[1")
  with pytest.raises(InputError, match=r"manifest\.json.*no JSON object"):
    load_policy(tmp_path)


def _replaced(folder, copy, name, content):
  """A folder one of whose files is another, under right digests."""
  shutil.copytree(folder, copy)
  (copy / name).write_bytes(content)
  sha256 = {**read_manifest(folder).sha256, name: file_digest(content)}
  values = json.loads((folder / MANIFEST).read_text())
  del values["manifest_sha256"]
  (copy / MANIFEST).write_text(_text({**values, "sha256": sha256}) + "\n")


_OTHER_JAX = (
  r"stablehlo: expected a program that JAX \S+ reads, found one of JAX"
  rf" {jax.__version__}, .*export the policy anew"
)


def test_a_program_that_jax_does_not_read_is_refused(folder, tmp_path):
  """StableHLO of another version: what JAX wraps begins otherwise."""
  program = (folder / "serve.stablehlo").read_bytes()
  assert program.count(b"ML\xefR") == 1
  program = program.replace(b"ML\xefR", b"ML\xefS")
  _replaced(folder, tmp_path / "p", "serve.stablehlo", program)
  with pytest.raises(InputError, match=_OTHER_JAX):
    load_policy(tmp_path / "p")


@pytest.mark.parametrize("error", [ValueError, NotImplementedError])
def test_a_wrapping_that_jax_does_not_read_is_refused(
  folder, monkeypatch, error
):
  """Too old is a ValueError of JAX 0.12, too new a NotImplementedError of 0.8."""

  def deserialize(_):
    raise error("version")

  monkeypatch.setattr(jax.export, "deserialize", deserialize)
  with pytest.raises(InputError, match=_OTHER_JAX):
    load_policy(folder)


def test_another_observation_layout_is_refused(folder, tmp_path):
  fewer = [feature._asdict() for feature in _FEATURES[:2]]
  _edit(folder, tmp_path / "fewer", features=fewer)
  with pytest.raises(InputError, match=r"observation: .*shape \[B, 2\]"):
    load_policy(tmp_path / "fewer")


def test_the_self_test_finds_another_answer(folder, tmp_path):
  with np.load(folder / "self_test.npz") as archive:
    test = dict(archive)
  for name in ("expected_power", "expected_log_prob", "expected_slate"):
    changed = {**test, name: test[name] + np.ones((), test[name].dtype)}
    buffer = io.BytesIO()
    np.savez(buffer, **changed)
    copy = tmp_path / name
    _replaced(folder, copy, "self_test.npz", buffer.getvalue())
    with pytest.raises(InputError, match=name.removeprefix("expected_")):
      load_policy(copy)


@pytest.mark.parametrize(
  ("change", "message"),
  [
    (("observation", (1, 2), np.nan), "found mood = nan in request 1"),
    (("scores", (1, 6, 3), 0.0), "found interaction = 0.0 of candidate 6 in"),
    (("scores", (0, 0, 0), -1.0), "found valid = -1.0 of candidate 0"),
    (("scores", (0, 0, 1), np.inf), "found watch_time = inf"),
  ],
)
def test_bad_requests_never_get_a_slate(policy, change, message):
  name, place, value = change
  requests = _requests(2, 8)
  requests["mask"][:] = True
  requests[name][place] = value
  with pytest.raises(InputError, match=message):
    policy.serve(**requests)
  # Nor where the program is called without the checks of this package.
  raw = policy.programs[1](*requests.values())
  assert (np.asarray(raw["slate"])[place[0]] == -1).all()
  assert np.isnan(raw["log_prob"][place[0]])
  assert (np.asarray(raw["slate"])[1 - place[0]] >= 0).all()
  # A candidate that must not be shown may have any score.
  if name == "scores":
    requests["mask"][place[:2]] = False
    assert (np.asarray(policy.serve(**requests)["slate"]) >= 0).all()


def test_wrong_shapes_are_refused(policy):
  good = _requests(2, 8)
  for name, value, message in (
    (
      "observation",
      good["observation"][:0],
      r"no axis empty, found .*\(0, 3\)",
    ),
    ("observation", good["observation"][0], r"float32 of shape \[B, 3\]"),
    ("observation", good["observation"].astype("f8"), "found float64"),
    ("scores", good["scores"][:1], r"shape \[2, C, 5\]"),
    ("scores", good["scores"][:, :3], "4 candidates or more, a slate, found 3"),
    ("mask", good["mask"].astype("f4"), r"mask: expected bool of shape \(2, 8"),
    ("key", good["key"].astype("i4"), "key: expected uint32"),
    ("key", np.ma.masked_equal(good["key"], good["key"][0, 0]), "masked"),
  ):
    with pytest.raises(InputError, match=message):
      policy.serve(**{**good, name: value})
  with pytest.raises(InputError, match=r"no axis empty, found .*\(0, 3\)"):
    policy.act(good["observation"][:0])
  good["observation"][1, 2] = np.inf
  with pytest.raises(InputError, match="found mood = inf in request 1"):
    policy.act(good["observation"])


def test_an_empty_batch_is_refused_by_jax_alone_too(policy):
  empty = [value[:0] for value in _requests(2, 8).values()]
  for program, args in zip(policy.programs, (empty[:1], empty), strict=True):
    with pytest.raises(ValueError, match="value >= 1 for dimension variable"):
      program(*args)


def test_nothing_is_overwritten_or_left(folder, served, tmp_path, monkeypatch):
  before = (folder / MANIFEST).read_bytes()
  with pytest.raises(InputError, match="where nothing is, found a folder"):
    export_policy(folder, served, _FEATURES)
  assert (folder / MANIFEST).read_bytes() == before
  with pytest.raises(InputError, match=r"mean: expected shape \(3,\)"):
    export_policy(tmp_path / "p", served, _FEATURES, mean=np.zeros(4))
  monkeypatch.setattr(
    "mtf_jax.serving.export.write_manifest",
    lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")),
  )
  with pytest.raises(OSError, match="No space"):
    export_policy(tmp_path / "p", served, _FEATURES)
  assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named(folder, served, tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "flatbuffers", None)
  monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
  for use in (
    lambda: load_policy(folder),
    lambda: export_policy(tmp_path / "p", served, _FEATURES),
  ):
    with pytest.raises(InputError, match=r"flatbuffers: .*extra `serving`"):
      use()


def test_features_of_a_world(small_world):
  features = observation_features(small_world)
  assert tuple(x.name for x in features) == small_world.observation_names
  users = np.asarray(small_world.user_features)
  for n, feature in enumerate(features):
    assert feature.low <= feature.default <= feature.high
    if n < users.shape[1]:
      assert (
        feature.low < users[:, n].min() and users[:, n].max() < feature.high
      )


def test_the_example_needs_jax_alone(folder, tmp_path):
  """`docs/serve_policy.py` in a process that cannot import this package."""
  blocked = (
    "import sys, runpy\n"
    "sys.modules['mtf_jax'] = None\n"
    "sys.argv = sys.argv[1:]\n"
    "runpy.run_path(sys.argv[0], run_name='__main__')\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", blocked, "docs/serve_policy.py", str(folder)],
    capture_output=True,
    text=True,
    check=True,
  )
  assert "self-test passed" in done.stdout
  assert "slate" in done.stdout
