"""A run before its rounds: worlds, learner, keys, and judging by seed.

Letters: `R` seeds, `B` sessions, `T` requests, `N` rows, `S` state features, `A`
action components, `G` reward groups, `O` outcomes, `H` bins.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax import policies
from mtf_jax.data.transitions import (
  Transition,
)
from mtf_jax.evaluation import oracle
from mtf_jax.evaluation.ab_test import (
  Judged,
  figures,
  judging_world,
  rewards_of,
)
from mtf_jax.evaluation.oracle import LinearPolicy, Search
from mtf_jax.evaluation.statistics import Comparison, paired_comparison
from mtf_jax.kernels.exploration import (
  ActionBox,
)
from mtf_jax.learners.base import Learner, Normalization
from mtf_jax.learners.integrated_rl import Hyperparams, State, integrated_rl
from mtf_jax.networks import Critic
from mtf_jax.studies.progressive.config import ProgressiveConfig
from mtf_jax.studies.progressive.service import (
  Service,
  judge_service,
  make_act,
  service,
  start_at,
  started_actor,
)
from mtf_jax.training.config import TrainConfig, make_networks
from mtf_jax.worlds import env
from mtf_jax.worlds.returns import ExpectedRewards
from mtf_jax.worlds.world import World

# ES may not reach the limits, so that a box has room on both sides of it.
ES_LIMIT = 0.95


class Algorithm(NamedTuple):
  """The learner and its policy as functions; static arguments everywhere.

  Make one for all seeds and worlds of one size: another pair of the same
  functions would compile everything again.
  """

  learner: Learner
  act: policies.Act
  critic: Critic


def make_algorithm(
  config: TrainConfig, world: World, act: policies.Act | None = None
) -> Algorithm:
  """The learner that a configuration describes, sized for a world.

  Args:
    config: its networks.
    world: of one seed.
    act: of an algorithm that differs by its critic alone; it shares then the
      programs that log and judge sessions.
  """
  num_groups = world.group_weights.shape[0]
  actor, critic = make_networks(config, world.num_actions, num_groups)
  actor = started_actor(actor)
  learner = integrated_rl(actor, critic, critic_updates=config.critic_updates)
  if act is None:
    act = make_act(actor)
  return Algorithm(learner, act, critic)


class Run(NamedTuple):
  """What stays the same over the rounds; all arrays with the axis `R`.

  config: size of the run.
  seeds: of the lanes.
  world: with its population cut, rewards as they are.
  judging: the same world for `judge`.
  table: `expected_rewards(judging)`.
  es: `[A]` action of ES.
  normalization: of the observations, around ES.
  algorithm: of `make_algorithm`.
  start: the learner's state with ES in service.
  base: ES judged.
  keys: random number generator keys by use.
  """

  config: ProgressiveConfig
  seeds: tuple[int, ...]
  world: World
  judging: World
  table: ExpectedRewards
  es: jax.Array
  normalization: Normalization
  algorithm: Algorithm
  start: State
  base: Judged
  keys: dict[str, chex.PRNGKey]


def tree_stack(trees: Sequence[Any]) -> Any:
  """Pytrees of one structure, side by side on a leading axis `R`."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def tree_index(tree: Any, number: int) -> Any:
  """What belongs to one seed."""
  return jax.tree.map(lambda leaf: leaf[number], tree)


def judge_params(
  run: Run,
  params: Service,
  max_requests: int | None = None,
  held: bool = False,
) -> Judged:
  """`judge_service` on the sessions that every policy of the run is judged on."""
  return judge_service(
    run.keys["evaluation"],
    run.judging,
    run.table,
    run.algorithm.act,
    params,
    run.config.evaluation_sessions,
    run.config.max_requests if max_requests is None else max_requests,
    jnp.asarray(held),
  )


def search_linear(
  run: Run, rng_key: chex.PRNGKey, policy: LinearPolicy, search: Search
) -> LinearPolicy:
  """Ascends from a linear policy of the privileged observation."""

  def one(rng_key, world, table, policy):
    return oracle.optimise(
      rng_key,
      world,
      table,
      policy,
      search,
      run.config.max_requests,
      env.privileged_observation,
    )

  table = rewards_of(run.table, run.world)
  return jax.vmap(one)(rng_key, run.world, table, policy)


def linear_policy(
  world: World, action: chex.Array, half_width: float
) -> LinearPolicy:
  """Linear policies of the privileged observation that answer `action`."""

  def one(world, action):
    look = env.privileged_observation
    return oracle.start_policy(world, look, action, half_width, False)

  return jax.vmap(one)(world, action)


