"""Networks of policies and critics as pairs of plain functions."""

from mtf_jax.networks.actors import MLP, Actor, mlp_actor, ple_actor
from mtf_jax.networks.critics import (
  Critic,
  box_critic,
  box_deviation,
  mlp_critic,
)
from mtf_jax.networks.monotone import CellNetwork, mlp_cells
from mtf_jax.networks.stochastic import (
  ActionVAE,
  GaussianActor,
  mlp_vae,
  sample_tanh_normal,
  tanh_gaussian,
)

__all__ = [
  "MLP",
  "ActionVAE",
  "Actor",
  "CellNetwork",
  "Critic",
  "GaussianActor",
  "box_critic",
  "box_deviation",
  "mlp_actor",
  "mlp_cells",
  "mlp_critic",
  "mlp_vae",
  "ple_actor",
  "sample_tanh_normal",
  "tanh_gaussian",
]
