"""Which loss of a behaviour could be seen: before a bound on it is relied on.

A bound on what is rare may be broken without anybody noticing. The loss that a
one-sided z-test finds with a given power is `(z_level + z_power)` standard errors
of the difference that it looks at [1], here as a share of the mean:

  A/B test:    error = stddev sqrt(1 / n_a + 1 / n_b)
  in the log:  error = stddev / sqrt(n variance of the deviation)

the second one that of the slope by which a session's sum follows the deviation
of one action component, drawn independently of everything else, per half-width
of the box.

Letters: `N` rows, `F` figures: reward groups, then behaviours.

References:
  [1] Kohavi, Tang and Xu, "Trustworthy Online Controlled Experiments", 2020,
  section 17, power.
"""

import math
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from mtf_jax.data.session_log import SessionLog
from mtf_jax.evaluation.tables import Table
from mtf_jax.io import InputError

LEVEL, POWER = 0.05, 0.8


class SessionSums(NamedTuple):
  """What the sums of sessions are like.

  sessions: how many.
  mean, stddev: `[F]` of a session's sum of each figure.
  deviation_variance: of a session's mean deviation, in squared half-widths of
    the box, mean over the components that explore; 0 if none does.
  """

  sessions: int
  mean: np.ndarray
  stddev: np.ndarray
  deviation_variance: float


def _moments(log: SessionLog) -> tuple[int, np.ndarray, np.ndarray]:
  """Sessions; of their figures `[2, F]` sums and sums of squares; of their mean
  deviations `[3, A]` the same, and how many explored."""
  first = np.flatnonzero(np.asarray(log.step) == 0)

  def by_session(rows):
    return np.add.reduceat(np.asarray(rows, np.float64), first, axis=0)

  figures = by_session(np.concatenate([log.reward, log.feedback], axis=1))
  lower, upper = (np.asarray(bound, np.float64) for bound in log.box)
  half_width = (upper - lower) / 2
  # Rows that hold only an observation have no action.
  explores = (half_width > 0) & ~np.asarray(log.bootstrap_only)[:, None]
  offset = np.where(explores, log.action - (upper + lower) / 2, 0)
  requests = by_session(explores)
  deviation = by_session(offset / np.where(explores, half_width, 1))
  deviation /= np.maximum(requests, 1)
  return (
    first.size,
    np.stack([figures.sum(axis=0), np.square(figures).sum(axis=0)]),
    np.stack(
      [
        deviation.sum(axis=0),
        np.square(deviation).sum(axis=0),
        (requests > 0).sum(axis=0),
      ]
    ),
  )


def session_sums(logs: Iterable[SessionLog]) -> SessionSums:
  """Reads logs one after the other; only one is in memory.

  Args:
    logs: one valid log or more, of sessions that are whole.

  Returns:
    The sums; of rewards first, then of the behaviours.

  Raises:
    InputError: fewer than two sessions, whose spread nobody knows.
  """
  first, *others = map(_moments, logs)
  sessions, figures, deviations = (
    sum(parts, start) for start, *parts in zip(first, *others, strict=True)
  )
  if sessions < 2:
    raise InputError(f"log: expected 2 sessions or more, found {sessions}.")
  mean, square = figures / sessions
  total, squares, seen = deviations[:, deviations[2] > 0]
  variance = squares / seen - np.square(total / seen)
  return SessionSums(
    sessions,
    mean,
    np.sqrt(np.maximum(square - np.square(mean), 0)),
    float(variance.mean()) if variance.size else 0.0,
  )


def _share(
  sums: SessionSums, error: np.ndarray, level: float, power: float
) -> np.ndarray:
  """Standard errors that are needed, as a share of the mean."""
  for name, value in (("level", level), ("power", power)):
    if not 0 < value < 1:
      raise InputError(
        f"{name}: expected a number between 0 and 1, found {value}."
      )
  quantile = NormalDist().inv_cdf
  needed = (quantile(1 - level) + quantile(power)) * error
  mean = np.abs(sums.mean)
  return np.where(mean > 0, needed / np.where(mean > 0, mean, 1), np.inf)


def detectable_in_ab_test(
  sums: SessionSums,
  sessions_a: int,
  sessions_b: int,
  *,
  level: float = LEVEL,
  power: float = POWER,
) -> np.ndarray:
  """Smallest loss that an A/B test finds, `[F]`, as a share of the mean.

  Sessions count as independent; where users have many, give the number of users
  and the sums of users.

  Args:
    sums: of the policy in service; the other one is taken to spread as much.
    sessions_a, sessions_b: of the two arms.
    level: chance of seeing a loss where there is none; one-sided.
    power: chance of seeing one as large as this.

  Returns:
    The shares; infinite for what never happened.

  Raises:
    InputError: an arm without sessions, or level or power outside (0, 1).
  """
  for name, value in (("sessions_a", sessions_a), ("sessions_b", sessions_b)):
    if value < 1:
      raise InputError(f"{name}: expected 1 or more, found {value}.")
  error = sums.stddev * math.sqrt(1 / sessions_a + 1 / sessions_b)
  return _share(sums, error, level, power)


def detectable_in_log(
  sums: SessionSums, *, level: float = LEVEL, power: float = POWER
) -> np.ndarray:
  """Smallest loss by one half-width that the log shows, `[F]`, as a share.

  Of a policy that moves one action component by one half-width of its box, and
  for a test of that component alone: a policy that moves `k` components as far
  has to lose `sqrt(k)` times as much.

  Args:
    sums: of the log.
    level, power: as in `detectable_in_ab_test`.

  Returns:
    The shares; infinite for what never happened, or where nothing explores.

  Raises:
    InputError: level or power outside (0, 1).
  """
  information = sums.sessions * sums.deviation_variance
  if not information:
    return np.full(sums.mean.shape, np.inf)
  return _share(sums, sums.stddev / math.sqrt(information), level, power)


def table(
  sums: SessionSums,
  group_names: Sequence[str],
  behaviour_names: Sequence[str],
  allowed_loss: float | Sequence[float],
) -> Table:
  """What can be seen with the sessions at hand, beside what may be lost.

  Args:
    sums: of the log.
    group_names, behaviour_names: `F` together.
    allowed_loss: share of every reward group, or of each.

  Raises:
    InputError: neither one number nor one for each group.
  """
  shares = np.atleast_1d(np.asarray(allowed_loss, np.float64))
  if shares.size not in (1, len(group_names)):
    raise InputError(
      "allowed_loss: expected one number, or one for each of"
      f" {len(group_names)} reward groups, found {shares.size}."
    )
  allowed = [
    "" if math.isinf(share) else f"{100 * share:.3g}"
    for share in np.broadcast_to(shares, len(group_names))
  ]
  arm = sums.sessions // 2
  found = zip(
    [*group_names, *behaviour_names],
    [*allowed, *("" for _ in behaviour_names)],
    sums.mean,
    detectable_in_ab_test(sums, arm, arm),
    detectable_in_log(sums),
    strict=True,
  )

  def percent(share):
    # More than all of it cannot be lost.
    return f"{100 * share:.3g}" if share <= 1 else "none"

  return Table(
    title="Losses that could be seen",
    note=(
      f"%, one-sided level {LEVEL}, power {POWER}: by an A/B test of {arm} sessions"
      f" an arm; in the log's {sums.sessions} sessions, by a half-width of one"
      " action component. A bound below them cannot be checked."
    ),
    header=["", "a session", "may be lost", "A/B test", "in the log"],
    rows=[
      [name, f"{mean:.3g}", may, percent(ab), percent(logged)]
      for name, may, mean, ab, logged in found
    ],
  )
