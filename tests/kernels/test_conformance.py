"""One battery over every exported kernel; one that is missing here fails it.

A case draws a kernel's arguments (another seed changes every number,
coefficients included) and lists its edge values. Everything the kernels promise
in common is then checked for each case. "kernel: variant" is a second case of a
kernel.
"""

import functools
import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import Mesh, PartitionSpec

import mtf_jax

_C, _K, _L, _E, _A, _G, _M, _T, _J = 7, 3, 4, 5, 6, 2, 3, 5, 4
_MANY = 300  # Candidates beyond the walk of `rank_slate`.

# Relative agreement of two compilations of the same formula.
_RTOL = {"bfloat16": 2e-2, "float32": 2e-6, "float64": 1e-12}


class Case(NamedTuple):
  """How to call one kernel.

  sample: `(rng) -> arguments` as NumPy float64, a pytree by argument name.
  static: arguments that shape the program.
  edges: argument values at which result and gradient must be finite.
  has_key: whether the first argument is a random key.
  has_steps: whether the result is one of few values: nothing moves it by little,
    and two keys may agree in a part of it.
  """

  sample: Callable[[np.random.Generator], dict[str, Any]]
  static: Mapping[str, Any] = types.MappingProxyType({})
  edges: tuple[dict[str, Any], ...] = ()
  has_key: bool = False
  has_steps: bool = False


def _box(rng):
  lower = rng.uniform(-1, 0.5, _A)
  return mtf_jax.ActionBox(lower, lower + rng.uniform(0.1, 0.3, _A))


def _box_and_action_inside(rng):
  box = _box(rng)
  place = rng.uniform(0.2, 0.8, _A)
  return {"action": box.lower + place * (box.upper - box.lower), "box": box}


def _box_and_corner(rng):
  box = _box(rng)
  return {"action": np.where(rng.random(_A) < 0.5, *box), "box": box}


def _weights(rng):
  return mtf_jax.FusionWeights(rng.uniform(0.5, 2, _K), rng.uniform(0.1, 1, _K))


def _weights_of_each(rng):
  return mtf_jax.FusionWeights(
    rng.uniform(0.5, 2, (_C, _K)), rng.uniform(0.1, 1, (_C, _K))
  )


def _spec(rng):
  return mtf_jax.FusionSpec(*rng.uniform(0.1, 2, (4, _K)))


def _knots(rng):
  return np.cumsum(rng.uniform(0.1, 0.3, (_K, _J)), axis=1)


def _cells(rng):
  increments = rng.uniform(0.1, 1, (_K, _J - 1))
  return mtf_jax.MonotoneCells(_knots(rng), rng.normal(size=_K), increments)


_KNOTS = np.broadcast_to(np.linspace(0.0, 1.0, _J), (_K, _J))
_FLAT = mtf_jax.MonotoneCells(_KNOTS, np.zeros(_K), np.zeros((_K, _J - 1)))
_STEEP = _FLAT._replace(increments=np.full((_K, _J - 1), 1e4))
_NO_BIAS = mtf_jax.FusionWeights(np.ones((_C, _K)), np.zeros((_C, _K)))
_UNIT_BOX = mtf_jax.ActionBox(np.full(_A, -0.5), np.full(_A, 0.5))
_POINT_BOX = mtf_jax.ActionBox(np.full(_A, 0.25), np.full(_A, 0.25))

