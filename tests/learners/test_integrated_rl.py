import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtf_jax import networks
from mtf_jax.data.transitions import Transition
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.learners.base import Normalization, normalization_from
from mtf_jax.learners.integrated_rl import Hyperparams, integrated_rl

S, A, G, M, B = 3, 2, 2, 3, 16
SIZES = (8, 7)


def make_batch(seed, batch_size=B, half_width=0.15):
  """Random transitions: some end, and boxes that actions may leave."""
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)

  def box():
    centre = rng.uniform(-0.5, 0.5, (batch_size, A)).astype(np.float32)
    return ActionBox(
      centre - np.float32(half_width), centre + np.float32(half_width)
    )

  return Transition(
    observation_tm1=normal(batch_size, S),
    action_tm1=rng.uniform(-1, 1, (batch_size, A)).astype(np.float32),
    box_tm1=box(),
    r_t=3 * rng.uniform(0, 1, (batch_size, G)).astype(np.float32),
    discount_t=(rng.uniform(size=batch_size) > 0.3).astype(np.float32),
    observation_t=normal(batch_size, S),
    box_t=box(),
    action_t=rng.uniform(-1, 1, (batch_size, A)).astype(np.float32),
    action_logged_t=rng.uniform(size=batch_size) > 0.4,
  )


def example_of(batch):
  return jax.tree.map(lambda leaf: leaf[0], batch)


def make(hyperparams, critic=None, normalization=None, **options):
  critic = critic or networks.mlp_critic(G, M, SIZES)
  learner = integrated_rl(networks.mlp_actor(A, SIZES), critic, **options)
  state = learner.init(
    jax.random.key(0), example_of(make_batch(0)), hyperparams, normalization
  )
  # Policies whose actions leave some boxes and stay in others.
  grown = jax.tree.map(jnp.copy, state.actor_params)
  last = grown["params"]["MLP_0"]["Dense_2"]
  last["kernel"] = last["kernel"] * 60
  target = jax.tree.map(lambda leaf: leaf * 0.9, grown)
  return learner, state._replace(actor_params=grown, target_actor_params=target)


