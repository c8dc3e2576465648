"""One method, in one version, trained on one kind of log.

A policy that is told its box answers a deviation. Over rounds the box moves with
the policy in service, so that what is served after round n is
`pi_n(s) = pi_{n-1}(s) + half_width u_n(s)`: a chain of the rounds' networks. All
policies are served as chains, so that all are judged by one program.

Letters: `R` seeds, here 1, `N` rounds, `S` state features, `A` action components.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from mtf_jax import policies
from mtf_jax.data.transitions import Rows
from mtf_jax.kernels.exploration import HALF_WIDTH
from mtf_jax.learners import box_units
from mtf_jax.learners.box_units import Frame
from mtf_jax.policies import PolicyParams
from mtf_jax.studies.compare.bench import Bench, collect
from mtf_jax.studies.progressive.collect import as_dataset
from mtf_jax.studies.progressive.experiment import (
  Experiment,
  tree_index,
  with_study_learner,
)
from mtf_jax.studies.progressive.rounds import train_seeds
from mtf_jax.studies.progressive.study_learner import (
  StudyLearner,
  make_study_learner,
)
from mtf_jax.training.config import TrainConfig
from mtf_jax.worlds.world import World


class Chain(NamedTuple):
  """A policy as every method's is served: links that answer one after another.

  Global weights are a chain without an active link, a policy that is told nothing
  has one, and one that is told its box as many as there are rounds.

  start: `[A]` the action before the first link.
  links: parameters of a learner's policy, leading axis `N`.
  active: bool `[N]`, which links have been trained.
  told_box: bool scalar, whether a link answers a deviation from the one before.
  """

  start: chex.Array
  links: Any
  active: chex.Array
  told_box: chex.Array


@functools.cache
def chain_act(
  act: Callable[..., jax.Array],
) -> Callable[[Chain, chex.Array, chex.PRNGKey], jax.Array]:
  """`act` of a `Chain` whose links `act` answers.

  One function for one `act`: it is a static argument, and another object would
  compile everything again.

  Args:
    act: of a policy with a frame, see `box_units.Policy`.
  """

  def answer(chain: Chain, observation: chex.Array, rng_key: chex.PRNGKey):
    def link(action, inputs):
      params, active, key = inputs
      frame = Frame(
        jnp.where(chain.told_box, action, jnp.zeros_like(action)),
        jnp.where(chain.told_box, HALF_WIDTH, jnp.ones_like(action)),
      )
      # Some count from a place of their own.
      if hasattr(params, "frame"):
        params = params._replace(frame=frame)
      new = act(params, observation, key)
      return jnp.where(active, new, action), None

    keys = jax.random.split(rng_key, chain.active.shape[0])
    action, _ = jax.lax.scan(
      link, chain.start, (chain.links, chain.active, keys)
    )
    return action

  return answer


def _framed(params: Any, action: chex.Array) -> Any:
  """A policy's parameters with a frame `[A]`, for `chain_act` to put one in."""
  if hasattr(params, "frame") or not hasattr(params, "actor_params"):
    return params
  nothing = jnp.zeros_like(action)
  return box_units.Policy(
    params.actor_params, params.normalization, Frame(nothing, nothing)
  )


def empty_chain(
  start: chex.Array, params: Any, rounds: int, told_box: bool
) -> Chain:
  """A chain that answers `start`.

  Args:
    start: `[A]`.
    params: of a learner's policy, whose shapes count.
    rounds: links that there is room for.
    told_box: see `Chain`.
  """
  links = jax.tree.map(
    lambda leaf: jnp.zeros((rounds, *leaf.shape), leaf.dtype),
    _framed(params, start),
  )
  return Chain(
    jnp.asarray(start),
    links,
    jnp.zeros((rounds,), jnp.bool_),
    jnp.asarray(told_box),
  )


def _with_link(chain: Chain, params: Any, number: int) -> Chain:
  """The chain with one link more."""
  return chain._replace(
    links=jax.tree.map(
      lambda links, leaf: links.at[number].set(leaf), chain.links, params
    ),
    active=chain.active.at[number].set(True),
  )


def act_of(learner: StudyLearner) -> Callable[..., jax.Array]:
  """`act` of the chains of a learner's policies.

  Learners whose actor answers share one, so that programs of a policy are
  compiled once for all of them.
  """
  if learner.starts:
    return chain_act(box_units.deterministic_act(learner.actor))
  return chain_act(learner.learner.act)


