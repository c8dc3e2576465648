"""What is played: logs, learners, sizes."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from mtf_jax.io import InputError
from mtf_jax.learners.es import Search
from mtf_jax.learners.registry import LEARNERS
from mtf_jax.policies import EXPLORATIONS, SHARINGS
from mtf_jax.training.config import TrainConfig

# What a policy of user-item pairs is told of an item: all, or not its scores.
FEATURES = ("all", "attributes")


class Arm(NamedTuple):
  """One learner on one log.

  learner: name in the registry.
  shared: one of `SHARINGS`, of the log.
  exploration: one of `EXPLORATIONS`, of the log.
  features: one of `FEATURES`; None for a learner of requests.
  """

  learner: str
  shared: str
  exploration: str
  features: str | None

  @property
  def title(self) -> str:
    """The learner, and what it knows of items."""
    return self.learner + (f", {self.features}" if self.features else "")


def arms_of(
  learners: Sequence[str],
  shared: Sequence[str],
  explorations: Sequence[str],
  features: Sequence[str],
) -> list[Arm]:
  """Every arm, those of one log together.

  Learners of requests and of cells take logs in which a list deviates alike: else
  there is no deviation of the request. Items that deviate each by itself do so at
  each request: candidates have no place that they keep over a session.

  Args:
    learners, shared, explorations, features: names, each at least one.

  Returns:
    The arms.

  Raises:
    InputError: an unknown name, or nothing is left to play.
  """
  for name, found, known in (
    ("learners", learners, LEARNERS),
    ("shared", shared, SHARINGS),
    ("exploration", explorations, EXPLORATIONS),
    ("features", features, FEATURES),
  ):
    if not found or len(set(found)) < len(found) or set(found) - set(known):
      raise InputError(
        f"{name}: expected different names of {', '.join(known)}, found"
        f" {', '.join(found)}."
      )
  for learner in learners:
    if LEARNERS[learner].closed_form:
      raise InputError(
        f"learners: expected ones that are trained in updates, found {learner}."
      )
  arms = [
    Arm(learner, kind, exploration, told)
    for kind, exploration, learner in itertools.product(
      shared,
      explorations,
      # Those of one log together: cells have logs of their own.
      sorted(learners, key=lambda name: LEARNERS[name].of_cells),
    )
    for told in (features if LEARNERS[learner].of_pairs else (None,))
    if kind == "list"
    or (LEARNERS[learner].of_pairs and exploration == "request")
  ]
  if not arms:
    raise InputError(
      "shared: expected list, which learners of requests learn from and which can"
      f" be held over a session, found {', '.join(shared)}."
    )
  return arms


@dataclasses.dataclass(frozen=True)
class SuccessorsConfig:
  """Sizes of the study.

  sessions: of each log.
  max_requests: requests after which a session ends, logged and judged.
  num_users: of the world's population that play.
  evaluation_sessions: that policies are judged on.
  search: effort for the baseline policy, global weights by a privileged search.
  train: of every learner; its `learner` and `seed` are set by the study.
  """

  sessions: int
  max_requests: int
  num_users: int
  evaluation_sessions: int
  search: Search
  train: TrainConfig

  def train_of(self, learner: str, seed: int) -> TrainConfig:
    """The training of one learner, with those of the numbers that it has."""
    known = LEARNERS[learner].hyperparams._fields
    numbers = {n: x for n, x in self.train.hyperparams.items() if n in known}
    return dataclasses.replace(
      self.train, learner=learner, seed=seed, hyperparams=numbers
    )

  def to_json(self) -> dict[str, Any]:
    """As JSON has it."""
    fields = [field.name for field in dataclasses.fields(self)]
    values = {name: getattr(self, name) for name in fields}
    search, train = self.search._asdict(), self.train.to_json()
    return {**values, "search": search, "train": train}


_NETWORKS: dict[str, Any] = {
  "critic": "box",
  "hidden_sizes": (64, 64),
  "batch_size": 256,
  "chunk_size": 100,
  "checkpoint_every": 100,
}

PRESETS = {
  # That everything runs; too few sessions to learn from.
  "smoke": SuccessorsConfig(
    sessions=1024,
    max_requests=6,
    num_users=256,
    evaluation_sessions=1024,
    search=Search(8, 128, noise=0.3, learning_rate=0.1),
    train=TrainConfig(**_NETWORKS, ensemble_size=2, num_updates=100),
  ),
  # Minutes on a CPU core. Transitions span a session, as in progressive training:
  # no target bootstraps then, so that phi plays no part.
  "cpu": SuccessorsConfig(
    sessions=32_768,
    max_requests=8,
    num_users=512,
    evaluation_sessions=16_384,
    search=Search(40, 1024, noise=0.3, learning_rate=0.1),
    train=TrainConfig(
      **_NETWORKS,
      ensemble_size=4,
      num_steps=8,
      num_updates=2_000,
      hyperparams={"discount": 0.99, "critic_learning_rate": 1e-3},
    ),
  ),
}
