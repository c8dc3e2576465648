"""How much an audit computes."""

from typing import NamedTuple

from mtf_jax.learners.es import Search


class Effort(NamedTuple):
  """How much an audit computes; a preset.

  users: population kept for the headroom.
  sessions: sessions of an estimate.
  max_requests: requests of a session at most.
  global_search, personal_search: of the privileged optimisers.
  probe_sessions: sessions logged for the linear probe.
  grid: values of an action component in the sensitivity curves.
  """

  users: int
  sessions: int
  max_requests: int
  global_search: Search
  personal_search: Search
  probe_sessions: int
  grid: int


# A component moves by less than the learning rate a step, which falls: 40 steps
# cannot reach the bounds of [-1, 1], where several components belong.
_GLOBAL = Search(120, 4096)


# Hundreds of weights need smaller steps than the ten of global weights: at .03
# Adam walks at random and the search ends below what learners reach.
_PERSONAL = Search(80, 2048, learning_rate=0.01)


PRESETS = {
  "smoke": Effort(64, 512, 8, Search(6, 256), Search(6, 256), 1024, 3),
  "medium": Effort(512, 8192, 16, _GLOBAL, _PERSONAL, 32768, 5),
  "full": Effort(
    768, 8192, 16, _GLOBAL, _PERSONAL._replace(sessions=4096), 65536, 5
  ),
}
