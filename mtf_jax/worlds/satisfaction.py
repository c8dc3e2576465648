"""What a user inwardly makes of a shown item; nobody logs it.

A feed logs attention, not contentment. Two departures from "more feedback is
better" make some attractive videos costly for the session:

- **Regret.** A video whose opening attracts more than its substance holds (it
  is started far more often than its length of viewing justifies) is regretted
  once started. It earns its watch reward now and shortens the session, as the
  "choc" items of [1]; a user's explicit ratings part from clicks in the same
  direction ([2]: videos rated bad still have a long-view share of 22%).
- **Taste.** Users come for different things: some for depth (long views), some
  for a quick round of finished clips, some to take part (like, comment, follow,
  forward). Tastes lean on what the user visibly did before and on the hour, and
  partly on nothing observable.

Letters: `L` slate positions, `E` behaviours, `U` users, `I` items.

References:
  [1] Ie et al., "RecSim", arXiv 1909.04847.
  [2] Gao et al., "KuaiRand", CIKM 2022, questionnaire of the 27K log.
"""

from typing import NamedTuple

import chex
import jax


class Satisfaction(NamedTuple):
  """Coefficients of the hidden satisfaction.

  taste: float32 `[U, E]` satisfaction per unit of each behaviour.
  evening_taste: float32 `[E]` relative change of taste at the evening's peak.
  regret: float32 `[I]` satisfaction lost per unit of `regretted` behaviour.
  regretted: float32 `[E]` the behaviour that regret follows (a click).
  center: float32 `[U]`, raw satisfaction per item that the user is used to:
    what the default weights give, in part the user's own and in part all
    users' (people compare with what they know).
  scale: scalar, standard deviation of an item's, positive.
  """

  taste: chex.Array
  evening_taste: chex.Array
  regret: chex.Array
  regretted: chex.Array
  center: chex.Array
  scale: chex.Numeric


def item_satisfaction(
  model: Satisfaction,
  user: chex.Array,
  items: chex.Array,
  feedback: chex.Array,
  evening: chex.Array,
) -> jax.Array:
  """Standardised satisfaction with each shown item.

  `(sum_e taste_{u,e} (1 + evening * evening_taste_e) f_{l,e}
  - regret_i sum_e regretted_e f_{l,e} - center_u) / scale`.

  Args:
    model: coefficients.
    user: int32 scalar.
    items: int32 `[L]`.
    feedback: `[L, E]` behaviours, sampled or expected: the formula is linear.
    evening: scalar in [-1, 1], 1 at the evening's peak.

  Returns:
    `[L]`, mean 0 and standard deviation 1 under the default weights.
  """
  taste = model.taste[user] * (1.0 + evening * model.evening_taste)
  raw = feedback @ taste - model.regret[items] * (feedback @ model.regretted)
  return (raw - model.center[user]) / model.scale
