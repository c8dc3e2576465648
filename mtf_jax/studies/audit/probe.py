"""What exploring in the box shows: explained variance and a linear probe.

Letters: `A` action components, `B` sessions.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax import policies
from mtf_jax.evaluation.oracle import LinearPolicy
from mtf_jax.kernels.exploration import HALF_WIDTH
from mtf_jax.studies.audit.effort import Effort
from mtf_jax.worlds import env
from mtf_jax.worlds import returns as returns_lib
from mtf_jax.worlds import rollout as rollout_lib
from mtf_jax.worlds.returns import ExpectedRewards
from mtf_jax.worlds.world import World


def explained_share(
  world: World, table: ExpectedRewards, center: jax.Array, effort: Effort
) -> dict[str, float]:
  """Share of the return's variance that exploring in the box explains.

  A session keeps one action of the box; it is run with two actions under each
  of two noises of the same user. The covariance of the two differences is twice
  the variance of the expected return over actions.
  """

  @functools.partial(jax.jit, static_argnames=("num_sessions", "max_requests"))
  def differences(rng_key, world, table, num_sessions, max_requests):
    def one(key):
      action_key, first, second = jax.random.split(key, 3)
      offset = jax.random.uniform(
        action_key,
        (2, center.shape[0]),
        minval=-HALF_WIDTH,
        maxval=HALF_WIDTH,
      )
      actions = jnp.clip(center[None, :] + offset, -1.0, 1.0)
      user = env.reset(first, world).user
      # Both noises meet the same user: the population of this session is one.
      alone = world.replace(population=user[None])

      def run(key, action):
        returns = returns_lib.session_return(
          alone,
          table,
          policies.fixed_action,
          action,
          max_requests,
          env.observe,
          key,
          key,
        )
        return jnp.sum(returns.expected), jnp.sum(returns.sampled)

      (a1, sampled), (b1, _) = run(first, actions[0]), run(first, actions[1])
      (a2, _), (b2, _) = run(second, actions[0]), run(second, actions[1])
      return a1 - b1, a2 - b2, sampled

    keys = jax.random.split(rng_key, num_sessions)
    return jax.lax.map(one, keys, batch_size=min(num_sessions, 4096))

  first, second, sampled = (
    np.asarray(x)
    for x in differences(
      jax.random.key(31), world, table, effort.sessions, effort.max_requests
    )
  )
  product = first * second / 2.0
  variance = sampled.var()
  return {
    "percent": float(100 * product.mean() / variance),
    "standard_error": float(
      100 * product.std() / np.sqrt(product.size) / variance
    ),
  }


def linear_probe(
  world: World,
  center: jax.Array,
  policy: LinearPolicy,
  effort: Effort,
  seed: int = 41,
) -> tuple[LinearPolicy, dict[str, float]]:
  """Ridge regression of logged returns on `epsilon x (1, observation)`.

  Rows are explored in the box around `center` with sampled feedback, the
  deviation held over a session, as `experiments.progressive` logs them. The
  return-to-go is centred by a linear function of the observation; `epsilon` is
  the deviation over the box's half-width. Standard errors take sessions as
  units: rows of one share the deviation and what is to come.

  Args:
    world: the world.
    center: `[A]` action in service.
    policy: scaling of the observation.
    effort: number of sessions.
    seed: of the log.

  Returns:
    The probe's policy and the number of rows and of significant coefficients.
  """
  rows = rollout_lib.rollout(
    jax.random.key(seed),
    world,
    policies.explore_in_box,
    center,
    effort.probe_sessions,
    effort.max_requests,
    exploration="session",
  )
  log = rows.log
  served = np.asarray(rows.valid & ~log.bootstrap_only)
  reward = np.asarray(jnp.sum(log.reward, axis=-1)) * served
  to_go = np.cumsum(reward[:, ::-1], axis=1)[:, ::-1][served]
  observation = np.asarray(log.observation)[served]
  box_centre = np.asarray((log.box.lower + log.box.upper) / 2)[served]
  half_width = np.asarray((log.box.upper - log.box.lower) / 2)[served]
  epsilon = (np.asarray(log.action)[served] - box_centre) / half_width
  standard = (observation - np.asarray(policy.mean)) / np.asarray(policy.scale)
  features = np.concatenate(
    [np.ones((len(standard), 1)), np.clip(standard, -3, 3)], axis=1
  )
  num_actions, num_features = epsilon.shape[1], features.shape[1]
  value = np.linalg.lstsq(features, to_go, rcond=None)[0]
  residual = to_go - features @ value
  num_coefficients = num_actions * num_features
  gram = np.zeros((num_coefficients,) * 2)
  moment = np.zeros(num_coefficients)
  spread = np.zeros_like(gram)
  # Rows of a session are neighbours, and each has at least one.
  num_rows = served.sum(axis=1)
  begins = np.cumsum(num_rows) - num_rows
  for first in range(0, len(served), 8192):
    starts = begins[first : first + 8192]
    part = slice(starts[0], starts[-1] + num_rows[first : first + 8192][-1])
    design = (epsilon[part, :, None] * features[part, None, :]).reshape(
      -1, num_coefficients
    )
    gram += design.T @ design
    by_session = np.add.reduceat(
      design * residual[part, None], starts - starts[0]
    )
    moment += by_session.sum(axis=0)
    spread += by_session.T @ by_session
  inverse = np.linalg.inv(gram + 1e-3 * len(residual) * np.eye(len(gram)))
  slope = inverse @ moment
  error = np.sqrt(np.diag(inverse @ spread @ inverse))
  z = slope / error
  # Soft threshold of one standard error against acting on noise.
  kept = np.sign(slope) * np.maximum(np.abs(slope) - error, 0.0)
  kept = kept.reshape(num_actions, num_features)
  typical = np.sqrt(np.mean(np.sum(kept**2, axis=1)))
  # Deviations of typical size act at three times the box, and are clipped.
  weights = HALF_WIDTH * 3.0 * kept / max(typical, 1e-9)
  weights[:, 0] += np.asarray(center)
  probe = policy._replace(weights=jnp.asarray(weights, jnp.float32))
  return probe, {
    "rows": len(residual),
    "coefficients": len(slope),
    "beyond_3_sigma": int((np.abs(z) > 3).sum()),
  }
