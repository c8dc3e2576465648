"""Times the learner's updates against what the machine can do.

  python -m benchmarks.learner --workload=reference --json_out=learner.json

`reference` is the paper's size: state 64, action 10, 2 x 24 critics of 256-256,
batch 256, 200,000 rows. `sweep` varies critics, batch, seeds and dtype, within
a budget of operations that depends on the device. Updates are counted as the
training loop does them: batches drawn, health checked, metrics made.
Operations are those of the contractions that are executed.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from benchmarks import harness
from experiments import launch
from mtf_jax import networks
from mtf_jax.data import session_log, transitions
from mtf_jax.kernels.exploration import HALF_WIDTH, ActionBox
from mtf_jax.learners.base import Learner, normalization_from
from mtf_jax.learners.integrated_rl import integrated_rl
from mtf_jax.training import loop

_WORKLOAD = flags.DEFINE_enum(
  "workload", "reference", ["reference", "sweep"], "What to time."
)

_S, _A, _G, _H, _ROWS, _SESSION = 64, 10, 2, 256, 200_000, 16


class Workload(NamedTuple):
  """One size.

  ensemble_size: critics of each of the two groups.
  batch_size: transitions of an update.
  seeds: runs trained at once.
  precision: "float32", "tf32" (accelerators) or "bfloat16".
  critic: "mlp" or "box".
  """

  ensemble_size: int = 24
  batch_size: int = 256
  seeds: int = 1
  precision: str = "float32"
  critic: str = "mlp"

  def name(self) -> str:
    """Short name of the row."""
    return (
      f"{self.critic}-{_G}x{self.ensemble_size}-b{self.batch_size}"
      f"-s{self.seeds}-{self.precision}"
    )


def make_dataset(num_groups: int = _G) -> transitions.TransitionDataset:
  """Random sessions of 16 requests, with so many reward groups."""
  rng = np.random.default_rng(0)
  centre = rng.uniform(-0.5, 0.5, (_ROWS, _A)).astype(np.float32)
  half_width = np.float32(HALF_WIDTH)
  step = np.arange(_ROWS, dtype=np.int32) % _SESSION
  log = session_log.SessionLog(
    observation=rng.normal(size=(_ROWS, _S)).astype(np.float32),
    action=centre
    + half_width * rng.uniform(-0.99, 0.99, (_ROWS, _A)).astype(np.float32),
    box=ActionBox(centre - half_width, centre + half_width),
    log_prob=np.zeros(_ROWS, np.float32),
    exploration_held=np.zeros(_ROWS, bool),
    reward=rng.uniform(size=(_ROWS, num_groups)).astype(np.float32),
    feedback=np.zeros((_ROWS, 1), np.float32),
    terminal=step == _SESSION - 1,
    bootstrap_only=np.zeros(_ROWS, bool),
    session_id=np.arange(_ROWS, dtype=np.int32) // _SESSION,
    step=step,
  )
  session_log.validate(log)
  return transitions.device_dataset(log)


def update_flops(
  critic: str, num_critics: int, climbed: int, actor_every: int = 1
) -> float:
  """Operations of one update's contractions, for one transition.

  Args:
    critic: "mlp" or "box".
    num_critics: critics that are regressed.
    climbed: critics that the actor's update asks.
    actor_every: one update in so many has one of the actor.
  """
  hidden = 2 * _H * _H + 2 * _H
  if critic == "mlp":
    forward = 2 * _H * (_S + _A) + hidden
    # Forwards, and backwards to the inputs; of the first layer's inputs only
    # the action's.
    climb = forward + hidden + 2 * _H * _A
  else:
    forward = 2 * _H * _S + hidden + 2 * _A * _S
    # The actor's gradient passes the slope alone.
    climb = forward
  # Forward passes of critic and target; backwards of kernels and inputs.
  regress = 3 * forward + hidden
  actor_first, actor_last = 2 * _S * _H, 2 * _H * _A
  actor_forward = actor_first + 2 * _H * _H + actor_last
  actor = 2 * actor_forward + (actor_forward - actor_first)
  delayed = climbed * climb + actor
  return num_critics * regress + actor_forward + delayed / actor_every


def flops(workload: Workload) -> int:
  """Operations of one update's contractions, of all seeds."""
  critics = _G * workload.ensemble_size
  of_one = update_flops(workload.critic, critics, critics)
  return workload.seeds * workload.batch_size * int(of_one)


def _critic(workload: Workload) -> networks.Critic:
  build = {"mlp": networks.mlp_critic, "box": networks.box_critic}
  dtype = jnp.bfloat16 if workload.precision == "bfloat16" else jnp.float32
  return build[workload.critic](
    _G, workload.ensemble_size, (_H, _H), dtype=dtype
  )


