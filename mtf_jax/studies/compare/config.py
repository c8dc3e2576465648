"""Sizes of a comparison, presets, and what was tuned."""

import dataclasses
import functools
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

from mtf_jax.evaluation import global_weights
from mtf_jax.io import InputError
from mtf_jax.learners import cem
from mtf_jax.learners.es import Search
from mtf_jax.studies.compare.methods import (
  ABLATIONS,
  METHODS,
  VERSIONS,
  parts_of,
)
from mtf_jax.studies.progressive.config import PRESETS as PROGRESSIVE
from mtf_jax.studies.progressive.config import ProgressiveConfig
from mtf_jax.training.config import TrainConfig, hyperparams_of

# What the logs are: Gaussian noise around the baseline policy, uniform draws from
# a box around it, or rounds of that around each new policy.
DATA = ("gaussian", "box", "progressive")


@dataclasses.dataclass(frozen=True)
class CompareConfig:
  """Size of a comparison; everything static.

  sizes: rounds, sessions, users, evaluation and networks as in a progressive
    run; a log that is no rounds has as many sessions and updates as all rounds.
    Of its searches `es_search` is the platform's that finds the baseline policy,
    and `oracle_search` a stage of the converged one.
  cem: the platform's other search.
  max_stages: of the converged search.
  test_sessions: of the log that policies are estimated on.
  fqe_updates: of fitted Q evaluation.
  as_published: whether critics are free-form in the version of that name, and
    as many in all as the method says, which for IntegratedRL-MTF is `sizes`, not
    its paper; else every version has those of `sizes`, so that they share their
    programs.
  """

  sizes: ProgressiveConfig
  cem: cem.Effort
  max_stages: int
  test_sessions: int
  fqe_updates: int
  as_published: bool = True

  def converged(self) -> global_weights.Effort:
    """Effort of the converged search."""
    return global_weights.Effort(
      search=self.sizes.oracle_search,
      max_stages=self.max_stages,
      sessions=self.sizes.evaluation_sessions,
    )

  def train_of(
    self, method: str, version: str, tuned: Mapping[str, Mapping[str, Any]]
  ) -> TrainConfig:
    """Networks and numbers of one version of a method.

    Args:
      method: a key of `METHODS`.
      version: one of `VERSIONS` or `ABLATIONS`.
      tuned: `method:version` -> hyperparameters, of `tuned_numbers`. A version in
        between that was not tuned has those of `told_box`.
    """
    entry, train = METHODS[method], self.sizes.train
    parts = parts_of(version)
    boxed = "box_units" in parts
    own_numbers = tuned.get(f"{method}:{version}", {})
    if version in ABLATIONS and not own_numbers:
      own_numbers = tuned.get(f"{method}:told_box", {})
    known = hyperparams_of(entry.learner)._fields
    numbers = {
      **{n: x for n, x in train.hyperparams.items() if n in known},
      **entry.numbers,
      **({"told_box": 1.0} if boxed and "told_box" in known else {}),
      **own_numbers,
    }
    own: dict[str, Any] = {}
    if self.as_published and "box_critic" not in parts:
      own["critic"] = "mlp"
    if self.as_published and "session_return" not in parts:
      own["num_steps"] = 1
    if self.as_published and entry.num_critics is not None:
      own["ensemble_size"] = entry.num_critics
    if self.as_published:
      own["critic_updates"] = entry.critic_updates
    return dataclasses.replace(
      train, learner=entry.learner, hyperparams=numbers, **own
    )

  def to_json(self) -> dict[str, Any]:
    """As JSON has it."""
    return {
      **{
        field.name: getattr(self, field.name)
        for field in dataclasses.fields(self)
      },
      "sizes": self.sizes.to_json(),
      "cem": self.cem._asdict(),
    }


@functools.cache
def tuned_numbers() -> dict[str, dict[str, float]]:
  """`method:version` -> hyperparameters that won the tuning, as committed.

  `benchmarks/results/compare_tuning.json` has all trials.
  """
  resource = importlib.resources.files(__package__) / "tuned.json"
  return json.loads(resource.read_text())


def check_names(field: str, names: Any, known: Any) -> None:
  """Refuses names that are unknown, there twice, or none.

  Raises:
    InputError: the sentence begins with the field.
  """
  if not names or len(set(names)) < len(names) or set(names) - set(known):
    raise InputError(
      f"{field}: expected different names of {', '.join(known)}, found"
      f" {', '.join(names) or 'none'}."
    )


def cells(
  methods: tuple[str, ...], versions: tuple[str, ...], data: tuple[str, ...]
) -> list[tuple[str, str, str]]:
  """Methods by the versions that they have by logs."""
  return [
    (method, version, log)
    for log in data
    for version in (*VERSIONS, *ABLATIONS)
    if version in versions
    for method in methods
    if METHODS[method].has(version)
  ]


PRESETS = {
  # Seconds a method, and those the compiler's: that everything runs.
  "smoke": CompareConfig(
    sizes=dataclasses.replace(
      PROGRESSIVE["smoke"],
      sessions_per_round=256,
      num_users=64,
      max_requests=6,
      evaluation_sessions=512,
      es_search=Search(4, 64, noise=0.3, learning_rate=0.1),
      oracle_search=Search(4, 64, noise=0.05),
      train=dataclasses.replace(
        PROGRESSIVE["smoke"].train,
        hidden_sizes=(16, 16),
        batch_size=64,
        num_updates=20,
        chunk_size=20,
        checkpoint_every=20,
        num_steps=6,
        critic_updates=2,
      ),
    ),
    cem=cem.Effort(iterations=4, population=16, sessions=8),
    max_stages=2,
    test_sessions=256,
    fqe_updates=20,
    as_published=False,
  ),
  # One seed in half an hour on 2 cores. As many requests and the same networks
  # as the main job, a quarter of its sessions.
  "cpu": CompareConfig(
    sizes=dataclasses.replace(
      PROGRESSIVE["cpu"],
      sessions_per_round=20_000,
      evaluation_sessions=8192,
      es_search=global_weights.PLATFORM_ES,
      oracle_search=Search(40, 1024, noise=0.05),
      train=dataclasses.replace(
        PROGRESSIVE["cpu"].train,
        batch_size=512,
        num_updates=500,
        chunk_size=250,
        checkpoint_every=500,
      ),
    ),
    cem=cem.Effort(iterations=20, population=64, sessions=80, elite=12),
    max_stages=10,
    test_sessions=20_000,
    fqe_updates=1_000,
  ),
  # The paper's sizes, for one accelerator.
  "paper": CompareConfig(
    sizes=dataclasses.replace(
      PROGRESSIVE["paper"],
      es_search=Search(80, 4096, noise=0.3, learning_rate=0.1),
      oracle_search=Search(80, 4096, noise=0.05),
    ),
    cem=cem.Effort(iterations=40, population=128, sessions=128, elite=24),
    max_stages=10,
    test_sessions=1_000_000,
    fqe_updates=60_000,
  ),
}
