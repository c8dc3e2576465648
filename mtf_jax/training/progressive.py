"""Progressive training in a world: explore, train, redeploy, round after round.

The paper's main job. The policy first in service is one global set of fusion
weights found by an evolution strategy (ES). A round logs sessions explored in a
box around the policy in service, trains on them, and puts the new policy into
service. Policies are judged on the same sessions (common random numbers) with
expected-value accounting, see `session.session_returns`.

Letters: `B` sessions, `T` requests, `N` rows, `S` state features, `A` action
components, `G` reward groups, `O` outcomes, `U` updates.

References:
  [1] Liu et al., "UnifiedRL: A Reinforcement Learning Algorithm Tailored for
  Multi-Task Fusion in Large-Scale Recommender Systems", arXiv 2404.17589,
  bounded exploration and progressive training mode.
"""

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.datasets.sessions import Transition, TransitionDataset
from mtf_jax.exploration import (
  ActionBox,
  action_box,
  box_log_prob,
  sample_box,
  sample_gaussian,
)
from mtf_jax.learners.integrated_rl import (
  Coefficients,
  Learner,
  Normalization,
  State,
  integrated_rl,
)
from mtf_jax.networks import Actor
from mtf_jax.relaxation import exceedance
from mtf_jax.training import loop
from mtf_jax.training.config import TrainConfig, make_networks
from mtf_jax.worlds import headroom, session
from mtf_jax.worlds.headroom import Search
from mtf_jax.worlds.response import BEHAVIOURS
from mtf_jax.worlds.session import Decision, ExpectedRewards, Rollout
from mtf_jax.worlds.world import World

HALF_WIDTH = 0.15  # Of the box, from [1].
GAUSSIAN_STDDEV = 0.2  # The exploration that [1] replaces.
# ES may not reach the limits, so that a box has room on both sides of it.
_ES_LIMIT = 0.95
# Rows looked at for the share outside the box and the drift.
_DRIFT_ROWS = 65_536
_OUTCOMES = ("valid", "play_seconds", "hate")


@dataclasses.dataclass(frozen=True)
class ProgressiveConfig:
  """Size of a run; everything static.

  rounds: rounds of explore, train, redeploy.
  sessions_per_round: `B`, sessions logged in a round.
  max_requests: `T`, longer sessions are cut.
  num_users: users of the population kept, as in the audit.
  evaluation_sessions: sessions on which each policy is judged.
  es_search: effort of the evolution strategy.
  headroom_search: effort of the privileged optimum.
  train: networks and updates of one round; its `seed` is not used.
  """

  rounds: int
  sessions_per_round: int
  max_requests: int
  num_users: int
  evaluation_sessions: int
  es_search: Search
  headroom_search: Search
  train: TrainConfig

  def __post_init__(self):
    """Refuses empty counts."""
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if field.type is int and value < 1:
        raise ValueError(f"{field.name}: expected 1 or more, found {value}.")

  def to_json(self) -> dict[str, Any]:
    """As JSON has it."""
    values = {
      field.name: getattr(self, field.name)
      for field in dataclasses.fields(self)
    }
    return {
      **values,
      "es_search": self.es_search._asdict(),
      "headroom_search": self.headroom_search._asdict(),
      "train": self.train.to_json(),
    }


class Service(NamedTuple):
  """A policy in service, with the exploration around it.

  actor_params: of the actor.
  normalization: of its observations.
  half_width: scalar, of the box; 0 does not explore.
  stddev: scalar, of Gaussian noise on top; 0 for none.
  """

  actor_params: Any
  normalization: Normalization
  half_width: chex.Numeric
  stddev: chex.Numeric


