"""Fits the reach: which users a platform shows an item to.

A logistic regression of logged against random (user, item) pairs on user
categories and item tags and categories, low-rank plus popularity.

Letters: `U` users, `I` items, `D` factors.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtf_jax.data import kuairand
from mtf_jax.data.behaviours import NUM_BUCKETS, duration_bucket
from mtf_jax.fitting.population import NUM_FACTORS


def _one_hot(codes: np.ndarray, max_size: int) -> np.ndarray:
  """One-hot columns of the code columns that have at most `max_size` values."""
  blocks = [
    np.eye(column.max() + 1, dtype=np.float32)[column]
    for column in codes.T
    if column.max() < max_size
  ]
  none = np.zeros((len(codes), 0), np.float32)
  return np.concatenate([none, *blocks], axis=1)


def fit_reach(
  log: kuairand.ImpressionLog,
  catalogue: kuairand.Catalogue,
  rng: np.random.Generator,
  *,
  epochs: int = 10,
  batch_size: int = 8192,
) -> tuple[np.ndarray, np.ndarray]:
  """Factors whose product tells logged pairs from random ones.

  Features only, no embedding of single users or items but the item's
  popularity, so that pairs outside of the log are treated as those inside.

  Returns:
    (`[U, D]` user factors, `[I, D]` item factors); the last factor is the
    item's popularity, for which every user has 1.
  """
  users = jnp.asarray(_one_hot(catalogue.user_categories, 64))
  items = jnp.asarray(
    np.concatenate(
      [
        catalogue.video_tags,
        _one_hot(catalogue.video_categories, 64),
        np.eye(NUM_BUCKETS, dtype=np.float32)[
          duration_bucket(catalogue.duration)
        ],
      ],
      axis=1,
    )
  )
  num_users, num_items = len(users), len(items)
  personal = NUM_FACTORS - 1
  parameters = {
    "user": rng.normal(0, 0.05, (users.shape[1], personal)),
    "item": rng.normal(0, 0.05, (items.shape[1], personal)),
    "popularity": np.zeros(num_items),
    "bias": np.zeros(()),
  }
  parameters = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), parameters)
  half = batch_size // 2
  steps = max(1, len(log.user) // half)

  def factors(p, user, item, users, items):
    left, right = users[user] @ p["user"], items[item] @ p["item"]
    return jnp.sum(left * right, axis=-1) + p["popularity"][item] + p["bias"]

  def loss(p, batch, users, items):
    user, item, label = batch
    logits = factors(p, user, item, users, items)
    decay = sum(jnp.sum(jnp.square(p[k])) for k in ("user", "item"))
    # The popularity of rarely logged items stays near the prior.
    prior = jnp.sum(jnp.square(p["popularity"])) / len(log.user)
    return (
      jnp.mean(optax.sigmoid_binary_cross_entropy(logits, label))
      + 1e-5 * decay
      + 0.25 * prior
    )

  optimiser = optax.adam(2e-2)

  @jax.jit
  def epoch(carry, batches, users, items):
    def step(carry, batch):
      p, state = carry
      gradient = jax.grad(loss)(p, batch, users, items)
      # optax multiplies float32 by Python floats of int32 counts.
      with jax.numpy_dtype_promotion("standard"):
        updates, state = optimiser.update(gradient, state)
      return (optax.apply_updates(p, updates), state), None

    return jax.lax.scan(step, carry, batches)[0]

  carry = (parameters, optimiser.init(parameters))
  label = np.repeat(np.array([1, 0], np.float32), half)
  for _ in range(epochs):
    rows = rng.permutation(max(len(log.user), steps * half))[: steps * half]
    rows = rows.reshape(steps, half) % len(log.user)
    others = rng.integers(len(log.user), size=rows.shape)
    user = np.concatenate([log.user[rows], log.user[others]], axis=1)
    item = np.concatenate(
      [log.item[rows], rng.integers(num_items, size=rows.shape)], axis=1
    )
    batches = (user, item, np.tile(label, (steps, 1)))
    carry = epoch(carry, jax.tree.map(jnp.asarray, batches), users, items)
  p = jax.tree.map(np.asarray, carry[0])
  user_factors = np.asarray(users) @ p["user"]
  item_factors = np.asarray(items) @ p["item"]
  popularity = (p["popularity"] + p["bias"])[:, None]
  return (
    np.concatenate([user_factors, np.ones((num_users, 1))], axis=1).astype(
      np.float32
    ),
    np.concatenate([item_factors, popularity], axis=1).astype(np.float32),
  )
