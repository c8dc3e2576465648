import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax.evaluation import ab_test, segments
from mtf_jax.evaluation.ab_test import EvalResult
from mtf_jax.io import InputError
from mtf_jax.studies import pages
from tests.small_world import small_world


@pytest.fixture(scope="module")
def results():
  """Active users gain 10%, the others nothing."""
  world = small_world()
  rng = np.random.default_rng(0)
  user = rng.choice(64, 2000).astype(np.int32)
  activity = np.asarray(world.user_features)[
    :, world.feature_names.index("activity")
  ]
  edge = np.quantile(activity[np.unique(user)], 2 / 3)
  base = rng.gamma(4.0, size=2000)
  policy = base * np.where(activity[user] >= edge, 1.1, 1.0)
  policy += 0.01 * rng.standard_normal(2000)

  def as_judged(reward):
    return EvalResult(user, reward, np.zeros((2000, 3)), np.ones(2000))

  return as_judged(policy), as_judged(base), world


def test_the_segment_that_gains_is_found(results):
  policy, base, world = results
  rows = segments.gains(policy, base, world)
  found = {(row["feature"], row["segment"]): row for row in rows}
  assert found["activity", "high"]["reward_gain_pct"] == pytest.approx(
    10, abs=0.3
  )
  for segment in ("low", "middle"):
    low, high = found["activity", segment]["reward_gain_ci95"]
    assert -0.5 < low < high < 0.5
  assert [row["users"] for row in rows[1:4]] == [21, 21, 22]


def test_segments_add_up_to_all(results):
  rows = segments.gains(*results)
  everyone = rows[0]
  assert everyone["sessions"] == 2000 and everyone["base_share"] == 1
  for name in ("activity", "history_play", "history_interaction"):
    own = [row for row in rows if row["feature"] == name]
    assert [row["segment"] for row in own] == ["low", "middle", "high"]
    for count in ("users", "sessions"):
      assert sum(row[count] for row in own) == everyone[count]
    total = sum(row["base_share"] * row["reward_gain_pct"] for row in own)
    assert total == pytest.approx(everyone["reward_gain_pct"], rel=1e-9)


def test_a_single_user_has_no_interval(results):
  policy, base, world = results

  def first(results):
    return EvalResult(*(leaf[results.user == base.user[0]] for leaf in results))

  rows = segments.gains(first(policy), first(base), world)
  assert rows[0]["users"] == 1
  assert rows[0]["reward_gain_ci95"] == [None, None]
  assert segments.table("one", rows).rows[0][-1] == ""


def test_table_reads_as_markdown(results):
  rows = segments.gains(*results)
  page = pages.markdown(
    "Progressive training", [segments.table("Segments", rows)], "{}"
  )
  lines = page.splitlines()
  assert "## Segments" in lines
  (line,) = [line for line in lines if line.startswith("| activity: high")]
  assert f"{rows[3]['reward_gain_pct']:+.2f} [" in line


def test_unpaired_policies_and_unknown_features_are_refused(results):
  policy, base, world = results
  with pytest.raises(ValueError, match="expected the same users' sessions"):
    segments.gains(policy._replace(user=base.user[::-1]), base, world)
  bare = world.replace(
    user_features=jnp.zeros_like(world.user_features[:, :1]),
    feature_names=("shoe_size",),
  )
  with pytest.raises(ValueError, match="expected a user feature of user_log"):
    segments.gains(policy, base, bare)


def test_what_is_no_number_is_in_no_segment(results):
  policy, base, world = results
  for reward, message in (
    (np.where(np.arange(2000) == 7, np.nan, base.reward), "finite .* at 7"),
    (np.ma.masked_less(base.reward, 1), "without a mask"),
  ):
    with pytest.raises(InputError, match=f"policy: expected .*{message}"):
      segments.gains(policy._replace(reward=reward), base, world)
    with pytest.raises(InputError, match=f"base: expected .*{message}"):
      segments.gains(policy, base._replace(reward=reward), world)
  features = np.array(world.user_features)
  features[3, world.feature_names.index("activity")] = np.nan
  with pytest.raises(InputError, match=r"user feature activity: .* at 3"):
    segments.gains(policy, base, world.replace(user_features=features))


def test_figures_are_of_the_same_sessions(results):
  policy, base, _ = results
  found = ab_test.figures(policy, base, 6)
  assert found["reward_gain_pct"] == pytest.approx(
    100 * (policy.reward.sum() / base.reward.sum() - 1)
  )
  assert found["hate_rate"] == 0 and np.isnan(found["uvc_gain_pct"])
  with pytest.raises(InputError, match="the same users' sessions"):
    ab_test.figures(policy._replace(user=base.user[::-1]), base, 6)
  with pytest.raises(InputError, match="base: expected finite values"):
    ab_test.figures(policy, base._replace(requests=np.full(2000, np.nan)), 6)
  nothing = base._replace(requests=np.zeros(2000))
  assert np.isnan(ab_test.figures(policy, nothing, 6)["hate_rate_base"])