def started_actor(actor: Actor) -> Actor:
  """An actor that answers near a given action before it is trained.

  `(t + start) / (1 + t start)` with `t` the actor's own answer: the sum of the
  two inside the tanh, so that both have the full range and no limit is hit. The
  leaf `start` `[A]` is 0 after `init`; set it with `start_at`. It is not
  trained.

  Args:
    actor: answers near 0 before it is trained.

  Returns:
    The actor, its parameters `{"network": ..., "start": [A]}`.
  """

  def init(rng_key, observation):
    network = actor.init(rng_key, observation)
    answer = jax.eval_shape(actor.apply, network, observation[None])
    start = jnp.zeros(answer.shape[1:], answer.dtype)
    return {"network": network, "start": start}

  def apply(params, observation):
    own = actor.apply(params["network"], observation)
    start = jax.lax.stop_gradient(params["start"])[None]
    return (own + start) / (1 + own * start)

  return Actor(init, apply)


def start_at(state: State, action: chex.Array) -> State:
  """The learner's state with `action` `[A]`, inside (-1, 1), as its start."""

  def put(params):
    return {**params, "start": jnp.array(action)}

  return state._replace(
    actor_params=put(state.actor_params),
    target_actor_params=put(state.target_actor_params),
  )


def make_act(actor: Actor) -> session.Act:
  """`act` of `session` for a `Service`; make it once, it is a static argument.

  The decision's box is the one of the bounded exploration; a log must not be
  taken with Gaussian noise on top.
  """

  def act(
    service: Service, observation: chex.Array, rng_key: chex.PRNGKey
  ) -> Decision:
    box_key, noise_key = jax.random.split(rng_key)
    mean, scale = service.normalization
    standard = (observation - mean) / scale
    own = actor.apply(service.actor_params, standard[None])[0]
    box = action_box(own, -service.half_width, service.half_width)
    action = sample_box(box_key, box)
    log_prob = box_log_prob(action, box)
    action = sample_gaussian(noise_key, action, service.stddev)
    return Decision(action, box, log_prob)

  return act


@jax.jit
def as_dataset(rows: Rollout) -> TransitionDataset:
  """Rows of a rollout as a dataset, without leaving the device.

  The rows that do not exist stay where they are and are never drawn: every
  round then has one shape, which `session.pack` would not give.

  Args:
    rows: `[B, T + 1]`.

  Returns:
    The dataset, `N = B (T + 1)`.
  """
  log = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows.log)
  start = rows.valid.reshape(-1) & ~log.bootstrap_only
  (start_row,) = jnp.nonzero(start, size=start.shape[0], fill_value=0)
  return TransitionDataset(
    observation=log.observation,
    action=log.action,
    box=log.box,
    reward=log.reward,
    terminal=log.terminal,
    start_row=start_row.astype(jnp.int32),
    num_transitions=jnp.sum(start, dtype=jnp.int32),
  )


class Judged(NamedTuple):
  """What a policy's sessions brought, `[B, ...]`, in an order of sessions that
  is the same for every policy judged with one key.

  user: int32 `[B]`.
  reward: float32 `[B]`, sum over the groups.
  outcome: float32 `[B, O]`: valid consumptions, seconds played, hates.
  requests: float32 `[B]`.
  """

  user: jax.Array
  reward: jax.Array
  outcome: jax.Array
  requests: jax.Array


def judging_world(world: World) -> World:
  """The world with a reward group more for each outcome to be judged.

  Expected-value accounting then covers them. The reward groups are no part of
  what happens in a session.
  """
  more = np.zeros((len(_OUTCOMES), len(BEHAVIOURS)), np.float32)
  for row, name in enumerate(_OUTCOMES):
    more[row, BEHAVIOURS.index(name)] = 1.0
  weights = jnp.concatenate([world.group_weights, jnp.asarray(more)])
  return world.replace(group_weights=weights)


def _rewards_of(table: ExpectedRewards, world: World) -> ExpectedRewards:
  """The part of a judging world's table that is the world's own."""
  num_groups = world.group_weights.shape[0]
  return table._replace(reward=table.reward[..., :num_groups])


