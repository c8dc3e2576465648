"""The functional form as gymnax has it from version 1.0 on.

There `step` returns six results: observation, state, reward, terminated,
truncated, info. Trainers written for the five of earlier versions take
`functional.make`'s environment itself.

Letters: `S` observation, `A` action components.
"""

import dataclasses
import functools
from typing import Any

import chex
import jax

from mtf_jax.interop.functional import SessionEnvironment, SessionParams
from mtf_jax.worlds.env import SessionState


@dataclasses.dataclass(frozen=True)
class SixResults:
  """An environment whose `step` tells leaving from being cut.

  All else (spaces, `reset`, `default_params`) is the environment's.

  environment: of `functional.make`.
  """

  environment: SessionEnvironment

  def __getattr__(self, name: str) -> Any:
    """What is not told apart here."""
    return getattr(self.environment, name)

  @functools.partial(jax.jit, static_argnames="self")
  def step(
    self,
    key: chex.PRNGKey,
    state: SessionState,
    action: chex.Array,
    params: SessionParams,
  ) -> tuple[
    jax.Array, SessionState, jax.Array, jax.Array, jax.Array, dict[str, Any]
  ]:
    """Serves one request; where the session is done, opens the next one.

    Args:
      key: random number generator key, consumed.
      state: the session.
      action: `[A]`, see `SessionEnvironment.fusion_action`.
      params: the parameters.

    Returns:
      Observation `[S]` and state before the next request, float32 reward, bool
      `terminated` (the user left) and `truncated` (the session was cut), and
      the info of `SessionEnvironment.step`.

    Raises:
      ValueError: the action's shape is wrong.
    """
    observation, following, reward, _, info = self.environment.step(
      key, state, action, params
    )
    ends = info["terminated"], info["truncated"]
    return observation, following, reward, *ends, info

  def step_env(
    self,
    key: chex.PRNGKey,
    state: SessionState,
    action: chex.Array,
    params: SessionParams,
  ) -> tuple[jax.Array, SessionState, jax.Array, jax.Array, dict[str, Any]]:
    """As `SessionEnvironment.step_env`, but bool `terminated` for `done`."""
    observation, following, reward, _, info = self.environment.step_env(
      key, state, action, params
    )
    return observation, following, reward, info["terminated"], info

  def is_truncated(
    self, state: SessionState, params: SessionParams
  ) -> jax.Array:
    """Whether a session that goes on has had its requests, bool scalar."""
    return state.active & (state.step >= params.max_steps_in_episode)
