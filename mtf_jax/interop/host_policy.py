"""Policies that are no JAX program: torch networks and other host functions.

Letters: `S` state features, `A` action components, `B` requests of a batch.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.behaviours import TASKS
from mtf_jax.io import InputError
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.policies import Act, Decision

_NUM_ACTIONS = 2 * len(TASKS)


@functools.cache
def host_policy(predict: Callable[[np.ndarray], Any]) -> Act:
  """A function of the host as a policy of the package, without exploration.

  It can then be logged by `rollout` and judged by `ab_test.evaluate`; under
  `vmap` it is called once for all sessions. d3rlpy's `algo.predict` is such a
  function.

  Args:
    predict: observations float32 `[B, S]` to normalised fusion actions
      `[B, A]`, always the same for the same observations. It must not call JAX,
      which waits for it.

  Returns:
    `act`, which ignores its parameters; one function object for one `predict`.
    Actions beyond [-1, 1] count as the limit. Where `predict` answers with
    another shape, the running program fails with its refusal.
  """

  def on_host(observation: Any) -> np.ndarray:
    seen = np.asarray(observation, np.float32)
    flat = seen.reshape(-1, seen.shape[-1])
    action = np.asarray(predict(flat), np.float32)
    if action.shape != (len(flat), _NUM_ACTIONS):
      raise InputError(
        f"predict: expected actions of shape {(len(flat), _NUM_ACTIONS)}, found"
        f" {action.shape}."
      )
    return np.clip(action, -1, 1).reshape(*seen.shape[:-1], _NUM_ACTIONS)

  answer = jax.ShapeDtypeStruct((_NUM_ACTIONS,), np.float32)

  def act(params: Any, observation: jax.Array, rng_key: jax.Array) -> Decision:
    del params, rng_key
    action = jax.pure_callback(
      on_host, answer, observation, vmap_method="expand_dims"
    )
    return Decision(
      action, ActionBox(action, action), jnp.zeros((), action.dtype)
    )

  return act
