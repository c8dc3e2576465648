"""What all rounds of a run share: worlds, learner, keys; evaluation by seed.

Letters: `R` seeds, `B` sessions, `T` requests, `S` state features, `A` action
components.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mtf_jax import policies
from mtf_jax.distributed import mesh as mesh_lib
from mtf_jax.evaluation import oracle
from mtf_jax.evaluation.ab_test import (
  EvalResult,
  evaluate,
  evaluation_world,
  rewards_of,
)
from mtf_jax.evaluation.oracle import LinearPolicy
from mtf_jax.learners.base import Normalization
from mtf_jax.learners.es import Search
from mtf_jax.policies import PolicyParams
from mtf_jax.studies.progressive.config import ProgressiveConfig, check_seeds
from mtf_jax.studies.progressive.study_learner import (
  StudyLearner,
  initial_state,
)
from mtf_jax.worlds import env
from mtf_jax.worlds.returns import ExpectedRewards
from mtf_jax.worlds.world import World

_KEYS = (
  *("search", "oracle", "network", "evaluation", "round", "single_batch"),
  "check",
)


class Experiment(NamedTuple):
  """What stays the same over the rounds; all arrays with the axis `R`.

  config: size of the run.
  seeds: of the leading axis.
  world: with its population cut, rewards as they are.
  evaluation_world: the same world for `evaluate`.
  table: `expected_rewards(evaluation_world)`.
  baseline_action: `[A]` the baseline policy: one action, converged global
    weights.
  search: how it was found, by seed, ready for JSON.
  normalization: of the observations, around it.
  study_learner: of `make_study_learner`.
  start: the learner's state with the baseline policy in service.
  base: the baseline policy judged.
  keys: random number generator keys by use.
  mesh: seeds are divided over its axis `seed`, sessions and batches over `data`,
    critics over `critic`; one device if None.
  """

  config: ProgressiveConfig
  seeds: tuple[int, ...]
  world: World
  evaluation_world: World
  table: ExpectedRewards
  baseline_action: jax.Array
  search: Any
  normalization: Normalization
  study_learner: StudyLearner
  start: Any
  base: EvalResult
  keys: dict[str, chex.PRNGKey]
  mesh: Mesh | None = None


def tree_stack(trees: Sequence[Any]) -> Any:
  """Pytrees of one structure, side by side on a leading axis `R`."""
  return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def tree_index(tree: Any, number: int) -> Any:
  """What belongs to one seed."""
  return jax.tree.map(lambda leaf: leaf[number], tree)


def params_in_service(
  experiment: Experiment, state: Any, *exploring: Any, **named: Any
) -> PolicyParams:
  """`policy_params` of the run's learner, where its sessions are played."""
  params = policy_params(experiment.study_learner, state, *exploring, **named)
  return _put(experiment.mesh, params)


def over_seeds(
  function: Callable[..., Any], mesh: Mesh | None
) -> Callable[..., Any]:
  """`jax.vmap(function)` of one seed, seeds divided over the mesh's axis."""
  return jax.vmap(function, spmd_axis_name=None if mesh is None else "seed")


def _put(mesh: Mesh | None, tree: Any) -> Any:
  """Arrays with the axis `R` where their seeds are."""
  if mesh is None:
    return tree
  return mesh_lib.put(tree, NamedSharding(mesh, PartitionSpec("seed")))


def on_one_device(experiment: Experiment, tree: Any) -> Any:
  """Arrays on the first device of the run, for a program that is not divided."""
  if experiment.mesh is None:
    return tree
  return jax.device_put(tree, experiment.mesh.devices.flat[0])


def training_mesh(experiment: Experiment) -> Mesh | None:
  """What the run's learner is trained over: in closed form one device.

  There is little to divide then.
  """
  if (
    experiment.mesh is None or experiment.study_learner.learner.fit is not None
  ):
    return None
  return experiment.mesh