def start_state(
  workload: Workload, learner: Learner, dataset: transitions.TransitionDataset
) -> loop.TrainState:
  """A run of a learner on the dataset, or `workload.seeds` of them."""
  batch = transitions.sample_transitions(jax.random.key(0), dataset, 1)
  example = jax.tree.map(lambda leaf: leaf[0], batch)
  normalization = normalization_from(dataset)

  def start(rng_key):
    network_key, batch_key = jax.random.split(rng_key)
    return loop.start(
      batch_key,
      learner.init(network_key, example, normalization=normalization),
    )

  if workload.seeds == 1:
    return start(jax.random.key(1))
  return jax.vmap(start)(jax.random.split(jax.random.key(1), workload.seeds))


def contraction_timer(batch: int) -> Callable[[], float]:
  """A scan of `batch` contractions `[256, 256]`; returns a timer of its FLOP/s."""
  run, operations = harness.contraction(batch)

  def rate() -> float:
    start = time.perf_counter()
    run()
    return operations / (time.perf_counter() - start)

  return rate


def _parts(workload: Workload, dataset) -> dict[str, float]:
  """Milliseconds of an update's parts, each compiled and timed alone."""
  critic, actor = _critic(workload), networks.mlp_actor(_A)
  learner = integrated_rl(actor, critic)
  state = start_state(workload._replace(seeds=1), learner, dataset).learner
  batch = transitions.sample_transitions(
    jax.random.key(2), dataset, workload.batch_size
  )
  q_params, observation = state.critic_params, batch.observation_tm1
  adam = optax.scale_by_adam()

  def forward(params):
    return critic.apply(params, observation, batch.action_tm1, batch.box_tm1)

  def backward(params):
    return jax.grad(lambda p: jnp.mean(jnp.square(forward(p))))(params)

  def target(q_params, mu_params):
    action = actor.apply(mu_params, batch.observation_t)
    return critic.apply(q_params, batch.observation_t, action, batch.box_t)

  def policy(mu_params, q_params):
    def loss(params):
      action = actor.apply(params, observation)
      return -jnp.mean(
        critic.apply(q_params, observation, action, batch.box_tm1)
      )

    return jax.grad(loss)(mu_params)

  def optimizer(gradient, params, moments):
    with jax.numpy_dtype_promotion("standard"):
      step, moments = adam.update(gradient, moments)
    params = jax.tree.map(lambda p, s: p - np.float32(3e-4) * s, params, step)
    return params, moments, optax.tree.norm(gradient)

  def soft_update(params, target_params):
    return optax.incremental_update(params, target_params, 0.005)

  def milliseconds(function, *args):
    compiled, _ = harness.compile_ahead(function, *args)
    return 1e3 * harness.time_calls(compiled, *args, repeats=7).median_s

  times = {
    "critic_forward": milliseconds(forward, q_params),
    "critic_forward_and_backward": milliseconds(backward, q_params),
    "target": milliseconds(target, q_params, state.actor_params),
    "actor": milliseconds(policy, state.actor_params, q_params),
    "optimizer": milliseconds(
      optimizer, q_params, q_params, state.critic_optimizer
    ),
    "soft_update": milliseconds(
      soft_update, q_params, state.target_critic_params
    ),
  }
  times["critic_backward"] = (
    times.pop("critic_forward_and_backward") - times["critic_forward"]
  )
  return {name: round(value, 3) for name, value in times.items()}


def compile_updates(
  workload: Workload, dataset: transitions.TransitionDataset, num_updates: int
) -> tuple[Callable[..., Any], loop.TrainState]:
  """A dispatch of so many updates, compiled, and the state that it begins with.

  Args:
    workload: the size.
    dataset: rows on the device.
    num_updates: updates of a dispatch.

  Returns:
    `(state, dataset) -> (state, metrics)`, which donates the state, and a state.
  """
  learner = integrated_rl(networks.mlp_actor(_A), _critic(workload))
  state = start_state(workload, learner, dataset)
  chunk = loop.update_chunk if workload.seeds == 1 else loop.update_chunk_many
  precision = {"float32": "highest", "tf32": "tensorfloat32"}.get(
    workload.precision, "default"
  )
  with jax.default_matmul_precision(precision):
    compiled = chunk.lower(
      learner,
      state,
      dataset,
      batch_size=workload.batch_size,
      num_updates=num_updates,
      freeze=False,
    ).compile()
  return compiled, state


