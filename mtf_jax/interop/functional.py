"""A world in the functional form of gymnax: `reset` and `step` of one session.

Trainers that are written for gymnax's five results (observation, state, reward,
done, info) take the environment as it is; gymnax need not be installed. The
world's arrays are leaves of the parameters, so that no program holds them as
constants and worlds of one size share a compiled program.

Letters: `S` observation, `A` action components, `G` reward groups, `E`
behaviours.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import struct

from mtf_jax.data.behaviours import TASKS
from mtf_jax.io import InputError
from mtf_jax.kernels.exploration import HALF_WIDTH, ActionBox
from mtf_jax.policies import Act, Decision
from mtf_jax.worlds import env
from mtf_jax.worlds.env import SessionState
from mtf_jax.worlds.world import World

# `(params, observation [S], rng_key) -> action [A]`, as a learner's `act`.
Policy = Callable[[Any, jax.Array, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Box:
  """A space of arrays between two numbers; has what gymnax's `Box` has.

  low: smallest value of every component.
  high: largest value.
  shape: of an array.
  dtype: of its values.
  """

  low: float
  high: float
  shape: tuple[int, ...]
  dtype: Any = jnp.float32

  def sample(self, key: chex.PRNGKey) -> jax.Array:
    """Draws an array uniformly; only for spaces with finite limits."""
    return jax.random.uniform(key, self.shape, self.dtype, self.low, self.high)

  def contains(self, x: chex.Array) -> jax.Array:
    """Whether all values of an array are within the limits, bool scalar."""
    return jnp.all((x >= self.low) & (x <= self.high))


class SessionParams(struct.PyTreeNode):
  """Everything numeric about an environment; every field is a dynamic leaf.

  world: the world.
  reward_weights: float32 `[G]`, what a unit of each reward group is worth.
  max_steps_in_episode: int32, requests after which a session is cut.
  baseline_params: of the policy that the box is around, or None.
  half_width: float32, scalar or `[A]`, of that box in normalised action units.
  """

  world: World
  reward_weights: chex.Array
  max_steps_in_episode: chex.Numeric
  baseline_params: Any
  half_width: chex.Numeric


@dataclasses.dataclass(frozen=True)
class SessionEnvironment:
  """Sessions of a world, one episode each; `make` builds it.

  An episode ends when the user leaves (`info["terminated"]`) or after
  `max_steps_in_episode` requests (`info["truncated"]`); `done` is either. The
  key of a reset decides user, hour, candidates and the user's noise, as
  everywhere in the package. The key of a step serves the baseline policy and
  the session that follows.

  baseline: a policy `(params, observation, rng_key) -> action [A]`, static, or
    None. Without one an action is the normalised fusion action. With one it is
    the deviation from the baseline's action in half-widths of the box.
  default_params: parameters that `make` was called for.
  """

  baseline: Policy | None
  # Not compared: equal environments share what was compiled.
  default_params: SessionParams = dataclasses.field(compare=False, repr=False)

  @property
  def name(self) -> str:
    """Name of the environment."""
    return "mtf_jax/Session-v0"

  @property
  def num_actions(self) -> int:
    """`A`, components of an action."""
    return 2 * len(TASKS)

  def action_space(self, params: SessionParams | None = None) -> Box:
    """The space [-1, 1]^A of actions, whatever the parameters."""
    del params
    return Box(-1.0, 1.0, (self.num_actions,))

  def observation_space(self, params: SessionParams | None = None) -> Box:
    """The space of observations, float32 `[S]` without limits.

    Args:
      params: the parameters; `default_params` if omitted.
    """
    params = self.default_params if params is None else params
    num_features = len(params.world.observation_names)
    return Box(-jnp.inf, jnp.inf, (num_features,))

  @functools.partial(jax.jit, static_argnames="self")
  def reset(
    self, key: chex.PRNGKey, params: SessionParams
  ) -> tuple[jax.Array, SessionState]:
    """Opens a session, as `reset_env`."""
    return self.reset_env(key, params)

  @functools.partial(jax.jit, static_argnames="self")
  def step(
    self,
    key: chex.PRNGKey,
    state: SessionState,
    action: chex.Array,
    params: SessionParams,
  ) -> tuple[jax.Array, SessionState, jax.Array, jax.Array, dict[str, Any]]:
    """Serves one request; where the session is done, opens the next one.

    Args:
      key: random number generator key, consumed.
      state: the session.
      action: `[A]`, see `fusion_action`.
      params: the parameters.

    Returns:
      Observation and state before the next request, of a new session where
      `done`; float32 reward and bool done of this one; and the info of
      `step_env`, with `final_observation [S]`: the observation after this
      request, whether or not the session goes on.

    Raises:
      ValueError: the action's shape is wrong.
    """
    step_key, reset_key = jax.random.split(key)
    final, following, reward, done, info = self.step_env(
      step_key, state, action, params
    )
    first, opened = self.reset_env(reset_key, params)
    observation, following = jax.tree.map(
      functools.partial(jnp.where, done), (first, opened), (final, following)
    )
    info = {**info, "final_observation": final}
    return observation, following, reward, done, info

  def reset_env(
    self, key: chex.PRNGKey, params: SessionParams
  ) -> tuple[jax.Array, SessionState]:
    """Opens a session.

    Args:
      key: random number generator key, consumed; the session's.
      params: the parameters.

    Returns:
      Observation float32 `[S]` and state before the first request.
    """
    state = env.reset(key, params.world)
    return env.observe(params.world, state), state

  def step_env(
    self,
    key: chex.PRNGKey,
    state: SessionState,
    action: chex.Array,
    params: SessionParams,
  ) -> tuple[jax.Array, SessionState, jax.Array, jax.Array, dict[str, Any]]:
    """Serves one request and leaves a session that is done as it is.

    Args:
      key: random number generator key, consumed by the baseline policy.
      state: the session.
      action: `[A]`, see `fusion_action`.
      params: the parameters.

    Returns:
      Observation float32 `[S]` and state after the request, float32 reward,
      bool done, and an info of `terminated` and `truncated` (bool), `discount`
      (float32, 0 where the user left), `reward_groups` (float32 `[G]`),
      `feedback` (float32 `[E]`, summed over the list) and `fusion_action`
      (float32 `[A]`). A user who has left brings zeros.

    Raises:
      ValueError: the action's shape is wrong.
    """
    fused = self.fusion_action(
      key, env.observe(params.world, state), action, params
    )
    following, result = env.step(params.world, state, fused)
    terminated = ~following.active
    enough = following.step >= params.max_steps_in_episode
    truncated = following.active & enough
    info = {
      "terminated": terminated,
      "truncated": truncated,
      "discount": jnp.where(terminated, 0.0, 1.0),
      "reward_groups": result.reward,
      "feedback": jnp.sum(result.feedback, axis=0),
      "fusion_action": fused,
    }
    return (
      env.observe(params.world, following),
      following,
      jnp.sum(params.reward_weights * result.reward),
      terminated | truncated,
      info,
    )

  def fusion_action(
    self,
    key: chex.PRNGKey,
    observation: chex.Array,
    action: chex.Array,
    params: SessionParams,
  ) -> jax.Array:
    """The normalised fusion action that an action stands for.

    Args:
      key: random number generator key, consumed by the baseline policy.
      observation: `[S]`, what the policy saw.
      action: `[A]`; a component beyond [-1, 1] counts as the limit.
      params: the parameters.

    Returns:
      float32 `[A]` in [-1, 1]: the action, or `baseline + half_width * action`
      with a baseline policy.

    Raises:
      ValueError: the action's shape is wrong.
    """
    # One component alone would be spread over all of the box.
    if jnp.shape(action) != (self.num_actions,):
      raise ValueError(
        f"action: expected shape ({self.num_actions},), found"
        f" {jnp.shape(action)}."
      )
    action = jnp.clip(jnp.asarray(action, jnp.float32), -1.0, 1.0)
    if self.baseline is None:
      return action
    centre = self.baseline(params.baseline_params, observation, key)
    return jnp.clip(centre + params.half_width * action, -1.0, 1.0)


def make(
  world: World,
  *,
  max_requests: int = 20,
  reward_weights: chex.Array | None = None,
  baseline: Policy | None = None,
  baseline_params: Any = None,
  half_width: chex.Numeric = HALF_WIDTH,
) -> tuple[SessionEnvironment, SessionParams]:
  """The environment of a world's sessions and its parameters.

  Args:
    world: the world.
    max_requests: requests after which a session is cut.
    reward_weights: `[G]` weight of each reward group; 1 each if omitted.
    baseline: a policy; actions are then deviations from it, see
      `SessionEnvironment`. Pass the same function object to reuse what was
      compiled.
    baseline_params: what it takes.
    half_width: of the box around it, scalar or `[A]`; not used without one.

  Returns:
    The environment and its parameters, as `gymnax.make` does.

  Raises:
    InputError: `max_requests` is below 1, or the weights do not fit the groups.
  """
  if max_requests < 1:
    raise InputError(f"max_requests: expected 1 or more, found {max_requests}.")
  num_groups = world.group_weights.shape[0]
  if reward_weights is None:
    reward_weights = jnp.ones((num_groups,), jnp.float32)
  weights = jnp.asarray(reward_weights, jnp.float32)
  if weights.shape != (num_groups,):
    raise InputError(
      f"reward_weights: expected shape ({num_groups},) as there are reward"
      f" groups, found {weights.shape}."
    )
  params = SessionParams(
    world=world,
    reward_weights=weights,
    max_steps_in_episode=jnp.asarray(max_requests, jnp.int32),
    baseline_params=baseline_params,
    half_width=jnp.asarray(half_width, jnp.float32),
  )
  return SessionEnvironment(baseline, params), params


@functools.cache
def act_in(environment: SessionEnvironment, policy: Policy) -> Act:
  """A policy of an environment's actions as the package's own kind of policy.

  It can then be logged by `rollout` and judged by `ab_test.evaluate`.

  Args:
    environment: of `make`.
    policy: `(own_params, observation, rng_key) -> action [A]` of the
      environment.

  Returns:
    `act` for the pair `(params of the environment, own_params)`, one function
    object for one environment and policy. Its box is the action alone: it says
    of no exploration that the policy may do.
  """

  def act(
    params: tuple[SessionParams, Any],
    observation: jax.Array,
    rng_key: jax.Array,
  ) -> Decision:
    own_key, baseline_key = jax.random.split(rng_key)
    action = environment.fusion_action(
      baseline_key,
      observation,
      policy(params[1], observation, own_key),
      params[0],
    )
    return Decision(
      action, ActionBox(action, action), jnp.zeros((), action.dtype)
    )

  return act