def put_state(experiment: Experiment, state: Any) -> Any:
  """A learner's state, or a run's, with the axis `R` where it is trained."""
  mesh = training_mesh(experiment)
  if mesh is None:
    return on_one_device(experiment, state)
  return mesh_lib.put_state(mesh, state, many=True)


def policy_params(
  study_learner: StudyLearner,
  state: Any,
  half_width: float = 0.0,
  stddev: float = 0.0,
  draw: str = "uniform",
) -> PolicyParams:
  """The policy of a learner's state by seed, exploring or not.

  Args:
    study_learner: of the learner.
    state: its state, leading axis `R`.
    half_width: of the box around the policy.
    stddev: of Gaussian noise on top.
    draw: where in the box, see `policies.DRAWS`.

  Returns:
    What `study_learner.act` takes, leading axis `R`.
  """
  params = jax.vmap(study_learner.learner.policy)(state)
  (size,) = jax.tree.leaves(params)[0].shape[:1]
  return PolicyParams(
    params,
    jnp.full((size,), half_width, jnp.float32),
    jnp.full((size,), stddev, jnp.float32),
    jnp.full((size,), draw == "corners", jnp.float32),
  )


@functools.partial(
  jax.jit,
  static_argnames=("act", "num_sessions", "max_requests", "observe_fn", "mesh"),
)
def evaluate_seeds(
  rng_key: chex.PRNGKey,
  world: World,
  table: ExpectedRewards,
  act: policies.Act,
  params: Any,
  num_sessions: int,
  max_requests: int,
  held: chex.Array,
  observe_fn: Any = env.observe,
  mesh: Mesh | None = None,
) -> EvalResult:
  """`ab_test.evaluate` of each seed.

  Args:
    rng_key: keys `[R]`.
    world: of `ab_test.evaluation_world`, leading axis `R`.
    table: `returns.expected_rewards` of it, leading axis `R`.
    act: the policy, static.
    params: its parameters, leading axis `R`.
    num_sessions: `B`, static.
    max_requests: `T`, static.
    held: bool scalar, whether exploration is held over a session; of all seeds.
    observe_fn: what the policy sees, static.
    mesh: of the run, static.

  Returns:
    Expected outcomes by seed and session, `[R, B, ...]`.
  """

  def one(rng_key, world, table, params):
    return evaluate(
      rng_key,
      world,
      table,
      act,
      params,
      num_sessions,
      max_requests,
      observe_fn,
      held=held,
      mesh=mesh,
    )

  return over_seeds(one, mesh)(rng_key, world, table, params)


def evaluate_policy(
  experiment: Experiment,
  act: policies.Act,
  params: Any,
  *,
  max_requests: int | None = None,
  held: bool = False,
  observe_fn: Any = env.observe,
) -> EvalResult:
  """A policy on the sessions that every policy of the run is judged on.

  Args:
    experiment: with its table.
    act: the policy.
    params: its parameters, leading axis `R`.
    max_requests: of a session, if not the run's.
    held: whether exploration is held over a session.
    observe_fn: what the policy sees.

  Returns:
    Expected outcomes by seed and session, `[R, B, ...]`.
  """
  return evaluate_seeds(
    experiment.keys["evaluation"],
    experiment.evaluation_world,
    experiment.table,
    act,
    params,
    experiment.config.evaluation_sessions,
    experiment.config.max_requests if max_requests is None else max_requests,
    jnp.asarray(held),
    observe_fn,
    mesh=experiment.mesh,
  )


def evaluate_state(
  experiment: Experiment,
  state: Any,
  *,
  half_width: float = 0.0,
  stddev: float = 0.0,
  draw: str = "uniform",
  **options: Any,
) -> EvalResult:
  """The policy of a learner's state, see `evaluate_policy`."""
  params = params_in_service(experiment, state, half_width, stddev, draw)
  return evaluate_policy(
    experiment, experiment.study_learner.act, params, **options
  )


