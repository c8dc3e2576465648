"""Losses and Adam steps of d3rlpy on the inputs of this folder.

  pip install d3rlpy==2.8.1
  python -m tests.learners.witness.make_d3rlpy

writes `d3rlpy.json` beside this file; `test_witness.py` compares. The package has
no dependency on d3rlpy.
"""

import json
import pathlib

import d3rlpy
import numpy as np
import torch
from d3rlpy.models import VectorEncoderFactory
from d3rlpy.torch_utility import TorchMiniBatch

from tests.learners.witness import inputs

_ENCODERS = {
  name: VectorEncoderFactory(list(inputs.HIDDEN))
  for name in ("actor_encoder_factory", "critic_encoder_factory")
}
_RATES = {
  "actor_learning_rate": inputs.LEARNING_RATE,
  "critic_learning_rate": inputs.LEARNING_RATE,
  "gamma": inputs.DISCOUNT,
}
_QUIET = {"target_smoothing_sigma": 0.0}
_ALGORITHMS = {
  "td3": d3rlpy.algos.TD3Config(**_ENCODERS, **_RATES, **_QUIET),
  "td3_bc": d3rlpy.algos.TD3PlusBCConfig(
    **_ENCODERS, **_RATES, **_QUIET, alpha=inputs.ALPHA
  ),
  "rebrac": d3rlpy.algos.ReBRACConfig(
    **_ENCODERS,
    **_RATES,
    **_QUIET,
    actor_beta=inputs.ACTOR_BETA,
    critic_beta=inputs.CRITIC_BETA,
  ),
  "iql": d3rlpy.algos.IQLConfig(
    **_ENCODERS,
    **_RATES,
    value_encoder_factory=VectorEncoderFactory(list(inputs.HIDDEN)),
    expectile=inputs.EXPECTILE,
    weight_temp=inputs.TEMPERATURE,
    max_weight=inputs.MAX_WEIGHT,
  ),
}


def _linear(module):
  return [m for m in module.modules() if isinstance(m, torch.nn.Linear)]


def _load(module, layers):
  for linear, (kernel, bias) in zip(_linear(module), layers, strict=True):
    with torch.no_grad():
      linear.weight.copy_(torch.from_numpy(kernel))
      linear.bias.copy_(torch.from_numpy(bias))


def _read(module):
  return [
    [m.weight.detach().numpy().tolist(), m.bias.detach().numpy().tolist()]
    for m in _linear(module)
  ]


def _implementation(config):
  algorithm = config.create()
  algorithm.create_impl((inputs.S,), inputs.A)
  modules = algorithm.impl.modules
  given = inputs.weights()
  _load(modules.policy, given["actor"])
  for side in ("", "target_"):
    for critic, layers in zip(
      modules.targ_q_funcs if side else modules.q_funcs,
      given[f"{side}critics"],
      strict=True,
    ):
      _load(critic, layers)
  if hasattr(modules, "targ_policy"):
    _load(modules.targ_policy, given["target_actor"])
  if hasattr(modules, "value_func"):
    _load(modules.value_func, given["value"])
    # A sigmoid between -5 and 2 there, the number itself here.
    share = (np.array(inputs.LOG_STD) + 5) / 7
    with torch.no_grad():
      modules.policy._logstd.copy_(
        torch.from_numpy(np.log(share / (1 - share))[None]).float()
      )
  return algorithm.impl


def _batch():
  given = {name: torch.from_numpy(x) for name, x in inputs.batch().items()}
  return TorchMiniBatch(
    observations=given["observation"],
    actions=given["action"],
    rewards=given["reward"],
    next_observations=given["next_observation"],
    next_actions=given["next_action"],
    returns_to_go=torch.zeros_like(given["reward"]),
    terminals=given["terminal"],
    intervals=torch.ones_like(given["reward"]),
    device="cpu",
  )


def _witness(config):
  batch = _batch()
  impl = _implementation(config)
  target = impl.compute_target(batch)
  found = {
    f"critic.{name}": float(value)
    for name, value in vars(impl.compute_critic_loss(batch, target)).items()
  }
  actor_loss = impl.compute_actor_loss(
    batch, impl.modules.policy(batch.observations)
  )
  found |= {f"actor.{name}": float(x) for name, x in vars(actor_loss).items()}
  impl.update_critic(batch)
  stepped = {"critics": [_read(critic) for critic in impl.modules.q_funcs]}
  if hasattr(impl.modules, "value_func"):
    stepped["value"] = _read(impl.modules.value_func)
  impl = _implementation(config)
  impl.update_actor(batch)
  stepped["actor"] = _read(impl.modules.policy)
  return {"losses": found, "stepped": stepped}


def main():
  """Writes the file."""
  result = {
    "d3rlpy": d3rlpy.__version__,
    "torch": torch.__version__,
    **{name: _witness(config) for name, config in _ALGORITHMS.items()},
  }
  path = pathlib.Path(__file__).with_name("d3rlpy.json")
  path.write_text(json.dumps(result, indent=1) + "\n")
  print(path)


if __name__ == "__main__":
  main()
