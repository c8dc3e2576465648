"""Sessions of a world as Gymnasium environments, one or many at once.

Importing this module registers `mtf_jax/Session-v0`:

    gymnasium.make("mtf_jax.interop.gymnasium:mtf_jax/Session-v0", world=world)
    gymnasium.make_vec("mtf_jax/Session-v0", num_envs=64, world=world)

An episode is a session: `terminated` where the user left, `truncated` after
`max_requests` requests. What an action means, and what a reward is, says
`functional.SessionEnvironment`. The extra `gymnasium` brings the package.

Letters: `B` environments, `S` observation, `A` action components, `G` reward
groups, `E` behaviours.
"""

import functools
from typing import Any

import chex
import jax
import numpy as np

from mtf_jax.fitting import synthetic
from mtf_jax.interop import functional
from mtf_jax.interop._extras import missing
from mtf_jax.interop.functional import SessionEnvironment, SessionParams
from mtf_jax.io import InputError
from mtf_jax.kernels.exploration import HALF_WIDTH
from mtf_jax.serving.world_features import observation_features
from mtf_jax.worlds import io as world_io
from mtf_jax.worlds.env import SessionState
from mtf_jax.worlds.world import World

try:
  import gymnasium
  from gymnasium.vector import AutoresetMode, VectorEnv
  from gymnasium.vector.utils import batch_space
except ModuleNotFoundError as error:
  raise missing("gymnasium") from error

ID = "mtf_jax/Session-v0"
# Observation, state, reward, done, info: of one session or of `B`.
_Step = tuple[jax.Array, SessionState, jax.Array, jax.Array, dict[str, Any]]
# Of what a step says besides; the rest is in its five results.
_INFO = ("reward_groups", "feedback", "fusion_action")


@functools.partial(jax.jit, static_argnums=0)
def _open(
  environment: SessionEnvironment, key: chex.PRNGKey, params: SessionParams
) -> tuple[jax.Array, SessionState, jax.Array]:
  """First observation and state of a session, and its policy's key."""
  world_key, policy_key = jax.random.split(key)
  return *environment.reset_env(world_key, params), policy_key


@functools.partial(jax.jit, static_argnums=0)
def _serve(
  environment: SessionEnvironment,
  policy_key: chex.PRNGKey,
  state: SessionState,
  action: chex.Array,
  params: SessionParams,
) -> _Step:
  key = jax.random.fold_in(policy_key, state.step)
  return environment.step_env(key, state, action, params)


@functools.partial(jax.jit, static_argnums=(0, 3))
def _open_all(
  environment: SessionEnvironment,
  key: chex.PRNGKey,
  params: SessionParams,
  num_envs: int,
) -> tuple[jax.Array, SessionState]:
  keys = jax.random.split(key, num_envs)
  return jax.vmap(environment.reset_env, (0, None))(keys, params)


@functools.partial(jax.jit, static_argnums=0)
def _serve_all(
  environment: SessionEnvironment,
  key: chex.PRNGKey,
  state: SessionState,
  actions: chex.Array,
  params: SessionParams,
) -> _Step:
  keys = jax.random.split(key, actions.shape[0])
  step = jax.vmap(environment.step, (0, 0, 0, None))
  return step(keys, state, actions, params)


def _world(world: World | str, world_seed: int) -> World:
  """The world that was given or named."""
  if isinstance(world, World):
    return world
  if world in synthetic.SIZES:
    return synthetic.synthetic_world(world, world_seed)
  try:
    return world_io.load_world(world)
  except InputError as error:
    sizes = ", ".join(synthetic.SIZES)
    raise InputError(
      f"world: expected a World, one of {sizes}, or a world file; {error}"
    ) from error


def _spaces(
  world: World, num_actions: int
) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
  """Spaces of one session's observations and actions."""
  features = observation_features(world)
  low, high = (
    np.asarray([getattr(feature, end) for feature in features], np.float32)
    for end in ("low", "high")
  )
  return (
    gymnasium.spaces.Box(low, high, dtype=np.float32),
    gymnasium.spaces.Box(-1.0, 1.0, (num_actions,), np.float32),
  )


def _action(action: Any, shape: tuple[int, ...]) -> np.ndarray:
  found = np.asarray(action, np.float32)
  if found.shape != shape:
    raise InputError(f"action: expected shape {shape}, found {found.shape}.")
  return found


def _key(rng: np.random.Generator) -> jax.Array:
  return jax.random.key(int(rng.integers(2**32)))


