"""What a user does with a shown video: the response model of a world.

One latent number decides how long a video is played, thresholds of the play
time decide click, valid consumption, long view and finish, and the rare
behaviours follow given the play time:

1. `interest = user_interest + item_interest - reach_scale * softplus(-reach) +
   watch_shift`, `reach = user_factors . item_factors`, in standard deviations
   of the latent play propensity `z`: what a recommender would hardly ever show
   the user is out of reach and mostly skipped, within reach the users' and the
   items' own effects decide;
2. `z = interest + residual_scale * Phi^-1(uniform)`, a Gaussian copula: the
   play time is the quantile of `z` in a table per duration bucket, so that
   whatever shape the log's play times have (skips at 1 to 3 s, an atom at the
   end of the video) is kept;
3. like, comment, follow, forward and hate in that order, each a logistic
   function of the play time, of the reach, of a user and an item effect and of
   the behaviours before it, which makes them occur together.

A request costs gathers and, per shown item, two uniforms, one inverse normal
and five logistic functions.

Letters: `L` shown items, `U` users, `I` items, `D` factors, `E` behaviours,
`N` interactions, `H` duration buckets, `Q` table points, `P` play knots.

References:
  [1] Gao et al., "KuaiRand: An Unbiased Sequential Recommendation Dataset with
  Randomly Exposed Videos", CIKM 2022.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import special

from mtf_jax.data.behaviours import (
  CLICK_SECONDS,
  INTERACTIONS,
  LONG_VIEW_SECONDS,
  PICTURE_SECONDS,
  VALID_SECONDS,
)
from mtf_jax.kernels import _checks
from mtf_jax.worlds.row_by_row import row_by_row

NUM_UNIFORMS = 2  # per shown item: play time, interactions


# Grid of the latent play propensity on which the play tables are given.
Z_MIN, Z_MAX, Z_POINTS = -5.0, 5.0, 161


# Play knots of the interaction logits, uniform in log1p(seconds).
PLAY_KNOTS = 13


KNOT_SPACING = float(np.log1p(1200.0)) / (PLAY_KNOTS - 1)


# Standard normal residuals on which `expected_responses` integrates.
_QUADRATURE = np.linspace(-4.0, 4.0, 33)


class ResponseModel(NamedTuple):
  """Parameters of the responses of `U` users to `I` items.

  user_interest: `[U]` play propensity of a user, standard deviations of z.
  item_interest: `[I]` play propensity of an item, the same unit.
  user_factors: `[U, D]` factors of a user.
  item_factors: `[I, D]` factors of an item; the product with the user's is the
    reach, unit-free, positive for what a recommender shows the user.
  reach_scale: `[]` what a unit of negative reach costs, the unit of z.
  watch_shift: `[]` added to every interest, 0 after a fit: for calibration.
  duration: `[I]` seconds, positive, `inf` for pictures.
  duration_bucket: `[I]` int32 row of `play_table`.
  play_table: `[H, Q]` play fraction (`play_fraction`) on the grid of z,
    non-decreasing.
  residual_scale: `[]` standard deviation of z given the interest.
  interaction_play: `[N, P]` logit of each interaction at the play knots.
  interaction_reach: `[N]` what a unit of negative reach costs, logits.
  interaction_coupling: `[N, N]` strictly lower triangular: change of the logit
    of row n when the interaction of column m happened.
  user_interaction: `[U, N]` logit effect of a user.
  item_interaction: `[I, N]` logit effect of an item.
  interaction_shift: `[]` added to the logits of like, comment, follow and
    forward, 0 after a fit: for calibration.
  """

  user_interest: chex.Array
  item_interest: chex.Array
  user_factors: chex.Array
  item_factors: chex.Array
  reach_scale: chex.Numeric
  watch_shift: chex.Numeric
  duration: chex.Array
  duration_bucket: chex.Array
  play_table: chex.Array
  residual_scale: chex.Numeric
  interaction_play: chex.Array
  interaction_reach: chex.Array
  interaction_coupling: chex.Array
  user_interaction: chex.Array
  item_interaction: chex.Array
  interaction_shift: chex.Numeric

  @property
  def num_users(self) -> int:
    """`U`."""
    return self.user_interest.shape[0]

  @property
  def num_items(self) -> int:
    """`I`."""
    return self.item_interest.shape[0]


def as_leaf(value: chex.ArrayNumpy | float) -> np.ndarray:
  """A parameter as a numpy array of int32 or float32."""
  array = np.asarray(value)
  integer = np.issubdtype(array.dtype, np.integer)
  return array.astype(np.int32 if integer else np.float32)


def play_fraction(play_seconds: np.ndarray, duration: np.ndarray) -> np.ndarray:
  """Play time relative to the duration, the unit of `play_table`.

  `log1p(play) / log1p(duration)` up to the end, `play / duration` beyond it:
  continuous and increasing, 0 for no play and 1 at the end, with the same
  resolution for the first seconds of long and short videos.

  Args:
    play_seconds: play times, seconds, non-negative.
    duration: durations, seconds, positive or `inf`.

  Returns:
    The fraction, of the broadcast shape.
  """
  unit = np.where(np.isinf(duration), PICTURE_SECONDS, duration)
  part = np.log1p(play_seconds) / np.log1p(unit)
  return np.where(play_seconds < unit, part, play_seconds / unit)


def _play_seconds(fraction: jax.Array, duration: jax.Array) -> jax.Array:
  """Inverse of `play_fraction`, of the broadcast shape."""
  unit = jnp.where(jnp.isinf(duration), PICTURE_SECONDS, duration)
  # The minimum keeps a watched video's play time exactly at `unit` or beyond
  # and a partly watched one's below, whatever the rounding of expm1.
  part = jnp.expm1(jnp.minimum(fraction, 1.0) * jnp.log1p(unit))
  return jnp.where(fraction < 1.0, jnp.minimum(part, unit), fraction * unit)


def _interpolate(
  table: jax.Array, row: jax.Array, position: jax.Array
) -> jax.Array:
  """Linear interpolation of `table [H, Q]` at `row`, `position` (any shape)."""
  position = jnp.clip(position, 0.0, table.shape[1] - 1.0)
  left = jnp.minimum(position.astype(jnp.int32), table.shape[1] - 2)
  weight = position - left.astype(position.dtype)
  low, high = table[row, left], table[row, left + 1]
  return low + weight * (high - low)


def out_of_reach(
  response: ResponseModel, user: chex.Numeric, items: chex.Array
) -> jax.Array:
  """`softplus(-reach)` of a user for items, unit-free, positive.

  Args:
    response: the response model.
    user: `[]` integer index of the user.
    items: `[C]` integer indices of the items.

  Returns:
    `[C]`, near 0 for what a recommender shows the user.
  """
  reach = jnp.sum(
    response.item_factors[items] * response.user_factors[user][None, :], axis=-1
  )
  return jax.nn.softplus(-reach)


def _interest(response, user, items, beyond):
  return (
    response.user_interest[user]
    + response.item_interest[items]
    - response.reach_scale * beyond
    + response.watch_shift
  )


def interest(
  response: ResponseModel, user: chex.Numeric, items: chex.Array
) -> jax.Array:
  """Play propensity of a user for items, standard deviations of z.

  Args:
    response: the response model.
    user: `[]` integer index of the user.
    items: `[C]` integer indices of the items.

  Returns:
    `[C]` interests, about 0 for a typical impression of the log.
  """
  return _interest(response, user, items, out_of_reach(response, user, items))


def _play_fraction_of(
  z: jax.Array, bucket: jax.Array, play_table: jax.Array
) -> jax.Array:
  spacing = (Z_MAX - Z_MIN) / (Z_POINTS - 1)
  return _interpolate(play_table, bucket, (z - Z_MIN) / spacing)


def _thresholds(play: jax.Array, duration: jax.Array) -> list[jax.Array]:
  """Valid, finish, click and long view as thresholds of the play time."""
  return [
    play > VALID_SECONDS,
    play >= duration,
    play >= jnp.minimum(CLICK_SECONDS, duration),
    play >= jnp.minimum(LONG_VIEW_SECONDS, duration),
  ]


def _interaction_logits(
  response: ResponseModel,
  user: chex.Numeric,
  items: jax.Array,
  beyond: jax.Array,
  play: jax.Array,
) -> jax.Array:
  """`[L, N]` logits of the interactions when none before has happened."""
  table = response.interaction_play
  position = jnp.log1p(play)[:, None] / KNOT_SPACING
  rows = jnp.arange(table.shape[0], dtype=jnp.int32)[None, :]
  shifted = jnp.asarray([name != "hate" for name in INTERACTIONS], play.dtype)
  return (
    _interpolate(table, rows, position)
    + response.user_interaction[user][None, :]
    + response.item_interaction[items]
    + (response.interaction_shift * shifted)[None, :]
    - response.interaction_reach[None, :] * beyond[:, None]
  )


def _check_table(response: ResponseModel) -> None:
  shape = jnp.shape(response.play_table)
  if len(shape) != 2 or shape[1] != Z_POINTS:
    raise ValueError(
      f"response.play_table: expected shape [H, {Z_POINTS}], found {shape}."
    )
  shape = jnp.shape(response.interaction_play)
  expected = (len(INTERACTIONS), PLAY_KNOTS)
  if shape != expected:
    raise ValueError(
      f"response.interaction_play: expected shape {expected}, found {shape}."
    )


def sample_responses(
  uniforms: chex.Array,
  response: ResponseModel,
  user: chex.Numeric,
  items: chex.Array,
) -> jax.Array:
  """Samples all behaviours of one request's shown items.

  Args:
    uniforms: `[L, 2]` independent uniforms of [0, 1), the first for the play
      time, the second for the interactions: it is split between the five by
      rescaling, which leaves float32 about 1e-7 of absolute resolution.
    response: the response model.
    user: `[]` integer index of the user.
    items: `[L]` integer indices of the shown items.

  Returns:
    `[L, E]` behaviours in the order of `BEHAVIOURS`: the play time in seconds,
    everything else 0 or 1.

  Raises:
    ValueError: a shape or a dtype differs from what is expected.
  """
  items = jnp.asarray(items)
  (uniforms,), _ = _checks.floats({"uniforms": (uniforms, "L R")})
  if uniforms.shape != (*items.shape, NUM_UNIFORMS):
    raise ValueError(
      f"uniforms: expected shape [L, {NUM_UNIFORMS}] with L = items"
      f" {items.shape}, found {uniforms.shape}."
    )
  _check_table(response)
  beyond = out_of_reach(response, user, items)
  mean = _interest(response, user, items, beyond)
  z = row_by_row(
    functools.partial(_latent_play, response.residual_scale),
    mean,
    uniforms[:, 0],
  )
  duration = response.duration[items]
  fraction = _play_fraction_of(
    z, response.duration_bucket[items], response.play_table
  )
  play = row_by_row(_play_seconds, fraction, duration)
  logits = _interaction_logits(response, user, items, beyond, play)
  happened = row_by_row(
    functools.partial(_sample_interactions, response.interaction_coupling),
    tuple(logits.T),
    uniforms[:, 1],
  )
  valid, finish, click, long_view = _thresholds(play, duration)
  columns = [valid, play, finish, click, long_view, *happened]
  return jnp.stack([column.astype(play.dtype) for column in columns], axis=-1)


def _latent_play(
  residual_scale: jax.Array, mean: jax.Array, uniform: jax.Array
) -> jax.Array:
  # 0 would be minus infinity; half the spacing of float32 uniforms is not.
  noise = special.ndtri(jnp.maximum(uniform, 2.0**-25))
  return mean + residual_scale * noise


def _sample_interactions(
  coupling: jax.Array, logits: Sequence[jax.Array], uniform: jax.Array
) -> list[jax.Array]:
  """The `N` interactions of one item, 0 or 1, from one uniform.

  One array each: put together in one here, an element of it would be computed
  by itself on a CPU, all interactions before it again.
  """
  rest = uniform
  happened: list[jax.Array] = []
  for n in range(len(INTERACTIONS)):
    logit = logits[n]
    for m, before in enumerate(happened):
      logit += coupling[n, m] * before
    probability = jax.nn.sigmoid(logit)
    event = rest < probability
    # Given the event (or not), the position inside its interval is uniform
    # again and decides the next behaviour.
    rest = jnp.where(
      event,
      rest / probability,
      (rest - probability) / jnp.maximum(1.0 - probability, 1e-6),
    )
    happened.append(event.astype(rest.dtype))
  return happened


def _expected_interactions(
  logits: jax.Array, coupling: jax.Array
) -> list[jax.Array]:
  """Marginal probabilities by enumeration of the behaviours before each.

  Args:
    logits: `[..., N]` logits when nothing has happened before.
    coupling: `[N, N]` changes of the logits.

  Returns:
    `N` arrays `[...]`.
  """
  # Every way `[2^n]` the behaviours before may have turned out: its probability,
  # and what it adds to the logits.
  weight, shift = jnp.ones_like(logits[..., :1]), jnp.zeros_like(coupling[:1])
  expected = []
  for n in range(logits.shape[-1]):
    logit = jnp.add.outer(logits[..., n], shift[:, n])
    probability = jax.nn.sigmoid(logit)
    happens = weight * probability
    expected.append(jnp.sum(happens, axis=-1))
    weight = jnp.concatenate([weight * (1.0 - probability), happens], axis=-1)
    shift = jnp.concatenate([shift, shift + coupling[None, :, n]])
  return expected


def expected_responses(
  response: ResponseModel, user: chex.Numeric, items: chex.Array
) -> jax.Array:
  """Expectation of `sample_responses` over its uniforms.

  For evaluation with little noise; training data must stay sampled. The
  residual of the play time is integrated on 33 points of its normal density
  (behaviours that are thresholds of the play time are exact instead, from the
  latent value at which the table crosses the threshold), the interactions by
  enumeration at each of them. Costs about 33 x 31 logistic functions an item.

  Args:
    response: the response model.
    user: `[]` integer index of the user.
    items: `[L]` integer indices of the items.

  Returns:
    `[L, E]` expected behaviours in the order of `BEHAVIOURS`.

  Raises:
    ValueError: a shape or a dtype differs from what is expected.
  """
  _check_table(response)
  items = jnp.asarray(items)
  beyond = out_of_reach(response, user, items)
  mean = _interest(response, user, items, beyond)
  duration = response.duration[items]
  bucket = response.duration_bucket[items]
  noise = jnp.asarray(_QUADRATURE, mean.dtype)
  density = np.exp(-0.5 * _QUADRATURE**2)
  weights = jnp.asarray(density / density.sum(), mean.dtype)[None, :]
  z = mean[:, None] + response.residual_scale * noise[None, :]
  fraction = _play_fraction_of(z, bucket[:, None], response.play_table)
  play = _play_seconds(fraction, duration[:, None])

  thresholds = _latent_thresholds(response, duration, bucket)
  valid, finish, click, long_view = special.ndtr(
    (mean[None, :] - thresholds) / response.residual_scale
  )

  over_points = jax.vmap(
    lambda play: _interaction_logits(response, user, items, beyond, play),
    in_axes=1,
    out_axes=1,
  )
  interactions = [
    jnp.sum(weights * probability, axis=1)
    for probability in _expected_interactions(
      over_points(play), response.interaction_coupling
    )
  ]
  columns = [
    valid,
    jnp.sum(weights * play, axis=1),
    finish,
    click,
    long_view,
    *interactions,
  ]
  return jnp.stack(columns, axis=-1)


def _latent_thresholds(
  response: ResponseModel, duration: jax.Array, bucket: jax.Array
) -> jax.Array:
  """`[4, L]` smallest z that crosses each threshold, as `_thresholds` orders."""
  spacing = (Z_MAX - Z_MIN) / (Z_POINTS - 1)
  seconds = jnp.stack(
    [
      jnp.full_like(duration, VALID_SECONDS),
      duration,
      jnp.minimum(CLICK_SECONDS, duration),
      jnp.minimum(LONG_VIEW_SECONDS, duration),
    ]
  )
  unit = jnp.where(jnp.isinf(duration), PICTURE_SECONDS, duration)[None]
  target = jnp.where(
    seconds < unit,
    jnp.log1p(seconds) / jnp.log1p(unit),
    seconds / unit,
  )
  # The first table point at or beyond the target, then back along the line.
  table = response.play_table
  below = table[bucket][None] < target[..., None]
  right = jnp.sum(below.astype(jnp.int32), axis=-1)
  right = jnp.clip(right, 1, Z_POINTS - 1)
  low, high = table[bucket[None], right - 1], table[bucket[None], right]
  step = jnp.where(high > low, high - low, 1.0)
  back = jnp.clip((target - low) / step, 0.0, 1.0)
  z = Z_MIN + spacing * (right.astype(back.dtype) - 1.0 + back)
  return jnp.where(table[bucket, -1][None] < target, jnp.inf, z)