CASES = {
  "weights_from_action": Case(
    lambda rng: {"action": rng.uniform(-1, 1, 2 * _K), "spec": _spec(rng)},
    edges=(
      {
        "action": np.full(2 * _K, -1.0),
        "spec": mtf_jax.FusionSpec(*np.zeros((4, _K))),
      },
    ),
  ),
  "fused_log_score": Case(
    lambda rng: {
      "scores": rng.uniform(0, 1, (_C, _K)),
      "weights": _weights(rng),
    },
    edges=(
      {
        "scores": np.zeros((_C, _K)),
        "weights": mtf_jax.FusionWeights(np.ones(_K), np.zeros(_K)),
      },
      {
        "scores": np.full((_C, _K), 1e-12),
        "weights": mtf_jax.FusionWeights(np.ones(_K), np.zeros(_K)),
      },
    ),
  ),
  "itemwise_log_score": Case(
    lambda rng: {
      "scores": rng.uniform(0, 1, (_C, _K)),
      "weights": _weights_of_each(rng),
    },
    edges=(
      {"scores": np.zeros((_C, _K)), "weights": _NO_BIAS},
      {"scores": np.full((_C, _K), 1e-12), "weights": _NO_BIAS},
    ),
  ),
  "itemwise_log_score: mask": Case(
    lambda rng: {
      "scores": rng.uniform(0, 1, (_C, _K)),
      "weights": _weights_of_each(rng),
      "mask": rng.uniform(size=_C) < 0.5,
    },
    edges=(
      {
        "scores": np.ones((_C, _K)),
        "weights": _NO_BIAS,
        "mask": np.zeros(_C, bool),
      },
    ),
  ),
  "rank_slate": Case(
    lambda rng: {"log_scores": rng.normal(size=_C)},
    static={"slate_size": _L},
    edges=({"log_scores": np.full(_C, -np.inf)},),
  ),
  "rank_slate: mask": Case(
    lambda rng: {
      "log_scores": rng.normal(size=_C),
      "mask": rng.uniform(size=_C) < 0.5,
    },
    static={"slate_size": _L},
    edges=({"log_scores": np.zeros(_C), "mask": np.zeros(_C, bool)},),
  ),
  "rank_slate: many, mask": Case(
    lambda rng: {
      "log_scores": rng.normal(size=_MANY),
      "mask": rng.uniform(size=_MANY) < 0.5,
    },
    static={"slate_size": _L},
    edges=({"log_scores": np.zeros(_MANY), "mask": np.zeros(_MANY, bool)},),
  ),
  "cells_from_weights": Case(
    lambda rng: {"weights": _weights(rng), "knots": _knots(rng)},
    edges=(
      {
        "weights": mtf_jax.FusionWeights(np.ones(_K), np.zeros(_K)),
        "knots": _KNOTS,
      },
    ),
  ),
  "monotone_fused_score": Case(
    lambda rng: {
      "scores": rng.uniform(0, 1, (_C, _K)),
      "cells": _cells(rng),
      "action": rng.uniform(-0.9, 0.9, _K),
    },
    edges=(
      {"scores": np.zeros((_C, _K)), "cells": _FLAT, "action": np.ones(_K)},
      {"scores": np.ones((_C, _K)), "cells": _STEEP, "action": -np.ones(_K)},
      {
        "scores": np.full((_C, _K), 1e6),
        "cells": _STEEP,
        "action": np.full(_K, 1e6),
      },
    ),
  ),
  "ranking_transfer_loss": Case(
    lambda rng: {
      "inner_scores": rng.normal(size=_C),
      "outer_scores": rng.normal(size=_C),
    },
    edges=(
      {"inner_scores": np.zeros(_C), "outer_scores": np.zeros(_C)},
      {
        "inner_scores": np.full(_C, np.nan),
        "outer_scores": np.full(_C, np.nan),
      },
      {
        "inner_scores": np.linspace(1e6, -1e6, _C),
        "outer_scores": np.linspace(-1.0, 1.0, _C),
      },
    ),
  ),
  "list_reward": Case(
    lambda rng: {
      "feedback": rng.uniform(0, 1, (_L, _E)),
      "group_weights": rng.uniform(0, 1, (_G, _E)),
    },
    edges=(
      {
        "feedback": np.zeros((_L, _E)),
        "group_weights": np.zeros((_G, _E)),
      },
    ),
  ),
  "discounted_returns": Case(
    lambda rng: {
      "r_t": rng.uniform(0, 1, _T),
      "discount_t": rng.uniform(0.5, 1, _T),
    },
    edges=({"r_t": np.ones(_T), "discount_t": np.zeros(_T)},),
  ),
  "action_box": Case(
    lambda rng: {
      "baseline_action": rng.uniform(-1, 1, _A),
      "lower_offset": rng.uniform(-0.3, -0.1),
      "upper_offset": rng.uniform(0.1, 0.3),
      "low": rng.uniform(-1.2, -1),
      "high": rng.uniform(1, 1.2),
    },
    edges=({"baseline_action": np.full(_A, 5.0)},),
  ),
  "action_box: by component": Case(
    lambda rng: {
      "baseline_action": rng.uniform(-1, 1, _A),
      "lower_offset": rng.uniform(-0.3, -0.1, _A),
      "upper_offset": rng.uniform(0.1, 0.3, _A),
      "low": rng.uniform(-1.2, -1, _A),
      "high": rng.uniform(1, 1.2, _A),
    },
  ),
  "sample_box": Case(
    lambda rng: {"box": _box(rng)},
    edges=({"box": _POINT_BOX},),
    has_key=True,
  ),
  "box_log_prob": Case(
    _box_and_action_inside,
    edges=(
      {"action": np.full(_A, 0.5), "box": _UNIT_BOX},
      {"action": np.full(_A, 0.25), "box": _POINT_BOX},
    ),
  ),
  "sample_corners": Case(
    lambda rng: {"box": _box(rng)},
    edges=({"box": _POINT_BOX},),
    has_key=True,
    has_steps=True,
  ),
  "corners_log_prob": Case(
    _box_and_corner,
    has_steps=True,
    edges=(
      {"action": np.full(_A, 0.5), "box": _UNIT_BOX},
      {"action": np.full(_A, 0.25), "box": _POINT_BOX},
    ),
  ),
  "sample_gaussian": Case(
    lambda rng: {
      "baseline_action": rng.uniform(-1, 1, _A),
      "stddev": rng.uniform(0.1, 0.3),
      "low": rng.uniform(-1.2, -1),
      "high": rng.uniform(1, 1.2),
    },
    edges=({"baseline_action": np.zeros(_A), "stddev": 0.0},),
    has_key=True,
  ),
  "sample_gaussian: by component": Case(
    lambda rng: {
      "baseline_action": rng.uniform(-1, 1, _A),
      "stddev": rng.uniform(0.1, 0.3, _A),
      "low": rng.uniform(-1.2, -1, _A),
      "high": rng.uniform(1, 1.2, _A),
    },
    has_key=True,
  ),
  "gaussian_log_prob": Case(
    lambda rng: {
      "action": rng.uniform(-1, 1, _A),
      "baseline_action": rng.uniform(-1, 1, _A),
      "stddev": rng.uniform(0.1, 0.3),
    },
    edges=(
      {
        "action": np.zeros(_A),
        "baseline_action": np.zeros(_A),
        "stddev": 0.0,
      },
    ),
  ),
  "exceedance": Case(
    lambda rng: {"action": rng.uniform(-1, 1, _A), "box": _box(rng)},
    edges=(
      {"action": np.zeros(_A), "box": _UNIT_BOX},
      {"action": np.full(_A, 0.5), "box": _UNIT_BOX},
      {"action": np.full(_A, 1e6), "box": _POINT_BOX},
    ),
  ),
  "relaxation_penalty": Case(
    lambda rng: {
      "exceedance": rng.uniform(0, 1),
      "sharpness": rng.uniform(1, 5),
    },
    edges=(
      {"exceedance": 0.0, "sharpness": 10.0},
      {"exceedance": 3.0, "sharpness": 10.0},
      {"exceedance": 1e6, "sharpness": 100.0},
    ),
  ),
  "bootstrap_weight": Case(
    lambda rng: {
      "exceedance": rng.uniform(0, 1),
      "sharpness": rng.uniform(1, 5),
    },
    edges=(
      {"exceedance": 0.0, "sharpness": 10.0},
      {"exceedance": 1e6, "sharpness": 100.0},
    ),
  ),
  "ensemble_mean_std": Case(
    lambda rng: {"q": rng.normal(size=(_G, _M))},
    edges=({"q": np.zeros((_G, _M))}, {"q": np.full((_G, 1), 3.0)}),
  ),
  "td_targets": Case(
    lambda rng: {
      "r_t": rng.uniform(0, 1, _G),
      "discount_t": rng.uniform(0.5, 1),
      "bootstrap_weight_t": rng.uniform(0.1, 1),
      "q_t": rng.normal(size=(_G, _M)),
    },
    edges=(
      {
        "r_t": np.ones(_G),
        "discount_t": 0.0,
        "bootstrap_weight_t": 0.0,
        "q_t": np.full((_G, _M), np.inf),
      },
    ),
  ),
  "list_value": Case(
    lambda rng: {"q": rng.normal(size=(_L, _G, _M))},
    edges=({"q": np.zeros((1, _G, _M))},),
  ),
  "list_td_targets": Case(
    lambda rng: {
      "r_t": rng.uniform(0, 1, _G),
      "discount_t": rng.uniform(0.5, 1),
      "bootstrap_weight_t": rng.uniform(0.1, 1, _L),
      "q_t": rng.normal(size=(_L, _G, _M)),
    },
    edges=(
      {
        "r_t": np.ones(_G),
        "discount_t": 0.0,
        "bootstrap_weight_t": np.zeros(_L),
        "q_t": np.full((_L, _G, _M), np.inf),
      },
    ),
  ),
  "critic_loss": Case(
    lambda rng: {
      "q_tm1": rng.normal(size=(_G, _M)),
      "targets": rng.normal(size=(_G, _M)),
    },
    edges=({"q_tm1": np.ones((_G, _M)), "targets": np.ones((_G, _M))},),
  ),
  "actor_loss": Case(
    lambda rng: {
      "q": rng.normal(size=(_G, _M)),
      "group_weights": rng.uniform(0, 1, _G),
      "penalty": rng.uniform(0, 1),
      "penalty_scale": rng.uniform(0, 1),
      "uncertainty_scale": rng.uniform(0, 1),
    },
    edges=(
      {
        "q": np.ones((_G, 1)),
        "group_weights": np.ones(_G),
        "penalty": 1e17,
        "penalty_scale": 1.0,
        "uncertainty_scale": 1.0,
      },
    ),
  ),
}