def measure(
  workload: Workload,
  dataset: transitions.TransitionDataset,
  matmul_flops_per_s: float,
  *,
  with_parts: bool = False,
) -> dict[str, Any]:
  """Times one workload; contractions and updates take turns.

  Args:
    workload: the size.
    dataset: rows on the device.
    matmul_flops_per_s: ceiling measured in this run.
    with_parts: whether to time the parts of an update too.
  """
  operations = flops(workload)
  on_cpu = jax.default_backend() == "cpu"
  # A dispatch of about a second, at least 5 updates.
  expected = 1.5e11 if on_cpu else 2e13
  num_updates = int(np.clip(expected / operations, 5, 200))
  start = time.perf_counter()
  compiled, state = compile_updates(workload, dataset, num_updates)
  compile_s = time.perf_counter() - start
  state, _ = compiled(state, dataset)
  jax.block_until_ready(state)
  first_update_s = time.perf_counter() - start
  contraction = contraction_timer(_G * workload.ensemble_size)
  seconds, rates = [], []
  for _ in range(harness.REPEATS.value):
    rates.append(contraction())
    start = time.perf_counter()
    state, _ = compiled(state, dataset)
    jax.block_until_ready(state)
    seconds.append((time.perf_counter() - start) / num_updates)
  if not np.all(state.healthy):
    raise FloatingPointError(f"{workload.name()}: training did not stay finite")
  median_s = statistics.median(seconds)
  contraction_rate = statistics.median(rates)
  memory = compiled.memory_analysis()
  row = {
    "workload": workload.name(),
    **workload._asdict(),
    "updates_per_dispatch": num_updates,
    "updates_per_s": workload.seeds / median_s,
    "updates_per_s_min": workload.seeds / max(seconds),
    "updates_per_s_max": workload.seeds / min(seconds),
    "gflop_per_update": operations / workload.seeds / 1e9,
    "gflops": operations / median_s / 1e9,
    "matmul_ceiling_gflops": matmul_flops_per_s / 1e9,
    "batched_contraction_gflops": contraction_rate / 1e9,
    "share_of_matmul_ceiling": operations / median_s / matmul_flops_per_s,
    "share_of_batched_contraction": operations / median_s / contraction_rate,
    "compile_s": compile_s,
    "first_update_s": first_update_s,
    "temporary_bytes": memory.temp_size_in_bytes if memory else None,
    "argument_bytes": memory.argument_size_in_bytes if memory else None,
    "device_kind": jax.devices()[0].device_kind,
  }
  if with_parts:
    row["parts_ms"] = _parts(workload, dataset)
  return row


def _sweep() -> list[Workload]:
  """Sizes that the device gets through within minutes."""
  on_cpu = jax.default_backend() == "cpu"
  budget = 4e10 if on_cpu else 1e13
  precisions = ("float32",) if on_cpu else ("float32", "tf32", "bfloat16")
  seeds = (1, 8) if on_cpu else (1, 64)
  workloads = [
    Workload(ensemble_size, batch_size, num_seeds, precision)
    for precision in precisions
    for ensemble_size in (1, 4, 24)
    for batch_size in (256, 2_048, 16_384)
    for num_seeds in seeds
  ]
  return [one for one in workloads if flops(one) <= budget]


def main() -> None:
  """Measures, prints a table and writes the rows."""
  dataset = make_dataset()
  matmul_flops_per_s = harness.matmul_flops_per_s(
    2048 if jax.default_backend() == "cpu" else 8192
  )
  if _WORKLOAD.value == "reference":
    workloads = [Workload(), Workload(critic="box")]
  else:
    workloads = _sweep()
  rows = []
  for workload in workloads:
    row = measure(
      workload,
      dataset,
      matmul_flops_per_s,
      with_parts=_WORKLOAD.value == "reference",
    )
    rows.append(row)
    print(workload.name(), f"{row['updates_per_s']:.2f}", file=sys.stderr)
    if harness.JSON_OUT.value:  # A sweep that is stopped has these rows.
      harness.write_json(
        harness.JSON_OUT.value,
        {"environment": harness.environment(), "rows": rows},
      )
  print(
    harness.markdown_table(
      [
        "workload",
        "updates/s",
        "GFLOP/s",
        "of matmul",
        "of batched contraction",
        "compile s",
      ],
      [
        [
          row["workload"],
          f"{row['updates_per_s']:.2f}",
          f"{row['gflops']:.1f}",
          f"{row['share_of_matmul_ceiling']:.0%}",
          f"{row['share_of_batched_contraction']:.0%}",
          f"{row['compile_s']:.1f}",
        ]
        for row in rows
      ],
    )
  )
  for row in rows:
    if "parts_ms" in row:
      print(row["workload"], row["parts_ms"])


if __name__ == "__main__":
  launch.run(main)
