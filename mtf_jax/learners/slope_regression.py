"""Slope regression: what a deviation in the box is worth, in closed form.

Inside a small box the return is nearly linear in the deviation, and exploration
draws the deviation independently of everything known before it. So its slope,
itself linear in the observation, can be regressed without a model of the world,
see `slope_statistics`: no bootstrapping, no epochs, and an error that is known.
Statistics add up over batches, shards and rounds; deviations of all rounds count
from the first policy in service, and a curvature that is assumed re-expresses
them around the present one. The policy of round r moves from the one before it,
within its box:

  s_r(x) = theta_r phi(x) - h d_{r-1}(x),   d_r = d_{r-1} + clip(s_r / h, -1, 1)

with `d` in half-widths of the box, counted from the first policy's action.

Letters: `B` transitions of a batch, `S` state features, `A` action components,
`G` reward groups, `F = 1 + S` features of a slope, `R` rounds.
"""

import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.transitions import (
  Transition,
  TransitionDataset,
  take_transitions,
)
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.learners import actor_critic, base, slope_statistics
from mtf_jax.learners.base import Learner, Normalization
from mtf_jax.learners.slope_statistics import Frame, Slopes, Statistics

MAX_ROUNDS = 16  # steps that a policy can be made of
# Of a step, in half-widths: rounding must not leave the box.
_REACH = 0.999
_BLOCK = 2048  # transitions whose products are in memory at once


class Hyperparams(NamedTuple):
  """Numbers of the algorithm: leaves of the state, so none of them recompiles.

  curvature: share of the mean return that a deviation of one half-width of one
    component is taken to cost, times two. Less steps further.
  group_weights: one number or one for each group.
  """

  curvature: chex.Numeric = 0.005
  group_weights: chex.Numeric = 1.0


class Policy(NamedTuple):
  """What acts: steps away from an action, one a round.

  origin: the first policy's action, and what distances from it are measured in.
  slopes: `[R, A, F]`, per half-width; 0 for rounds to come.
  curvature: `[R]`, per squared half-width, positive.
  """

  origin: Frame
  slopes: jax.Array
  curvature: jax.Array

  @property
  def normalization(self) -> Normalization:
    """Of the observations."""
    return self.origin.normalization


class State(NamedTuple):
  """Everything that an update reads and writes; a pytree of arrays.

  statistics: of all rounds.
  served: the policy in service, the steps of past rounds.
  round: int32 scalar, steps of past rounds.
  hyperparams: the numbers of the algorithm, each a leaf.
  """

  statistics: Statistics
  served: Policy
  round: jax.Array
  hyperparams: Hyperparams


class Metrics(NamedTuple):
  """What is known after an update.

  transitions: scalar, of all rounds.
  left_out: scalar, transitions of the batch that tell nothing: later requests
    of a session whose deviation is held, and returns that are not whole.
  value_explained: scalar, share of the return's variance.
  slope_spread, slope_error: scalars, root mean squares of the slopes'
    coefficients after shrinking, and of their standard errors before it,
    relative to the mean return.
  """

  transitions: jax.Array
  left_out: jax.Array
  value_explained: jax.Array
  slope_spread: jax.Array
  slope_error: jax.Array


def displacement(policy: Policy, observation: chex.Array) -> jax.Array:
  """`d_R(x)`, `[A]`: how far a policy's steps go, in half-widths.

  Args:
    policy: the policy.
    observation: `[S]`.
  """
  phi = slope_statistics.slope_features(
    policy.origin.normalization, observation
  )

  def step(d, inputs):
    slopes, curvature = inputs
    slope = jnp.sum(slopes * phi[None, :], axis=1) - curvature * d
    # Of a round to come: no slopes, and nothing that pulls back.
    moved = d + jnp.clip(slope / curvature, -_REACH, _REACH)
    return jnp.where(jnp.any(slopes != 0), moved, d), None

  start = jnp.zeros_like(policy.origin.centre)
  return jax.lax.scan(step, start, (policy.slopes, policy.curvature))[0]