class Reference:
  """The update of the paper in NumPy float64, one critic at a time.

  Written from the equations: nothing of the library is used, and every
  derivative is spelled out.
  """

  def __init__(self, state):
    numpy = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state)
    self.c = numpy.hyperparams
    self.norm = numpy.normalization
    self.actor = self._actor(numpy.actor_params)
    self.target_actor = self._actor(numpy.target_actor_params)
    self.critics = self._critics(numpy.critic_params)
    self.target_critics = self._critics(numpy.target_critic_params)
    self.actor_adam = [[0 * p, 0 * p] for p in self.actor]
    self.critic_adam = {
      key: [[0 * p, 0 * p] for p in value]
      for key, value in self.critics.items()
    }
    self.count = 0

  @staticmethod
  def _actor(params):
    layers = params["params"]["MLP_0"]
    return [
      layers[f"Dense_{i}"][name]
      for i in range(3)
      for name in ("kernel", "bias")
    ]

  @staticmethod
  def _critics(params):
    p = params["params"]
    critics = {}
    for g in range(G):
      for m in range(M):
        first = np.concatenate(
          [
            p["value_0_kernel_observation"][g, m],
            p["value_0_kernel_action"][g, m],
          ],
          axis=1,
        )
        critics[g, m] = [
          first.T,
          p["value_0_bias"][g, m],
          p["value_1_kernel"][g, m].T,
          p["value_1_bias"][g, m],
          p["value_2_kernel"][g, m].T,
          p["value_2_bias"][g, m],
        ]
    return critics

  @staticmethod
  def forward(params, x):
    w1, b1, w2, b2, w3, b3 = params
    h1 = np.maximum(x @ w1 + b1, 0)
    h2 = np.maximum(h1 @ w2 + b2, 0)
    return h2 @ w3 + b3, (x, h1, h2)

  @staticmethod
  def backward(params, saved, d_out):
    w1, _, w2, _, w3, _ = params
    x, h1, h2 = saved
    d_h2 = (d_out @ w3.T) * (h2 > 0)
    d_h1 = (d_h2 @ w2.T) * (h1 > 0)
    gradient = [
      x.T @ d_h1,
      d_h1.sum(0),
      h1.T @ d_h2,
      d_h2.sum(0),
      h2.T @ d_out,
      d_out.sum(0),
    ]
    return gradient, d_h1 @ w1.T

  def _adam(self, params, gradients, moments, rate, norm):
    clip = min(1.0, self.c.max_gradient_norm / norm)
    for p, g, moment in zip(params, gradients, moments, strict=True):
      g = g * clip
      moment[0] = 0.9 * moment[0] + 0.1 * g
      moment[1] = 0.999 * moment[1] + 0.001 * g**2
      m_hat = moment[0] / (1 - 0.9**self.count)
      v_hat = moment[1] / (1 - 0.999**self.count)
      p -= rate * m_hat / (np.sqrt(v_hat) + 1e-8)

  def _soft(self, targets, params):
    tau = self.c.target_step_size
    for target, p in zip(targets, params, strict=True):
      target += tau * (p - target)

  @staticmethod
  def _exceedance(action, box):
    over = np.maximum(action - box.upper, 0)
    under = np.maximum(box.lower - action, 0)
    return (over + under).sum(1), (over > 0) * 1.0 - (under > 0) * 1.0

  def update(self, batch):
    b = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), batch)
    c, size = self.c, b.discount_t.shape[0]
    self.count += 1
    s = (b.observation_tm1 - self.norm.mean) / self.norm.scale
    s_t = (b.observation_t - self.norm.mean) / self.norm.scale

    a_t = np.tanh(self.forward(self.target_actor, s_t)[0])
    phi = np.exp(-c.sharpness * self._exceedance(a_t, b.box_t)[0])
    gradients, critic_loss = {}, 0.0
    for (g, m), params in self.critics.items():
      q_t = self.forward(self.target_critics[g, m], np.hstack([s_t, a_t]))[0]
      y = b.r_t[:, g] + c.reward_shift[g]
      y = y + c.discount * b.discount_t * phi * q_t[:, 0]
      q, saved = self.forward(params, np.hstack([s, b.action_tm1]))
      error = q[:, 0] - y
      critic_loss += np.sum(error**2) / (size * G * M)
      d_q = 2 * error / (size * G * M)
      gradients[g, m] = self.backward(params, saved, d_q[:, None])[0]
    norm = np.sqrt(
      sum(np.sum(leaf**2) for leaves in gradients.values() for leaf in leaves)
    )
    for key, params in self.critics.items():
      self._adam(
        params,
        gradients[key],
        self.critic_adam[key],
        c.critic_learning_rate,
        norm,
      )
      self._soft(self.target_critics[key], params)

    out, actor_saved = self.forward(self.actor, s)
    a = np.tanh(out)
    e, sign = self._exceedance(a, b.box_tm1)
    q = np.zeros((size, G, M))
    saved = {}
    for (g, m), params in self.critics.items():
      value, saved[g, m] = self.forward(params, np.hstack([s, a]))
      q[:, g, m] = value[:, 0]
    mean, std = q.mean(2), q.std(2)
    loss = -(c.group_weights * (mean - c.uncertainty_scale * std)).sum(1)
    loss = loss + c.penalty_scale * np.expm1(c.sharpness * e)
    d_e = c.penalty_scale * c.sharpness * np.exp(c.sharpness * e)
    d_a = d_e[:, None] * sign
    for (g, m), params in self.critics.items():
      d_std = (q[:, g, m] - mean[:, g]) / (M * std[:, g])
      d_q = c.group_weights[g] * (-1 / M + c.uncertainty_scale * d_std)
      d_a += self.backward(params, saved[g, m], d_q[:, None])[1][:, S:]
    d_out = d_a * (1 - a**2) / size
    gradient = self.backward(self.actor, actor_saved, d_out)[0]
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in gradient))
    self._adam(
      self.actor, gradient, self.actor_adam, c.actor_learning_rate, norm
    )
    self._soft(self.target_actor, self.actor)
    return critic_loss, loss.mean(), e.mean(), phi[b.discount_t > 0].mean()