class Trained(NamedTuple):
  """What a cell is judged by.

  act: `(params, observation, rng_key) -> action`, static.
  params: of the policy, without the axis `R`.
  updates_per_s: of the chunks after the first, which holds the compiler; None
    where there was no other.
  train_s: seconds of all updates.
  collect_s: seconds of logging in rounds; 0 for a log that all share.
  state_mb: of the learner's state, megabytes.
  """

  act: Callable[..., jax.Array]
  params: Any
  updates_per_s: float | None
  train_s: float
  collect_s: float
  state_mb: float


# By what an object is compiled for: learners that differ by numbers share one.
Learners = dict[tuple[Any, ...], StudyLearner]


def study_learner(
  learners: Learners, config: TrainConfig, world: World
) -> StudyLearner:
  """The learner of a configuration, made if there is none of its networks.

  Args:
    learners: those made so far; a new one is added.
    config: names, networks and numbers.
    world: one world.
  """
  networks = (
    *(config.learner, config.actor, config.critic, config.ensemble_size),
    *(config.hidden_sizes, config.critic_updates),
    world.num_actions,
    world.group_weights.shape[0],
  )
  if networks not in learners:
    learners[networks] = make_study_learner(config, world)
  return learners[networks]


class _Clock:
  """Seconds of chunks of updates."""

  def __init__(self):
    self.train_s = self.collect_s = 0.0
    self._last, self._before = 0.0, 0
    self._steady_s, self._steady, self._chunks = 0.0, 0, 0

  def begin(self) -> None:
    """A training run begins."""
    self._last, self._before = time.monotonic(), 0

  def on_chunk(self, state: Any, metrics: Any) -> None:
    """A chunk of it is done."""
    del metrics
    now, step = time.monotonic(), int(state.step[0])
    self.train_s += now - self._last
    if self._chunks:
      self._steady_s += now - self._last
      self._steady += step - self._before
    self._last, self._before, self._chunks = now, step, self._chunks + 1

  def updates_per_s(self) -> float | None:
    """Without the first chunk."""
    return self._steady / self._steady_s if self._steady else None


def _train(
  experiment: Experiment,
  rng_key: chex.PRNGKey,
  state: Any,
  rows: Rows,
  num_updates: int,
  clock: _Clock,
) -> Any:
  train = experiment.config.train
  dataset = as_dataset(rows, train.num_steps, train.discount)
  clock.begin()
  return train_seeds(
    experiment, rng_key[None], state, dataset, num_updates, clock.on_chunk
  )


def train_cell(
  bench: Bench, learner: StudyLearner, train: TrainConfig, rows: Rows | None
) -> Trained:
  """Trains one cell from the baseline policy on.

  Args:
    bench: what all methods share.
    learner: of `study_learner`.
    train: its configuration.
    rows: the log, as large as all rounds; None explores and trains in rounds.

  Returns:
    The policy.

  Raises:
    NonFiniteSeedError: training met what is not finite.
  """
  sizes = dataclasses.replace(bench.config.sizes, train=train)
  experiment = with_study_learner(bench.experiment, sizes, learner)
  state, clock = experiment.start, _Clock()

  def policy(state: Any) -> Any:
    params = learner.learner.policy(tree_index(state, 0))
    return _framed(params, experiment.baseline_action[0])

  boxed = bool(train.hyperparam("told_box", 0.0))
  act, rounds = act_of(learner), sizes.rounds
  chain = empty_chain(
    bench.actions["baseline"], policy(state), rounds, told_box=boxed
  )
  for number in range(rounds if rows is None else 1):
    key = jax.random.fold_in(experiment.keys["round"][0], number)
    collect_key, train_key = jax.random.split(key)
    own, updates = rows, rounds * train.num_updates
    if rows is None:
      updates = train.num_updates
      started = time.monotonic()
      own = collect_around(experiment, act, chain, collect_key)
      clock.collect_s += time.monotonic() - started
      # Each link is a policy of its own: critics of the box before know nothing
      # of this one's units.
      state = experiment.start if boxed else state
    state = _train(experiment, train_key, state, own, updates, clock)
    chain = _with_link(chain, policy(state), number if boxed else 0)
  return Trained(
    act=act,
    params=chain,
    updates_per_s=clock.updates_per_s(),
    train_s=clock.train_s,
    collect_s=clock.collect_s,
    state_mb=sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6,
  )


def collect_around(
  experiment: Experiment, act: Any, chain: Chain, rng_key: chex.PRNGKey
) -> Rows:
  """Rows of one round, explored in the box around a chain, `[1, N, ...]`."""
  policy = PolicyParams(chain, HALF_WIDTH, 0.0)
  policy = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], policy)
  rows = collect(experiment, policies.explore_around(act), policy, rng_key, 1)
  return jax.block_until_ready(rows)
