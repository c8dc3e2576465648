import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import policies
from mtf_jax.evaluation import critic_check
from mtf_jax.evaluation.critic_check import Compared, Effort
from mtf_jax.io import InputError
from mtf_jax.kernels import exploration
from mtf_jax.studies import pages
from mtf_jax.worlds import env
from mtf_jax.worlds import returns as returns_lib
from tests.small_world import small_world

pytestmark = pytest.mark.usefixtures("quick_to_compile")

_EFFORT = Effort(states=64, continuations=3, sessions=32, max_requests=3)
_ACTION = jnp.linspace(-0.3, 0.3, 10)


def _act(params, observation, rng_key):
  """Answers 0 or explores around it; the half-width is the parameter."""
  del observation
  box = exploration.action_box(jnp.zeros((10,)), -params, params)
  action = exploration.sample_box(rng_key, box)
  return policies.Decision(action, box, exploration.box_log_prob(action, box))


@pytest.fixture(scope="module")
def known():
  """A world where each shown list is worth the user's first feature."""
  world = small_world()
  users = np.asarray(world.population)
  worth = np.abs(np.asarray(world.user_features)[users, 0]) + 0.1
  features = world.user_features.at[users, 0].set(worth)
  world = world.replace(user_features=features)
  slots, length = world.pool.shape[1], world.slate_size
  row = jnp.zeros((world.pool.shape[0],), jnp.int32)
  reward = jnp.asarray(worth)[:, None, None] / length / 2
  table = returns_lib.ExpectedRewards(
    row.at[users].set(np.arange(len(users))),
    jnp.broadcast_to(reward, (len(users), slots, 2)),
  )
  return world, table


def _value(state, observation, action, box):
  """What such a list is worth, in two groups."""
  del action, box
  return jnp.broadcast_to(state * observation[0] / 2, (2,))


def _compare(
  known, holding=0.15, discount=0.9, group_weights=1.0, reward_shift=0.0
):
  world, table = known
  return critic_check.compare_with_returns(
    jax.random.key(0),
    world,
    table,
    _act,
    jnp.asarray(0.15),
    jnp.asarray(0.0),
    jnp.asarray(holding),
    _value,
    jnp.asarray(1.0),
    critic_check.Objective(
      *(jnp.asarray(x) for x in (discount, group_weights, reward_shift))
    ),
    _EFFORT,
  )


def test_a_known_q_is_recovered(known):
  compared = _compare(known, discount=0.0)
  np.testing.assert_allclose(
    compared.true,
    np.broadcast_to(compared.predicted[:, None, :, None], (64, 3, 2, 2)),
    rtol=1e-5,
  )
  found = critic_check.figures(compared)
  value = found["value"]
  for name, expected in (
    ("correlation", 1),
    ("slope", 1),
    ("intercept", 0),
    ("reliability", 1),
  ):
    np.testing.assert_allclose(
      [value[name], *value[f"{name}_ci95"]], expected, atol=1e-4
    )
  for decile in value["deciles"]:
    assert decile["predicted"] == pytest.approx(decile["true"], rel=1e-4)
  # No action matters here, so that there is nothing to correlate with.
  assert found["advantage"]["correlation"] is None
  assert "undefined" in critic_check.table("Q", found).note


def test_weights_and_shift_of_the_groups_count(known):
  plain = _compare(known, discount=0.5)
  weighted = _compare(known, discount=0.5, group_weights=3.0)
  np.testing.assert_allclose(weighted.true, 3 * plain.true, rtol=1e-5)
  np.testing.assert_allclose(weighted.predicted, 3 * plain.predicted, rtol=1e-5)
  shifted = _compare(known, discount=0.5, reward_shift=1.0)
  more = np.asarray(shifted.true - plain.true)
  # Two groups, and at most 1 + 1/2 + 1/4 requests.
  assert np.all(more >= 2 * (1 - 1e-5)) and np.all(more <= 3.5 * (1 + 1e-5))
  # Some rows are the last before the cut, and have one request.
  assert np.isclose(more, 2).any() and more.max() > 3


def test_deviations_are_made_once_or_held(known):
  """Lists are worth the same here, but users leave earlier or later."""
  plain = _compare(known, discount=1.0)
  one_request = np.isclose(
    plain.true, np.asarray(plain.predicted)[:, None, :, None], rtol=1e-5
  )
  once, held = plain.true[..., 0], plain.true[..., 1]
  last = one_request.all(axis=(1, 2, 3))
  # One request left: nothing follows that could differ.
  assert 0 < last.sum() < len(last)
  np.testing.assert_array_equal(once[last], held[last])
  assert np.mean(np.asarray(once != held)[~last]) > 0.1
  # A box of no width holds nothing.
  none = _compare(known, holding=0.0, discount=1.0)
  np.testing.assert_array_equal(none.true[..., 0], none.true[..., 1])
  np.testing.assert_array_equal(none.true[..., 0], once)


