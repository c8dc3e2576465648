"""How much a policy can gain in a world: privileged optimisers.

Nothing here is an algorithm that could be served: the optimisers interact with
the world without limit, see every session twice under common random numbers and
count expected rewards. They bound what a learner can hope for.

Letters: `A` action components, `S` observation, `B` sessions, `G` groups.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.learners import es
from mtf_jax.learners.es import Search
from mtf_jax.policies import Decision, fixed_action
from mtf_jax.worlds import env
from mtf_jax.worlds import returns as returns_lib
from mtf_jax.worlds.returns import ExpectedRewards
from mtf_jax.worlds.rollout import ObserveFn, scan_requests
from mtf_jax.worlds.world import World


class LinearPolicy(NamedTuple):
  """`action = clip(weights . [1, (observation - mean) / scale], box)`.

  weights: `[A, 1 + S]`.
  mean: `[S]`.
  scale: `[S]`, infinite where the policy must not look, see `blinded`.
  lower, upper: `[A]` bounds of the action.
  """

  weights: chex.Array
  mean: chex.Array
  scale: chex.Array
  lower: chex.Array
  upper: chex.Array


def linear_features(policy: LinearPolicy, observation: chex.Array) -> jax.Array:
  """`[1 + S]`: 1 and the standardised observation, cut at 3 deviations."""
  standard = jnp.clip((observation - policy.mean) / policy.scale, -3.0, 3.0)
  return jnp.concatenate([jnp.ones((1,), jnp.float32), standard])


def linear_act(
  policy: LinearPolicy, observation: chex.Array, rng_key: chex.PRNGKey
) -> Decision:
  """The policy as an `act` of `rollout.rollout`; it does not explore."""
  del rng_key
  features = linear_features(policy, observation)
  action = jnp.sum(policy.weights * features[None, :], axis=1)
  action = jnp.clip(action, policy.lower, policy.upper)
  return Decision(action, ActionBox(action, action), jnp.zeros((), jnp.float32))


@functools.partial(
  jax.jit, static_argnames=("observe_fn", "num_sessions", "max_requests")
)
def _observed_moments(
  world: World,
  action: chex.Array,
  observe_fn: ObserveFn,
  num_sessions: int,
  max_requests: int,
) -> tuple[jax.Array, jax.Array]:
  """Mean and deviation `[S]` of what is observed while `action` is served."""

  def emit(_, request):
    return None, (request.observation, request.state.active)

  def one(key):
    return scan_requests(
      world,
      fixed_action,
      action,
      env.reset(key, world),
      # A fixed action does not use it.
      key,
      emit,
      max_requests=max_requests,
      observe_fn=observe_fn,
    )[2]

  keys = jax.random.split(jax.random.key(20), num_sessions)
  seen, active = jax.vmap(one)(keys)
  weight = active.astype(jnp.float32)[..., None]
  weight = weight / jnp.sum(weight)
  mean = jnp.sum(weight * seen, axis=(0, 1))
  spread = jnp.square(seen - mean[None, None, :])
  return mean, jnp.sqrt(jnp.sum(weight * spread, axis=(0, 1)))


def start_policy(
  world: World,
  observe_fn: ObserveFn,
  action: chex.Array,
  half_width: float,
  num_sessions: int = 1024,
  max_requests: int = 6,
) -> LinearPolicy:
  """A policy that answers `action` and is scaled to what it will observe.

  Args:
    world: the world.
    observe_fn: `env.observe` or `env.privileged_observation`.
    action: `[A]` where to start.
    half_width: how far each component may go from `action`; the valid range
      [-1, 1] holds as well.
    num_sessions: sessions that the scaling is taken from.
    max_requests: requests of each.

  Returns:
    The policy.
  """

  mean, scale = _observed_moments(
    world, action, observe_fn, num_sessions, max_requests
  )
  weights = jnp.zeros((action.shape[0], 1 + mean.shape[0]), jnp.float32)
  return LinearPolicy(
    weights=weights.at[:, 0].set(action),
    mean=mean,
    scale=jnp.maximum(scale, 1e-3),
    lower=jnp.maximum(action - half_width, -1.0),
    upper=jnp.minimum(action + half_width, 1.0),
  )


def blinded(policy: LinearPolicy) -> LinearPolicy:
  """The policy without sight: `optimise` then finds one action for everybody.

  Of the same shape, so that it shares the programs of the one that sees.
  """
  return policy._replace(scale=jnp.full_like(policy.scale, jnp.inf))


@functools.partial(
  jax.jit, static_argnames=("search", "max_requests", "observe_fn", "mesh")
)
def optimise(
  rng_key: chex.PRNGKey,
  world: World,
  table: ExpectedRewards,
  policy: LinearPolicy,
  search: Search,
  max_requests: int,
  observe_fn: ObserveFn,
  mesh: Mesh | None = None,
) -> LinearPolicy:
  """Ascends the true session return with an evolution strategy.

  Each session is run with its own perturbation of the weights, forwards and
  backwards under one key, see `es.ascend`: a step costs `2 * sessions`
  sessions.

  Args:
    rng_key: random number generator key, consumed.
    world: the world.
    table: `returns.expected_rewards(world)`.
    policy: where to start.
    search: effort, static.
    max_requests: requests of a session, static.
    observe_fn: what the policy sees, static.
    mesh: the sessions are divided over its axis `data`, static; one device if
      omitted.

  Returns:
    The policy with the mean of the last half of the weights.
  """
  # Columns that are always 0 (a blind policy's) must not dilute the noise.
  seen = jnp.append(
    jnp.ones((1,)), jnp.where(jnp.isinf(policy.scale), 0.0, 1.0)
  )

  def session_reward(weights, world_key, policy_key):
    returns = returns_lib.session_return(
      world,
      table,
      linear_act,
      policy._replace(weights=weights),
      max_requests,
      observe_fn,
      world_key,
      policy_key,
    )
    return jnp.sum(returns.expected)

  def inside(weights):
    # A blind or boxed policy must not drift beyond what it can use.
    first = jnp.clip(weights[:, 0], policy.lower, policy.upper)
    return weights.at[:, 0].set(first)

  weights = es.ascend(
    rng_key,
    policy.weights,
    session_reward,
    search,
    (search.noise * seen / jnp.sqrt(jnp.sum(seen)))[None, :],
    inside,
    mesh=mesh,
  )
  return policy._replace(weights=weights)
