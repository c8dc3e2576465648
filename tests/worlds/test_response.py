"""The response model: sampling against its expectation, and its thresholds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax.data import behaviours
from mtf_jax.fitting import population
from mtf_jax.worlds import response

VALID, PLAY, FINISH, CLICK, LONG = range(5)
LIKE, COMMENT, FOLLOW, FORWARD, HATE = range(5, 10)


@pytest.fixture(scope="module")
def model():
  drawn = population.synthetic_response(np.random.default_rng(3), 40, 60)
  duration = drawn.duration.copy()
  duration[:2] = [np.inf, 5.0]
  drawn = drawn._replace(
    duration=duration,
    duration_bucket=behaviours.duration_bucket(duration),
    # Interactions often enough to be counted.
    interaction_shift=np.float32(3.0),
    user_interaction=np.clip(drawn.user_interaction, -1, 1),
  )
  return jax.tree.map(jnp.asarray, drawn)


ITEMS = jnp.array([0, 1, 17, 30, 31, 59], jnp.int32)


@pytest.fixture(scope="module")
def samples(model):
  uniforms = jax.random.uniform(jax.random.key(0), (200_000, len(ITEMS), 2))

  @jax.jit
  def sample(uniforms, model):
    one = jax.vmap(response.sample_responses, in_axes=(0, None, None, None))
    return one(uniforms, model, 7, ITEMS)

  return np.asarray(sample(uniforms, model))


def test_expectation_is_the_mean_of_the_samples(model, samples):
  expected = np.asarray(
    jax.jit(response.expected_responses)(model, jnp.int32(7), ITEMS)
  )
  error = samples.std(axis=0) / np.sqrt(len(samples)) + 1e-6
  np.testing.assert_array_less(
    np.abs(samples.mean(axis=0) - expected) / error, 5.0
  )
  # The test has power: rates are known to a few percent.
  assert (error[2:, LIKE] < 0.03 * expected[2:, LIKE]).all()


def test_behaviours_are_thresholds_of_the_play_time(model, samples):
  play = samples[..., PLAY]
  duration = np.asarray(model.duration)[np.asarray(ITEMS)][None, :]
  for column, happened in (
    (VALID, play > 10.0),
    (FINISH, play >= duration),
    (CLICK, play >= np.minimum(7.0, duration)),
    (LONG, play >= np.minimum(18.0, duration)),
  ):
    np.testing.assert_array_equal(samples[..., column], happened)
  assert (play >= 0).all()
  assert not samples[:, 0, FINISH].any()  # a picture has no end
  assert set(np.unique(samples[..., LIKE:])) == {0.0, 1.0}


def test_one_uniform_serves_five_interactions(model, samples):
  """Joint rates of pairs given the play time, against the logistic chain."""
  weight = np.zeros((5, 5))
  play = samples[:20_000, 2, PLAY]
  item, user = int(ITEMS[2]), 7
  model = jax.tree.map(np.asarray, model)
  reach = float(model.user_factors[user] @ model.item_factors[item])
  beyond = np.logaddexp(0.0, -reach)
  knots = np.arange(response.PLAY_KNOTS) * response.KNOT_SPACING
  for pattern in range(32):
    bits = [(pattern >> n) & 1 for n in range(5)]
    probability = np.ones(len(play))
    for n in range(5):
      logit = np.interp(np.log1p(play), knots, model.interaction_play[n])
      logit += model.user_interaction[user, n]
      logit += model.item_interaction[item, n]
      logit += 3.0 * (n != 4) - model.interaction_reach[n] * beyond
      logit += sum(model.interaction_coupling[n, m] * bits[m] for m in range(n))
      p = 1 / (1 + np.exp(-logit))
      probability *= p if bits[n] else 1 - p
    weight += probability.mean() * np.outer(bits, bits)
  found = samples[:20_000, 2, LIKE:]
  joint = found.T @ found / len(found)
  error = np.sqrt(np.maximum(weight, 1e-7) / len(found))
  np.testing.assert_array_less(np.abs(joint - weight) / error, 5.0)
  assert joint[0, 2] > 0  # like with follow was seen


def test_coupling_makes_behaviours_occur_together(model):
  uniforms = jax.random.uniform(jax.random.key(5), (100_000, 1, 2))
  one = jax.vmap(response.sample_responses, in_axes=(0, None, None, None))
  found = np.asarray(jax.jit(one)(uniforms, model, 7, ITEMS[3:4]))[:, 0]
  like, follow = found[:, LIKE], found[:, FOLLOW]
  assert np.mean(like * follow) > 2 * like.mean() * follow.mean()


def test_shifts_move_what_they_name(model):
  expected = jax.jit(response.expected_responses)
  base = expected(model, jnp.int32(3), ITEMS)
  watched = expected(
    model._replace(watch_shift=jnp.float32(0.5)), jnp.int32(3), ITEMS
  )
  assert (watched[:, :FINISH] > base[:, :FINISH]).all()
  liked = expected(
    model._replace(interaction_shift=jnp.float32(3.5)), jnp.int32(3), ITEMS
  )
  np.testing.assert_array_equal(liked[:, :LIKE], base[:, :LIKE])
  assert (liked[:, LIKE:HATE] > base[:, LIKE:HATE]).all()
  assert expected._cache_size() == 1  # numbers are leaves


def test_out_of_reach_is_watched_less(model):
  near = model._replace(user_factors=0 * model.user_factors)
  near = near._replace(user_factors=near.user_factors.at[:, -1].set(1.0))
  far = near._replace(
    item_factors=near.item_factors.at[:, -1].set(-9.0),
    reach_scale=jnp.float32(0.3),
  )
  near = near._replace(
    item_factors=near.item_factors.at[:, -1].set(9.0),
    reach_scale=jnp.float32(0.3),
  )
  gap = response.interest(near, 3, ITEMS) - response.interest(far, 3, ITEMS)
  np.testing.assert_allclose(gap, 0.3 * 9.0, rtol=1e-5)


def test_play_fraction_keeps_order_and_end():
  play = np.array([0.0, 0.5, 3.0, 19.99, 20.0, 20.01, 90.0])
  fraction = response.play_fraction(play, np.full(7, 20.0))
  assert (np.diff(fraction) > 0).all()
  assert fraction[0] == 0.0
  assert fraction[4] == 1.0
  seconds = response._play_seconds(
    jnp.asarray(fraction, jnp.float32), jnp.full(7, 20.0)
  )
  np.testing.assert_allclose(seconds, play, rtol=1e-5, atol=1e-6)


def test_bad_shapes(model):
  with pytest.raises(ValueError, match="uniforms: expected shape"):
    response.sample_responses(jnp.zeros((6, 3)), model, 0, ITEMS)
  with pytest.raises(ValueError, match=r"uniforms: .*dtype"):
    response.sample_responses(jnp.zeros((6, 2), jnp.int32), model, 0, ITEMS)
  broken = model._replace(play_table=model.play_table[:, :9])
  with pytest.raises(ValueError, match="play_table: expected shape"):
    response.expected_responses(broken, 0, ITEMS)