def test_value_from_the_start_is_the_sessions_return():
  world = small_world()
  world = world.replace(population=world.population[:16])
  table = returns_lib.expected_rewards(world)
  world_key, policy_key = jax.random.split(jax.random.key(3))
  returns = jax.jit(returns_lib.session_return, static_argnums=(2, 4, 5))(
    world,
    table,
    policies.fixed_action,
    _ACTION,
    2,
    env.observe,
    world_key,
    policy_key,
  )
  action_value = jax.jit(returns_lib.action_value, static_argnums=(2, 7))
  start = env.reset(world_key, world)

  def value(first, discount, max_requests, state=start):
    return action_value(
      world,
      table,
      policies.fixed_action,
      _ACTION,
      state,
      first,
      discount,
      max_requests,
      policy_key,
    )

  whole = value(_ACTION, 1.0, 2)
  np.testing.assert_allclose(whole.reward, returns.expected, rtol=1e-5)
  np.testing.assert_allclose(whole.requests, returns.requests, rtol=1e-6)
  # One request of another action, then the policy: the first request is worth
  # what it is worth alone, the others what they are worth to it.
  other = value(-_ACTION, 1.0, 1)
  np.testing.assert_allclose(other.requests, 1)
  state, _ = env.step(world, start, -_ACTION)
  # Cut after two requests, one is left.
  rest = value(_ACTION, 1.0, 2, state)
  np.testing.assert_allclose(rest.requests, 1)
  both = value(-_ACTION, 1.0, 2)
  going_on = both.requests - other.requests
  assert 0 < going_on <= 1
  np.testing.assert_allclose(
    both.reward, other.reward + going_on * rest.reward, rtol=1e-5
  )
  half = value(-_ACTION, 0.5, 2)
  np.testing.assert_allclose(
    half.reward, other.reward + 0.5 * (both.reward - other.reward), rtol=1e-5
  )


def test_redraw_changes_what_comes_and_nothing_else():
  state = env.reset(jax.random.key(0), small_world())
  other = env.redraw(jax.random.key(1), state)
  changed = {"ring_start", "ring_stride", "noise_key"}
  for name, old, new in zip(state._fields, state, other, strict=True):
    same = jax.tree.map(np.array_equal, old, new)
    assert all(jax.tree.leaves(same)) == (name not in changed)
    assert old is new or jnp.asarray(old).dtype == jnp.asarray(new).dtype
  assert int(other.ring_stride) % 2 == 1


def test_noise_of_the_returns_is_taken_out():
  """Returns are twice the prediction, something hidden, and noise."""
  rng = np.random.default_rng(0)
  num_states, continuations = 4000, 8
  user = rng.integers(500, size=num_states)
  predicted = rng.standard_normal((num_states, 2)) + 5
  noise = rng.standard_normal((num_states, continuations, 2))
  hidden = rng.standard_normal(num_states)
  other = rng.standard_normal((num_states, continuations, 2))
  noise = np.stack([noise, other], axis=-1)
  # Held deviations count three times.
  weight = np.array([2, 6])
  true = 1 + predicted[..., None] * weight + hidden[:, None, None]
  compared = Compared(user, predicted, true[:, None] + 8 * noise)
  found = critic_check.figures(compared)
  value, advantage = found["value"], found["advantage"]

  def holds(part, name, expected):
    low, high = part[f"{name}_ci95"]
    assert low < expected < high
    assert high - low < 0.6 * max(expected, 1)

  # Variances: 4 of what is predicted, 1 hidden, 64 / 8 of noise.
  holds(value, "slope", 2)
  holds(value, "reliability", 5 / 13)
  holds(value, "correlation", (4 / 13) ** 0.5)
  holds(value, "correlation_without_noise", (4 / 5) ** 0.5)
  low, high = value["intercept_ci95"]
  assert low < 1 < high
  # The hidden part is the same for both actions.
  holds(advantage, "slope", 2)
  holds(advantage, "reliability", 8 / 24)
  holds(advantage, "correlation_without_noise", 1)
  held = found["advantage_held"]
  assert held["slope"] == pytest.approx(6, rel=0.02)
  assert held["reliability"] == pytest.approx(72 / 88, rel=0.02)
  assert sum(d["predicted"] for d in value["deciles"]) / 10 == pytest.approx(
    value["mean_predicted"]
  )
  page = pages.markdown(
    "Progressive training", [critic_check.table("Q", found)], "{}"
  )
  assert page.count("\n| ") == 12


def test_what_is_no_number_is_in_no_decile():
  rng = np.random.default_rng(0)
  compared = critic_check.Compared(
    user=np.arange(20),
    predicted=rng.random((20, 2)),
    true=rng.random((20, 3, 2, 2)),
  )
  critic_check.figures(compared, replicates=10)
  for field, name in (("predicted", "Q"), ("true", "return")):
    values = np.array(getattr(compared, field))
    values[4] = np.nan
    with pytest.raises(InputError, match=f"^{name}: expected finite values"):
      critic_check.figures(compared._replace(**{field: values}))
    masked = np.ma.masked_less(getattr(compared, field), 0.5)
    with pytest.raises(InputError, match=f"^{name}: .* without a mask"):
      critic_check.figures(compared._replace(**{field: masked}))