@functools.partial(
  jax.jit, static_argnames=("act", "num_sessions", "max_requests", "look")
)
def judge(
  rng_key: chex.PRNGKey,
  world: World,
  table: ExpectedRewards,
  act: session.Act,
  params: Any,
  num_sessions: int,
  max_requests: int,
  look: Callable = session.observe,
) -> Judged:
  """Runs a policy; one key gives every policy the same users and noise.

  Args:
    rng_key: random number generator key, consumed.
    world: of `judging_world`.
    table: `session.expected_rewards(world)`.
    act: the policy, static.
    params: its parameters.
    num_sessions: `B`, static.
    max_requests: `T`, static.
    look: what the policy sees, static.

  Returns:
    Expected outcomes by session.
  """
  world_key, policy_key = jax.random.split(rng_key)

  def one(world_key, policy_key):
    returns = session.session_return(
      world, table, act, params, max_requests, look, world_key, policy_key
    )
    return session.reset(world_key, world).user, returns

  user, returns = jax.vmap(one)(
    jax.random.split(world_key, num_sessions),
    jax.random.split(policy_key, num_sessions),
  )
  groups = returns.expected.shape[1] - len(_OUTCOMES)
  return Judged(
    user=user,
    reward=jnp.sum(returns.expected[:, :groups], axis=1),
    outcome=returns.expected[:, groups:],
    requests=returns.requests,
  )


class Comparison(NamedTuple):
  """Relative gain of one policy over another, percent.

  gain: over the base.
  ci95: its 95% interval.
  p_value: two-sided, of no gain.
  """

  gain: float
  ci95: tuple[float, float]
  p_value: float


def compare(
  policy: chex.Array, base: chex.Array, user: chex.Array
) -> Comparison:
  """Paired comparison of sums per session, users being the units.

  Sessions of one user are not independent, so each user's sessions are added up
  first; the interval is that of the ratio of means over users (delta method,
  normal), and speaks of other users of the same world.

  Args:
    policy: `[B]` of the policy.
    base: `[B]` of the base, same sessions.
    user: `[B]` the sessions' users.

  Returns:
    The gain.
  """
  _, unit = np.unique(np.asarray(user), return_inverse=True)
  gain = headroom.relative_gain(
    np.bincount(unit, np.asarray(policy)), np.bincount(unit, np.asarray(base))
  )
  error = (gain.high - gain.low) / (2 * 1.96)
  # Equal policies have no error and no gain.
  z = gain.percent / error if error > 0 else 0.0
  return Comparison(
    float(gain.percent),
    (float(gain.low), float(gain.high)),
    math.erfc(abs(z) / math.sqrt(2)),
  )


def figures(policy: Judged, base: Judged, slate_size: int) -> dict[str, Any]:
  """Gains of a policy over a base, ready for JSON.

  Args:
    policy, base: judged with the same key.
    slate_size: items of a list.

  Returns:
    For reward, valid consumption, duration (both per session and, the sessions
    being the same, per user) and session length: `*_gain_pct`, `*_gain_ci95`,
    `*_p_value`. Hate rates per shown item.
  """
  column = {name: n for n, name in enumerate(_OUTCOMES)}
  values = {
    "reward": (policy.reward, base.reward),
    "uvc": [x.outcome[:, column["valid"]] for x in (policy, base)],
    "udt": [x.outcome[:, column["play_seconds"]] for x in (policy, base)],
    "session_length": (policy.requests, base.requests),
  }
  result: dict[str, Any] = {}
  for name, (ours, theirs) in values.items():
    gain = compare(ours, theirs, base.user)
    result[f"{name}_gain_pct"] = gain.gain
    result[f"{name}_gain_ci95"] = list(gain.ci95)
    result[f"{name}_p_value"] = gain.p_value
  for name, judged in (("hate_rate", policy), ("hate_rate_base", base)):
    hates = np.asarray(judged.outcome[:, column["hate"]], np.float64).sum()
    shown = np.asarray(judged.requests, np.float64).sum() * slate_size
    result[name] = float(hates / shown)
  return result