_each_kernel = pytest.mark.parametrize("name", list(CASES))


# Integers come out: no gradient, no rounding.
_INTEGER = {name for name in CASES if name.startswith("rank_slate")}
_each_float_kernel = pytest.mark.parametrize(
  "name", [name for name in CASES if name not in _INTEGER]
)

_each_deterministic = pytest.mark.parametrize(
  "name", [n for n, c in CASES.items() if not c.has_key and n not in _INTEGER]
)


def _kernel_name(name):
  return name.split(":")[0]


def _exported_kernels(package):
  # Not `inspect.isfunction`: a jitted function is none.
  return {
    name
    for name in package.__all__
    if callable(getattr(package, name))
    and not inspect.isclass(getattr(package, name))
  }


def _cast(tree, dtype):
  def cast(leaf):
    leaf = np.asarray(leaf)
    return jnp.asarray(leaf, None if leaf.dtype == bool else dtype)

  return jax.tree.map(cast, tree)


def _arguments(name, seed=0, dtype=jnp.float32):
  arguments = _cast(CASES[name].sample(np.random.default_rng(seed)), dtype)
  if CASES[name].has_key:
    arguments = {"rng_key": jax.random.key(seed), **arguments}
  return arguments


def _call(name):
  """The kernel as a function of the dictionary of its dynamic arguments."""
  function = getattr(mtf_jax, _kernel_name(name))
  kernel = functools.partial(function, **CASES[name].static)
  return lambda arguments: kernel(**arguments)


