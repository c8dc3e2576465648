"""Configuration of a run: what is static, by name, and presets by size."""

import dataclasses
import functools
from typing import Any

import numpy as np

from mtf_jax import networks
from mtf_jax.data.transitions import TransitionDataset
from mtf_jax.io import InputError, check_seed
from mtf_jax.learners.base import Learner
from mtf_jax.learners.registry import LEARNERS

# Names of the networks.
ACTORS = ("mlp", "ple")
CRITICS = ("mlp", "box", "box_quadratic")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """What a checkpoint must agree with to be resumed, except `num_updates`.

  learner: name of the algorithm, see `learners.registry`.
  actor: one of `ACTORS`; "ple" takes an even number of action components.
  critic: one of `CRITICS`: "mlp" (free-form, of the paper), "box" or
    "box_quadratic" (ours).
  ensemble_size: critics of a reward group.
  hidden_sizes: widths of the hidden layers of critics and of the MLP actor.
  num_steps: requests that a transition spans, for n-step returns.
  batch_size: transitions drawn for each update.
  num_strata: parts of the log that each batch has equally many transitions of,
    see `data.strata`; divides `batch_size / critic_updates`. A mesh whose axis
    `data` divides it keeps each row on one device only.
  critic_updates: critic updates before an actor update; divides `batch_size`.
  num_updates: updates in all.
  chunk_size: updates of one dispatch; divides `num_updates`.
  checkpoint_every: updates between checkpoints, a multiple of `chunk_size`.
  seed: of the networks' start and of the batches.
  hyperparams: field of the learner's hyperparameters -> number, or tuple with
    one per group.
  """

  learner: str = "integrated_rl"
  actor: str = "mlp"
  critic: str = "mlp"
  ensemble_size: int = 8
  hidden_sizes: tuple[int, ...] = (256, 256)
  num_steps: int = 1
  batch_size: int = 256
  num_strata: int = 1
  critic_updates: int = 1
  num_updates: int = 10_000
  chunk_size: int = 100
  checkpoint_every: int = 1_000
  seed: int = 0
  hyperparams: dict[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    """Refuses what would only fail after minutes, or not at all."""
    for name, known in (("actor", ACTORS), ("critic", CRITICS)):
      if getattr(self, name) not in known:
        raise ValueError(
          f"{name}: expected one of {', '.join(known)}, found"
          f" {getattr(self, name)!r}."
        )
    for whole, part in (
      ("batch_size", "critic_updates"),
      ("num_updates", "chunk_size"),
      ("checkpoint_every", "chunk_size"),
    ):
      if getattr(self, part) < 1 or getattr(self, whole) < 1:
        raise ValueError(f"{whole}, {part}: expected 1 or more.")
      if getattr(self, whole) % getattr(self, part):
        raise ValueError(
          f"{whole}: expected a multiple of {part} = {getattr(self, part)},"
          f" found {getattr(self, whole)}."
        )
    of_update = self.batch_size // self.critic_updates
    if self.num_strata < 1 or of_update % self.num_strata:
      raise ValueError(
        f"num_strata: expected a divisor of {of_update}, the transitions of one critic"
        f" update, found {self.num_strata}."
      )
    check_seed(self.seed)
    if self.num_steps < 1:
      raise ValueError(
        f"num_steps: expected 1 or more, found {self.num_steps}."
      )
    shift = self.hyperparams.get("reward_shift", 0.0)
    if self.num_steps > 1 and np.any(shift):
      # It would be added once a transition, not once a request.
      raise ValueError(
        f"reward_shift: expected 0 with num_steps = {self.num_steps}, found"
        f" {shift}."
      )
    known = hyperparams_of(self.learner)._fields
    unknown = sorted(set(self.hyperparams) - set(known))
    if unknown:
      raise ValueError(
        f"hyperparams: expected fields of {self.learner}'s, {', '.join(known)},"
        f" found {', '.join(unknown)}."
      )

  @property
  def discount(self) -> float:
    """The learner's discount factor, which n-step returns need as well."""
    return self.hyperparam("discount", 1.0)

  def hyperparam(self, name: str, absent: Any) -> Any:
    """A number of the learner: given, its default, or `absent` if it has none."""
    default = getattr(hyperparams_of(self.learner)(), name, absent)
    return self.hyperparams.get(name, default)

  def to_json(self) -> dict[str, Any]:
    """As JSON has it: lists for tuples."""
    values = dataclasses.asdict(self)
    values["hidden_sizes"] = list(self.hidden_sizes)
    values["hyperparams"] = {
      name: list(value) if isinstance(value, tuple) else value
      for name, value in sorted(self.hyperparams.items())
    }
    return values

  @classmethod
  def from_json(cls, values: dict[str, Any]) -> "TrainConfig":
    """The configuration that `to_json` wrote, in this version or one before.

    A field that is missing has its default: whoever adds one chooses it so that
    a run of the versions before is as it was.

    Raises:
      InputError: it has other fields, or values of another kind; another
        version wrote it.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    if not isinstance(values, dict) or set(values) - known:
      found = ", ".join(sorted(values)) if isinstance(values, dict) else values
      raise InputError(
        f"train: expected the fields {', '.join(sorted(known))}, found"
        f" {found}; another version wrote them."
      )
    values = {**cls().to_json(), **values}
    for name, kind in (("hyperparams", dict), ("hidden_sizes", list)):
      if not isinstance(values[name], kind):
        raise InputError(
          f"train: expected a JSON {kind.__name__} for {name}, found"
          f" {values[name]!r}."
        )
    hyperparams = {
      name: tuple(value) if isinstance(value, list) else value
      for name, value in values["hyperparams"].items()
    }
    sizes = tuple(values["hidden_sizes"])
    return cls(**{**values, "hidden_sizes": sizes, "hyperparams": hyperparams})


def hyperparams_of(learner: str) -> type[Any]:
  """Class of a learner's hyperparameters.

  Raises:
    ValueError: no learner has this name.
  """
  if learner not in LEARNERS:
    raise ValueError(
      f"learner: expected one of {', '.join(LEARNERS)}, found {learner!r}."
    )
  return LEARNERS[learner].hyperparams


PRESETS = {
  # Seconds: that everything runs.
  "smoke": TrainConfig(
    ensemble_size=2,
    hidden_sizes=(32, 32),
    batch_size=64,
    num_updates=200,
    chunk_size=20,
    checkpoint_every=40,
  ),
  # Minutes on 2 CPU cores.
  "cpu": TrainConfig(
    ensemble_size=4,
    hidden_sizes=(128, 128),
    num_updates=20_000,
    chunk_size=200,
    checkpoint_every=2_000,
  ),
  # The paper's sizes, for an accelerator; 24 million rows take 10 GB there.
  "paper": TrainConfig(
    ensemble_size=24,
    num_updates=300_000,
    chunk_size=1_000,
    checkpoint_every=10_000,
  ),
}


# One object for one description: actors are static arguments, and programs of a
# policy are compiled once for all learners that have this actor.
@functools.cache
def _make_actor(
  name: str, action_size: int, hidden_sizes: tuple[int, ...]
) -> networks.Actor:
  if name == "ple":
    if action_size % 2:
      raise ValueError(
        "actor: expected an even number of action components for 'ple', found"
        f" {action_size}."
      )
    return networks.ple_actor(action_size // 2)
  return networks.mlp_actor(action_size, hidden_sizes)


def make_networks(
  config: TrainConfig, action_size: int, num_groups: int
) -> tuple[networks.Actor, networks.Critic]:
  """The networks that a configuration describes, for `A` and `G` of a log."""
  actor = _make_actor(config.actor, action_size, config.hidden_sizes)
  sizes = (num_groups, config.ensemble_size, config.hidden_sizes)
  if config.critic == "mlp":
    critic = networks.mlp_critic(*sizes)
  else:
    critic = networks.box_critic(
      *sizes, quadratic=config.critic == "box_quadratic"
    )
  return actor, critic


def build_learner(
  config: TrainConfig, actor: networks.Actor, critic: networks.Critic
) -> Learner:
  """The learner that a configuration describes, around given networks."""
  return LEARNERS[config.learner].build(
    actor, critic, critic_updates=config.critic_updates
  )


def make_learner(config: TrainConfig, dataset: TransitionDataset) -> Learner:
  """The learner that a configuration describes, sized for a dataset."""
  actor, critic = make_networks(
    config, dataset.action.shape[1], dataset.reward.shape[1]
  )
  return build_learner(config, actor, critic)