def assemble(
  config: ProgressiveConfig,
  worlds: Sequence[World],
  seeds: Sequence[int],
  algorithm: Algorithm,
) -> Run:
  """The run before anything is searched, tabulated or judged; see `prepare`.

  `table`, `start` and `base` are None, ES and the normalisation are zeros.
  """
  lanes = []
  for world, seed in zip(worlds, seeds, strict=True):
    rng = np.random.default_rng(seed)
    users = np.unique(np.asarray(world.population))
    kept = rng.choice(users, min(config.num_users, users.size), replace=False)
    # The name is static: with it, each seed's world would be compiled anew.
    lanes.append(
      world.replace(
        population=jnp.asarray(np.sort(kept), jnp.int32), name="progressive"
      )
    )
  world = tree_stack(lanes)
  names = ("search", "headroom", "network", "evaluation", "round", "one_round")
  names += ("check",)
  seeded = jnp.stack([jax.random.key(seed) for seed in seeds])
  split = jax.vmap(lambda key: jax.random.split(key, len(names)))(seeded)
  features = jnp.zeros((len(seeds), len(world.observation_names)), jnp.float32)
  return Run(
    config=config,
    seeds=tuple(seeds),
    world=world,
    judging=jax.vmap(judging_world)(world),
    table=None,
    es=jnp.zeros((len(seeds), world.num_actions), jnp.float32),
    normalization=Normalization(features, features),
    algorithm=algorithm,
    start=None,
    base=None,
    keys={name: split[:, n] for n, name in enumerate(names)},
  )


def with_algorithm(
  run: Run, config: ProgressiveConfig, algorithm: Algorithm
) -> Run:
  """The run with another learner around the same ES.

  Args:
    run: of `prepare`.
    config: as in the run, but for `train`.
    algorithm: of `make_algorithm`, of the same actor.

  Returns:
    The run before its first round.
  """
  start = _initial_state(
    algorithm.learner,
    run.keys["network"],
    run.normalization,
    run.es,
    tuple(sorted(config.train.hyperparams.items())),
    run.world.group_weights.shape[1],
  )
  return run._replace(config=config, algorithm=algorithm, start=start)


# The hyperparameters are static here and nowhere else: `init` checks numbers
# only where they are known.
@functools.partial(
  jax.jit, static_argnames=("learner", "hyperparams", "num_groups")
)
def _initial_state(
  learner: Learner,
  rng_key: chex.PRNGKey,
  normalization: Normalization,
  es: chex.Array,
  hyperparams: tuple[tuple[str, Any], ...],
  num_groups: int,
) -> State:
  zero = jnp.zeros_like(es[0])
  observation = jnp.zeros_like(normalization.mean[0])
  box = ActionBox(zero, zero)
  example = Transition(
    observation_tm1=observation,
    action_tm1=zero,
    box_tm1=box,
    r_t=jnp.zeros((num_groups,), jnp.float32),
    discount_t=jnp.zeros((), jnp.float32),
    observation_t=observation,
    box_t=box,
  )

  def one(rng_key, normalization, es):
    numbers = Hyperparams(
      **{name: np.asarray(value) for name, value in hyperparams}
    )
    state = learner.init(rng_key, example, numbers, normalization)
    return start_at(state, es)

  return jax.vmap(one)(rng_key, normalization, es)


def judge_state(run: Run, state: State) -> Judged:
  """The policy of a learner's state, on the sessions that ES was judged on."""
  return judge_params(run, service(state))


def reward_gains(policy: Judged, base: Judged) -> list[dict[str, Any]]:
  """Reward gains of one policy over another by seed, ready for JSON.

  Args:
    policy, base: judged with the same keys, `[R, B]`.

  Returns:
    `reward_gain_pct` and `reward_gain_ci95` of each seed.
  """
  return [
    {"reward_gain_pct": gain.gain, "reward_gain_ci95": list(gain.ci95)}
    for gain in compare_rewards(policy, base)
  ]


def compare_rewards(policy: Judged, base: Judged) -> list[Comparison]:
  """Paired comparisons of the session reward, by seed."""
  policy, base = jax.device_get((policy, base))
  return [
    paired_comparison(policy.reward[n], base.reward[n], base.user[n])
    for n in range(base.user.shape[0])
  ]


def policy_figures(run: Run, state: State) -> list[dict[str, Any]]:
  """`ab_test.figures` of a state's policy over ES, by seed."""
  policy, base = jax.device_get((judge_state(run, state), run.base))
  return [
    figures(tree_index(policy, n), tree_index(base, n), run.world.slate_size)
    for n in range(len(run.seeds))
  ]
