"""The fit: recovers a known model, and meets the log on held-out days."""

import kuairand_files
import numpy as np
import pytest

from mtf_jax.data import behaviours, kuairand
from mtf_jax.fitting import reach_fit, response_fit
from mtf_jax.io import InputError

INDEX = {name: n for n, name in enumerate(behaviours.BEHAVIOURS)}


def _observed(log):
  play, duration = log.play_seconds, log.duration
  columns = [
    play > 10,
    play,
    play >= duration,
    play >= np.minimum(7, duration),
    play >= np.minimum(18, duration),
    *(getattr(log, name) for name in behaviours.INTERACTIONS),
  ]
  return np.stack(columns, axis=1).astype(np.float64)


def _intraclass(groups, label):
  """Intra-class correlation by analysis of variance."""
  _, groups = np.unique(groups, return_inverse=True)
  n, total = np.bincount(groups), np.bincount(groups, label)
  mean, size = total.sum() / n.sum(), len(n)
  between = np.sum(n * (total / n - mean) ** 2) / (size - 1)
  within = np.sum(total * (1 - total / n)) / (n.sum() - size)
  n0 = (n.sum() - np.sum(n**2) / n.sum()) / (size - 1)
  return (between - within) / (between + (n0 - 1) * within)


@pytest.fixture(scope="module")
def recovered(tmp_path_factory):
  folder = tmp_path_factory.mktemp("log")
  truth = kuairand_files.write_folder(
    folder, num_users=400, num_items=150, num_rows=24_000
  )
  catalogue = kuairand.read_catalogue(folder)
  log, _ = kuairand.read_log(folder, catalogue)
  fitted, constants = response_fit.fit_response(
    log, catalogue, np.random.default_rng(0)
  )
  return truth, catalogue, log, fitted, constants


def test_recovers_the_effects(recovered):
  truth, _, log, fitted, constants = recovered
  # 60 impressions a user and 160 an item: draws near the truth.
  users, items = np.unique(log.user), np.unique(log.item)
  for a, b in (
    (truth.user_interest[users], fitted.user_interest[users]),
    (
      truth.item_interest[items],
      fitted.item_interest[items],
    ),
  ):
    assert np.corrcoef(a, b)[0, 1] > 0.6
  np.testing.assert_allclose(
    constants.user_interest_scale, truth.user_interest.std(), rtol=0.25
  )
  like = behaviours.INTERACTIONS.index("like")
  often = np.bincount(log.user, minlength=400) > 50
  assert (
    np.corrcoef(
      truth.user_interaction[often, like], fitted.user_interaction[often, like]
    )[0, 1]
    > 0.3
  )


def test_reproduces_the_log(recovered):
  _, _, log, fitted, _ = recovered
  observed = _observed(log)
  # Ten simulations: the few likes of one are known to 5% only.
  simulated = np.concatenate(
    [
      kuairand_files.simulate(fitted, log.user, log.item, seed)
      for seed in range(10, 20)
    ]
  )
  for name in ("valid", "finish", "click", "long_view", "play_seconds", "like"):
    n = INDEX[name]
    assert simulated[:, n].mean() == pytest.approx(
      observed[:, n].mean(), rel=0.1
    ), name
  deciles = np.linspace(0.2, 0.9, 8)
  np.testing.assert_allclose(
    np.quantile(simulated[:, 1], deciles),
    np.quantile(observed[:, 1], deciles),
    rtol=0.12,
  )


def test_same_seed_same_fit(recovered):
  _, catalogue, log, fitted, _ = recovered
  again, other = (
    response_fit.fit_response(log, catalogue, np.random.default_rng(seed))[0]
    for seed in (0, 1)
  )
  for a, b in zip(fitted, again, strict=True):
    np.testing.assert_array_equal(a, b)
  assert not np.array_equal(fitted.user_interest, other.user_interest)


def test_lengths_without_rows_are_named_all_at_once(recovered):
  _, catalogue, log, _, _ = recovered
  bucket = behaviours.duration_bucket(log.duration)
  part = log.select(~np.isin(bucket, (0, 3, 11, 12)))
  with pytest.raises(
    InputError,
    match=r"found none of 0 to 8 s, 16 to 22 s, 270 s or more, pictures \(no"
    rf" duration\) among {len(part.user)};",
  ):
    response_fit.fit_response(part, catalogue, np.random.default_rng(0))


def test_a_log_of_random_exposure_alone_is_refused(recovered):
  _, catalogue, log, _, _ = recovered
  random = log._replace(is_rand=np.ones_like(log.is_rand))
  with pytest.raises(
    InputError, match=r"\(is_rand 0\), found none among 24000: .*standard log"
  ):
    response_fit.fit_response(random, catalogue, np.random.default_rng(0))


def test_categories_of_many_values_alone_leave_no_column():
  codes = np.arange(100)[:, None]
  assert reach_fit._one_hot(codes, 64).shape == (100, 0)
  both = np.concatenate([codes, codes % 2], axis=1)
  np.testing.assert_array_equal(reach_fit._one_hot(both, 64)[3], [0, 1])


@pytest.mark.skipif(not kuairand_files.REAL.is_dir(), reason="no KuaiRand log")
def test_held_out_days_of_the_real_log():
  catalogue = kuairand.read_catalogue(kuairand_files.REAL)
  log, _ = kuairand.read_log(kuairand_files.REAL, catalogue)
  earlier, later = kuairand.split_days(log, 20220505)
  fitted, _ = response_fit.fit_response(
    earlier, catalogue, np.random.default_rng(0)
  )
  observed = _observed(later)
  simulated = kuairand_files.simulate(fitted, later.user, later.item, 1)
  for name in ("valid", "finish", "click", "long_view", "play_seconds"):
    n = INDEX[name]
    assert simulated[:, n].mean() == pytest.approx(
      observed[:, n].mean(), rel=0.05
    ), name
  deciles = np.linspace(0.2, 0.9, 8)  # the first is in the atom at 0 s
  np.testing.assert_allclose(
    np.quantile(simulated[:, 1], deciles),
    np.quantile(observed[:, 1], deciles),
    rtol=0.1,
  )
  # Rare behaviours: within 30% or three standard errors of their counts. The
  # like rate of the two days is 15% below that of the ten days before.
  for name in behaviours.INTERACTIONS:
    n = INDEX[name]
    count = observed[:, n].sum()
    gap = abs(simulated[:, n].sum() - count)
    assert gap < max(0.3 * count, 4 * np.sqrt(count)), name
  # Heterogeneity, where the earlier days have the rows to show it.
  again = kuairand_files.simulate(fitted, earlier.user, earlier.item, 2)
  known = _observed(earlier)
  for group in (earlier.user, earlier.item):
    for name in ("click", "long_view"):
      n = INDEX[name]
      assert _intraclass(group, again[:, n]) == pytest.approx(
        _intraclass(group, known[:, n]), rel=0.25
      ), name