@functools.partial(jax.jit, static_argnames="learner")
def drift(
  learner: Learner, new: State, old: State, dataset: TransitionDataset
) -> tuple[jax.Array, jax.Array]:
  """How far a new policy went, on rows logged around the old one.

  Args:
    learner: the algorithm, static.
    new: trained on the dataset.
    old: in service when it was logged.
    dataset: rows with the boxes around the old policy.

  Returns:
    The share of requests whose new action is outside the box, and the mean
    absolute change of each component `[A]` (Fig. 2 of [1]).
  """
  num_rows = min(_DRIFT_ROWS, dataset.start_row.shape[0])
  row = dataset.start_row[:num_rows]
  place = jnp.arange(num_rows, dtype=jnp.int32)
  weight = (place < dataset.num_transitions).astype(jnp.float32)
  weight = weight / jnp.sum(weight)

  def one(row):
    observation = dataset.observation[row]
    box = jax.tree.map(lambda bound: bound[row], dataset.box)
    action = learner.act(new, observation)
    change = jnp.abs(action - learner.act(old, observation))
    return exceedance(action, box) > 0, change

  outside, change = jax.vmap(one)(row)
  return (
    jnp.sum(weight * outside.astype(jnp.float32)),
    jnp.sum(weight[:, None] * change, axis=0),
  )


class Algorithm(NamedTuple):
  """The learner and its policy as functions; static arguments everywhere.

  Make one for all seeds and worlds of one size: another pair of the same
  functions would compile everything again.
  """

  learner: Learner
  act: session.Act


def make_algorithm(config: TrainConfig, world: World) -> Algorithm:
  """The learner that a configuration describes, sized for a world."""
  num_groups = world.group_weights.shape[0]
  actor, critic = make_networks(config, world.num_actions, num_groups)
  actor = started_actor(actor)
  learner = integrated_rl(actor, critic, critic_updates=config.critic_updates)
  return Algorithm(learner, make_act(actor))


class Run(NamedTuple):
  """What stays the same over the rounds of one seed and one world.

  config: size of the run.
  world: with its population cut, rewards as they are.
  judging: the same world for `judge`.
  table: `expected_rewards(judging)`.
  algorithm: of `make_algorithm`.
  start: the learner's state with ES in service.
  base: ES judged.
  keys: random number generator keys by use.
  """

  config: ProgressiveConfig
  world: World
  judging: World
  table: ExpectedRewards
  algorithm: Algorithm
  start: State
  base: Judged
  keys: dict[str, chex.PRNGKey]


def service(state: State, half_width: float = 0.0, stddev: float = 0.0):
  """The learner's policy in service, exploring or not."""
  return Service(
    state.actor_params,
    state.normalization,
    jnp.asarray(half_width, jnp.float32),
    jnp.asarray(stddev, jnp.float32),
  )


def _judge(run: Run, params: Any) -> Judged:
  return judge(
    run.keys["evaluation"],
    run.judging,
    run.table,
    run.algorithm.act,
    params,
    run.config.evaluation_sessions,
    run.config.max_requests,
  )


def _collect(run: Run, rng_key: chex.PRNGKey, state: State) -> Rollout:
  """Sessions explored in the box around the policy, each row with its box."""
  return session.rollout(
    rng_key,
    run.world,
    run.algorithm.act,
    service(state, HALF_WIDTH),
    run.config.sessions_per_round,
    run.config.max_requests,
  )


