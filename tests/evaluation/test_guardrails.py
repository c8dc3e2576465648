"""Detectable losses against simulated tests, and sums of sessions by hand."""

import jax
import numpy as np
import pytest

from mtf_jax.evaluation import guardrails
from mtf_jax.evaluation.guardrails import SessionSums
from mtf_jax.evaluation.tables import text
from mtf_jax.io import InputError
from tests.session_logs import log_of, observation_only

_Z = 1.6449  # One-sided, 5%.


def _sums(mean, stddev, sessions=4000, variance=1 / 3):
  return SessionSums(sessions, np.array([mean]), np.array([stddev]), variance)


def test_an_ab_test_finds_the_loss_as_often_as_is_said():
  """A rare behaviour: one in twenty sessions."""
  rng = np.random.default_rng(0)
  rate, arms = 0.05, (6000, 3000)
  sums = _sums(rate, np.sqrt(rate * (1 - rate)))
  (loss,) = guardrails.detectable_in_ab_test(sums, *arms)
  assert 0.2 < loss < 0.3

  def found(rate_b, level_z=_Z, tests=4000):
    a, b = (
      rng.binomial(n, r, tests) / n
      for n, r in zip(arms, (rate, rate_b), strict=True)
    )
    error = np.sqrt(a * (1 - a) / arms[0] + b * (1 - b) / arms[1])
    return np.mean((a - b) / error > level_z)

  assert 0.035 < found(rate) < 0.065
  # A lower rate spreads less, so that it is found a little more often.
  assert 0.78 < found((1 - loss) * rate) < 0.88


def test_the_log_shows_the_loss_as_often_as_is_said():
  rng = np.random.default_rng(1)
  sessions, mean, stddev = 500, 2.0, 3.0
  (loss,) = guardrails.detectable_in_log(_sums(mean, stddev, sessions))

  def found(loss, tests=4000):
    u = rng.uniform(-1, 1, (tests, sessions))
    noise = stddev * rng.normal(size=u.shape)
    total = mean * (1 - loss * u) + noise
    u -= u.mean(axis=1, keepdims=True)
    square = np.square(u).sum(axis=1)
    slope = (u * total).sum(axis=1) / square
    return np.mean(-slope * np.sqrt(square) / stddev > _Z)

  assert 0.035 < found(0.0) < 0.065
  assert 0.77 < found(loss) < 0.83


def test_sums_are_those_of_sessions_however_they_are_divided():
  rng = np.random.default_rng(2)
  sessions, length = 300, 4
  rows = sessions * length
  u = rng.uniform(-1, 1, (rows, 2))
  log = log_of(
    rng.normal(size=(rows, 3)),
    0.1 + 0.15 * u,
    rng.normal(5, 1, (rows, 2)),
    session_length=length,
    centre=0.1,
    terminal=np.zeros(rows, bool),
  )
  # The last rows hold only an observation: three requests a session.
  log = observation_only(log, log.step == length - 1)
  log = log._replace(feedback=log.reward[:, :1])
  found = guardrails.session_sums([log])
  total = log.reward.reshape(sessions, length, 2).sum(axis=1, dtype=np.float64)
  expected = np.column_stack([total, total[:, 0]])
  np.testing.assert_allclose(found.mean, expected.mean(axis=0), rtol=1e-6)
  np.testing.assert_allclose(found.stddev, expected.std(axis=0), rtol=1e-5)
  mean_deviation = u.reshape(sessions, length, 2)[:, :3].mean(axis=1)
  np.testing.assert_allclose(
    found.deviation_variance, mean_deviation.var(axis=0).mean(), rtol=1e-4
  )

  def part(log, rows):
    return jax.tree.map(lambda column: column[rows], log)

  split = guardrails.session_sums(
    part(log, rows) for rows in (slice(0, 480), slice(480, None))
  )
  assert split.sessions == found.sessions == sessions
  for one, other in zip(split[1:], found[1:], strict=True):
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_what_never_happens_or_is_not_explored_is_not_found():
  sums = _sums(0.0, 0.0)
  assert np.isinf(guardrails.detectable_in_ab_test(sums, 10, 10))
  assert np.isinf(guardrails.detectable_in_log(sums))
  assert np.isinf(guardrails.detectable_in_log(_sums(1.0, 1.0, variance=0.0)))
  log = log_of(np.ones((6, 1)), np.zeros((6, 1)), np.ones((6, 1)))
  log = log._replace(box=log.box._replace(lower=log.box.upper))
  assert guardrails.session_sums([log]).deviation_variance == 0


def test_the_table_says_what_may_be_lost_and_what_could_be_seen():
  sums = SessionSums(
    1000, np.array([10.0, 0.001, 3.0]), np.array([5.0, 0.03, 1.0]), 1 / 3
  )
  found = guardrails.table(sums, ["watch", "hate"], ["hates"], [np.inf, 0.05])
  assert [row[0] for row in found.rows] == ["watch", "hate", "hates"]
  assert [row[2] for row in found.rows] == ["", "5", ""]
  # 2.486 standard errors of 5 sqrt(2 / 500) and of 5 sqrt(3 / 1000), of 10.
  assert found.rows[0][3:] == ["7.86", "6.81"]
  assert found.rows[1][3:] == ["none", "none"]
  assert "A/B test of 500 sessions an arm" in text(found)


@pytest.mark.parametrize(
  ("call", "sentence"),
  [
    (
      lambda s: guardrails.detectable_in_ab_test(s, 0, 5),
      "sessions_a: expected 1",
    ),
    (lambda s: guardrails.detectable_in_log(s, power=1.0), "power: expected"),
    (
      lambda s: guardrails.detectable_in_log(s, level=np.nan),
      "level: expected",
    ),
    (
      lambda s: guardrails.table(s, ["a"], [], [0.1, 0.2]),
      "allowed_loss: .* 1 ",
    ),
  ],
)
def test_what_cannot_be_used_is_refused(call, sentence):
  with pytest.raises(InputError, match=sentence):
    call(_sums(1.0, 1.0))


def test_one_session_has_no_spread():
  log = log_of(
    np.ones((2, 1)), np.zeros((2, 1)), np.ones((2, 1)), session_length=2
  )
  with pytest.raises(InputError, match="log: expected 2 sessions or more"):
    guardrails.session_sums([log])
