"""Latency of a served policy: in process, exported, and as plain NumPy.

  python -m benchmarks.serving
  taskset -c 1 python -m benchmarks.serving --json_out=serving.json

`act` is observation to fusion weights, `serve` a whole request: exploring,
fusing and ranking its candidates. `in_process` is the policy under `jax.jit`;
`exported` the program of a policy folder, called by JAX alone; `ahead` the same
compiled ahead of time for the size; `checked` that through `LoadedPolicy.prepare`,
which looks at every value of a request first; `numpy` what one would write
without JAX. `floor` is a call of an equally wide program that computes nothing:
what JAX takes to get there and back.

Beside the time by the clock stands the processor's time of this process. On one
core (`taskset`) that is the work of a call; where other jobs share the machine, the
clock has their turns in it, and they are most of p95 and p99.
"""

import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from benchmarks import harness
from experiments import launch
from mtf_jax.data.behaviours import TASKS
from mtf_jax.kernels.exploration import HALF_WIDTH
from mtf_jax.kernels.fusion import SCORE_FLOOR, FusionSpec
from mtf_jax.serving.export import Served, export_policy, served_functions
from mtf_jax.serving.load import load_policy
from mtf_jax.serving.manifest import Feature

_SLATE = 6
_BATCHES = launch.define_integers("batches", [1, 32, 1024], "Batch sizes.")
_CANDIDATES = launch.define_integers(
  "candidates", [50, 200, 1000], "Candidates of a request.", low=_SLATE
)
_CALLS = flags.DEFINE_integer(
  "calls", 1000, "Timed calls of each, fewer where they are long.", 20
)
_SECONDS = 2.0  # Of timing, at most, for one figure; 20 calls at least.
_NUM_FEATURES, _HIDDEN = 64, 256
# A server's first seconds; memory is the most that it ever held, in MB.
_COLD = """
import json, sys, time
import numpy as np

def memory():
  # getrusage would count what the process was forked from.
  with open("/proc/self/status") as status:
    (peak,) = (line for line in status if line.startswith("VmHWM"))
  return int(peak.split()[1]) / 1024

def clocks():
  return time.perf_counter(), time.process_time()

def took(name, since):
  for kind, now, then in zip(("s", "cpu_s"), clocks(), since):
    found[f"{name}_{kind}"] = now - then

found = {"numpy_mb": memory()}
start = clocks()
from mtf_jax.serving.load import load_policy
took("import", start)
start = clocks()
policy = load_policy(sys.argv[1])
took("load_and_self_test", start)
found["loaded_mb"] = memory()
args = list(np.load(sys.argv[2]).values())
if sys.argv[3] == "prepared":
  start = clocks()
  policy.prepare(*args[1].shape[:2])
  took("prepare", start)
start = clocks()
np.asarray(policy.serve(*args)["slate"])
took("first_request", start)
found["served_mb"] = memory()
print(json.dumps(found))
"""


