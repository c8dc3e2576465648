"""Networks of policies and critics as pairs of plain functions."""

from mtf_jax.networks.actors import MLP, Actor, mlp_actor, ple_actor
from mtf_jax.networks.critics import (
  Critic,
  box_critic,
  box_deviation,
  mlp_critic,
)

__all__ = [
  "MLP",
  "Actor",
  "Critic",
  "box_critic",
  "box_deviation",
  "mlp_actor",
  "mlp_critic",
  "ple_actor",
]