@pytest.mark.parametrize("num_updates", [1, 3])
@pytest.mark.parametrize("max_norm", [np.inf, 0.3])
def test_updates_equal_an_independent_float64_implementation(
  num_updates, max_norm
):
  hyperparams = Hyperparams(
    sharpness=2.0,
    penalty_scale=0.3,
    uncertainty_scale=0.7,
    group_weights=np.array([1.0, 0.5], np.float32),
    reward_shift=np.array([0.25, 0.0], np.float32),
    target_step_size=0.2,
    actor_learning_rate=0.01,
    critic_learning_rate=0.02,
    max_gradient_norm=max_norm,
  )
  normalization = Normalization(
    np.array([0.1, -0.2, 0.3], np.float32), np.array([1.5, 0.8, 1], np.float32)
  )
  learner, state = make(hyperparams, normalization=normalization)
  reference = Reference(state)
  update = jax.jit(learner.update)
  for step in range(num_updates):
    batch = make_batch(step + 1)
    state, metrics = update(state, batch)
    expected = reference.update(batch)
  found = (
    metrics.critic_loss,
    metrics.actor_loss,
    metrics.exceedance,
    metrics.bootstrap_weight,
  )
  assert 0.05 < expected[3] < 0.95  # some rows inside, some outside
  np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
  after = Reference(state)
  for name in ("actor", "target_actor"):
    for found, expected in zip(
      getattr(after, name), getattr(reference, name), strict=True
    ):
      np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
  for name in ("critics", "target_critics"):
    for key, critic in getattr(reference, name).items():
      for found, expected in zip(
        getattr(after, name)[key], critic, strict=True
      ):
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)


def test_without_its_terms_it_is_a_plain_ensemble_ddpg():
  """eta = 0, lambda = 0 and sharpness = 0, written separately with optax."""
  numbers = Hyperparams(sharpness=0.0, penalty_scale=0.0, uncertainty_scale=0.0)
  learner, state = make(numbers)
  actor = networks.mlp_actor(A, SIZES)
  critic = networks.mlp_critic(G, M, SIZES)
  adam = optax.adam(3e-4)
  mu, q = state.actor_params, state.critic_params
  mu_target, q_target = state.target_actor_params, state.target_critic_params
  with jax.numpy_dtype_promotion("standard"):
    mu_opt, q_opt = adam.init(mu), adam.init(q)

  @jax.jit
  def ddpg(mu, q, mu_target, q_target, mu_opt, q_opt, batch):
    a_t = actor.apply(mu_target, batch.observation_t)
    q_t = critic.apply(q_target, batch.observation_t, a_t, batch.box_t)
    y = batch.r_t[:, :, None] + 0.9 * batch.discount_t[:, None, None] * q_t

    def q_loss(q):
      value = critic.apply(
        q, batch.observation_tm1, batch.action_tm1, batch.box_tm1
      )
      return jnp.mean((value - y) ** 2)

    def mu_loss(mu, q):
      a = actor.apply(mu, batch.observation_tm1)
      value = critic.apply(q, batch.observation_tm1, a, batch.box_tm1)
      return -jnp.mean(jnp.sum(jnp.mean(value, axis=2), axis=1))

    step, q_opt = adam.update(jax.grad(q_loss)(q), q_opt)
    q = optax.apply_updates(q, step)
    step, mu_opt = adam.update(jax.grad(mu_loss)(mu, q), mu_opt)
    mu = optax.apply_updates(mu, step)
    move = lambda new, old: optax.incremental_update(new, old, 0.005)  # noqa: E731
    return mu, q, move(mu, mu_target), move(q, q_target), mu_opt, q_opt

  update = jax.jit(learner.update)
  for step in range(5):
    batch = make_batch(step)
    state, metrics = update(state, batch)
    with jax.numpy_dtype_promotion("standard"):
      mu, q, mu_target, q_target, mu_opt, q_opt = ddpg(
        mu, q, mu_target, q_target, mu_opt, q_opt, batch
      )
  assert metrics.exceedance > 0
  for found, expected in (
    (state.actor_params, mu),
    (state.critic_params, q),
    (state.target_actor_params, mu_target),
    (state.target_critic_params, q_target),
  ):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), found, expected
    )