def _stacked(name, count=4):
  samples = [_arguments(name, seed) for seed in range(count)]
  return samples, jax.tree.map(lambda *leaves: jnp.stack(leaves), *samples)


def _split(arguments):
  """Arguments that are differentiated, and the rest (a key, a mask)."""
  rest = {k: v for k, v in arguments.items() if k in ("rng_key", "mask")}
  return {k: v for k, v in arguments.items() if k not in rest}, rest


def _is_scalar(value):
  return isinstance(value, jax.Array) and value.ndim == 0


def _gradient(name, arguments):
  floats, rest = _split(arguments)

  def total(floats):
    leaves = jax.tree.leaves(_call(name)({**rest, **floats}))
    return sum(jnp.sum(leaf) for leaf in leaves)

  return jax.grad(total)(floats)


def test_every_exported_kernel_is_here():
  assert _exported_kernels(mtf_jax) == set(map(_kernel_name, CASES))


def test_a_jitted_kernel_could_not_hide():
  package = types.SimpleNamespace(
    __all__=["Box", "half"],
    Box=mtf_jax.ActionBox,
    half=jax.jit(lambda q: q / 2),
  )
  assert _exported_kernels(package) == {"half"}


@_each_kernel
@pytest.mark.parametrize("dtype", list(_RTOL))
def test_jit_equals_eager_and_keeps_dtype(name, dtype):
  with jax.enable_x64(dtype == "float64"):
    arguments = _arguments(name, dtype=dtype)
    eager = _call(name)(arguments)
    jitted = jax.jit(_call(name))(arguments)
    for leaf in jax.tree.leaves((eager, jitted)):
      assert leaf.dtype == (jnp.int32 if name in _INTEGER else dtype)
      assert not leaf.weak_type
    chex.assert_trees_all_close(
      _wide(eager), _wide(jitted), rtol=_RTOL[dtype], atol=_RTOL[dtype]
    )


