"""Reinforcement learning for multi-task fusion in short-video feeds.

The names below are the stable kernel surface: stateless functions of one
request, one session or one transition, to be batched by `jax.vmap`. Importing
the package runs no JAX computation and imports no network library.
"""

from mtf_jax.kernels.exploration import (
  ActionBox,
  action_box,
  box_log_prob,
  corners_log_prob,
  gaussian_log_prob,
  sample_box,
  sample_corners,
  sample_gaussian,
)
from mtf_jax.kernels.fusion import (
  FusionSpec,
  FusionWeights,
  fused_log_score,
  itemwise_log_score,
  rank_slate,
  weights_from_action,
)
from mtf_jax.kernels.losses import (
  actor_loss,
  critic_loss,
  ensemble_mean_std,
  list_td_targets,
  list_value,
  td_targets,
)
from mtf_jax.kernels.monotone import (
  MonotoneCells,
  cells_from_weights,
  monotone_fused_score,
  ranking_transfer_loss,
)
from mtf_jax.kernels.relaxation import (
  bootstrap_weight,
  exceedance,
  relaxation_penalty,
)
from mtf_jax.kernels.rewards import discounted_returns, list_reward

__version__ = "0.1.0"

__all__ = [
  "ActionBox",
  "FusionSpec",
  "FusionWeights",
  "MonotoneCells",
  "action_box",
  "actor_loss",
  "bootstrap_weight",
  "box_log_prob",
  "cells_from_weights",
  "corners_log_prob",
  "critic_loss",
  "discounted_returns",
  "ensemble_mean_std",
  "exceedance",
  "fused_log_score",
  "gaussian_log_prob",
  "itemwise_log_score",
  "list_reward",
  "list_td_targets",
  "list_value",
  "monotone_fused_score",
  "rank_slate",
  "ranking_transfer_loss",
  "relaxation_penalty",
  "sample_box",
  "sample_corners",
  "sample_gaussian",
  "td_targets",
  "weights_from_action",
]
