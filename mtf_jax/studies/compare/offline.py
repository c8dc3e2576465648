"""What can be said of a policy without serving it, from one test log for all.

The test log explores uniformly in the box around the baseline policy, so that
estimators with exact densities apply. A policy that leaves the box is judged all
the same, as a platform would; `outside_share` says how much of it the log cannot
have shown.

Letters: `n` units, `N` rows, `B` sessions, `T` requests, `L` slate positions, `S`
state features, `A` action components, `K` tasks.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.data.behaviours import INDEX
from mtf_jax.data.session_log import SessionLog
from mtf_jax.data.transitions import Transition, TransitionDataset, dataset_from
from mtf_jax.evaluation import fqe as fqe_values
from mtf_jax.evaluation import importance, off_policy
from mtf_jax.evaluation.logged_units import LoggedUnits, units_from
from mtf_jax.evaluation.mtf_gauc import Impressions, day_auc, mtf_gauc
from mtf_jax.io import InputError
from mtf_jax.kernels import fusion
from mtf_jax.kernels.exploration import ActionBox
from mtf_jax.learners import fqe
from mtf_jax.learners.base import Learner, Normalization
from mtf_jax.policies import explore_in_box, is_held
from mtf_jax.studies.compare.bench import Bench
from mtf_jax.studies.progressive.collect import flat_rows
from mtf_jax.studies.progressive.experiment import tree_index
from mtf_jax.training import loop
from mtf_jax.training.config import TrainConfig, make_networks
from mtf_jax.worlds import rollout as rollout_lib
from mtf_jax.worlds.env import reset
from mtf_jax.worlds.rollout import scan_requests, session_keys
from mtf_jax.worlds.scores import lookup_scores
from mtf_jax.worlds.world import World

# Name in results -> heading. Higher is better in each.
METRICS = {
  "ncis": "NCIS, wide",
  "ncis_narrow": "NCIS, narrow",
  "dr": "doubly robust",
  "fqe": "FQE",
  "mtf_gauc": "MTF-GAUC",
}
# Requests that a policy answers at a time.
_ANSWERS = 8192
# Of the fitted world's own log, where it was given.
LOG_GAUC = "log_gauc"


def metrics_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
  """`METRICS`, and the one of a real log if rows have it."""
  if any(LOG_GAUC in row for row in rows):
    return {**METRICS, LOG_GAUC: "MTF-GAUC, held-out days"}
  return METRICS


class Shown(NamedTuple):
  """Lists of the test sessions, `[B, T, ...]`.

  user: int32 `[B]`.
  observation: float32 `[B, T, S]`.
  scores: float32 `[B, T, L, K]` of the shown items.
  valid: float32 `[B, T, L]` valid consumption.
  reward: float32 `[B, T, L]` of each item, summed over the groups.
  active: bool `[B, T]`.
  """

  user: jax.Array
  observation: jax.Array
  scores: jax.Array
  valid: jax.Array
  reward: jax.Array
  active: jax.Array


class TestLog(NamedTuple):
  """What every policy is estimated on.

  log: its rows, NumPy.
  units: of the log.
  nuisance: outcome and slopes that the doubly robust estimator starts from.
  shown: the lists.
  dataset: rows on the device, for FQE, with those that do not exist.
  valid: bool `[N]`, which of them exist; in order they are those of `log`.
  starts: bool `[N]`, which of them a session starts with.
  """

  log: SessionLog
  units: LoggedUnits
  nuisance: off_policy.Nuisance
  shown: Shown
  dataset: TransitionDataset
  valid: np.ndarray
  starts: np.ndarray


@functools.partial(
  jax.jit, static_argnames=("num_sessions", "max_requests", "held")
)
def _shown(
  rng_key: chex.PRNGKey,
  world: World,
  action: chex.Array,
  num_sessions: int,
  max_requests: int,
  held: bool,
) -> Shown:
  """The lists of the sessions that `rollout` logs with this key."""

  def emit(_, request):
    feedback = request.result.feedback
    reward = jnp.sum(feedback[:, None, :] * world.group_weights[None], (1, 2))
    scores = lookup_scores(world.scores, request.state.user, request.slots)
    return None, (
      request.observation,
      scores,
      feedback[:, INDEX["valid"]],
      reward,
      request.state.active,
    )

  def one(world_key, policy_key):
    start = reset(world_key, world)
    _, _, out = scan_requests(
      world,
      explore_in_box,
      action,
      start,
      policy_key,
      emit,
      max_requests=max_requests,
      held=held,
    )
    return Shown(start.user, *out)

  return jax.vmap(one)(*session_keys(rng_key, num_sessions))


def collect_test(bench: Bench) -> TestLog:
  """Logs the test sessions, which nothing was trained on."""
  sizes = bench.config.sizes
  world = tree_index(bench.experiment.world, 0)
  action = jnp.asarray(bench.actions["baseline"])
  num_sessions = bench.config.test_sessions
  rows = rollout_lib.rollout(
    bench.keys["test"],
    world,
    explore_in_box,
    action,
    num_sessions,
    sizes.max_requests,
    sizes.exploration,
  )
  shown = _shown(
    bench.keys["test"],
    world,
    action,
    num_sessions,
    sizes.max_requests,
    is_held(sizes.exploration),
  )
  log = rollout_lib.pack(rows)
  units = units_from(log)
  try:
    nuisance = off_policy.fit_slopes(units)
  except InputError:  # Too few sessions for slopes: no less unbiased without.
    nuisance = off_policy.mean_only(units)
  # What is judged are the first requests: a cut session counts as ended.
  flat = flat_rows(rows)
  valid = np.asarray(flat.valid)
  return TestLog(
    log=log,
    units=units,
    nuisance=nuisance,
    shown=jax.device_get(shown),
    dataset=dataset_from(flat, cut="end"),
    valid=valid,
    starts=valid & (np.asarray(flat.step) == 0),
  )


@functools.partial(jax.jit, static_argnames="act")
def _answers(
  act: Callable[..., jax.Array],
  params: Any,
  rng_key: chex.PRNGKey,
  observation: chex.Array,
) -> jax.Array:
  """`[n, A]` what a policy answers to observations `[n, S]`."""
  keys = jax.random.split(rng_key, observation.shape[0])

  def answer(inputs):
    return act(params, *inputs)

  # A policy that weighs several candidates needs as many times the memory.
  return jax.lax.map(answer, (observation, keys), batch_size=_ANSWERS)


@jax.jit
def _fused(spec: Any, action: chex.Array, scores: chex.Array) -> jax.Array:
  """`[n, L]` fused log scores of lists `[n, L, K]` under actions `[n, A]`."""

  def one(action, scores):
    weights = fusion.weights_from_action(action, spec)
    return fusion.fused_log_score(scores, weights)

  return jax.vmap(one)(action, scores)


def _gauc(world: World, shown: Shown, action: np.ndarray) -> float:
  """MTF-GAUC, a list being the unit: it is scored under one action."""
  active = np.asarray(shown.active)
  scores = shown.scores[active]
  fused = np.asarray(
    _fused(world.fusion_spec, action[active], scores), np.float64
  )
  count, length = fused.shape
  user = np.broadcast_to(shown.user[:, None], active.shape)[active]
  impressions = Impressions(
    label=shown.valid[active].reshape(-1),
    # Items may cost: what is below 0 weighs as one that earned nothing.
    reward=np.maximum(shown.reward[active].reshape(-1), 0.0),
    day=np.repeat(np.arange(count), length),
    user=user,
  )
  return mtf_gauc(day_auc(fused.reshape(-1), impressions), impressions)


def answering_fqe(train: TrainConfig, world: World) -> Learner:
  """FQE of a policy whose answers are the last features of the observation.

  So one program values every policy; the critics do not see those features.

  Args:
    train: whose critics; one object for all seeds, which share its program.
    world: one world.
  """
  size = world.num_actions
  _, critic = make_networks(train, size, world.group_weights.shape[0])

  def init(rng_key, observation, action, box):
    return critic.init(rng_key, observation[..., :-size], action, box)

  def apply(params, observation, action, box):
    return critic.apply(params, observation[..., :-size], action, box)

  def act(params, observation, rng_key):
    del params, rng_key
    return observation[-size:]

  return fqe.fqe(act, critic._replace(init=init, apply=apply))


def _fitted_value(
  bench: Bench, learner: Learner, test: TestLog, answers: jax.Array
) -> float:
  """FQE's value, discounted as the learners' are."""
  train = bench.config.sizes.train
  dataset = test.dataset._replace(
    observation=jnp.concatenate([test.dataset.observation, answers], axis=1)
  )
  (size,) = answers.shape[1:]
  plain = tree_index(bench.experiment.normalization, 0)
  normalization = Normalization(
    jnp.concatenate([plain.mean, jnp.zeros((size,))]),
    jnp.concatenate([plain.scale, jnp.ones((size,))]),
  )
  zero = answers[0]
  num_groups = dataset.reward.shape[1]
  box = ActionBox(zero, zero)
  example = Transition(
    dataset.observation[0],
    zero,
    box,
    jnp.zeros((num_groups,)),
    jnp.zeros(()),
    dataset.observation[0],
    box,
  )
  init_key, train_key, value_key = jax.random.split(bench.keys["fqe"], 3)
  state = learner.init(
    init_key,
    example,
    fqe.Hyperparams(
      discount=train.discount,
      target_step_size=0.05,
      critic_learning_rate=1e-3,
    ),
    normalization,
    policy_params=(),
  )
  trained = loop.train(
    learner,
    loop.start(train_key, state),
    dataset,
    bench.config.fqe_updates,
    batch_size=train.batch_size,
    chunk_size=bench.config.fqe_updates,
  )
  # Rows of the device's dataset: each session begins at step 0 of its own.
  first = np.flatnonzero(test.starts)
  found = fqe_values.policy_value(
    learner,
    trained.learner,
    value_key,
    dataset.observation[first],
    jax.tree.map(lambda bound: bound[first], dataset.box),
  )
  return found.value


def offline_figures(
  bench: Bench,
  learner: Learner,
  test: TestLog,
  act: Callable[..., jax.Array],
  params: Any,
) -> dict[str, Any]:
  """Every offline metric of a policy, ready for JSON.

  Args:
    bench: what all methods share.
    learner: of `answering_fqe`.
    test: of `collect_test`.
    act: `(params, observation, rng_key) -> action`, static.
    params: of the policy.

  Returns:
    The names of `METRICS`, `dr_ci95`, effective sample sizes, and
    `outside_share`; `fqe` is None, and `fqe_failed` says why, where its training
    met what is not finite.
  """
  # One draw of a stochastic policy, whatever it is asked for.
  key = bench.keys["answers"]

  def answer(observation):
    return _answers(act, params, key, jnp.asarray(observation, jnp.float32))

  of_rows = answer(test.dataset.observation)
  logged = np.asarray(of_rows)[test.valid]
  wide, narrow = (
    importance.ncis(
      test.log, logged, stddev=stddev, cap=importance.PUBLISHED_CAP
    )
    for stddev in importance.PUBLISHED_STDDEVS
  )
  robust = off_policy.doubly_robust(
    test.units, answer(test.units.observation), test.nuisance
  )
  count, length = test.shown.active.shape
  of_lists = answer(test.shown.observation.reshape(count * length, -1))
  of_lists = np.asarray(of_lists).reshape(count, length, -1)
  world = tree_index(bench.experiment.world, 0)
  try:
    fitted = {"fqe": _fitted_value(bench, learner, test, of_rows)}
  except FloatingPointError as error:
    # Of a policy far from its log it may have no finite value.
    fitted = {"fqe": None, "fqe_failed": str(error)}
  return {
    "ncis": wide.value,
    "ncis_ess": wide.effective_sample_size,
    "ncis_narrow": narrow.value,
    "ncis_narrow_ess": narrow.effective_sample_size,
    "dr": robust.value,
    "dr_ci95": [robust.low, robust.high],
    **fitted,
    "mtf_gauc": _gauc(world, test.shown, of_lists),
    "outside_share": robust.outside_share,
  }