def _wide(tree):
  """In float64; a mask stays one."""

  def wide(leaf):
    leaf = np.asarray(leaf)
    return leaf if leaf.dtype == bool else leaf.astype(np.float64)

  return jax.tree.map(wide, tree)


@_each_deterministic
def test_float64_is_computed_in_float64(name):
  if CASES[name].has_steps:
    pytest.skip("nothing moves it by little")
  # Move the float32 inputs by 1e-12: float64 has to notice, in proportion.
  floats = _wide(_arguments(name))
  nudged = jax.tree.map(
    lambda x: x if x.dtype == bool else x * (1 + 1e-12), floats
  )
  with jax.enable_x64(True):
    before = _wide(_call(name)(_cast(floats, "float64")))
    after = _wide(_call(name)(_cast(nudged, "float64")))
  moved = [
    np.abs(a - b).max()
    for a, b in zip(
      jax.tree.leaves(before), jax.tree.leaves(after), strict=True
    )
  ]
  assert 0 < max(moved) < 1e-9
  chex.assert_trees_all_close(
    before, _wide(_call(name)(_arguments(name))), rtol=1e-5, atol=1e-5
  )


@_each_deterministic
def test_bfloat16_is_rounded_once(name):
  # The float64 result of the same rounded inputs, to one unit of bfloat16: half
  # is its rounding, the other half lets float32 fall on the other side.
  narrow = _arguments(name, dtype="bfloat16")
  with jax.enable_x64(True):
    exact = _wide(_call(name)(_cast(_wide(narrow), "float64")))
  chex.assert_trees_all_close(
    _wide(_call(name)(narrow)), exact, rtol=2.0**-8, atol=1e-6
  )


_COEFFICIENTS = {
  "weights_from_action": ("spec",),
  "action_box": ("lower_offset", "upper_offset", "low", "high"),
  "sample_gaussian": ("stddev", "low", "high"),
  "gaussian_log_prob": ("stddev",),
  "relaxation_penalty": ("sharpness",),
  "bootstrap_weight": ("sharpness",),
  "actor_loss": ("penalty_scale", "uncertainty_scale"),
}


@pytest.mark.parametrize("name", list(_COEFFICIENTS))
def test_float32_coefficients_leave_bfloat16_data_alone(name):
  arguments = _arguments(name, dtype="bfloat16")
  for key in _COEFFICIENTS[name]:
    arguments[key] = _arguments(name)[key]
  for leaf in jax.tree.leaves(_call(name)(arguments)):
    assert leaf.dtype == jnp.bfloat16


def test_mixed_data_give_the_widest_dtype_even_under_strict_promotion():
  targets = mtf_jax.td_targets(
    jnp.ones(_G, jnp.float32), 0.9, 1.0, jnp.ones((_G, _M), jnp.bfloat16)
  )
  assert targets.dtype == jnp.float32
  # A Python number has no dtype of its own.
  targets = mtf_jax.td_targets(
    jnp.ones(_G, jnp.bfloat16), 0.9, 1.0, jnp.ones((_G, _M), jnp.bfloat16)
  )
  assert targets.dtype == jnp.bfloat16