def search_linear(
  experiment: Experiment,
  rng_key: chex.PRNGKey,
  policy: LinearPolicy,
  search: Search,
) -> LinearPolicy:
  """Ascends from a linear policy of the privileged observation.

  Args:
    experiment: with its table.
    rng_key: keys `[R]`, consumed.
    policy: where to start, of `linear_policy`, leading axis `R`.
    search: effort, static.

  Returns:
    The policies found, leading axis `R`.
  """

  def one(rng_key, world, table, policy):
    return oracle.optimise(
      rng_key,
      world,
      table,
      policy,
      search,
      experiment.config.max_requests,
      env.privileged_observation,
      mesh=experiment.mesh,
    )

  table = rewards_of(experiment.table, experiment.world)
  return over_seeds(one, experiment.mesh)(
    rng_key, experiment.world, table, policy
  )


def linear_policy(
  world: World, action: chex.Array, half_width: float
) -> LinearPolicy:
  """Linear policies of the privileged observation that answer `action`.

  Args:
    world: leading axis `R`.
    action: `[R, A]`.
    half_width: how far a search may move each component from `action`.

  Returns:
    The policies, leading axis `R`.
  """

  def one(world, action):
    observe_fn = env.privileged_observation
    return oracle.start_policy(world, observe_fn, action, half_width)

  return jax.vmap(one)(world, action)


def assemble(
  config: ProgressiveConfig,
  worlds: Sequence[World],
  seeds: Sequence[int],
  study_learner: StudyLearner,
  mesh: Mesh | None = None,
) -> Experiment:
  """The run before anything is searched, tabulated or judged.

  Args:
    config: size of the run.
    worlds: one for each seed, of one size; their populations are cut to
      `config.num_users`.
    seeds: each decides the users kept and all keys that are its own.
    study_learner: of `make_study_learner`.
    mesh: devices of the run; one if omitted.

  Returns:
    The run; `table`, `start` and `base` are None, the action and the
    normalisation zeros, see `baselines.prepare`.

  Raises:
    InputError: a seed is outside 0 to 2^32 - 1, or there twice.
  """
  check_seeds(seeds)
  cut = []
  for world, seed in zip(worlds, seeds, strict=True):
    rng = np.random.default_rng(seed)
    users = np.unique(np.asarray(world.population))
    kept = rng.choice(users, min(config.num_users, users.size), replace=False)
    # The name is static: with it, each seed's world would be compiled anew.
    cut.append(
      world.replace(
        population=jnp.asarray(np.sort(kept), jnp.int32), name="progressive"
      )
    )
  world = _put(mesh, tree_stack(cut))
  seeded = jnp.stack([jax.random.key(seed) for seed in seeds])
  split = jax.vmap(lambda key: jax.random.split(key, len(_KEYS)))(seeded)
  keys = {name: split[:, n] for n, name in enumerate(_KEYS)}
  features = jnp.zeros((len(seeds), len(world.observation_names)), jnp.float32)
  return Experiment(
    config=config,
    seeds=tuple(seeds),
    world=world,
    evaluation_world=jax.vmap(evaluation_world)(world),
    table=None,
    baseline_action=jnp.zeros((len(seeds), world.num_actions), jnp.float32),
    search=None,
    normalization=Normalization(features, features),
    study_learner=study_learner,
    start=None,
    base=None,
    keys=_put(mesh, keys),
    mesh=mesh,
  )


def with_study_learner(
  experiment: Experiment, config: ProgressiveConfig, study_learner: StudyLearner
) -> Experiment:
  """The run with another learner around the same baseline policy.

  Args:
    experiment: of `assemble` or `baselines.prepare`.
    config: as in the run, but for `train`.
    study_learner: of `make_study_learner`.

  Returns:
    The run before its first round.
  """
  start = initial_state(
    study_learner,
    tuple(sorted(config.train.hyperparams.items())),
    experiment.keys["network"],
    experiment.normalization,
    experiment.baseline_action,
    experiment.world.group_weights.shape[1],
  )
  experiment = experiment._replace(config=config, study_learner=study_learner)
  return experiment._replace(start=put_state(experiment, start))
