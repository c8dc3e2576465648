"""When a user ends a session: an assumption, so it is named and swappable.

A leaving model is a NamedTuple of scalar coefficients, all dynamic leaves, with
two methods over one session: `reset() -> state` and `update(state,
satisfaction [L], tags [L]) -> (state, leave_prob [])`. Any NamedTuple with these
methods can stand in a world. `satisfaction` is what the user inwardly made of
each shown item, standardised so that the default weights' slates have mean 0
and standard deviation 1 per item; nobody logs it.

The three variants are those of published simulators, read from their code,
with one change: the hard rule "leave below a threshold" is a logistic of the
distance to the threshold, since users do not share one exact threshold and a
probability lets evaluation weight a request by the chance that it is reached.

Letter: `L` slate positions.

References:
  [1] Cao et al., "xMTF", arXiv 2504.05669: released code, a moving average of
  the reward (0.95 of the old) and exit below 0.1.
  [2] Zhao et al., "KuaiSim", NeurIPS 2023: released code, a temper budget
  changed by min(0, max(-2, feedback - 2)) a request, exit below 1.
  [3] Ie et al., "RecSim", arXiv 1909.04847: long-term satisfaction
  environment, net positive exposure with memory 0.7.
  [4] Deffayet et al., "SARDINE", arXiv 2024: boredom with a recurring topic.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

# Tags beyond this many share a slot of the boredom counter; a static size.
NUM_TAG_SLOTS = 64


class SatisfactionFloor(NamedTuple):
  """Leaves when a moving average of satisfaction nears a floor, after [1].

  `level <- memory * level + (1 - memory) * mean satisfaction`; leaving has
  probability `sigmoid((floor - level) / softness)`. [1] updates once an item
  with 0.95; 0.735 = 0.95^6 is the same memory for a slate of six.

  memory: share of the old level kept after a request, in [0, 1).
  start: level at the session's start.
  floor: level at which the user leaves with probability 1/2.
  softness: width of the logistic, positive.
  """

  memory: chex.Numeric = 0.735
  start: chex.Numeric = 0.0
  floor: chex.Numeric = -0.40
  softness: chex.Numeric = 0.20

  def reset(self) -> jax.Array:
    """Returns the level at the session's start, float32 scalar."""
    return jnp.asarray(self.start, jnp.float32)

  def update(
    self, state: jax.Array, satisfaction: chex.Array, tags: chex.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Digests one slate; see the module's docstring."""
    new = jnp.mean(satisfaction)
    level = self.memory * state + (1.0 - self.memory) * new
    return level, jax.nn.sigmoid((self.floor - level) / self.softness)


class TemperBudget(NamedTuple):
  """Leaves when a budget of patience is used up, after [2].

  `temper <- temper - clip(tolerance - mean satisfaction, 0, 2)`; leaving has
  probability `sigmoid((1 - temper) / softness)`.

  budget: temper at the session's start.
  tolerance: satisfaction at which a request costs nothing.
  softness: width of the logistic, positive.
  """

  budget: chex.Numeric = 8.0
  tolerance: chex.Numeric = 0.9
  softness: chex.Numeric = 0.75

  def reset(self) -> jax.Array:
    """Returns the whole budget, float32 scalar."""
    return jnp.asarray(self.budget, jnp.float32)

  def update(
    self, state: jax.Array, satisfaction: chex.Array, tags: chex.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Digests one slate; see the module's docstring."""
    cost = self.tolerance - jnp.mean(satisfaction)
    temper = state - jnp.clip(cost, 0.0, 2.0)
    return temper, jax.nn.sigmoid((1.0 - temper) / self.softness)


class Exposure(NamedTuple):
  """What `NetExposure` remembers: net exposure [], views by tag slot."""

  net: jax.Array
  views: jax.Array


class NetExposure(NamedTuple):
  """Leaves for low net positive exposure or boredom by tag, after [3] and [4].

  `net <- memory * net + mean satisfaction`, [3] without its noise; views of a
  tag fade by `memory` a request, and boredom is the mean number of remembered
  views that the shown items' tags already had. Leaving has log odds `log_odds -
  exposure_gain * net + boredom_gain * boredom`.

  memory: share kept after a request, in [0, 1).
  log_odds: log odds of leaving at net exposure 0 and boredom 0.
  exposure_gain: fall of the log odds per unit of net exposure.
  boredom_gain: rise of the log odds per remembered view of a shown tag.
  """

  memory: chex.Numeric = 0.7
  log_odds: chex.Numeric = -2.1
  exposure_gain: chex.Numeric = 1.2
  boredom_gain: chex.Numeric = 0.25

  def reset(self) -> Exposure:
    """Returns no exposure and no views."""
    return Exposure(
      net=jnp.zeros((), jnp.float32),
      views=jnp.zeros((NUM_TAG_SLOTS,), jnp.float32),
    )

  def update(
    self, state: Exposure, satisfaction: chex.Array, tags: chex.Array
  ) -> tuple[Exposure, jax.Array]:
    """Digests one slate; see the module's docstring."""
    slot = tags % NUM_TAG_SLOTS
    boredom = jnp.mean(state.views[slot])
    net = self.memory * state.net + jnp.mean(satisfaction)
    # A comparison with all slots, not a scatter: vmapped scatters are slow.
    added = jnp.sum(jax.nn.one_hot(slot, NUM_TAG_SLOTS), axis=0)
    views = self.memory * state.views + added
    logit = (
      self.log_odds - self.exposure_gain * net + self.boredom_gain * boredom
    )
    return Exposure(net=net, views=views), jax.nn.sigmoid(logit)


# The named variants; the first is the default.
LEAVING_MODELS = {
  "satisfaction_floor": SatisfactionFloor,
  "temper_budget": TemperBudget,
  "net_exposure": NetExposure,
}


def make_leaving(name: str) -> NamedTuple:
  """Returns a named leaving model with its default coefficients.

  Args:
    name: one of `LEAVING_MODELS`.

  Returns:
    The model, every coefficient a float32 array so that two worlds with other
    numbers share one compiled program.

  Raises:
    ValueError: unknown name.
  """
  if name not in LEAVING_MODELS:
    raise ValueError(
      f"leaving: expected one of {', '.join(LEAVING_MODELS)}, found {name!r}."
    )
  model = LEAVING_MODELS[name]()
  return type(model)(*(jnp.asarray(value, jnp.float32) for value in model))