class SessionEnv(gymnasium.Env):
  """Sessions of a world, one after the other.

  The observation is float32 `[S]`, see `worlds.env.observe`, the action float32
  `[A]` in [-1, 1]. An info has `reward_groups [G]`, `feedback [E]` (summed over
  the list) and `fusion_action [A]`. A seed decides this session and, without
  further seeds, all that follow.
  """

  # As Gymnasium declares it.
  metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

  def __init__(
    self,
    world: World | str = "small",
    *,
    world_seed: int = 0,
    max_requests: int = 20,
    reward_weights: chex.Array | None = None,
    baseline: functional.Policy | None = None,
    baseline_params: Any = None,
    half_width: chex.Numeric = HALF_WIDTH,
  ) -> None:
    """Makes or reads the world; nothing is compiled before the first reset.

    Args:
      world: a world, a size of the synthetic one, or the path of a world file.
      world_seed: of the synthetic world.
      max_requests: requests after which a session is truncated.
      reward_weights, baseline, baseline_params, half_width: as in
        `functional.make`.

    Raises:
      InputError: no such world, or as `functional.make`.
    """
    self._environment, self._params = functional.make(
      _world(world, world_seed),
      max_requests=max_requests,
      reward_weights=reward_weights,
      baseline=baseline,
      baseline_params=baseline_params,
      half_width=half_width,
    )
    self.observation_space, self.action_space = _spaces(
      self._params.world, self._environment.num_actions
    )
    self._session: tuple[SessionState, jax.Array] | None = None

  def reset(
    self, *, seed: int | None = None, options: dict[str, Any] | None = None
  ) -> tuple[np.ndarray, dict[str, Any]]:
    """Opens a session.

    Args:
      seed: of this session and those after it.
      options: none are known.

    Returns:
      Observation `[S]` before the first request, and an empty info.
    """
    super().reset(seed=seed, options=options)
    observation, state, policy_key = _open(
      self._environment, _key(self.np_random), self._params
    )
    self._session = state, policy_key
    return np.array(observation), {}

  def step(
    self, action: Any
  ) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
    """Serves one request.

    Args:
      action: `[A]`; a component beyond [-1, 1] counts as the limit.

    Returns:
      Observation `[S]` after the request, reward, whether the user left,
      whether the session was cut, and the info.

    Raises:
      InputError: the action's shape is wrong.
      gymnasium.error.ResetNeeded: no session has been opened.
    """
    if self._session is None:
      raise gymnasium.error.ResetNeeded("step: call reset first.")
    state, policy_key = self._session
    action = _action(action, (self._environment.num_actions,))
    observation, state, reward, _, info = _serve(
      self._environment, policy_key, state, action, self._params
    )
    self._session = state, policy_key
    return (
      np.array(observation),
      float(reward),
      bool(info["terminated"]),
      bool(info["truncated"]),
      {name: np.array(info[name]) for name in _INFO},
    )


class SessionVectorEnv(VectorEnv):
  """Sessions of a world side by side, as one compiled program.

  A session that is done is replaced in the same step: the observation is the
  next session's first one. `info["final_obs"]` then has the last observation of
  the old one, an object array `[B]` with None where a session goes on, and
  `info["_final_obs"]` says where. The rest of the info is of the request that
  was served, `[B, ...]`.
  """

  # As Gymnasium declares it.
  metadata: dict[str, Any] = {  # noqa: RUF012
    "render_modes": [],
    "autoreset_mode": AutoresetMode.SAME_STEP,
  }

  def __init__(
    self,
    num_envs: int = 1,
    world: World | str = "small",
    *,
    world_seed: int = 0,
    **settings: Any,
  ) -> None:
    """Makes or reads the world; nothing is compiled before the first reset.

    Args:
      num_envs: `B`.
      world, world_seed: as in `SessionEnv`.
      **settings: of `functional.make`.

    Raises:
      InputError: `num_envs` is below 1, or as `SessionEnv`.
    """
    if num_envs < 1:
      raise InputError(f"num_envs: expected 1 or more, found {num_envs}.")
    self._environment, self._params = functional.make(
      _world(world, world_seed), **settings
    )
    self.num_envs = num_envs
    self.single_observation_space, self.single_action_space = _spaces(
      self._params.world, self._environment.num_actions
    )
    self.observation_space = batch_space(
      self.single_observation_space, num_envs
    )
    self.action_space = batch_space(self.single_action_space, num_envs)
    self._state: SessionState | None = None

  def reset(
    self, *, seed: int | None = None, options: dict[str, Any] | None = None
  ) -> tuple[np.ndarray, dict[str, Any]]:
    """Opens a session in every environment.

    Args:
      seed: of all that follows.
      options: none are known.

    Returns:
      Observations `[B, S]` and an empty info.
    """
    super().reset(seed=seed, options=options)
    observation, self._state = _open_all(
      self._environment, _key(self.np_random), self._params, self.num_envs
    )
    return np.array(observation), {}

  def step(
    self, actions: Any
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
    """Serves one request in every environment.

    Args:
      actions: `[B, A]`; a component beyond [-1, 1] counts as the limit.

    Returns:
      Observations `[B, S]` before the next request, rewards float64 `[B]`,
      whether users left and whether sessions were cut, bool `[B]`, and the
      info.

    Raises:
      InputError: the shape of the actions is wrong.
      gymnasium.error.ResetNeeded: no session has been opened.
    """
    if self._state is None:
      raise gymnasium.error.ResetNeeded("step: call reset first.")
    actions = _action(actions, (self.num_envs, self._environment.num_actions))
    observation, self._state, reward, done, found = _serve_all(
      self._environment,
      _key(self.np_random),
      self._state,
      actions,
      self._params,
    )
    info: dict[str, Any] = {}
    for name in _INFO:
      info[name] = np.array(found[name])
      info[f"_{name}"] = np.ones(self.num_envs, bool)
    ended = np.array(done)
    if ended.any():
      final = np.array(found["final_observation"])
      info["final_obs"] = np.full(self.num_envs, None, object)
      for place in np.flatnonzero(ended):
        info["final_obs"][place] = final[place]
      info["_final_obs"] = ended
    return (
      np.array(observation),
      np.array(reward, np.float64),
      np.array(found["terminated"]),
      np.array(found["truncated"]),
      info,
    )


gymnasium.register(
  ID,
  entry_point="mtf_jax.interop.gymnasium:SessionEnv",
  vector_entry_point="mtf_jax.interop.gymnasium:SessionVectorEnv",
)
