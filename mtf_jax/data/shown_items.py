"""Items of shown lists: optional columns of a session log, one entry an item.

A policy that answers each item of a request by itself is learnt from them. The
request's own `action` and `box` are then those of the first item.

Letters: `N` rows, `L` slate positions, `F` item features, `A` action components, `S`
state features.

References:
  [1] Liu et al., "An Enhanced-State Reinforcement Learning Algorithm for
  Multi-Task Fusion in Large-Scale Recommender Systems", arXiv 2409.11678: state
  and action of a user-item pair.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.io import InputError, as_array
from mtf_jax.kernels.exploration import ActionBox


class ShownItems(NamedTuple):
  """The items of shown lists, best position first.

  Of a `bootstrap_only` row it is the list that would have been shown, with
  actions of 0.

  features: float32 `[N, L, F]` what is known of an item before it is shown, the
    ranking model's scores for this user among them, in a unit that networks take
    as it is.
  action: float32 `[N, L, A]` action that the item was ranked by, inside its box.
  box: float32 `[N, L, A]` bounds of the exploration for that item.
  """

  features: chex.Array
  action: chex.Array
  box: ActionBox


def pair_observation(
  observation: chex.Array, features: chex.Array
) -> jax.Array:
  """State of each user-item pair of a request, that of [1].

  Args:
    observation: `[S]` of the request.
    features: `[L, F]` of its items.

  Returns:
    `[L, S + F]`, the request's features first.
  """
  size = (features.shape[0], observation.shape[0])
  return jnp.concatenate(
    [jnp.broadcast_to(observation[None], size), features], axis=1
  )


# Boxes narrower than this round deviations, and how far apart are two of them.
_NARROW = 1e-3
_ALIKE = 1e-2

# Flat name -> (dtype, letters of the shape), as in `session_log`.
FIELDS = {
  "item_features": (np.float32, "NLF"),
  "item_action": (np.float32, "NLA"),
  "item_box_lower": (np.float32, "NLA"),
  "item_box_upper": (np.float32, "NLA"),
}


def flatten(items: ShownItems | None) -> dict[str, np.ndarray]:
  """The columns by flat name; none of a log without them.

  Args:
    items: of a log.

  Returns:
    NumPy arrays.

  Raises:
    InputError: it is of another type, or a column is no array.
  """
  if items is None:
    return {}
  for name, value, kind in (
    ("items", items, ShownItems),
    ("items.box", getattr(items, "box", None), ActionBox),
  ):
    if not isinstance(value, kind):
      raise InputError(
        f"{name}: expected a value of type {kind.__name__}, found"
        f" {type(value).__name__}."
      )
  columns = (items.features, items.action, items.box.lower, items.box.upper)
  return {
    name: as_array(column, name)
    for name, column in zip(FIELDS, columns, strict=True)
  }


def unflatten(flat: Mapping[str, np.ndarray]) -> ShownItems | None:
  """What `flatten` was given."""
  if "item_features" not in flat:
    return None
  features, action, lower, upper = (flat[name] for name in FIELDS)
  return ShownItems(features, action, ActionBox(lower, upper))


def bad_rows(
  flat: Mapping[str, np.ndarray], extra: np.ndarray
) -> dict[str, np.ndarray]:
  """What is wrong with the columns, beside values that are not finite.

  Args:
    flat: the log's columns by flat name, those of `flatten` among them or not, of
      the right types and shapes.
    extra: bool `[N]`, rows that hold only what follows a cut.

  Returns:
    By what is wrong, where it is: bool `[N, ...]`.
  """
  if "item_action" not in flat:
    return {}
  _, action, lower, upper = (flat[name] for name in FIELDS)
  of_first = {
    f"item_{name} of the first item not {name}": flat[f"item_{name}"][:, 0]
    != flat[name]
    for name in ("action", "box_lower", "box_upper")
  }
  of_extra = extra[:, None, None]
  outside = (action < lower) | (action > upper)
  return of_first | {
    "item_box_lower above item_box_upper": lower > upper,
    "item_action outside its own box": outside & ~of_extra,
    "item_action not 0 beside bootstrap_only": (action != 0) & of_extra,
  }


def check_deviate_alike(items: ShownItems | None) -> None:
  """Checks that a row's items deviate as one, as those of a request do.

  Where each item was drawn by itself the request has no deviation: its `action` is
  that of an item whose draw put it first.

  Args:
    items: of a log with valid rows, or None.

  Raises:
    InputError: items of a row lie elsewhere in their boxes.
  """
  if items is None:
    return
  lower, upper = (np.asarray(bound, np.float64) for bound in items.box)
  half_width = (upper - lower) / 2
  wide = (half_width > _NARROW) & (half_width[:, :1] > _NARROW)
  centred = np.asarray(items.action, np.float64) - (upper + lower) / 2
  deviation = centred / np.where(half_width > 0, half_width, 1)
  apart = wide & (np.abs(deviation - deviation[:, :1]) > _ALIKE)
  rows = apart.any(axis=(1, 2))
  # Beside what follows a cut all actions are 0.
  rows &= np.asarray(items.action).any(axis=(1, 2))
  if rows.any():
    raise InputError(
      "item_action: expected one deviation of all items of a request, which"
      f" whoever learns from requests needs, found {int(rows.sum())} of"
      f" {rows.size} rows with several, first row {int(np.argmax(rows))}."
    )


def require(items: Any, what: str) -> ShownItems:
  """The items, where something cannot do without.

  Args:
    items: of a transition.
    what: who asks, a noun.

  Raises:
    InputError: there are none.
  """
  if items is None:
    raise InputError(
      f"items: expected a log with shown items (item_features, item_action,"
      f" item_box_lower and item_box_upper), which {what} learns from, found"
      " none."
    )
  return items
