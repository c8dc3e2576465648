"""Exports a policy: StableHLO programs that JAX alone can load and call.

Letters: `B` requests of a batch, `C` candidates, `K` tasks, `L` slate positions,
`S` state features, `A` action components.
"""

import importlib.metadata
import io
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from mtf_jax import policies
from mtf_jax.data.behaviours import TASKS
from mtf_jax.io import InputError
from mtf_jax.kernels import fusion
from mtf_jax.kernels.exploration import HALF_WIDTH
from mtf_jax.serving.manifest import (
  FILES,
  Feature,
  Manifest,
  file_digest,
  require_flatbuffers,
  write_manifest,
)

PLATFORMS = ("cpu", "cuda", "tpu")
# Fixed, so that a served draw is the same whatever the server's own setting.
_KEY_IMPL = "threefry2x32"
_PACKAGES = ("jax", "jaxlib", "numpy", "mtf-jax")
_SELF_TEST_REQUESTS = 4
_SELF_TEST_DRAWS = 64


class Served(NamedTuple):
  """A policy and how it is to be served.

  act: `(params, observation [S], rng_key) -> action [A]`, a learner's.
  params: what `act` takes.
  fusion_spec: makes fusion weights of an action.
  slate_size: `L`.
  half_width: of the box explored around the policy; 0 does not explore.
  """

  act: Callable[..., jax.Array]
  params: Any
  fusion_spec: fusion.FusionSpec
  slate_size: int
  half_width: float = HALF_WIDTH


def served_functions(served: Served) -> tuple[Callable, Callable]:
  """The two functions that are exported, over batches.

  `act(observation [B, S])` gives `baseline_action [B, A]` and the fusion
  weights `power [B, K]` and `bias [B, K]` of it, without exploration. A
  stochastic policy answers with one fixed draw.

  `serve(observation [B, S], scores [B, C, K], mask [B, C], key [B, 2])` gives
  `slate [B, L]` (indices of candidates, best first, -1 where there are too few),
  `action [B, A]`, `box_lower [B, A]`, `box_upper [B, A]` and `log_prob [B]`: what
  a log needs so that the next policy can be learnt from it. `key` is two random
  32-bit words. One key for all requests of a session holds the exploration.

  A request with a feature that is not finite, or with a valid candidate whose
  score is not positive and finite, gets no slate: -1 everywhere, and NaN for the
  log density.

  Args:
    served: the policy.

  Returns:
    Both functions.
  """
  explore = policies.explore_around(served.act)

  def act_one(observation):
    action = served.act(
      served.params, observation, jax.random.key(0, impl=_KEY_IMPL)
    )
    weights = fusion.weights_from_action(action, served.fusion_spec)
    return {
      "baseline_action": action,
      "power": weights.power,
      "bias": weights.bias,
    }

  def serve_one(observation, scores, mask, key):
    decision = explore(
      policies.PolicyParams(
        served.params,
        jnp.asarray(served.half_width, jnp.float32),
        jnp.zeros((), jnp.float32),
      ),
      observation,
      jax.random.wrap_key_data(key, impl=_KEY_IMPL),
    )
    weights = fusion.weights_from_action(decision.action, served.fusion_spec)
    slate = fusion.rank_slate(
      fusion.fused_log_score(scores, weights), served.slate_size, mask
    )
    positive = jnp.isfinite(scores) & (scores > 0)
    usable = jnp.all(jnp.isfinite(observation)) & jnp.all(
      positive | ~mask[:, None]
    )
    return {
      "slate": jnp.where(usable, slate, -1),
      "action": decision.action,
      "box_lower": decision.box.lower,
      "box_upper": decision.box.upper,
      "log_prob": jnp.where(usable, decision.log_prob, jnp.nan),
    }

  return jax.vmap(act_one), jax.vmap(serve_one)


def _export(served: Served, num_features: int) -> tuple[bytes, bytes]:
  act, serve = served_functions(served)

  def spec(shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)

  def program(function, *specs):
    exported = export.export(jax.jit(function), platforms=PLATFORMS)(*specs)
    return bytes(exported.serialize())

  (alone,) = export.symbolic_shape("b")
  # Their own: a constraint on what a function does not take is an error.
  batch, candidates = export.symbolic_shape(
    "b, c", constraints=[f"c >= {served.slate_size}"]
  )
  return (
    program(act, spec((alone, num_features))),
    program(
      serve,
      spec((batch, num_features)),
      spec((batch, candidates, len(TASKS))),
      spec((batch, candidates), jnp.bool_),
      spec((batch, 2), jnp.uint32),
    ),
  )