def _params(seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
  """Weights and biases of an actor of the reference size."""
  rng = np.random.default_rng(seed)
  sizes = (_NUM_FEATURES, _HIDDEN, _HIDDEN, 2 * len(TASKS))
  return [
    (
      (rng.normal(size=(below, above)) / math.sqrt(below)).astype(np.float32),
      np.zeros(above, np.float32),
    )
    for below, above in itertools.pairwise(sizes)
  ]


def _actor(params, observation, rng_key):
  del rng_key
  *hidden, last = params
  value = observation
  for weight, bias in hidden:
    value = jax.nn.relu(value @ weight + bias)
  return jnp.tanh(value @ last[0] + last[1])


def _numpy_functions(params) -> tuple[Callable, Callable]:
  """The same policy in NumPy, over batches."""
  spec = FusionSpec()
  rng = np.random.default_rng(0)

  def action_of(observation):
    value = observation
    for weight, bias in params[:-1]:
      value = np.maximum(value @ weight + bias, 0)
    return np.tanh(value @ params[-1][0] + params[-1][1])

  def weights_of(action):
    power, bias = np.split(action, 2, axis=1)
    return (
      spec.power_base * np.exp(spec.power_rate * power),
      spec.bias_base * np.exp(spec.bias_rate * bias),
    )

  def act(observation):
    action = action_of(observation)
    return (action, *weights_of(action))

  def serve(observation, scores, mask, key):
    del key  # A generator of its own, as a NumPy program has.
    centre = action_of(observation)
    lower = np.maximum(centre - HALF_WIDTH, -1)
    upper = np.minimum(centre + HALF_WIDTH, 1)
    action = rng.uniform(lower, upper).astype(np.float32)
    power, bias = weights_of(action)
    shifted = np.maximum(scores + bias[:, None, :], SCORE_FLOOR)
    fused = np.einsum("bck,bk->bc", np.log(shifted), power)
    fused = np.where(mask, fused, -np.inf)
    best = np.argpartition(-fused, _SLATE - 1, axis=1)[:, :_SLATE]
    order = np.argsort(-np.take_along_axis(fused, best, 1), 1, kind="stable")
    slate = np.take_along_axis(best, order, 1)
    return slate, action, lower, upper, -np.sum(np.log(upper - lower), axis=1)

  return act, serve


def _requests(batch: int, candidates: int) -> list[np.ndarray]:
  rng = np.random.default_rng(1)
  return [
    rng.normal(size=(batch, _NUM_FEATURES)).astype(np.float32),
    rng.uniform(0.01, 1, (batch, candidates, len(TASKS))).astype(np.float32),
    np.ones((batch, candidates), bool),
    rng.integers(2**32, size=(batch, 2), dtype=np.uint32),
  ]


def latency(
  functions: dict[str, Callable], args: list[np.ndarray], calls: int
) -> dict[str, dict[str, float]]:
  """Latencies of functions that take turns, so that all meet the same machine.

  Args:
    functions: by name, called with `args` on the host, until the answer is
      there.
    args: of each.
    calls: timed calls of each, fewer where they take too long.

  Returns:
    By name `p50_us`, `p95_us`, `p99_us` and `requests_per_s`, and the same with
    `cpu_` before it, of the process's own time.
  """
  samples: dict[str, list[tuple[float, float]]] = {
    name: [] for name in functions
  }
  for function in functions.values():
    for _ in range(3):
      jax.block_until_ready(function(*args))
  begun = time.perf_counter()
  for call in range(calls):
    for name, function in functions.items():
      start, worked = time.perf_counter(), time.process_time()
      jax.block_until_ready(function(*args))
      worked = time.process_time() - worked
      samples[name].append((time.perf_counter() - start, worked))
    spent = time.perf_counter() - begun
    if call >= 19 and spent > _SECONDS * len(functions):
      break
  found: dict[str, dict[str, float]] = {}
  for name, pairs in samples.items():
    found[name] = {}
    for clock, times in zip(("", "cpu_"), np.transpose(pairs), strict=True):
      for share in (50, 95, 99):
        value = 1e6 * float(np.percentile(times, share))
        found[name][f"{clock}p{share}_us"] = value
      rate = args[0].shape[0] / float(np.median(times))
      found[name][f"{clock}requests_per_s"] = rate
  return found


def _cold_start(folder: str, how: str) -> dict[str, float]:
  """A new process until its first request of one, with 200 candidates."""
  args = f"{folder}/request.npz"
  np.savez(args, *_requests(1, 200))
  done = subprocess.run(
    [sys.executable, "-c", _COLD, f"{folder}/policy", args, how],
    capture_output=True,
    text=True,
    check=True,
  )
  return json.loads(done.stdout)


def _floor(outputs: Any) -> Callable:
  """A program whose outputs are as `outputs` and hang on nothing computed."""

  def zeros(*args):
    # Of the arguments, which are passed otherwise not at all.
    zero = sum(jnp.ravel(arg)[0].astype(jnp.float32) * 0 for arg in args)
    return jax.tree.map(
      lambda leaf: jnp.broadcast_to(zero, leaf.shape).astype(leaf.dtype),
      outputs,
    )

  return jax.jit(zeros)


def measure(
  batches: list[int], candidates: list[int], calls: int
) -> dict[str, Any]:
  """Latencies of both functions at all sizes, cold starts and memory.

  Args:
    batches: batch sizes.
    candidates: candidates of a request; `act` has none.
    calls: timed calls of each.

  Returns:
    Ready for JSON.
  """
  params = _params()
  served = Served(_actor, jax.device_put(params), FusionSpec(), _SLATE)
  features = [
    Feature(f"feature_{n}", "none", -4.0, 4.0, 0.0)
    for n in range(_NUM_FEATURES)
  ]
  with tempfile.TemporaryDirectory() as folder:
    path = f"{folder}/policy"
    export_policy(path, served, features)
    cold = {how: _cold_start(folder, how) for how in ("plain", "prepared")}
    policy = load_policy(path)
  inside = [jax.jit(function) for function in served_functions(served)]
  plain = _numpy_functions(params)
  rows = []
  for number, name in enumerate(("act", "serve")):
    program = policy.programs[number]
    for count in candidates if name == "serve" else [0]:
      for batch in batches:
        args = _requests(batch, max(count, 1))
        args = args if name == "serve" else args[:1]
        policy.prepare(batch, count or _SLATE)
        functions = {
          "floor": _floor(jax.eval_shape(program, *args)),
          "in_process": inside[number],
          "exported": program,
          "ahead": program.lower(*args).compile(),
          "checked": getattr(policy, name),
          "numpy": plain[number],
        }
        for kind, found in latency(functions, args, calls).items():
          rows.append(
            {
              "function": name,
              "kind": kind,
              "batch": batch,
              "candidates": count or None,
              **found,
            }
          )
  return {"rows": rows, "cold_start": cold}


def main() -> None:
  """Measures, prints a table, writes the JSON."""
  result = {
    "environment": harness.environment(),
    **measure(
      _BATCHES.value,
      _CANDIDATES.value,
      _CALLS.value,
    ),
  }
  columns = tuple(
    f"{clock}{figure}"
    for clock in ("", "cpu_")
    for figure in ("p50_us", "p95_us", "p99_us", "requests_per_s")
  )
  print(
    harness.markdown_table(
      ("function", "candidates", "batch", "kind", *columns),
      [
        (
          row["function"],
          str(row["candidates"] or ""),
          str(row["batch"]),
          row["kind"],
          *(f"{row[column]:,.0f}" for column in columns),
        )
        for row in result["rows"]
      ],
    )
  )
  for how, found in result["cold_start"].items():
    shown = (f"{name} {value:.3g}" for name, value in found.items())
    print(f"{how}: {', '.join(shown)}")
  if harness.JSON_OUT.value:
    harness.write_json(harness.JSON_OUT.value, result)


if __name__ == "__main__":
  launch.run(main)