@pytest.mark.parametrize("build", [networks.mlp_critic, networks.box_critic])
def test_one_critic_a_group_has_no_spread_and_no_nan(build):
  learner, state = make(Hyperparams(uncertainty_scale=1.0), build(G, 1, SIZES))
  update = jax.jit(learner.update)
  for step in range(3):
    state, metrics = update(state, make_batch(step))
  np.testing.assert_array_equal(metrics.q_std, np.zeros(G))
  for leaf in jax.tree.leaves((state, metrics)):
    if jnp.issubdtype(leaf.dtype, jnp.floating):
      assert not np.any(np.isnan(leaf))


def test_delayed_actor_is_critic_updates_then_one_actor_update():
  """Three parts: only the last one's actor step is kept."""
  numbers = Hyperparams()
  learner, state = make(numbers, critic_updates=3)
  single, _ = make(numbers)
  batch = make_batch(5, batch_size=3 * B)
  delayed, metrics = jax.jit(learner.update)(state, batch)
  parts = [jax.tree.map(lambda leaf, i=i: leaf[i::3], batch) for i in range(3)]
  expected, losses = state, []
  for part in parts:
    before = expected
    expected, part_metrics = jax.jit(single.update)(expected, part)
    losses.append(part_metrics.critic_loss)
    after_actor = (expected.actor_params, expected.target_actor_params)
    expected = expected._replace(
      actor_params=before.actor_params,
      target_actor_params=before.target_actor_params,
      actor_optimizer=before.actor_optimizer,
    )

  def same(found, wanted):
    np.testing.assert_allclose(found, wanted, atol=1e-6)

  jax.tree.map(same, delayed.critic_params, expected.critic_params)
  jax.tree.map(
    same, delayed.target_critic_params, expected.target_critic_params
  )
  jax.tree.map(
    same, (delayed.actor_params, delayed.target_actor_params), after_actor
  )
  np.testing.assert_allclose(metrics.critic_loss, np.mean(losses), rtol=1e-5)
  with pytest.raises(ValueError, match="critic_updates = 3 divides, found 16"):
    learner.update(state, make_batch(0))
  with pytest.raises(ValueError, match="critic_updates: expected 1 or more"):
    make(numbers, critic_updates=0)


def test_metrics_are_what_they_say():
  learner, state = make(Hyperparams(sharpness=2.0))
  batch = make_batch(3)
  batch = batch._replace(r_t=batch.r_t - 2)
  _, metrics = jax.jit(learner.update)(state, batch)
  critic = networks.mlp_critic(G, M, SIZES)
  actor = networks.mlp_actor(A, SIZES)
  q = np.asarray(
    critic.apply(
      state.critic_params,
      batch.observation_tm1,
      batch.action_tm1,
      batch.box_tm1,
    )
  )
  np.testing.assert_allclose(metrics.q_mean, q.mean((0, 2)), rtol=1e-5)
  np.testing.assert_allclose(metrics.q_min, q.min((0, 2)), rtol=1e-5)
  np.testing.assert_allclose(metrics.q_max, q.max((0, 2)), rtol=1e-5)
  a = np.asarray(actor.apply(state.actor_params, batch.observation_tm1))
  outside = np.any((a > batch.box_tm1.upper) | (a < batch.box_tm1.lower), 1)
  np.testing.assert_allclose(metrics.outside_share, outside.mean(), rtol=1e-6)
  a_t = np.asarray(actor.apply(state.target_actor_params, batch.observation_t))
  e_t = (
    np.maximum(a_t - batch.box_t.upper, 0)
    + np.maximum(batch.box_t.lower - a_t, 0)
  ).sum(1)
  goes_on = batch.discount_t > 0
  np.testing.assert_allclose(
    metrics.target_exceedance, e_t[goes_on].mean(), rtol=1e-5
  )
  q_t = np.asarray(
    critic.apply(
      state.target_critic_params, batch.observation_t, a_t, batch.box_t
    )
  )
  y = batch.r_t[:, :, None] + (0.9 * np.exp(-2 * e_t))[:, None, None] * q_t
  share = (y < 0)[goes_on].mean()
  assert 0 < share < 1
  np.testing.assert_allclose(metrics.negative_target_share, share, rtol=1e-5)


