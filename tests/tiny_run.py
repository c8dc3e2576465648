"""Progressive training at its smallest; tests of two folders compile it once."""

import functools

from mtf_jax.evaluation.global_weights import Effort
from mtf_jax.learners.es import Search
from mtf_jax.studies.progressive.config import ProgressiveConfig
from mtf_jax.studies.progressive.plan import Plan
from mtf_jax.studies.progressive.study_learner import make_study_learner
from mtf_jax.training.config import TrainConfig
from tests.small_world import small_world

TINY = ProgressiveConfig(
  rounds=2,
  sessions_per_round=64,
  max_requests=6,
  num_users=32,
  evaluation_sessions=96,
  uncut_requests=8,
  check_states=32,
  check_continuations=2,
  check_sessions=32,
  es_search=Search(4, 16, noise=0.3, learning_rate=0.1),
  global_search=Effort(
    search=Search(4, 16, noise=0.05),
    first=Search(4, 16, noise=0.3, learning_rate=0.1),
    max_stages=2,
    random_starts=0,
    sessions=32,
  ),
  oracle_search=Search(4, 16),
  train=TrainConfig(
    critic="box",
    ensemble_size=2,
    hidden_sizes=(16,),
    num_steps=2,
    batch_size=32,
    num_updates=8,
    chunk_size=4,
    checkpoint_every=4,
    hyperparams={"actor_learning_rate": 1e-2},
  ),
)


def tiny_plan(**changes):
  """Two seeds side by side under one leaving model, or what is asked for."""
  values = {
    "world": "synthetic",
    "preset": "smoke",
    "seeds": (0, 1),
    "parallel_seeds": 2,
    "leaving": ("satisfaction_floor",),
    "learners": ("integrated_rl",),
    "config": TINY,
  }
  return Plan(**{**values, **changes})


@functools.cache
def tiny_study_learner(learner="integrated_rl:box"):
  return make_study_learner(TINY.with_learner(learner).train, small_world())