@_each_kernel
def test_vmap_equals_loop(name):
  samples, batch = _stacked(name)
  loop = [_call(name)(sample) for sample in samples]
  expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *loop)
  chex.assert_trees_all_close(
    jax.vmap(_call(name))(batch), expected, rtol=2e-6, atol=2e-6
  )


@_each_kernel
def test_scan_equals_loop(name):
  samples, batch = _stacked(name)
  loop = [_call(name)(sample) for sample in samples]
  expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *loop)
  _, scanned = lax.scan(lambda c, x: (c, _call(name)(x)), None, batch)
  chex.assert_trees_all_close(scanned, expected, rtol=2e-6, atol=2e-6)


def _over_mesh(call, in_specs):
  """The call, vmapped, under `shard_map` with its default checks."""
  mesh = Mesh(jax.devices()[:1], ("devices",))
  specs = {"mesh": mesh, "in_specs": (in_specs,)}
  return jax.shard_map(
    jax.vmap(call), **specs, out_specs=PartitionSpec("devices")
  )


@_each_kernel
def test_shard_map_equals_loop(name):
  samples, batch = _stacked(name)
  loop = [_call(name)(sample) for sample in samples]
  expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *loop)
  chex.assert_trees_all_close(
    jax.jit(_over_mesh(_call(name), PartitionSpec("devices")))(batch),
    expected,
    rtol=2e-6,
    atol=2e-6,
  )


@_each_kernel
def test_shard_map_of_one_argument(name):
  """The others are the same on every device."""
  _, batch = _stacked(name)
  for split in batch:
    specs = {
      key: PartitionSpec("devices" if key == split else None) for key in batch
    }
    jax.eval_shape(_over_mesh(_call(name), specs), batch)
    if name not in _INTEGER:
      gradient = functools.partial(_gradient, name)
      jax.eval_shape(_over_mesh(gradient, specs), batch)


def _count_traces(call):
  traces = []

  def counted(arguments):
    traces.append(1)  # Runs while JAX traces, and only then.
    return call(arguments)

  return jax.jit(counted), traces


@_each_kernel
def test_second_call_compiles_nothing(name):
  jitted, traces = _count_traces(_call(name))
  for seed in range(3):
    jitted(_arguments(name, seed))
  assert len(traces) == 1


_SCALARS = {
  name: [k for k, v in _split(_arguments(name))[0].items() if _is_scalar(v)]
  for name in CASES
}


@pytest.mark.parametrize("name", [n for n, found in _SCALARS.items() if found])
def test_python_coefficients_are_dynamic(name):
  jitted, traces = _count_traces(_call(name))
  arguments = _arguments(name)
  outputs = []
  for scale in (1.0, 0.5):
    numbers = {k: scale * arguments[k].item() for k in _SCALARS[name]}
    outputs.append(_wide(jitted({**arguments, **numbers})))
  assert len(traces) == 1
  changed = [
    np.any(a != b) for a, b in zip(*map(jax.tree.leaves, outputs), strict=True)
  ]
  assert any(changed)


@_each_float_kernel
@pytest.mark.parametrize("dtype", list(_RTOL))
def test_gradient_is_finite_and_keeps_dtype(name, dtype):
  with jax.enable_x64(dtype == "float64"):
    gradient = _gradient(name, _arguments(name, dtype=dtype))
    for leaf in jax.tree.leaves(gradient):
      assert leaf.dtype == dtype
      assert np.all(np.isfinite(np.asarray(leaf, np.float64)))