def test_what_follows_an_exit_does_not_count():
  """Next row of another session, or NaN: the update is the same."""
  learner, state = make(Hyperparams())
  batch = make_batch(1)
  ended = batch.discount_t == 0
  other = batch._replace(
    observation_t=np.where(ended[:, None], np.float32(7), batch.observation_t)
  )
  update = jax.jit(learner.update)
  found, expected = update(state, other), update(state, batch)
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_act_normalises_and_takes_one_observation():
  normalization = Normalization(
    np.full(S, 2, np.float32), np.full(S, 3, np.float32)
  )
  learner, state = make(Hyperparams(), normalization=normalization)
  observation = make_batch(0).observation_tm1
  actor = networks.mlp_actor(A, SIZES)
  expected = actor.apply(state.actor_params, (observation - 2) / np.float32(3))
  found = jax.vmap(learner.act, in_axes=(None, 0, None))(
    learner.policy(state), observation, jax.random.key(0)
  )
  np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_normalization_leaves_constant_features_alone():
  from mtf_jax.data.transitions import device_dataset
  from tests.session_logs import random_log

  log = random_log()
  log.observation[:, 1] = 5
  normalization = normalization_from(device_dataset(log))
  np.testing.assert_allclose(
    normalization.mean, log.observation.mean(0), atol=1e-6
  )
  assert normalization.scale[1] == 1
  np.testing.assert_allclose(
    normalization.scale[0], log.observation[:, 0].std(), rtol=1e-5
  )


def test_the_value_is_the_mean_of_a_groups_critics():
  normalization = Normalization(
    np.linspace(-1, 1, S, dtype=np.float32),
    np.linspace(0.5, 2, S, dtype=np.float32),
  )
  critic = networks.box_critic(G, M, SIZES)
  learner, state = make(Hyperparams(), critic, normalization)
  batch = make_batch(3)
  given = (batch.observation_tm1, batch.action_tm1, batch.box_tm1)
  found = jax.vmap(learner.value, (None, 0, 0, 0))(state, *given)
  seen = (given[0] - normalization.mean[None]) / normalization.scale[None]
  q = critic.apply(state.critic_params, seen, *given[1:])
  np.testing.assert_allclose(found, q.mean(axis=2), rtol=1e-5, atol=1e-6)
  assert not np.allclose(found, q.min(axis=2), atol=1e-3)


def test_a_state_can_be_donated():
  learner, state = make(Hyperparams(group_weights=2.0))
  assert state.hyperparams.group_weights.shape == (G,)
  # Two leaves that were one buffer could not both be donated.
  new_state, _ = jax.jit(learner.update, donate_argnums=0)(state, make_batch(0))
  assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
  assert jax.tree.structure(new_state) == jax.tree.structure(state)


@pytest.mark.parametrize(
  ("name", "value"),
  [("discount", 1.5), ("sharpness", -1.0), ("target_step_size", 2.0)],
)
def test_hyperparams_out_of_range_are_refused(name, value):
  with pytest.raises(ValueError, match=f"{name}: expected a value in"):
    make(Hyperparams(**{name: value}))
  with pytest.raises(ValueError, match="discount: expected a value in"):
    make(Hyperparams(discount=np.nan))