def act(
  params: Policy, observation: chex.Array, rng_key: chex.PRNGKey
) -> jax.Array:
  """The policy's action `[A]`, in [-1, 1]; it does not use its key."""
  del rng_key
  moved = params.origin.half_width * displacement(params, observation)
  return jnp.clip(params.origin.centre + moved, -1, 1)


def _slopes(state: State) -> Slopes:
  numbers = state.hyperparams
  return slope_statistics.solve(
    state.statistics, numbers.group_weights, numbers.curvature
  )


def _curvature(slopes: Slopes, hyperparams: Hyperparams) -> jax.Array:
  """Per squared half-width, of the weighted return; positive."""
  weighted = jnp.sum(hyperparams.group_weights * slopes.mean_return)
  return jnp.maximum(hyperparams.curvature * weighted, 1e-9)


def policy(state: State) -> Policy:
  """The policy in service, and one step more by all that is known."""
  slopes = _slopes(state)
  served, last = state.served, state.served.slopes.shape[0] - 1
  place = jnp.minimum(state.round, last)
  return served._replace(
    slopes=served.slopes.at[place].set(slopes.mean),
    curvature=served.curvature.at[place].set(
      _curvature(slopes, state.hyperparams)
    ),
  )


def begin_round(state: State) -> State:
  """The state before another round's transitions: its policy is in service.

  Nothing changes before the first transition was seen.
  """
  seen = state.statistics.rows > 0
  following = state._replace(
    served=policy(state),
    round=state.round + 1,
  )
  return jax.tree.map(
    lambda new, old: jnp.where(seen, new, old), following, state
  )


def _counts(
  held: chex.Array | None, step: chex.Array | None, discount: chex.Array
) -> jax.Array:
  """Which transitions tell something of the deviation drawn, bool `[B]`."""
  drawn = jnp.ones(discount.shape, jnp.bool_)
  if held is not None and step is not None:
    # A held deviation is known to what is observed later in the session.
    drawn = ~held | (step == 0)
  return drawn & (discount == 0)


def _metrics(state: State, left_out: jax.Array) -> Metrics:
  slopes = _slopes(state)
  mean = jnp.maximum(
    jnp.abs(jnp.sum(state.hyperparams.group_weights * slopes.mean_return)),
    1e-9,
  )

  def size(values):
    return jnp.sqrt(jnp.mean(jnp.square(values))) / mean

  return Metrics(
    transitions=state.statistics.rows,
    left_out=left_out,
    value_explained=jnp.clip(1 - slopes.noise / slopes.variance, 0, 1),
    slope_spread=size(slopes.mean),
    slope_error=size(slopes.error),
  )


def _add(state: State, batch: Transition, weight: chex.Array) -> State:
  new = slope_statistics.statistics_of(
    state.served.origin, batch, weight.astype(batch.r_t.dtype)
  )
  return state._replace(statistics=jax.tree.map(jnp.add, state.statistics, new))


def update(state: State, batch: Transition) -> tuple[State, Metrics]:
  """Adds a batch, whose transitions must not be counted elsewhere."""
  counts = _counts(batch.exploration_held_tm1, batch.step_tm1, batch.discount_t)
  left_out = jnp.sum(~counts).astype(batch.r_t.dtype)
  state = _add(state, batch, counts)
  return state, _metrics(state, left_out)