def _self_test(
  served: Served, features: Sequence[Feature], mean: Any, scale: Any
) -> dict[str, np.ndarray]:
  """Inputs within the features' ranges, and what the policy makes of them.

  Of many requests those are kept whose slates hang least on rounding.
  """
  rng = np.random.default_rng(0)
  num_candidates = 2 * served.slate_size + 8
  low, high = (
    np.asarray([getattr(feature, end) for feature in features])
    for end in ("low", "high")
  )
  drawn = rng.normal(mean, scale, (_SELF_TEST_DRAWS, len(features)))
  inputs = {
    "observation": np.clip(drawn, low, high).astype(np.float32),
    "scores": rng.uniform(
      0.01, 1.0, (_SELF_TEST_DRAWS, num_candidates, len(TASKS))
    ).astype(np.float32),
    "mask": np.arange(num_candidates) != 3,
    "key": rng.integers(2**32, size=(_SELF_TEST_DRAWS, 2), dtype=np.uint32),
  }
  inputs["mask"] = np.tile(inputs["mask"], (_SELF_TEST_DRAWS, 1))
  act, serve = served_functions(served)
  outputs = {
    **jax.device_get(jax.jit(act)(inputs["observation"])),
    **jax.device_get(jax.jit(serve)(**inputs)),
  }

  def gap(scores, mask, action):
    weights = fusion.weights_from_action(action, served.fusion_spec)
    fused = fusion.fused_log_score(scores, weights)
    fused = jnp.sort(jnp.where(mask, fused, -jnp.inf))[::-1]
    return jnp.min(-jnp.diff(fused[: served.slate_size + 1]))

  gaps = jax.vmap(gap)(inputs["scores"], inputs["mask"], outputs["action"])
  kept = np.argsort(-np.asarray(gaps), kind="stable")[:_SELF_TEST_REQUESTS]
  expected = {f"expected_{name}": value for name, value in outputs.items()}
  return {name: value[kept] for name, value in {**inputs, **expected}.items()}


def require_new(folder: str | os.PathLike[str]) -> pathlib.Path:
  """Refuses a path where something is: a policy in service is not replaced.

  Args:
    folder: of a policy to be exported.

  Returns:
    The path.

  Raises:
    InputError: something is there.
  """
  folder = pathlib.Path(folder)
  if os.path.lexists(folder):
    raise InputError(
      f"{folder}: expected a path where nothing is, found"
      f" {'a folder' if folder.is_dir() else 'a file'}."
    )
  return folder


def export_policy(
  folder: str | os.PathLike[str],
  served: Served,
  features: Sequence[Feature],
  *,
  mean: chex.Array | None = None,
  scale: chex.Array | None = None,
  exploration: str = "session",
  source: Mapping[str, Any] | None = None,
) -> Manifest:
  """Writes a policy into a folder of its own, all of it or nothing.

  The folder holds `act.stablehlo` and `serve.stablehlo` (see
  `served_functions`; for cpu, cuda and tpu, any batch size, any number of
  candidates from `L` on, parameters inside), `self_test.npz` (inputs named as
  the arguments, outputs as `expected_*`) and `manifest.json`.

  Args:
    folder: must not exist.
    served: the policy and how it is to be served.
    features: of the observation, `S` of them.
    mean, scale: `[S]` normalisation that the policy does by itself, for the
      manifest and for plausible inputs of the self-test; 0 and 1 if omitted.
    exploration: "session" or "request", how long a key is meant to last.
    source: where the policy comes from, JSON-serialisable.

  Returns:
    The manifest.

  Raises:
    InputError: the folder exists, the features do not fit the policy, or
      `flatbuffers`, which JAX serialises with, is missing.
    OSError: a file could not be written; nothing is left.
  """
  folder = require_new(folder)
  require_flatbuffers()
  policies.is_held(exploration)  # Refuses an unknown name.
  mean = np.zeros(len(features)) if mean is None else np.asarray(mean)
  scale = np.ones(len(features)) if scale is None else np.asarray(scale)
  for name, value in (("mean", mean), ("scale", scale)):
    if value.shape != (len(features),):
      raise InputError(
        f"{name}: expected shape ({len(features)},) as there are features,"
        f" found {value.shape}."
      )
  contents = dict(zip(FILES, _export(served, len(features)), strict=False))
  buffer = io.BytesIO()
  arrays: dict[str, Any] = _self_test(served, features, mean, scale)
  np.savez(buffer, **arrays)
  contents["self_test.npz"] = buffer.getvalue()
  spec = {
    name: np.broadcast_to(np.asarray(value, np.float64), len(TASKS)).tolist()
    for name, value in served.fusion_spec._asdict().items()
  }
  manifest = Manifest(
    features=tuple(features),
    mean=tuple(map(float, mean)),
    scale=tuple(map(float, scale)),
    tasks=TASKS,
    fusion_spec=spec,
    half_width=float(served.half_width),
    exploration=exploration,
    slate_size=served.slate_size,
    source=dict(source or {}),
    versions={name: importlib.metadata.version(name) for name in _PACKAGES},
    sha256={name: file_digest(content) for name, content in contents.items()},
  )
  folder.parent.mkdir(parents=True, exist_ok=True)
  # Beside the folder, which then appears at once.
  with tempfile.TemporaryDirectory(
    prefix=f".{folder.name}.", dir=folder.parent
  ) as temporary:
    whole = pathlib.Path(temporary) / "policy"
    whole.mkdir()
    for name, content in contents.items():
      (whole / name).write_bytes(content)
    write_manifest(whole, manifest)
    whole.rename(folder)
  return manifest
