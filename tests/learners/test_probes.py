"""Problems with known answers: what the learner ends up believing and doing."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import networks
from mtf_jax.data import session_log, transitions
from mtf_jax.learners.integrated_rl import Hyperparams, integrated_rl
from mtf_jax.training import loop
from tests.session_logs import log_of

# A hand-written policy: one action whatever the state, not squashed. Tests put
# their own action into its parameters, so that they share a compiled program.
CONSTANT_ACTOR = networks.Actor(
  init=lambda rng_key, observation: jnp.zeros(1),
  apply=lambda params, observation: jnp.broadcast_to(
    params, (observation.shape[0], *params.shape)
  ),
)

# A hand-written critic, `Q = slope . a`, one group of one.
SLOPE_CRITIC = networks.Critic(
  init=lambda rng_key, observation, action, box: jnp.zeros(action.shape),
  apply=lambda params, observation, action, box: jnp.einsum(
    "a,ba->b", params, action
  )[:, None, None],
)

# A hand-written critic that cannot see the action.
BLIND_CRITIC = networks.Critic(
  init=lambda rng_key, observation, action, box: jnp.zeros(observation.shape),
  apply=lambda params, observation, action, box: (observation @ params)[
    :, None, None
  ],
)

_learner = functools.cache(integrated_rl)


def train(
  actor,
  critic,
  log,
  hyperparams,
  num_updates=300,
  batch_size=64,
  action=None,
  slope=None,
):
  session_log.validate(log)
  dataset = transitions.device_dataset(log)
  learner = _learner(actor, critic)
  batch = transitions.sample_transitions(jax.random.key(9), dataset, 1)
  example = jax.tree.map(lambda leaf: leaf[0], batch)
  learner_state = learner.init(jax.random.key(0), example, hyperparams)
  given = {"actor": action, "critic": slope}
  for name, value in given.items():
    if value is not None:
      fields = (f"{name}_params", f"target_{name}_params")
      learner_state = learner_state._replace(
        **{field: jnp.array(value) for field in fields}
      )
  state = loop.start(jax.random.key(1), learner_state)
  rows = []
  state = loop.train(
    learner,
    state,
    dataset,
    num_updates,
    batch_size=batch_size,
    chunk_size=100,
    on_chunk=lambda _, metrics: rows.append(metrics),
  )
  return learner, state.learner, rows


def values(critic, log, hyperparams, num_updates=300):
  """Mean value `[N, G]` of each logged row after training."""
  _, state, _ = train(
    CONSTANT_ACTOR,
    critic,
    log,
    hyperparams,
    num_updates,
  )
  q = critic.apply(state.critic_params, log.observation, log.action, log.box)
  return np.asarray(q).mean(2)


FAST = Hyperparams(
  critic_learning_rate=1e-2, actor_learning_rate=0.0, target_step_size=0.3
)
CRITICS = [
  networks.mlp_critic(1, 2, (32, 32)),
  networks.box_critic(1, 2, (32,)),
]


@pytest.mark.parametrize("critic", CRITICS, ids=["mlp", "box"])
def test_constant_reward(critic):
  log = log_of(np.ones((8, 2)), np.zeros((8, 1)), np.full((8, 1), 1.5))
  np.testing.assert_allclose(values(critic, log, FAST), 1.5, atol=0.01)


@pytest.mark.parametrize("critic", CRITICS, ids=["mlp", "box"])
def test_reward_known_from_the_state(critic):
  rng = np.random.default_rng(0)
  observation = rng.uniform(-1, 1, (256, 2))
  action = rng.uniform(-0.15, 0.15, (256, 1))
  reward = np.stack([observation[:, 0], 1 - observation[:, 1]], axis=1)
  groups = (
    networks.mlp_critic(2, 2, (32, 32))
    if critic is CRITICS[0]
    else networks.box_critic(2, 2, (32, 32))
  )
  found = values(groups, log_of(observation, action, reward), FAST, 600)
  np.testing.assert_allclose(found, reward, atol=0.12)
  assert np.abs(found - reward).mean() < 0.03


def test_credit_reaches_back_two_steps_with_gamma():
  """Reward 1 at the end of three requests: gamma^2, gamma, 1."""
  observation = np.tile(np.eye(3), (4, 1))
  reward = np.tile([[0.0], [0.0], [1.0]], (4, 1))
  log = log_of(observation, np.zeros((12, 1)), reward, session_length=3)
  found = values(CRITICS[0], log, FAST._replace(discount=0.7))
  np.testing.assert_allclose(
    found[:, 0], np.tile([0.49, 0.7, 1.0], 4), atol=0.02
  )


def test_a_cut_log_bootstraps_where_an_exit_does_not():
  """The same request for ever, reward 1 and gamma 0.5: 2, but 1 at an exit."""
  rows = np.tile([[1.0, 0.0], [1.0, 0.0]], (4, 1))
  cut = log_of(
    rows,
    np.zeros((8, 1)),
    np.tile([[1.0], [0.0]], (4, 1)),
    session_length=2,
    terminal=np.zeros(8, bool),
    bootstrap_only=np.tile([False, True], 4),
  )
  exit_ = log_of(rows, np.zeros((8, 1)), np.ones((8, 1)))
  hyperparams = FAST._replace(discount=0.5)
  np.testing.assert_allclose(values(CRITICS[0], cut, hyperparams), 2, atol=0.02)
  np.testing.assert_allclose(
    values(CRITICS[0], exit_, hyperparams), 1, atol=0.02
  )


@pytest.mark.parametrize(("sharpness", "first"), [(0.0, 1.9), (60.0, 1.0)])
def test_phi_makes_an_outside_target_worthless(sharpness, first):
  """The policy stays at 0.5, the box at 0.15: nothing is left after phi."""
  observation = np.tile(np.eye(2), (4, 1))
  log = log_of(observation, np.zeros((8, 1)), np.ones((8, 1)), session_length=2)
  _, state, rows = train(
    CONSTANT_ACTOR,
    BLIND_CRITIC,
    log,
    FAST._replace(sharpness=sharpness),
    num_updates=600,
    action=[0.5],
  )
  np.testing.assert_allclose(state.critic_params, [first, 1.0], atol=0.02)
  np.testing.assert_allclose(
    rows[-1].bootstrap_weight, np.exp(-sharpness * 0.35), rtol=1e-4
  )


@pytest.mark.parametrize(
  ("slope", "penalty_scale", "sharpness"),
  [(2.0, 0.1, 5.0), (-2.0, 0.1, 5.0), (2.0, 0.05, 10.0), (2.0, 1.0, 5.0)],
)
def test_the_actor_stops_where_eta_and_sharpness_say(
  slope, penalty_scale, sharpness
):
  """The optimum is far outside the box.

  `slope a - eta (exp(kappa e) - 1)` is largest at `e = log(slope / (eta
  kappa)) / kappa`, or at the edge itself where that is negative.
  """
  log = log_of(np.ones((4, 1)), np.zeros((4, 1)), np.zeros((4, 1)))
  _, state, rows = train(
    CONSTANT_ACTOR,
    SLOPE_CRITIC,
    log,
    Hyperparams(
      critic_learning_rate=0.0,
      actor_learning_rate=5e-3,
      penalty_scale=penalty_scale,
      sharpness=sharpness,
    ),
    num_updates=400,
    action=[0.0],
    slope=[slope],
  )
  excess = np.log(abs(slope) / (penalty_scale * sharpness)) / sharpness
  expected = np.sign(slope) * (0.15 + max(excess, 0))
  np.testing.assert_allclose(state.actor_params, [expected], atol=0.01)
  np.testing.assert_allclose(
    np.mean(rows[-1].exceedance), max(excess, 0), atol=0.01
  )


@pytest.mark.parametrize(("max_norm", "reached"), [(np.inf, 4), (1.0, 0.3)])
def test_a_policy_far_outside_comes_back_without_overflow(max_norm, reached):
  """A wrong critic drove it to 50 half-widths and pushes on.

  Without clipping Adam remembers the first gradients, of 1e14, and slows down.
  """
  log = log_of(np.ones((4, 1)), np.zeros((4, 1)), np.zeros((4, 1)))
  _, state, rows = train(
    CONSTANT_ACTOR,
    SLOPE_CRITIC,
    log,
    Hyperparams(
      critic_learning_rate=0.0,
      actor_learning_rate=0.02,
      sharpness=10.0,
      max_gradient_norm=max_norm,
    ),
    num_updates=600,
    action=[8.0],
    slope=[2.0],
  )
  assert rows[0].exceedance[0] > 7
  for row in rows:
    assert np.isfinite(row.actor_loss).all()
    assert np.isfinite(row.actor_gradient_norm).all()
  assert np.all(np.abs(state.actor_params) < reached)


@pytest.mark.parametrize("build", [networks.mlp_actor, networks.ple_actor])
def test_a_learnt_policy_finds_the_best_action_inside_its_box(build):
  """Reward `1 - (a - s / 10)^2 / 0.01`, known only through the log."""
  rng = np.random.default_rng(0)
  observation = rng.uniform(-1, 1, (2048, 1))
  action = rng.uniform(-0.15, 0.15, (2048, 2))
  miss = ((action - observation / 10) ** 2).sum(1, keepdims=True)
  log = log_of(observation, action, 1 - miss / 0.01)
  actor = build(2, (32,)) if build is networks.mlp_actor else build(1)
  learner, state, _ = train(
    actor,
    networks.box_critic(1, 2, (32,), quadratic=True),
    log,
    Hyperparams(critic_learning_rate=2e-2, actor_learning_rate=5e-3),
    num_updates=600,
  )
  states = np.linspace(-0.9, 0.9, 7, dtype=np.float32)[:, None]
  found = jax.vmap(learner.act, in_axes=(None, 0, None))(
    learner.policy(state), states, jax.random.key(0)
  )
  np.testing.assert_allclose(found, np.hstack([states, states]) / 10, atol=0.03)


def test_rows_to_find_a_small_advantage():
  """The action explains 0.2% of the variance of the return.

  `return = V(s) + g(s) . epsilon + noise`. With 20,000 rows the slope of the
  box-aware critics points where g does, that of the free-form critics much
  less so; `benchmarks/critic_rows.py` shows how both depend on the rows.
  """
  from benchmarks import critic_rows

  problem = critic_rows.Problem(features=8, components=4)
  box = critic_rows.alignment("box", problem, num_rows=20_000, num_updates=500)
  mlp = critic_rows.alignment("mlp", problem, num_rows=20_000, num_updates=500)
  assert box > 0.5
  assert mlp < box - 0.1
