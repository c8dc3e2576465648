"""What a world says of the observation that its policies are given."""

import numpy as np

from mtf_jax.serving.manifest import Feature
from mtf_jax.worlds.world import CONTEXT_FEATURES, SESSION_FEATURES, World

_SHARE = "share of the shown videos"
_PLAY = "mean of log(1 + seconds played) / 4"


def _session_feature(name: str) -> Feature:
  """A statistic of the session so far; 0 before its first request."""
  if name == "session_requests":
    # A session of a million requests is none.
    return Feature(name, "log(1 + requests so far)", 0.0, 14.0, 0.0)
  if name.endswith("_play"):
    # A day of playing.
    return Feature(name, _PLAY, 0.0, 3.0, 0.0)
  return Feature(name, _SHARE, 0.0, 1.0, 0.0)


def observation_features(world: World) -> tuple[Feature, ...]:
  """Names, units and ranges of a world's observation.

  A user feature may be as far beyond the world's users as they are apart; its
  default is their mean.

  Args:
    world: the world.

  Returns:
    One entry for each of `world.observation_names`, in their order.
  """
  users = np.asarray(world.user_features, np.float64)
  low, high, mean = users.min(axis=0), users.max(axis=0), users.mean(axis=0)
  spread = np.maximum(high - low, 1.0)
  return (
    *(
      Feature(
        name,
        "standard deviations of the users, from their mean",
        float(low[n] - spread[n]),
        float(high[n] + spread[n]),
        float(mean[n]),
      )
      for n, name in enumerate(world.feature_names)
    ),
    *(_session_feature(name) for name in SESSION_FEATURES),
    *(
      Feature(name, "cosine of the hour's angle from its peak", -1.0, 1.0, 0.0)
      for name in CONTEXT_FEATURES
    ),
  )
