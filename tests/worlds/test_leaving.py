import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import policies
from mtf_jax.worlds import leaving
from mtf_jax.worlds import rollout as rollout_lib

_TAGS = jnp.array([1, 1, 2, 65], jnp.int32)


def _probabilities(name, satisfaction, tags=_TAGS, requests=6):
  model = leaving.make_leaving(name)
  state, out = model.reset(), []
  for _ in range(requests):
    state, probability = model.update(
      state, jnp.full(tags.shape, satisfaction), tags
    )
    out.append(float(probability))
  return np.array(out)


@pytest.mark.parametrize("name", leaving.LEAVING_MODELS)
def test_contentment_keeps_users(name):
  content, bored = _probabilities(name, 1.0), _probabilities(name, -1.0)
  assert np.all((content > 0) & (bored < 1))
  assert np.all(content <= bored)
  assert content[-1] < bored[-1]


def test_satisfaction_floor_by_hand():
  model = leaving.SatisfactionFloor(
    memory=0.5, start=0.2, floor=-0.1, softness=0.5
  )
  level, probability = model.update(
    model.reset(), jnp.array([1.0, -2.0]), _TAGS[:2]
  )
  np.testing.assert_allclose(level, 0.5 * 0.2 + 0.5 * -0.5)
  np.testing.assert_allclose(
    probability, 1 / (1 + np.exp(-(-0.1 + 0.15) / 0.5)), rtol=1e-6
  )


def test_temper_budget_by_hand():
  model = leaving.TemperBudget(budget=5.0, tolerance=1.0, softness=1.0)
  satisfied, _ = model.update(model.reset(), jnp.full(2, 3.0), _TAGS[:2])
  assert satisfied == 5.0  # A budget is never refilled.
  annoyed, _ = model.update(model.reset(), jnp.full(2, -9.0), _TAGS[:2])
  assert annoyed == 3.0  # At most 2 a request.


def test_boredom_counts_repeated_tags():
  model = leaving.make_leaving("net_exposure")
  neutral = jnp.zeros(4)
  state, first = model.update(model.reset(), neutral, _TAGS)
  np.testing.assert_allclose(state.views[1], 3.0)  # 65 shares the slot of 1.
  _, again = model.update(state, neutral, _TAGS)
  _, fresh = model.update(state, neutral, _TAGS + 10)
  assert again > fresh
  np.testing.assert_allclose(first, fresh, rtol=1e-6)


def test_unknown_name_is_refused():
  with pytest.raises(ValueError, match="leaving"):
    leaving.make_leaving("never")


@pytest.mark.parametrize("name", leaving.LEAVING_MODELS)
def test_default_mean_length_is_3_to_15_requests(small_world, name):
  rows = rollout_lib.rollout(
    jax.random.key(1),
    small_world.with_leaving(name),
    policies.fixed_action,
    jnp.zeros(10),
    1024,
    30,
  )
  served = np.asarray(rows.valid & ~rows.log.bootstrap_only).sum(axis=1)
  assert 3 < served.mean() < 15
