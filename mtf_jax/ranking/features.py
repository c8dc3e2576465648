"""Features of a (user, video) pair for the score model.

Profile and content categories, and target encodings: what users and videos did
on other days, shrunk to the mean. A training row's encodings leave its own day
out, so that it never sees its own label; a later row's use all training days.
The per-video statistics of KuaiRand are not used: they average over the whole
period.
"""

from typing import NamedTuple

import numpy as np

from mtf_jax.data import behaviours, kuairand

# What is encoded per user and per video: rates and the mean log play time.
ENCODED = ("valid", "finish", "click", "long_view", "interaction", "log_play")
# Impressions that the mean weighs in an encoding.
_USER_PRIOR, _VIDEO_PRIOR, _PAIR_PRIOR = 4.0, 15.0, 6.0
MAX_CATEGORIES = 128  # categories with more values are left out


def labels(log: kuairand.ImpressionLog) -> dict[str, np.ndarray]:
  """What the impressions' users did, float32 `[n]` each.

  Thresholds of the play time as in the response model; `interaction` is any of
  like, comment, follow and forward; `log_play` is log1p of the play seconds.
  """
  play, duration = log.play_seconds, log.duration
  interaction = (
    sum(getattr(log, name) for name in behaviours.POSITIVE_INTERACTIONS) > 0
  )
  columns = {
    "valid": play > behaviours.VALID_SECONDS,
    "finish": play >= duration,
    "click": play >= np.minimum(behaviours.CLICK_SECONDS, duration),
    "long_view": play >= np.minimum(behaviours.LONG_VIEW_SECONDS, duration),
    "interaction": interaction,
    "log_play": np.log1p(play),
  }
  return {name: value.astype(np.float32) for name, value in columns.items()}


class Encoder(NamedTuple):
  """What turns pairs into features.

  user_numbers: `[U, Nu]` float32 encodings of users.
  video_numbers: `[I, Nv]` float32 encodings of videos.
  pair_numbers: `[U * H, 3]` encodings of a user on videos of a duration bucket.
  user_codes: `[U, Fu]` int32 categories; video_codes: `[I, Fv]`.
  user_sizes, video_sizes: how many values each category has.
  video_bucket: `[I]` duration bucket.
  """

  user_numbers: np.ndarray
  video_numbers: np.ndarray
  pair_numbers: np.ndarray
  user_codes: np.ndarray
  video_codes: np.ndarray
  user_sizes: tuple[int, ...]
  video_sizes: tuple[int, ...]
  video_bucket: np.ndarray


class Rows(NamedTuple):
  """Features of `n` pairs: float32 `[n, N]` numbers, int32 `[n, F]` codes."""

  numbers: np.ndarray
  codes: np.ndarray


def spread(values: np.ndarray) -> np.ndarray:
  """Standard deviation of each column of `[n, N]`, 1 where it is constant.

  A constant carries nothing; divided by a tiny number, a later row that differs
  from it would be all that a model sees.
  """
  deviation = values.std(axis=0)
  # Rounding gives equal values a deviation of their own.
  return np.where(deviation > 1e-6, deviation, 1.0).astype(values.dtype)


def _encode(sums, counts, mean, prior):
  """Shrunken means as deviations from the mean, and the log count."""
  shrunk = (sums + prior * mean) / (counts + prior)[:, None] - mean
  return np.concatenate(
    [shrunk, np.log1p(counts)[:, None]], axis=1, dtype=np.float32
  )


def _sums(groups, size, targets):
  sums = np.stack(
    [np.bincount(groups, column, minlength=size) for column in targets.T],
    axis=1,
  )
  return sums, np.bincount(groups, minlength=size).astype(np.float64)


def _pair(users, buckets):
  return users.astype(np.int64) * behaviours.NUM_BUCKETS + buckets


def _keys(log, bucket):
  """Group of each row, number of groups is implied, prior, for each encoding."""
  return (
    (log.user, _USER_PRIOR),
    (log.item, _VIDEO_PRIOR),
    (_pair(log.user, bucket[log.item]), _PAIR_PRIOR),
  )