def prepare(
  config: ProgressiveConfig, world: World, seed: int, algorithm: Algorithm
) -> Run:
  """Finds ES, judges it, and sets the learner up around it.

  Args:
    config: size of the run.
    world: the world; its population is cut to `config.num_users`.
    seed: decides the users kept, ES, the networks, all sessions and batches.
    algorithm: of `make_algorithm`.

  Returns:
    The run before its first round.
  """
  rng = np.random.default_rng(seed)
  users = np.unique(np.asarray(world.population))
  kept = rng.choice(users, min(config.num_users, users.size), replace=False)
  # The name is static: with it, each seed's world would be compiled anew.
  world = world.replace(
    population=jnp.asarray(np.sort(kept), jnp.int32), name="progressive"
  )
  names = ("search", "headroom", "network", "evaluation", "round", "one_round")
  keys = dict(
    zip(names, jax.random.split(jax.random.key(seed), len(names)), strict=True)
  )
  judging = judging_world(world)
  table = session.expected_rewards(judging)
  zero = jnp.zeros((world.num_actions,), jnp.float32)
  begin = headroom.start_policy(world, session.observe, zero, _ES_LIMIT, False)
  normalization = Normalization(begin.mean, begin.scale)
  policy = headroom.optimise(
    keys["search"],
    world,
    _rewards_of(table, world),
    begin._replace(scale=jnp.full_like(begin.scale, jnp.inf)),
    config.es_search,
    config.max_requests,
    session.observe,
  )
  num_features = len(world.observation_names)
  observation = jnp.zeros((num_features,), jnp.float32)
  box = ActionBox(zero, zero)
  example = Transition(
    observation_tm1=observation,
    action_tm1=zero,
    box_tm1=box,
    r_t=jnp.zeros((world.group_weights.shape[0],), jnp.float32),
    discount_t=jnp.zeros((), jnp.float32),
    observation_t=observation,
    box_t=box,
  )
  start = algorithm.learner.init(
    keys["network"],
    example,
    Coefficients(
      **{
        name: jnp.asarray(value)
        for name, value in config.train.coefficients.items()
      }
    ),
    normalization,
  )
  run = Run(
    config=config,
    world=world,
    judging=judging,
    table=table,
    algorithm=algorithm,
    start=start_at(start, policy.weights[:, 0]),
    base=None,
    keys=keys,
  )
  return run._replace(base=_judge(run, es_service(run)))


def es_service(run: Run) -> Service:
  """ES itself: the actor before training, without its networks' small answer."""
  params = run.start.actor_params
  network = jax.tree.map(jnp.zeros_like, params["network"])
  return service(
    run.start._replace(actor_params={**params, "network": network})
  )


def es_figures(run: Run) -> dict[str, Any]:
  """The baseline: its action, what it brings, what finding it cost."""
  search = run.config.es_search
  return {
    "action": np.asarray(run.start.actor_params["start"], np.float64).tolist(),
    "reward_per_session": float(jnp.mean(run.base.reward)),
    "requests_per_session": float(jnp.mean(run.base.requests)),
    # Each session of a step is run forwards and backwards.
    "search_sessions": 2 * search.iterations * search.sessions,
  }


def headroom_figures(run: Run) -> dict[str, Any]:
  """The privileged optimum of the audit: what no policy that can be served has.

  A linear policy of the observation and the hidden state, free to go anywhere,
  ascends the true return from ES.
  """
  action = run.start.actor_params["start"]
  policy = headroom.start_policy(
    run.world, session.privileged_observation, action, 2.0, False
  )
  best = headroom.optimise(
    run.keys["headroom"],
    run.world,
    _rewards_of(run.table, run.world),
    policy,
    run.config.headroom_search,
    run.config.max_requests,
    session.privileged_observation,
  )
  judged = judge(
    run.keys["evaluation"],
    run.judging,
    run.table,
    headroom.linear_act,
    best,
    run.config.evaluation_sessions,
    run.config.max_requests,
    session.privileged_observation,
  )
  gain = compare(judged.reward, run.base.reward, run.base.user)
  return {"headroom_pct": gain.gain, "headroom_ci95": list(gain.ci95)}


OnChunk = Callable[[loop.TrainState, Any], None]


def _train(
  run: Run,
  rng_key: chex.PRNGKey,
  state: State,
  dataset: TransitionDataset,
  num_updates: int,
  on_chunk: OnChunk | None,
) -> State:
  train = run.config.train
  # Copies: training donates its state, and the caller keeps the old policy.
  begin = loop.start(rng_key, jax.tree.map(jnp.copy, state))
  return loop.train(
    run.algorithm.learner,
    begin,
    dataset,
    num_updates,
    batch_size=train.batch_size,
    chunk_size=train.chunk_size,
    on_chunk=on_chunk,
  ).learner


