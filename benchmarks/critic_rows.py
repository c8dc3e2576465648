"""How many rows a critic needs to point the right way.

  python -m benchmarks.critic_rows --json_out=benchmarks/results/critic_rows.json

A synthetic problem of known advantage: sessions of one request, `return = V(s)
+ g(s) . epsilon + noise`, with the action's deviation `epsilon` uniform in its
box. The action explains 0.2% of the return's variance.
"""

from typing import NamedTuple

import jax
import numpy as np

from benchmarks import harness
from experiments import launch
from mtf_jax import networks
from mtf_jax.data import session_log, transitions
from mtf_jax.io import json_text
from mtf_jax.kernels.exploration import HALF_WIDTH, ActionBox
from mtf_jax.learners.base import normalization_from
from mtf_jax.learners.integrated_rl import Hyperparams, integrated_rl
from mtf_jax.training import loop

_BUILD = {"mlp": networks.mlp_critic, "box": networks.box_critic}


class Problem(NamedTuple):
  """A synthetic problem.

  features: `S`.
  components: `A`.
  half_width: of the boxes, normalised action units.
  action_share: share of the return's variance that the action explains.
  value_share: share that the state explains; the rest is noise.
  """

  features: int = 16
  components: int = 10
  half_width: float = HALF_WIDTH
  action_share: float = 0.002
  value_share: float = 0.3


def _advantage(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
  """`g(s) = constant + s @ slope`, scaled to its share of a unit variance."""
  rng = np.random.default_rng(7)
  constant = rng.normal(size=problem.components)
  slope = rng.normal(size=(problem.features, problem.components))
  slope /= np.sqrt(problem.features)
  # A uniform epsilon has variance 1/3.
  variance = (constant**2 + (slope**2).sum(0)).sum() / 3
  scale = np.sqrt(problem.action_share / variance)
  return constant * scale, slope * scale


def make_log(
  problem: Problem, num_rows: int, seed: int
) -> session_log.SessionLog:
  """Draws `num_rows` sessions of one request."""
  rng = np.random.default_rng(seed)
  constant, slope = _advantage(problem)
  state = rng.normal(size=(num_rows, problem.features))
  shape = (num_rows, problem.components)
  centre = rng.uniform(-0.5, 0.5, shape).astype(np.float32)
  epsilon = rng.uniform(-0.999, 0.999, shape)
  value = np.sqrt(2) * np.sin(state[:, 0] + 2 * state[:, 1])
  noise_share = 1 - problem.value_share - problem.action_share
  result = (
    np.sqrt(problem.value_share) * value
    + ((constant + state @ slope) * epsilon).sum(1)
    + np.sqrt(noise_share) * rng.normal(size=num_rows)
  )
  half_width = np.float32(problem.half_width)
  return session_log.SessionLog(
    observation=state.astype(np.float32),
    action=centre + half_width * epsilon.astype(np.float32),
    box=ActionBox(centre - half_width, centre + half_width),
    log_prob=np.full(num_rows, 0, np.float32),
    exploration_held=np.zeros(num_rows, bool),
    reward=result[:, None].astype(np.float32),
    feedback=np.zeros((num_rows, 1), np.float32),
    terminal=np.ones(num_rows, bool),
    bootstrap_only=np.zeros(num_rows, bool),
    session_id=np.arange(num_rows, dtype=np.int32),
    step=np.zeros(num_rows, np.int32),
  )


def alignment(
  kind: str,
  problem: Problem,
  num_rows: int,
  num_updates: int,
  seed: int = 0,
  hidden_sizes: tuple[int, ...] = (64, 64),
) -> float:
  """Trains critics on a log and compares their slope with the true one.

  Returns:
    Mean over fresh states of the cosine between the ensemble's mean gradient
    with respect to epsilon, at the box's centre, and `g(s)`.
  """
  log = make_log(problem, num_rows, seed)
  dataset = transitions.device_dataset(log)
  critic = _BUILD[kind](1, 2, hidden_sizes)
  # The actor takes no part: sessions of one request do not bootstrap.
  actor = networks.mlp_actor(problem.components, (8,))
  learner = integrated_rl(actor, critic)
  batch = transitions.sample_transitions(jax.random.key(0), dataset, 1)
  example = jax.tree.map(lambda leaf: leaf[0], batch)
  normalization = normalization_from(dataset)
  hyperparams = Hyperparams(critic_learning_rate=1e-3)
  learner_state = learner.init(
    jax.random.key(seed), example, hyperparams, normalization
  )
  state = loop.train(
    learner,
    loop.start(jax.random.key(seed + 1), learner_state),
    dataset,
    num_updates,
    batch_size=1024,
    chunk_size=min(100, num_updates),
  ).learner
  fresh = make_log(problem, 512, seed + 1000)
  centre = (fresh.box.lower + fresh.box.upper) / 2
  observation = fresh.observation - np.asarray(normalization.mean)
  observation /= np.asarray(normalization.scale)

  def total(action):
    q = critic.apply(state.critic_params, observation, action, fresh.box)
    return q.mean(axis=(1, 2)).sum()

  found = np.asarray(jax.grad(total)(centre))
  constant, slope = _advantage(problem)
  true = constant + fresh.observation @ slope
  cosine = (found * true).sum(1) / (
    np.linalg.norm(found, axis=1) * np.linalg.norm(true, axis=1) + 1e-12
  )
  return float(cosine.mean())


def main() -> None:
  """Prints a table over rows and critics."""
  rows = []
  for num_rows in (10_000, 50_000, 200_000, 1_000_000):
    for kind in _BUILD:
      cosines = [
        alignment(kind, Problem(), num_rows, num_updates=1500, seed=seed)
        for seed in range(2)
      ]
      row = {"critic": kind, "num_rows": num_rows, "cosines": cosines}
      rows.append(row)
      print(json_text(row), flush=True)
  if harness.JSON_OUT.value:
    harness.write_json(
      harness.JSON_OUT.value,
      {"environment": harness.environment(), "rows": rows},
    )


if __name__ == "__main__":
  launch.run(main)