@_each_float_kernel
def test_gradient_is_the_derivative(name):
  if CASES[name].has_steps:
    pytest.skip("it has steps; its gradient is finite, see above")
  # In float64 against central differences, in float32 against float64: a
  # gradient that cancels away in float32 shows.
  single = _gradient(name, _arguments(name))
  with jax.enable_x64(True):
    arguments = _arguments(name, dtype="float64")
    double = _gradient(name, arguments)
    floats, rest = _split(arguments)
    leaves, treedef = jax.tree.flatten(floats)
    tangents = [
      np.random.default_rng(i).normal(size=leaf.shape)
      for i, leaf in enumerate(leaves)
    ]

    def along(step):
      moved = [
        leaf + step * tangent
        for leaf, tangent in zip(leaves, tangents, strict=True)
      ]
      output = _call(name)({**rest, **treedef.unflatten(moved)})
      return sum(float(jnp.sum(leaf)) for leaf in jax.tree.leaves(output))

    step = 1e-6
    difference = (along(step) - along(-step)) / (2 * step)
    slope = sum(
      float(np.sum(gradient * tangent))
      for gradient, tangent in zip(
        jax.tree.leaves(double), tangents, strict=True
      )
    )
  # These have a derivative and stop it.
  stopped = name in ("td_targets", "list_td_targets")
  expected = 0.0 if stopped else difference
  np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-6)
  if not CASES[name].has_key:  # A sampler draws other bits in float64.
    chex.assert_trees_all_close(
      _wide(single), _wide(double), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
  ("name", "edge"),
  [
    (name, index)
    for name, case in CASES.items()
    for index in range(len(case.edges))
  ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_edges_are_finite(name, edge, dtype):
  arguments = _cast(CASES[name].edges[edge], dtype)
  if CASES[name].has_key:
    arguments = {"rng_key": jax.random.key(0), **arguments}
  output = jax.jit(_call(name))(arguments)
  chex.assert_tree_all_finite(output)
  if name not in _INTEGER:
    chex.assert_tree_all_finite(_gradient(name, arguments))


@_each_kernel
def test_eval_shape(name):
  arguments = _arguments(name)
  abstract = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arguments
  )
  predicted = jax.eval_shape(_call(name), abstract)
  actual = _call(name)(arguments)
  chex.assert_trees_all_equal_shapes_and_dtypes(
    jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), predicted), actual
  )


@_each_kernel
def test_accepts_numpy(name):
  floats, rest = _split(_arguments(name))
  numpy_arguments = {**rest, **jax.tree.map(np.asarray, floats)}
  chex.assert_trees_all_close(
    _call(name)(numpy_arguments), _call(name)(_arguments(name))
  )


def _paths(name):
  floats, _ = _split(_arguments(name))
  return jax.tree_util.tree_flatten_with_path(floats)[0]


def _replaced(name, path, value):
  """The arguments with one leaf replaced, and the leaf's name in errors."""
  floats, rest = _split(_arguments(name))
  changed = jax.tree_util.tree_map_with_path(
    lambda p, leaf: value if p == path else leaf, floats
  )
  keys = [getattr(k, "key", getattr(k, "name", None)) for k in path]
  return {**rest, **changed}, ".".join(keys)


_each_argument = pytest.mark.parametrize(
  ("name", "path"),
  [(name, path) for name in CASES for path, _ in _paths(name)],
  ids=lambda value: (
    jax.tree_util.keystr(value) if isinstance(value, tuple) else value
  ),
)


@_each_argument
def test_wrong_rank_is_refused_by_name(name, path):
  leaf = dict(_paths(name))[path]
  if name == "discounted_returns" and path[0].key == "r_t":
    wrong = jnp.zeros(())  # Further axes are allowed, none is not.
  else:
    wrong = jnp.broadcast_to(leaf, (2, *leaf.shape))
  arguments, label = _replaced(name, path, wrong)
  with pytest.raises(ValueError, match=f"^{label}: expected .*found .*"):
    jax.eval_shape(_call(name), arguments)


@_each_argument
@pytest.mark.parametrize("dtype", ["int32", "bool", "float16"])
def test_wrong_dtype_is_refused_by_name(name, path, dtype):
  leaf = dict(_paths(name))[path]
  arguments, label = _replaced(name, path, jnp.zeros(leaf.shape, dtype))
  with pytest.raises(ValueError, match=f"^{label}: expected .* found {dtype}"):
    jax.eval_shape(_call(name), arguments)


_SHORT_BOX = mtf_jax.ActionBox(np.zeros(_A - 1), np.ones(_A - 1))
_SHORT_UPPER = mtf_jax.ActionBox(np.zeros(_A), np.ones(_A - 1))

