import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax import networks
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.networks import critics

S, A, B = 5, 4, 6


def inputs(seed=0):
  rng = np.random.default_rng(seed)

  def normal(*shape):
    return rng.normal(size=shape).astype(np.float32)

  centre = normal(B, A) / 4
  box = ActionBox(centre - np.float32(0.1), centre + np.float32(0.2))
  return normal(B, S), normal(B, A) / 4, box


def first(tree):
  return jax.tree.map(lambda leaf: leaf[0], tree)


@pytest.mark.parametrize(
  "actor",
  [networks.mlp_actor(A, (8, 8)), networks.ple_actor(A // 2)],
  ids=["mlp", "ple"],
)
def test_actors_start_near_the_centre_and_stay_in_range(actor):
  observation, _, _ = inputs()
  params = actor.init(jax.random.key(0), observation[0])
  action = actor.apply(params, observation)
  assert action.shape == (B, A) and action.dtype == jnp.float32
  assert np.all(np.abs(action) < 0.1)
  far = jax.tree.map(lambda leaf: 100 * leaf, params)
  assert np.all(np.abs(actor.apply(far, observation)) <= 1)


def test_ple_gives_each_task_its_power_and_bias():
  """A task's own expert moves its two components and no other."""
  num_tasks = 3
  actor = networks.ple_actor(num_tasks, task_experts=1)
  observation, _, _ = inputs()
  params = actor.init(jax.random.key(0), observation[0])
  before = actor.apply(params, observation)
  for task in range(num_tasks):
    moved = jax.tree.map(jnp.copy, params)
    experts = moved["params"]["task_experts"]
    for layer in experts.values():
      layer["bias"] = layer["bias"].at[task].add(1.0)
    change = np.abs(actor.apply(moved, observation) - before).max(axis=0)
    assert set(np.flatnonzero(change > 0)) == {task, num_tasks + task}


def _critics(dtype=jnp.float32):
  return {
    "mlp": networks.mlp_critic(2, 3, (8, 7), dtype=dtype),
    "box": networks.box_critic(2, 3, (8, 7), dtype=dtype),
    "quadratic": networks.box_critic(2, 3, (8,), quadratic=True, dtype=dtype),
  }


@pytest.mark.parametrize("kind", ["mlp", "box", "quadratic"])
def test_critics_are_independent_and_one_leading_axis_each(kind):
  critic = _critics()[kind]
  observation, action, box = inputs()
  params = critic.init(jax.random.key(0), observation[0], action[0], first(box))
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    assert leaf.shape[:2] == (2, 3)
    if "kernel" in jax.tree_util.keystr(path):
      flat = np.asarray(leaf).reshape(6, -1)
      assert np.unique(flat, axis=0).shape == flat.shape
  q = critic.apply(params, observation, action, box)
  assert q.shape == (B, 2, 3) and q.dtype == jnp.float32

  # Critic (1, 2) alone moves when its parameters do.
  moved = jax.tree.map(lambda leaf: leaf.at[1, 2].add(0.1), params)
  changed = np.any(critic.apply(moved, observation, action, box) != q, axis=0)
  expected = np.zeros((2, 3), bool)
  expected[1, 2] = True
  np.testing.assert_array_equal(changed, expected)

  # And answers alone as it does among the others.
  one = jax.tree.map(lambda leaf: leaf[1, 2], params)
  np.testing.assert_allclose(
    critic.apply_one(one, observation, action, box), q[:, 1, 2], rtol=1e-5
  )

  # And several actions of a state are worth what each is worth.
  actions = jnp.stack([action, action + 0.1, -action])
  several = critic.apply_many(params, observation, actions, box)
  assert several.shape == (3, B, 2, 3)
  for values, asked in zip(several, actions, strict=True):
    np.testing.assert_allclose(
      values,
      critic.apply(params, observation, asked, box),
      rtol=1e-5,
      atol=1e-6,
    )


def test_the_start_has_the_scale_of_one_dense_layer():
  """Kernels of a layer in two parts have variance 1 / (both fans in)."""
  critic = networks.mlp_critic(1, 64, (128,))
  params = critic.init(
    jax.random.key(0),
    jnp.zeros(30),
    jnp.zeros(10),
    ActionBox(jnp.zeros(10), jnp.ones(10)),
  )["params"]
  for part in ("observation", "action"):
    variance = np.var(params[f"value_0_kernel_{part}"])
    np.testing.assert_allclose(variance * 40, 1, rtol=0.05)
  np.testing.assert_allclose(
    np.var(params["value_1_kernel"]) * 128, 1, rtol=0.1
  )


def test_first_layer_gradients_are_those_of_the_plain_contraction():
  rng = np.random.default_rng(0)
  kernels = tuple(
    rng.normal(size=(2, 3, 4, n)).astype(np.float32) for n in (5, 2)
  )
  x = tuple(rng.normal(size=(6, n)).astype(np.float32) for n in (5, 2))
  weights = rng.normal(size=(2, 3, 4, 6)).astype(np.float32)

  def plain(kernels, x):
    parts = [
      jnp.einsum("gmhi,bi->gmhb", kernel, one)
      for kernel, one in zip(kernels, x, strict=True)
    ]
    return jnp.sum(weights * sum(parts))

  def ours(kernels, x):
    return jnp.sum(weights * critics._first_layer(kernels, x))

  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    jax.grad(ours, argnums=(0, 1))(kernels, x),
    jax.grad(plain, argnums=(0, 1))(kernels, x),
  )


def test_box_deviation():
  box = ActionBox(jnp.array([-0.1, 0.0, 0.3]), jnp.array([0.3, 0.2, 0.3]))
  found = networks.box_deviation(jnp.array([0.3, 0.05, 0.9]), box)
  np.testing.assert_allclose(found, [1, -0.5, 0], atol=1e-6)


def test_box_critic_is_affine_in_the_deviation():
  critic = _critics()["box"]
  observation, action, box = inputs()
  params = critic.init(jax.random.key(0), observation[0], action[0], first(box))
  params = jax.tree.map(lambda leaf: leaf + 0.1, params)
  centre = (box.lower + box.upper) / 2
  half = (box.upper - box.lower) / 2

  def q(epsilon):
    return critic.apply(params, observation, centre + epsilon * half, box)

  middle = q(np.float32(0))
  np.testing.assert_allclose(
    q(np.float32(1)) - middle, middle - q(np.float32(-1)), atol=1e-4
  )
  slope = params["params"]["slope_kernel"] @ observation.T
  slope += params["params"]["slope_bias"][..., None]
  np.testing.assert_allclose(
    q(np.float32(1)) - middle, slope.sum(2).transpose(2, 0, 1), atol=1e-4
  )


def test_box_critic_survives_a_box_without_width():
  critic = _critics()["quadratic"]
  observation, action, _ = inputs()
  box = ActionBox(action, action)
  params = critic.init(jax.random.key(0), observation[0], action[0], first(box))

  def total(action):
    return jnp.sum(critic.apply(params, observation, action, box))

  value, gradient = jax.value_and_grad(total)(action)
  assert np.isfinite(value)
  np.testing.assert_array_equal(gradient, np.zeros((B, A)))


@pytest.mark.parametrize("kind", ["mlp", "box", "quadratic"])
def test_bfloat16_computes_near_float32(kind):
  observation, action, box = inputs()
  exact, rough = _critics()[kind], _critics(jnp.bfloat16)[kind]
  params = rough.init(jax.random.key(0), observation[0], action[0], first(box))
  assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {
    jnp.dtype(jnp.float32)
  }
  found = rough.apply(params, observation, action, box)
  assert found.dtype == jnp.float32
  np.testing.assert_allclose(
    found, exact.apply(params, observation, action, box), atol=0.1
  )
