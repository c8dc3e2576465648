"""Behaviours and tasks: names, thresholds and buckets, each defined once."""

import numpy as np

BEHAVIOURS = (
  "valid",
  "play_seconds",
  "finish",
  "click",
  "long_view",
  "like",
  "comment",
  "follow",
  "forward",
  "hate",
)
INDEX = {name: n for n, name in enumerate(BEHAVIOURS)}
INTERACTIONS = BEHAVIOURS[5:]
# Any of them is what the task `interaction` predicts.
POSITIVE_INTERACTIONS = ("like", "comment", "follow", "forward")
VALID_SECONDS = 10.0  # UnifiedRL: a video played for more than 10 s
CLICK_SECONDS = 7.0  # KuaiRand's recording rule, or the whole video
LONG_VIEW_SECONDS = 18.0  # KuaiRand's recording rule, or the whole video
# Pictures have no duration (`inf`): their play table is in this unit.
PICTURE_SECONDS = 60.0

# What the ranking model predicts of a video, in the order of the scores.
TASKS = ("valid", "watch_time", "finish", "interaction", "long_view")

# Durations at which the buckets of the play tables end, seconds; pictures have
# the last bucket of their own.
DURATION_EDGES = (
  8.0,
  12.0,
  16.0,
  22.0,
  30.0,
  45.0,
  60.0,
  90.0,
  120.0,
  180.0,
  270.0,
)
NUM_BUCKETS = len(DURATION_EDGES) + 2


def duration_bucket(duration: np.ndarray) -> np.ndarray:
  """Row of the play table for durations in seconds, int32."""
  bucket = np.searchsorted(DURATION_EDGES, duration, side="right")
  return np.where(np.isinf(duration), NUM_BUCKETS - 1, bucket).astype(np.int32)