# Kernel, arguments that do not fit the others, name in the error.
_MISMATCHES = [
  (
    "weights_from_action",
    {"spec": mtf_jax.FusionSpec(bias_rate=np.ones(_K + 1))},
    "spec.bias_rate",
  ),
  ("weights_from_action", {"action": np.zeros(2 * _K + 1)}, "action"),
  ("fused_log_score", {"scores": np.ones((_C, _K + 1))}, "weights.power"),
  ("itemwise_log_score", {"scores": np.ones((_C + 1, _K))}, "weights.power"),
  ("itemwise_log_score", {"mask": np.ones(_C + 1, bool)}, "mask"),
  ("rank_slate", {"mask": np.ones(_C + 1, bool)}, "mask"),
  ("cells_from_weights", {"knots": np.ones((_K + 1, _J))}, "knots"),
  ("cells_from_weights", {"knots": np.ones((_K, 1))}, "knots"),
  ("monotone_fused_score", {"action": np.ones(_K + 1)}, "action"),
  ("monotone_fused_score", {"scores": np.ones((_C, _K + 1))}, "cells.knots"),
  (
    "monotone_fused_score",
    {"cells": _FLAT._replace(increments=np.ones((_K, _J)))},
    "cells.increments",
  ),
  ("ranking_transfer_loss", {"outer_scores": np.ones(_C + 1)}, "outer_scores"),
  ("list_reward", {"feedback": np.ones((_L, _E + 1))}, "group_weights"),
  ("discounted_returns", {"r_t": np.ones(_T + 1)}, "discount_t"),
  ("action_box", {"lower_offset": np.zeros(_A + 1)}, "lower_offset"),
  ("sample_box", {"box": _SHORT_UPPER}, "box.upper"),
  ("box_log_prob", {"box": _SHORT_BOX}, "box.lower"),
  ("sample_corners", {"box": _SHORT_UPPER}, "box.upper"),
  ("corners_log_prob", {"box": _SHORT_BOX}, "box.lower"),
  ("sample_gaussian", {"stddev": np.ones(_A + 1)}, "stddev"),
  ("gaussian_log_prob", {"action": np.zeros(_A + 1)}, "baseline_action"),
  ("exceedance", {"box": _SHORT_BOX}, "box.lower"),
  ("td_targets", {"r_t": np.ones(_G + 1)}, "q_t"),
  ("list_td_targets", {"r_t": np.ones(_G + 1)}, "q_t"),
  ("list_td_targets", {"bootstrap_weight_t": np.ones(_L + 1)}, "q_t"),
  ("critic_loss", {"targets": np.ones((_G, _M + 1))}, "targets"),
  ("actor_loss", {"group_weights": np.ones(_G + 1)}, "group_weights"),
]


@pytest.mark.parametrize(("name", "wrong", "label"), _MISMATCHES)
def test_mismatched_letters_are_refused_by_name(name, wrong, label):
  arguments = _arguments(name)
  for key, value in wrong.items():
    is_mask = key == "mask"
    arguments[key] = value if is_mask else _cast(value, jnp.float32)
  with pytest.raises(ValueError, match=f"^{label}: expected .*found"):
    _call(name)(arguments)


def _empty_axes():
  for name in CASES:
    for path, leaf in _paths(name):
      for axis in range(leaf.ndim):
        yield name, path, axis


@pytest.mark.parametrize(("name", "path", "axis"), list(_empty_axes()))
def test_empty_axis_is_refused(name, path, axis):
  leaf = dict(_paths(name))[path]
  arguments, label = _replaced(
    name, path, lax.slice_in_dim(leaf, 0, 0, axis=axis)
  )
  with pytest.raises(ValueError, match=f"^{label}: expected"):
    _call(name)(arguments)


@pytest.mark.parametrize(
  "name", [name for name, case in CASES.items() if case.has_key]
)
def test_keys_are_consumed(name):
  arguments = _arguments(name)
  same = _call(name)(arguments)
  np.testing.assert_array_equal(same, _call(name)(arguments))
  other = _call(name)({**arguments, "rng_key": jax.random.key(1)})
  differ = np.asarray(same) != np.asarray(other)
  assert np.any(differ) if CASES[name].has_steps else np.all(differ)
