"""What both sides of a comparison are given: one batch, one set of weights.

NumPy alone, so that it can be imported where the other side is installed. Layers
are `(kernel [out, in], bias [out])`.
"""

import itertools

import numpy as np

S, A, B = 4, 3, 16
HIDDEN = (6, 5)
LEARNING_RATE = 1e-3
DISCOUNT = 0.9
EXPECTILE, TEMPERATURE, MAX_WEIGHT = 0.7, 3.0, 100.0
LOG_STD = (-0.5, 0.25, 0.5)
ALPHA = 2.5
ACTOR_BETA, CRITIC_BETA = 0.4, 0.7


def _layers(rng, size_in, size_out):
  sizes = (size_in, *HIDDEN, size_out)
  return [
    (
      rng.normal(scale=inputs**-0.5, size=(outputs, inputs)).astype(np.float32),
      rng.normal(scale=0.1, size=outputs).astype(np.float32),
    )
    for inputs, outputs in itertools.pairwise(sizes)
  ]


def weights():
  """Networks by name; targets differ from what they follow."""
  rng = np.random.default_rng(7)
  return {
    "actor": _layers(rng, S, A),
    "target_actor": _layers(rng, S, A),
    "value": _layers(rng, S, 1),
    "critics": [_layers(rng, S + A, 1) for _ in range(2)],
    "target_critics": [_layers(rng, S + A, 1) for _ in range(2)],
  }


def batch():
  """Transitions, every fourth one an exit."""
  rng = np.random.default_rng(8)
  draw = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
  return {
    "observation": draw(B, S),
    "action": np.tanh(draw(B, A)),
    "reward": draw(B, 1),
    "next_observation": draw(B, S),
    "next_action": np.tanh(draw(B, A)),
    "terminal": (np.arange(B) % 4 == 3).astype(np.float32)[:, None],
  }
