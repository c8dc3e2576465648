"""Value of a policy by importance weights: NCIS, and a kernel with exact density.

NCIS is what papers of this field report, by Gaussians that the log was not drawn
from; it is here to be compared with. On a uniform box log and an outcome linear in
the action it shows a step of `t` half-widths as `coth(x) - 1 / x`, `x = t / s^2`
and `s` its standard deviation in half-widths. Of half a half-width of .15 the two
published settings [1] make .034 and .748.

Letters: `N` rows of the log, `n` units, `A` action components, `G` reward groups.

References:
  [1] Cai et al., "Two-Stage Constrained Actor-Critic for Short Video
  Recommendation", arXiv 2302.01680, and its public code.
  [2] Kallus and Zhou, "Policy Evaluation and Optimization with Continuous
  Treatments", arXiv 1802.06037.
"""

import chex
import numpy as np

from mtf_jax.arrays import as_numbers
from mtf_jax.data.session_log import SessionLog
from mtf_jax.data.shown_items import check_deviate_alike
from mtf_jax.evaluation.logged_units import (
  ROUNDING,
  Estimate,
  LoggedUnits,
  estimate_from,
  scalar_reward,
  target_deviation,
)
from mtf_jax.io import InputError, as_array

# Standard deviations of 25 and of 4 on actions in [0, 150], the two settings of
# [1], on actions in [-1, 1].
PUBLISHED_STDDEVS = (25 / 75, 4 / 75)
PUBLISHED_CAP = 10.0


def _self_normalised(
  weight: np.ndarray,
  outcome: np.ndarray,
  outside: np.ndarray,
  session: np.ndarray,
) -> Estimate:
  total = weight.mean()
  value = float(np.mean(weight * outcome) / total)
  influence = weight * (outcome - value) / total
  return estimate_from(influence, value, weight, outside, session)


def ncis(
  log: SessionLog,
  action: chex.Array,
  behaviour_action: chex.Array | None = None,
  *,
  stddev: float = PUBLISHED_STDDEVS[0],
  cap: float = PUBLISHED_CAP,
  group_weights: chex.Array | None = None,
) -> Estimate:
  """Normalised capped importance sampling, per request, as in [1].

  `sum_t rho_t r_t / sum_t rho_t` with
  `rho_t = min(prod_a N(a; pi, sd) / N(a; beta, sd), cap)` over all requests: no
  product over a session, no discount. Two Gaussians of one made-up standard
  deviation; capping and normalising make it biased even for logs of that kind.

  Args:
    log: a valid log.
    action: `[N, A]` the policy's actions at `log.observation`, also for
      `bootstrap_only` rows, which do not count.
    behaviour_action: `[N, A]` mean actions of the policy that logged; the
      centres of the boxes if omitted. [1] has a network that imitates the log.
    stddev: sd, in action units.
    cap: of a request's weight.
    group_weights: `[G]` of the rewards; 1 each if omitted.

  Returns:
    Mean reward of a request; its effective sample size counts requests, its
    interval takes sessions as independent.

  Raises:
    InputError: a log without a request or with shown items that deviate each by
      itself, actions of another shape or not finite, or numbers that are not
      above 0.
  """
  for name, number in (("stddev", stddev), ("cap", cap)):
    if not number > 0:
      raise InputError(f"{name}: expected a value above 0, found {number}.")
  check_deviate_alike(log.items)
  reward = scalar_reward(log, group_weights)
  request = ~as_array(log.bootstrap_only, "bootstrap_only")
  lower, upper = (
    np.asarray(bound, np.float64) for bound in (log.box.lower, log.box.upper)
  )
  if behaviour_action is None:
    behaviour_action = (lower + upper) / 2
  logged = np.asarray(log.action, np.float64)
  means = []
  for name, given in (
    ("action", action),
    ("behaviour_action", behaviour_action),
  ):
    given = as_numbers(given, name).astype(np.float64)
    if given.shape != logged.shape:
      raise InputError(
        f"{name}: expected shape {logged.shape}, found {given.shape}."
      )
    means.append(given)
  policy, behaviour = means
  squares = np.square(logged - behaviour) - np.square(logged - policy)
  log_ratio = squares.sum(axis=1)[request] / (2 * stddev**2)
  if not log_ratio.size:
    raise InputError("log: expected a request, found none.")
  log_weight = np.minimum(log_ratio, np.log(cap))
  # Normalised they are the same relative to the largest, and of a policy far from
  # the log they would all be rounded to 0.
  weight = np.exp(log_weight - log_weight.max())
  rounding = 1e-6
  outside = np.any((policy < lower - rounding) | (policy > upper + rounding), 1)
  session = np.cumsum(as_array(log.step, "step")[request] == 0) - 1
  return _self_normalised(weight, reward[request], outside[request], session)


def box_kernel(
  units: LoggedUnits, action: chex.Array, bandwidth: float = 0.5
) -> Estimate:
  """Self-normalised kernel estimate with the exact density of uniform boxes.

  The policy is blurred: it draws uniformly from a window of `bandwidth`
  half-widths to either side of its action, cut at the box. Of that policy the
  weights `prod_a 1[|u_a - delta_a| <= h] 2 / length_a` are exact, `length_a`
  being what the window has inside the box (the share that [2] normalises a
  kernel by). The blur shortens the policy's step; a narrow window leaves no
  data: of ten components, half a half-width leaves one unit in 1,000.

  Args:
    units: of the log; its actions are uniform in their boxes.
    action: `[n, A]` the policy's actions at `units.observation`.
    bandwidth: h, in half-widths of the box.

  Returns:
    The estimate, per unit. A policy at the centre with `bandwidth` 1 has the
    log's mean. Units whose box does not meet the window have no weight.

  Raises:
    InputError: no logged action in any window, actions of another shape or not
      finite, or a bandwidth that is not above 0.
  """
  if not bandwidth > 0:
    raise InputError(f"bandwidth: expected a value above 0, found {bandwidth}.")
  deviation, outside = target_deviation(units, action)
  low = np.maximum(deviation - bandwidth, -1)
  high = np.minimum(deviation + bandwidth, 1)
  length = high - low
  inside = (units.deviation >= low - ROUNDING) & (
    units.deviation <= high + ROUNDING
  )
  density = np.where(
    inside & (length > 0), 2 / np.where(length > 0, length, 1), 0.0
  )
  weight = np.prod(np.where(units.explores, density, 1.0), axis=1)
  if not weight.any():
    raise InputError(
      "action: expected logged actions near the policy's, found none within"
      f" {bandwidth} half-widths in all components."
    )
  return _self_normalised(weight, units.outcome, outside, units.session)
