"""Learners' updates in NumPy float64: networks, derivatives and Adam.

Derivatives are central differences of a loss written out as its equation, so
that nothing of the library, its automatic derivatives included, is used.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax import networks
from mtf_jax.learners.base import Normalization
from tests.learners import test_integrated_rl as ours

S, A, G, M, B = ours.S, ours.A, 2, 2, 8
SIZES = (5, 4)
ACTOR = networks.mlp_actor(A, SIZES)
CRITIC = networks.mlp_critic(G, M, SIZES)
WEIGHTS = np.array([1.0, 0.5], np.float32)
NORMALIZATION = Normalization(
  np.array([0.1, -0.2, 0.3], np.float32), np.array([1.5, 0.8, 1], np.float32)
)


def make_batch(seed):
  return ours.make_batch(seed, batch_size=B)


def as_float64(tree):
  """NumPy copies, keys left out."""

  def one(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return None
    return np.array(leaf, np.float64)

  return jax.tree.map(one, tree)


def start(learner, numbers, *, grow=60, seed=0):
  """A state whose actions have some size; `grow` is of the actor's last layers.

  No parameter is 0: at a kink of ReLU a central difference is half a slope.
  """
  # One program is less to compile than every operation by itself.
  state = jax.jit(learner.init)(
    jax.random.key(seed), ours.example_of(make_batch(0)), numbers, NORMALIZATION
  )
  rng = np.random.default_rng(seed)

  def jitter(name, path, leaf):
    if leaf.ndim == 0:  # A temperature, say.
      return leaf
    last = "Dense_2" in jax.tree_util.keystr(path) and "actor" in name
    noise = rng.normal(scale=0.1, size=leaf.shape).astype(np.float32)
    return leaf * (grow if last else 1) + noise

  return state._replace(
    **{
      name: jax.tree_util.tree_map_with_path(
        functools.partial(jitter, name), value
      )
      for name, value in state._asdict().items()
      if name.endswith("_params")
    }
  )


def read(state, batch, *, told=False):
  """A batch in float64 as networks see it: normalised, in units if told."""
  norm = as_float64(state.normalization)
  b = as_float64(batch)
  b = b._replace(
    observation_tm1=(b.observation_tm1 - norm.mean) / norm.scale,
    observation_t=(b.observation_t - norm.mean) / norm.scale,
  )
  if not told:
    return b
  half_width = (b.box_tm1.upper - b.box_tm1.lower) / 2
  centre = (b.box_tm1.upper + b.box_tm1.lower) / 2
  return b._replace(action_tm1=(b.action_tm1 - centre) / half_width)


def mlp(layers, x):
  for layer in range(len(layers)):
    x = (
      x @ layers[f"Dense_{layer}"]["kernel"] + layers[f"Dense_{layer}"]["bias"]
    )
    if layer < len(layers) - 1:
      x = np.maximum(x, 0)
  return x


def actor(params, observation):
  return np.tanh(mlp(params["params"]["MLP_0"], observation))


def critics(params, observation, action):
  """`[B, G, M]` values of `mlp_critic`."""
  p = params["params"]
  h = np.einsum("gmhi,bi->gmbh", p["value_0_kernel_observation"], observation)
  h += np.einsum("gmha,ba->gmbh", p["value_0_kernel_action"], action)
  h = np.maximum(h + p["value_0_bias"][:, :, None], 0)
  h = np.einsum("gmkh,gmbh->gmbk", p["value_1_kernel"], h)
  h = np.maximum(h + p["value_1_bias"][:, :, None], 0)
  q = np.einsum("gmkh,gmbh->gmbk", p["value_2_kernel"], h)
  return (q + p["value_2_bias"][:, :, None])[..., 0].transpose(2, 0, 1)


def weigh(q, weights=WEIGHTS):
  """`[B, G, ...]` -> `[B, ...]`."""
  return np.tensordot(q, np.asarray(weights, np.float64), ([1], [0]))


def least(q, weights=WEIGHTS):
  """`[B, G]` of the critic with the least weighted sum, row by row."""
  rows = []
  for row in q:
    sums = [
      sum(w * row[g, m] for g, w in enumerate(np.float64(weights)))
      for m in range(row.shape[1])
    ]
    rows.append(row[:, int(np.argmin(sums))])
  return np.array(rows)


def gradient(loss, params, step=1e-6):
  """Central differences of `loss(params)`; the leaves come back unchanged."""

  def one(leaf):
    slopes = np.zeros_like(leaf)
    for place in np.ndindex(leaf.shape):
      value = leaf[place]
      leaf[place] = value + step
      above = loss(params)
      leaf[place] = value - step
      slopes[place] = (above - loss(params)) / (2 * step)
      leaf[place] = value
    return slopes

  return jax.tree.map(one, params)


class Adam:
  """Adam of one network, the gradient clipped by its norm; works in place."""

  def __init__(self, params):
    self.first = jax.tree.map(np.zeros_like, params)
    self.second = jax.tree.map(np.zeros_like, params)
    self.count = 0

  def step(self, params, loss, rate, max_norm=np.inf):
    """One step along `loss`; gives the loss before it."""
    before = loss(params)
    slopes = gradient(loss, params)
    norm = np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(slopes)))
    self.count += 1

    def move(p, g, m, v):
      g = g * min(1.0, max_norm / norm)
      m += 0.1 * (g - m)
      v += 0.001 * (g**2 - v)
      m_hat = m / (1 - 0.9**self.count)
      v_hat = v / (1 - 0.999**self.count)
      p -= rate * m_hat / (np.sqrt(v_hat) + 1e-8)

    jax.tree.map(move, params, slopes, self.first, self.second)
    return before


def soften(targets, params, tau):
  """The soft update, in place."""

  def move(target, p):
    target += tau * (p - target)

  jax.tree.map(move, targets, params)


def assert_close(found, expected, atol=2e-5):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=atol, rtol=1e-4),
    as_float64(found),
    expected,
  )