def fit_encoder(
  log: kuairand.ImpressionLog, catalogue: kuairand.Catalogue
) -> tuple[Encoder, Rows]:
  """Encodes users and videos from the training days.

  Args:
    log: impressions of the training days.
    catalogue: users and videos.

  Returns:
    (the encoder for other days, the features of the training rows with each
    row's own day left out).
  """
  known = labels(log)
  targets = np.stack([known[name] for name in ENCODED], axis=1)
  targets = targets.astype(np.float64)
  mean = targets.mean(axis=0)
  bucket = behaviours.duration_bucket(catalogue.duration)
  sizes = (
    len(catalogue.user_ids),
    len(catalogue.video_ids),
    len(catalogue.user_ids) * behaviours.NUM_BUCKETS,
  )
  tables, own_rows = [], []
  _, day = np.unique(log.date, return_inverse=True)
  for (groups, prior), size in zip(_keys(log, bucket), sizes, strict=True):
    sums, counts = _sums(groups, size, targets)
    _, cell = np.unique(
      groups.astype(np.int64) * (day.max() + 1) + day, return_inverse=True
    )
    day_sums, day_counts = _sums(cell, cell.max() + 1, targets)
    tables.append(_encode(sums, counts, mean, prior))
    own_rows.append(
      _encode(
        sums[groups] - day_sums[cell],
        counts[groups] - day_counts[cell],
        mean,
        prior,
      )
    )
  user_keep = catalogue.user_categories.max(axis=0) < MAX_CATEGORIES
  video_keep = catalogue.video_categories.max(axis=0) < MAX_CATEGORIES
  video_codes = np.concatenate(
    [
      catalogue.video_categories[:, video_keep],
      catalogue.video_tag[:, None],
      bucket[:, None],
    ],
    axis=1,
  )
  user_codes = catalogue.user_categories[:, user_keep]
  log_duration = np.log1p(np.minimum(catalogue.duration, 1e4))
  log_duration = np.where(np.isinf(catalogue.duration), 0.0, log_duration)
  encoder = Encoder(
    user_numbers=tables[0],
    video_numbers=np.concatenate(
      [tables[1], log_duration[:, None]], axis=1, dtype=np.float32
    ),
    pair_numbers=tables[2],
    user_codes=user_codes,
    video_codes=video_codes,
    user_sizes=tuple((user_codes.max(axis=0) + 1).tolist()),
    video_sizes=tuple((video_codes.max(axis=0) + 1).tolist()),
    video_bucket=bucket,
  )
  numbers = np.concatenate(
    [
      own_rows[0],
      own_rows[1],
      log_duration[log.item][:, None],
      own_rows[2],
    ],
    axis=1,
    dtype=np.float32,
  )
  return encoder, Rows(numbers, _codes(encoder, log.user, log.item, log.tab))


def _codes(encoder, users, items, tab):
  return np.concatenate(
    [
      encoder.user_codes[users],
      encoder.video_codes[items],
      np.clip(tab, 0, NUM_TABS - 1)[:, None],
    ],
    axis=1,
    dtype=np.int32,
  )


NUM_TABS = 16


def encode(
  encoder: Encoder, users: np.ndarray, items: np.ndarray, tab: np.ndarray
) -> Rows:
  """Features of pairs on days that the encoder has not seen.

  Args:
    encoder: of `fit_encoder`.
    users, items: `[n]` integer indices.
    tab: `[n]` page of the app.

  Returns:
    The features.
  """
  pair = _pair(users, encoder.video_bucket[items])
  numbers = np.concatenate(
    [
      encoder.user_numbers[users],
      encoder.video_numbers[items],
      encoder.pair_numbers[pair],
    ],
    axis=1,
    dtype=np.float32,
  )
  return Rows(numbers, _codes(encoder, users, items, tab))


def user_observations(
  encoder: Encoder, catalogue: kuairand.Catalogue
) -> tuple[np.ndarray, tuple[str, ...]]:
  """What a policy may know of a user before the session.

  The user's encodings (shrunken rates of the encoder's days, mean log play
  time, log activity) and the profile categories of two values.

  Args:
    encoder: of `fit_encoder`.
    catalogue: users.

  Returns:
    (float32 `[U, F]` with mean 0 and standard deviation 1 over the users, 0 if
    all are alike, the `F` names).
  """
  columns = list(encoder.user_numbers.T)
  names = [f"user_{name}" for name in (*ENCODED, "log_count")]
  for codes, name in zip(
    catalogue.user_categories.T, catalogue.user_category_names, strict=True
  ):
    if codes.max() == 1:
      columns.append(codes)
      names.append(name)
  values = np.stack(columns, axis=1).astype(np.float64)
  values = (values - values.mean(axis=0)) / spread(values)
  return values.astype(np.float32), tuple(names)
