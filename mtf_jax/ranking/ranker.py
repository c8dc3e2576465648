"""The score model: a multi-gate mixture-of-experts ranker [1] in flax.

Its heads are the K = 5 scores that the fusion formula combines, and an
auxiliary click. It is trained on earlier days and must be judged on later ones.

Letters: `n` impressions or pairs, `P` candidates of a user, `K` tasks.

References:
  [1] Ma et al., "Modeling Task Relationships in Multi-task Learning with
  Multi-gate Mixture-of-Experts", KDD 2018.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtf_jax.data import kuairand
from mtf_jax.data.behaviours import TASKS
from mtf_jax.io import InputError
from mtf_jax.ranking import features, metrics
from mtf_jax.steps import Count, uncounted

_HEADS = (*TASKS, "click")
# Of training and of `evaluate`: epochs, and heads.
EPOCHS, NUM_HEADS = 6, len(_HEADS)


_WATCH_TIME = TASKS.index("watch_time")


_SERVED_TAB = 1  # the single-column feed, 78% of the impressions


# Leaving its own day out, a row of the only day would have no features.
_MIN_DAYS = 2
# An honest ranker of few updates is about as good as one that answers 0.
_BROKEN = 1.1


class Network(nn.Module):
  """Mixture-of-experts network with one gate and one tower per head.

  sizes: number of values of each category.
  """

  sizes: tuple[int, ...]
  embedding: int = 6
  experts: int = 4
  width: int = 64

  @nn.compact
  def __call__(
    self,
    numbers: chex.Array,
    codes: chex.Array,
    keep: chex.Array | None = None,
  ) -> jax.Array:
    """`[n, N]` numbers and `[n, F]` codes to `[n, heads]` linear outputs."""
    # One table for all categories: a single gather.
    offsets = jnp.asarray(np.r_[0, np.cumsum(self.sizes)[:-1]], jnp.int32)
    table = self.param(
      "embedding",
      nn.initializers.normal(0.1),
      (int(np.sum(self.sizes)), self.embedding),
    )
    embedded = table[codes + offsets[None, :]].reshape(codes.shape[0], -1)
    x = jnp.concatenate([numbers, embedded], axis=-1)
    if keep is not None:
      x = x * keep
    hidden = nn.Dense(self.experts * self.width)(x)
    hidden = nn.relu(hidden).reshape(-1, self.experts, self.width)
    outputs = []
    for _ in _HEADS:
      gate = jax.nn.softmax(nn.Dense(self.experts)(x))
      mixed = jnp.sum(gate[:, :, None] * hidden, axis=1)
      tower = nn.relu(nn.Dense(32)(mixed))
      outputs.append(nn.Dense(1)(tower)[:, 0])
    return jnp.stack(outputs, axis=-1)


class Ranker(NamedTuple):
  """A trained ranker.

  params: the network's parameters.
  encoder: features of users, videos and pairs.
  center, scale: `[N]` standardisation of the numbers.
  """

  params: chex.ArrayTree
  encoder: features.Encoder
  center: np.ndarray
  scale: np.ndarray


def _sizes(encoder: features.Encoder) -> tuple[int, ...]:
  return (*encoder.user_sizes, *encoder.video_sizes, features.NUM_TABS)


def _targets(log: kuairand.ImpressionLog) -> np.ndarray:
  known = features.labels(log)
  known["watch_time"] = known["log_play"]
  return np.stack([known[name] for name in _HEADS], axis=1)


def _loss(outputs: jax.Array, targets: jax.Array) -> jax.Array:
  """Cross entropies, and the squared error of the log watch time."""
  entropy = optax.sigmoid_binary_cross_entropy(outputs, targets)
  squared = 0.5 * jnp.square(outputs - targets)
  is_time = jnp.arange(len(_HEADS)) == _WATCH_TIME
  return jnp.mean(jnp.sum(jnp.where(is_time[None, :], squared, entropy), -1))


def train_ranker(
  log: kuairand.ImpressionLog,
  catalogue: kuairand.Catalogue,
  seed: int = 0,
  *,
  epochs: int = EPOCHS,
  batch_size: int = 1024,
  learning_rate: float = 2e-3,
  weight_decay: float = 1e-2,
  keep_rate: float = 0.8,
  count: Count = uncounted,
) -> Ranker:
  """Trains the ranker on the impressions of the training days.

  Args:
    log: the training days only.
    catalogue: users and videos.
    seed: initial parameters, order of the rows, dropout.
    epochs: passes over the log.
    batch_size: rows of an update, at most the rows of the log.
    learning_rate: peak of a cosine schedule of AdamW.
    weight_decay: of AdamW.
    keep_rate: share of the inputs kept by dropout.
    count: told of each epoch.

  Returns:
    The ranker.

  Raises:
    InputError: fewer rows than `batch_size`, or fewer days than two.
  """
  days = np.unique(log.date)
  if len(days) < _MIN_DAYS:
    raise InputError(
      f"test_from: expected at least {_MIN_DAYS} training days before it, since"
      " a row's features are what users and videos did on other days, found"
      f" {len(days)} ({', '.join(map(str, days)) or 'none'}); give a later"
      " --test_from."
    )
  encoder, rows = features.fit_encoder(log, catalogue)
  steps = len(log.user) // batch_size
  if steps < 1:
    raise InputError(
      f"log: expected at least batch_size = {batch_size} rows on the training"
      f" days, found {len(log.user)}; give a larger log or a later --test_from."
    )
  center = rows.numbers.mean(axis=0)
  scale = features.spread(rows.numbers)
  network = Network(_sizes(encoder))
  optimiser = optax.adamw(
    optax.cosine_decay_schedule(learning_rate, epochs * steps),
    weight_decay=weight_decay,
  )

  def update(carry, xs, data):
    params, state = carry
    index, key = xs
    numbers, codes, targets = (column[index] for column in data)

    def loss(params):
      width = numbers.shape[1] + codes.shape[1] * network.embedding
      keep = jax.random.bernoulli(key, keep_rate, (batch_size, width))
      keep = keep.astype(numbers.dtype) / keep_rate
      predicted: Any = network.apply(params, numbers, codes, keep)
      return _loss(predicted, targets)

    value, gradient = jax.value_and_grad(loss)(params)
    # optax multiplies float32 by Python floats of int32 counts.
    with jax.numpy_dtype_promotion("standard"):
      updates, state = optimiser.update(gradient, state, params)
    return (optax.apply_updates(params, updates), state), value

  @jax.jit
  def epoch(carry, key, data):
    order_key, dropout_key = jax.random.split(key)
    order = jax.random.permutation(order_key, data[0].shape[0])
    index = order[: steps * batch_size].reshape(steps, batch_size)
    keys = jax.random.split(dropout_key, steps)
    return jax.lax.scan(lambda c, xs: update(c, xs, data), carry, (index, keys))

  data = jax.tree.map(
    jnp.asarray,
    ((rows.numbers - center) / scale, rows.codes, _targets(log)),
  )
  init_key, *keys = jax.random.split(jax.random.key(seed), epochs + 1)
  params = network.init(init_key, data[0][:1], data[1][:1])
  carry = (params, optimiser.init(params))
  for key in keys:
    # Waited for: each is as long as it takes.
    carry, _ = jax.block_until_ready(epoch(carry, key, data))
    count(1)
  return Ranker(carry[0], encoder, center, scale)


def _outputs(ranker: Ranker, rows: features.Rows) -> np.ndarray:
  """`[n, heads]` linear outputs, in blocks of one size."""
  return np.asarray(
    _apply(
      _sizes(ranker.encoder),
      ranker.params,
      (rows.numbers - ranker.center) / ranker.scale,
      rows.codes,
    )
  )


def _apply_network(sizes, params, numbers, codes):
  return Network(sizes).apply(params, numbers, codes)


_apply = jax.jit(_apply_network, static_argnums=0)


def predict(
  ranker: Ranker, users: np.ndarray, items: np.ndarray, tab: np.ndarray
) -> np.ndarray:
  """What the ranker says of pairs on days that it was not trained on.

  Args:
    ranker: a trained ranker.
    users, items: `[n]` integer indices.
    tab: `[n]` page of the app.

  Returns:
    float32 `[n, K]` in the order of `TASKS`: log odds, for `watch_time` the
    mean log1p of the seconds.
  """
  rows = features.encode(ranker.encoder, users, items, tab)
  return _outputs(ranker, rows)[:, : len(TASKS)]


def linear_scores(
  ranker: Ranker, users: np.ndarray, items: np.ndarray
) -> np.ndarray:
  """What the ranker says of candidates shown in the single-column feed.

  Args:
    ranker: a trained ranker.
    users: `[N]` integer indices.
    items: `[N, P]` integer indices of each user's candidates, or `[P]` for the
      same candidates for all.

  Returns:
    float32 `[N, P, K]`, as of `predict`.
  """
  users = np.asarray(users)
  items = np.broadcast_to(items, (len(users), np.shape(items)[-1]))
  outputs = predict(
    ranker,
    np.repeat(users, items.shape[1]),
    items.reshape(-1),
    np.full(items.size, _SERVED_TAB),
  )
  return outputs.reshape(*items.shape, len(TASKS))


def evaluate(
  ranker: Ranker, log: kuairand.ImpressionLog, count: Count = uncounted
) -> Mapping[str, Mapping[str, float]]:
  """Judges the ranker on impressions of later days.

  Args:
    ranker: a trained ranker.
    log: impressions of days it was not trained on.
    count: told of each head.

  Returns:
    For each head (and the auxiliary click) `auc`, `gauc`, `log_loss`,
    `base_log_loss` (of the constant rate) and `calibration_error`. For the
    watch time AUC and GAUC are of the play time beyond its median, and the
    losses are mean squared errors of log1p seconds.
  """
  rows = features.encode(ranker.encoder, log.user, log.item, log.tab)
  outputs, targets = _outputs(ranker, rows), _targets(log)
  report = {}
  for k, name in enumerate(_HEADS):
    output, target = outputs[:, k], targets[:, k]
    if k == _WATCH_TIME:
      event = (target > np.median(target)).astype(np.float64)
      prediction = output
      loss = float(np.mean((output - target) ** 2))
      base = float(np.var(target))
    else:
      event, prediction = target, 1 / (1 + np.exp(-output))
      loss = metrics.log_loss(prediction, target)
      base = metrics.log_loss(np.full(len(target), target.mean()), target)
    report[name] = {
      "auc": metrics.auc(output, event),
      "gauc": metrics.gauc(output, event, log.user),
      "log_loss": loss,
      "base_log_loss": base,
      "calibration_error": metrics.calibration_error(prediction, target),
    }
    count(1)
  return report


def refuse_broken(
  report: Mapping[str, Mapping[str, float]], log: kuairand.ImpressionLog
) -> None:
  """Refuses a ranker that is worse than one that knows nothing.

  What knows nothing answers 0: even odds, and no second watched.

  Args:
    report: of `evaluate`.
    log: the impressions that it was evaluated on.

  Raises:
    InputError: a head's loss is not finite, or above that of answers of 0.
  """
  seconds = float(np.mean(np.square(np.log1p(log.play_seconds))))
  for name, figures in report.items():
    limit = _BROKEN * (seconds if name == "watch_time" else float(np.log(2)))
    if not figures["log_loss"] <= limit:
      raise InputError(
        "log: expected enough of it before --test_from to train a ranker, found"
        f" one that is worse than none: {name} has a loss of"
        f" {figures['log_loss']:.3g} on the test days, where a ranker that knows"
        f" nothing has {limit / _BROKEN:.3g}."
      )