def play_round(
  run: Run, state: State, number: int, on_chunk: OnChunk | None = None
) -> tuple[State, dict[str, Any]]:
  """One round: explore around the policy in service, train, judge.

  Training goes on from the state of the round before, critics included. It
  draws from this round's rows alone: older rows carry boxes around older
  policies, which the actor's penalty would hold the new one to.

  Args:
    run: of `prepare`.
    state: the learner's, its policy in service.
    number: of the round, from 0; with the seed it decides all draws.
    on_chunk: as in `loop.train`.

  Returns:
    The state with the new policy, and the round's figures.
  """
  config = run.config
  collect_key, batch_key = jax.random.split(
    jax.random.fold_in(run.keys["round"], number)
  )
  started = time.monotonic()
  before = _judge(run, service(state))
  cost = {}
  for name, noise in (
    ("exploration_cost_pct", {"half_width": HALF_WIDTH}),
    ("gaussian_cost_pct", {"stddev": GAUSSIAN_STDDEV}),
  ):
    explored = _judge(run, service(state, **noise))
    gain = compare(explored.reward, before.reward, before.user)
    cost[name] = -gain.gain
    cost[name.replace("_pct", "_ci95")] = [-gain.ci95[1], -gain.ci95[0]]
  judged = time.monotonic()
  dataset = as_dataset(_collect(run, collect_key, state))
  num_rows = int(dataset.num_transitions)
  collected = time.monotonic()
  updates = config.train.num_updates
  new = _train(run, batch_key, state, dataset, updates, on_chunk)
  outside, change = drift(run.algorithm.learner, new, state, dataset)
  trained = time.monotonic()
  result = {
    "round": number + 1,
    "rows": num_rows,
    **figures(_judge(run, service(new)), run.base, run.world.slate_size),
    **cost,
    "outside_share": float(outside),
    "drift": np.asarray(change, np.float64).tolist(),
    "seconds": {
      "collect": collected - judged,
      "train": trained - collected,
      "judge": time.monotonic() - trained + judged - started,
    },
  }
  return new, result


def play_once(run: Run, on_chunk: OnChunk | None = None) -> dict[str, Any]:
  """Without progressive training: the same sessions and updates in one round."""
  config = run.config
  collect_key, batch_key = jax.random.split(run.keys["one_round"])
  # In parts of a round's size: the program is compiled already.
  parts = [
    _collect(run, key, run.start)
    for key in jax.random.split(collect_key, config.rounds)
  ]
  dataset = as_dataset(
    jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
  )
  del parts
  updates = config.rounds * config.train.num_updates
  new = _train(run, batch_key, run.start, dataset, updates, on_chunk)
  outside, _ = drift(run.algorithm.learner, new, run.start, dataset)
  return {
    **figures(_judge(run, service(new)), run.base, run.world.slate_size),
    "outside_share": float(outside),
  }


_NETWORKS = {
  "critic": "box",
  "ensemble_size": 2,
  "hidden_sizes": (64, 64),
}

PRESETS = {
  # Under a minute: that everything runs; too few rows to learn from.
  "smoke": ProgressiveConfig(
    rounds=2,
    sessions_per_round=2048,
    max_requests=12,
    num_users=512,
    evaluation_sessions=2048,
    es_search=Search(10, 256),
    headroom_search=Search(10, 256),
    train=TrainConfig(
      **_NETWORKS,
      batch_size=256,
      num_updates=200,
      chunk_size=100,
      checkpoint_every=100,
    ),
  ),
  # Minutes on 2 CPU cores. The discount is higher than the 0.9 of [1], because
  # what is judged is the undiscounted session. A faster actor overshoots the box
  # while the critics are new; phi then cuts their targets to the next reward.
  "cpu": ProgressiveConfig(
    rounds=5,
    sessions_per_round=80_000,
    max_requests=16,
    num_users=512,
    evaluation_sessions=8192,
    es_search=Search(40, 1024),
    headroom_search=Search(40, 1024),
    train=TrainConfig(
      **_NETWORKS,
      batch_size=1024,
      num_updates=2_500,
      chunk_size=250,
      checkpoint_every=250,
      coefficients={
        "actor_learning_rate": 1e-4,
        "critic_learning_rate": 5e-4,
        "discount": 0.99,
        "target_step_size": 0.05,
      },
    ),
  ),
}