def fit(state: State, dataset: TransitionDataset) -> tuple[State, Metrics]:
  """A round: each transition of a dataset once.

  Args:
    state: its policy is the one that explored, unless it has seen nothing yet.
    dataset: rows on the device. Returns must be whole: transitions that go on
      after their last step are left out.
  """
  state = begin_round(state)
  start_row, size = dataset.start_row, dataset.start_row.shape[0]
  counts = _counts(
    dataset.exploration_held[start_row],
    dataset.step[start_row],
    dataset.discount[start_row],
  )
  counts &= jnp.arange(size) < dataset.num_transitions
  (place,) = jnp.nonzero(counts, size=size, fill_value=0)
  total = jnp.sum(counts, dtype=jnp.int32)

  def block(number, state):
    entry = number * _BLOCK + jnp.arange(_BLOCK, dtype=jnp.int32)
    batch = take_transitions(dataset, place[jnp.minimum(entry, size - 1)])
    return _add(state, batch, entry < total)

  # Most transitions of held exploration do not count: as many blocks as do.
  state = jax.lax.fori_loop(0, -(-total // _BLOCK), block, state)
  left_out = (dataset.num_transitions - total).astype(jnp.float32)
  return state, _metrics(state, left_out)


def value(
  state: State, observation: chex.Array, action: chex.Array, box: ActionBox
) -> jax.Array:
  """Value `[G]` of an action held from here on, in units of the return.

  Args:
    state: the learner's.
    observation: `[S]`.
    action: `[A]`.
    box: not used: deviations count from the first policy's action.
  """
  del box
  served, numbers = state.served, state.hyperparams
  frame, slopes = served.origin, _slopes(state)
  phi = slope_statistics.slope_features(frame.normalization, observation)
  d = (action - frame.centre) / frame.half_width
  gain = jnp.einsum("gkf,f,k->g", slopes.of_groups, phi, d)
  curvature = numbers.curvature * slopes.mean_return
  # The value is that of the policies that logged, not of the first.
  logged = displacement(served, observation)
  level = slope_statistics.value_features(phi) @ slopes.value
  at_logged = jnp.einsum("gkf,f,k->g", slopes.of_groups, phi, logged)
  bend = jnp.sum(jnp.square(d)) - jnp.sum(jnp.square(logged))
  return level + gain - at_logged - curvature * bend / 2


_BOUNDS = {
  "curvature": (1e-6, np.inf),
  "group_weights": (-np.inf, np.inf),
}


@functools.cache
def slope_regression() -> Learner:
  """Builds the slope regression.

  Whoever plays rounds plays `MAX_ROUNDS` at most: a step more would replace the
  last one.

  Returns:
    The learner; it sees each transition once, see `Learner.fit`.

  Raises:
    ValueError: at `init`, a hyperparameter out of range.
  """

  def init(
    rng_key: chex.PRNGKey,
    example: Transition,
    hyperparams: Hyperparams | None = None,
    normalization: Normalization | None = None,
  ) -> State:
    del rng_key  # Nothing is drawn.
    hyperparams = Hyperparams() if hyperparams is None else hyperparams
    base.check_ranges(hyperparams, _BOUNDS)
    observation = jnp.asarray(example.observation_tm1)
    dtype = observation.dtype
    lower, upper = (jnp.asarray(b, dtype) for b in example.box_tm1)
    num_actions, num_features = lower.shape[0], observation.shape[0] + 1
    num_groups = jnp.shape(example.r_t)[0]
    num_values = num_features * (num_features + 1) // 2

    def zeros(*shape):
      return jnp.zeros(shape, dtype)

    half_width = (upper - lower) / 2
    return State(
      statistics=Statistics(
        rows=zeros(),
        returns=zeros(num_groups, num_groups),
        value_gram=zeros(num_values, num_values),
        value_moment=zeros(num_values, num_groups),
        gram=zeros(num_actions, num_features + 1, num_features + 1),
        cross=zeros(num_actions, num_features + 1, num_values),
        moment=zeros(num_actions, num_features + 1, num_groups),
      ),
      served=Policy(
        origin=Frame(
          (lower + upper) / 2,
          jnp.where(half_width > 0, half_width, 1),
          base.own_normalization(normalization, observation),
        ),
        slopes=zeros(MAX_ROUNDS, num_actions, num_features),
        curvature=jnp.ones((MAX_ROUNDS,), dtype),
      ),
      round=jnp.zeros((), jnp.int32),
      hyperparams=actor_critic.own_hyperparams(
        hyperparams, example, by_group=("group_weights",)
      ),
    )

  return Learner(
    init=init, update=update, policy=policy, act=act, value=value, fit=fit
  )
