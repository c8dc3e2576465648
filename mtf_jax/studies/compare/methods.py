"""What is compared: methods, their two versions, and what each is tuned over.

`as_published` is what the method's paper says: free-form critics, targets of one
request, and a policy over all of [-1, 1]^A that is told nothing of the box. `told_box`
has whatever is known here besides: the policy is `a = centre + half_width u`, the
critics are box-aware, and the targets are returns of the whole session. Only the fusion
method of the paper knows the box in either; its `told_box` is the package's own
setting, as is the slope regression. Versions in between have none of the three, one or
all but one, with the numbers of `told_box`: what of it does the work. They are there for
methods that can be told or not. Numbers that say how fast a method learns are not
those of its paper, which trains for a hundred times as many updates: they are tuned,
with as many trials for each method. `constrained_rl` is not compared: without a bound
it is IntegratedRL-MTF, and a bound is no way to more reward; nor is `preference_rl`,
whose equal weights are IntegratedRL-MTF's.
"""

import itertools
from collections.abc import Mapping
from typing import Any, NamedTuple

from mtf_jax.learners import bcq, iql, td3_bc
from mtf_jax.learners.registry import LEARNERS

VERSIONS = ("as_published", "told_box")
# What `told_box` has and `as_published` has not.
PARTS = ("box_units", "box_critic", "session_return")
ABLATIONS = (
  "only_numbers",
  *(f"only_{part}" for part in PARTS),
  *(f"without_{part}" for part in PARTS),
)


def parts_of(version: str) -> frozenset[str]:
  """Which of `PARTS` a version has."""
  if version in VERSIONS:
    return frozenset(PARTS if version == "told_box" else ())
  word, part = version.split("_", 1)
  parts = frozenset(PARTS)
  return parts & {part} if word == "only" else parts - {part}


class Method(NamedTuple):
  """One method.

  learner: its name in the registry.
  label: row of a table.
  numbers: hyperparameters that make it this method.
  grid: by hyperparameter the values that are tried, all combinations.
  versions: which there are.
  num_critics: of a group as published; None for the configuration's.
  critic_updates: before each of the actor, as published.
  """

  learner: str
  label: str
  numbers: Mapping[str, Any]
  grid: Mapping[str, tuple[float, ...]]
  versions: tuple[str, ...] = VERSIONS
  num_critics: int | None = 2
  critic_updates: int = 1

  def has(self, version: str) -> bool:
    """Whether there is such a version."""
    if version in VERSIONS:
      return version in self.versions
    fields = LEARNERS[self.learner].hyperparams._fields
    return set(VERSIONS) <= set(self.versions) and "told_box" in fields

  def trials(self) -> list[dict[str, float]]:
    """The settings that are tried."""
    combined = itertools.product(*self.grid.values())
    return [dict(zip(self.grid, values, strict=True)) for values in combined]


def _own(preset: Any, default: Any) -> dict[str, Any]:
  """Numbers of a preset that are not the learner's defaults."""
  return {
    name: value
    for name, value in preset._asdict().items()
    if value != getattr(default, name) and not name.endswith("learning_rate")
  }


_RATES = (3e-4, 1e-3)
_TD3_BC = td3_bc.Hyperparams()

METHODS = {
  "integrated_rl": Method(
    "integrated_rl",
    "IntegratedRL-MTF",
    {},
    {
      "actor_learning_rate": _RATES,
      "uncertainty_scale": (0.0, 0.1, 0.5, 2.0),
    },
    num_critics=None,
  ),
  "slope_regression": Method(
    "slope_regression",
    "slope regression",
    {},
    {"curvature": (1e-3, 2e-3, 3e-3, 5e-3, 8e-3, 1.2e-2, 2e-2, 3e-2)},
    versions=("told_box",),
    num_critics=None,
  ),
  "bc": Method(
    "bc",
    "behaviour cloning",
    {},
    {"actor_learning_rate": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)},
    versions=("as_published",),
  ),
  "ddpg": Method(
    "td3_bc",
    "DDPG",
    _own(td3_bc.DDPG, _TD3_BC),
    {
      "actor_learning_rate": (1e-5, 1e-4, 3e-4, 1e-3),
      "critic_learning_rate": _RATES,
    },
    num_critics=1,
  ),
  "td3": Method(
    "td3_bc",
    "TD3",
    _own(td3_bc.TD3, _TD3_BC),
    {
      "actor_learning_rate": (1e-5, 1e-4, 3e-4, 1e-3),
      "critic_learning_rate": _RATES,
    },
    critic_updates=2,
  ),
  "td3_bc": Method(
    "td3_bc",
    "TD3+BC",
    {},
    {
      "actor_learning_rate": _RATES,
      "value_scale": (0.2, 1.0, 2.5, 10.0),
    },
    critic_updates=2,
  ),
  "rebrac": Method(
    "td3_bc",
    "ReBRAC",
    _own(td3_bc.REBRAC, _TD3_BC),
    {
      "actor_learning_rate": _RATES,
      "cloning_scale": (0.01, 0.1, 1.0, 10.0),
    },
    critic_updates=2,
  ),
  "sac_n": Method(
    "sac_n",
    "SAC-N",
    {},
    {
      "actor_learning_rate": _RATES,
      "initial_temperature": (0.01, 0.1, 1.0, 10.0),
    },
    num_critics=10,
  ),
  "edac": Method(
    "edac",
    "EDAC",
    {"diversity_scale": 1.0},
    {
      "actor_learning_rate": _RATES,
      "diversity_scale": (0.1, 1.0, 5.0, 50.0),
    },
    num_critics=10,
  ),
  "cql": Method(
    "cql",
    "CQL+SAC",
    {},
    {
      "actor_learning_rate": _RATES,
      "conservative_scale": (0.5, 1.0, 5.0, 10.0),
    },
  ),
  "bcq": Method(
    "bcq",
    "BCQ",
    {},
    {
      "generator_learning_rate": _RATES,
      "perturbation": (0.01, 0.05, 0.15, 0.5),
    },
  ),
  "batch_rl_mtf": Method(
    "bcq",
    "BatchRL-MTF",
    _own(bcq.BATCH_RL_MTF, bcq.Hyperparams()),
    {
      "generator_learning_rate": _RATES,
      "perturbation": (0.05, 0.15, 0.3, 0.6),
    },
  ),
  # Its paper divides rewards by the spread of the returns, to the same end.
  "iql": Method(
    "iql",
    "IQL",
    {"scale_advantage": 1.0},
    {
      "actor_learning_rate": _RATES,
      "inverse_temperature": (0.3, 1.0, 3.0, 10.0),
    },
  ),
  "iql_ddpg": Method(
    "iql",
    "IQL, DDPG+BC",
    _own(iql.DDPG_BC, iql.Hyperparams()),
    {
      "actor_learning_rate": _RATES,
      "cloning_scale": (0.1, 1.0, 3.0, 10.0),
    },
  ),
  "awac": Method(
    "awac",
    "AWAC",
    {},
    {
      "actor_learning_rate": _RATES,
      "temperature": (0.3, 1.0, 3.0, 10.0),
    },
  ),
}
