"""Logs sessions around global weights, trains learners on them, judges by A/B.

The baseline policy in service is one action for everybody. Its logs hold the
shown items, so that learners of requests and of user-item pairs learn from the
same sessions. Learners of cells have a log of their own: the same users' sessions,
ranked by cells made from these weights, whose curve was explored. All are judged on
the same users and sessions.

Letters: `C` candidates, `S` state features, `F` item features, `A` action components,
`K` tasks.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax import policies
from mtf_jax.data import transitions
from mtf_jax.data.behaviours import TASKS
from mtf_jax.data.session_log import SessionLog
from mtf_jax.data.shown_items import pair_observation
from mtf_jax.evaluation import ab_test, global_weights
from mtf_jax.evaluation.statistics import paired_comparison
from mtf_jax.evaluation.tables import Table
from mtf_jax.kernels.exploration import HALF_WIDTH, action_box
from mtf_jax.kernels.relaxation import exceedance
from mtf_jax.learners.base import Learner, normalization_from
from mtf_jax.learners.registry import LEARNERS
from mtf_jax.studies.progressive.study_learner import started_actor, with_start
from mtf_jax.studies.successors.config import Arm, SuccessorsConfig
from mtf_jax.training import loop
from mtf_jax.training.config import build_learner, make_networks
from mtf_jax.worlds import cells, env, log_parts
from mtf_jax.worlds import returns as returns_lib
from mtf_jax.worlds.candidates import observe_candidates
from mtf_jax.worlds.world import World, fingerprint

_KEYS = ("search", "log", "init", "train", "judge", "where")
_WHERE_SESSIONS = 256  # first requests whose candidates are all answered


def observe_attributes(
  world: World, state: env.SessionState
) -> policies.CandidateObservation:
  """`observe_candidates` without the scores that the fusion ranks by."""
  seen = observe_candidates(world, state)
  return seen._replace(features=seen.features[:, len(TASKS) :])


_OBSERVE = {"all": observe_candidates, "attributes": observe_attributes}


class _Setting(NamedTuple):
  """What the arms of one seed share."""

  config: SuccessorsConfig
  world: World
  judged_world: World
  table: returns_lib.ExpectedRewards
  keys: dict[str, jax.Array]
  action: jax.Array
  base: ab_test.EvalResult


def _setting(world: World, config: SuccessorsConfig, seed: int) -> _Setting:
  world = world.replace(population=world.population[: config.num_users])
  keys = dict(
    zip(_KEYS, jax.random.split(jax.random.key(seed), len(_KEYS)), strict=True)
  )
  action = global_weights.evolution(
    keys["search"],
    world,
    returns_lib.expected_rewards(world),
    jnp.zeros((world.num_actions,), jnp.float32),
    config.search,
    config.max_requests,
    privileged=True,
  )
  judged_world = ab_test.evaluation_world(world)
  table = returns_lib.expected_rewards(judged_world)
  base = ab_test.evaluate(
    keys["judge"],
    judged_world,
    table,
    policies.fixed_action,
    action,
    config.evaluation_sessions,
    config.max_requests,
  )
  return _Setting(config, world, judged_world, table, keys, action, base)


def _log(
  setting: _Setting, shared: str, exploration: str, of_cells: bool
) -> SessionLog:
  act = policies.explore_each(policies.global_action, shared)
  params = policies.PolicyParams(setting.action, HALF_WIDTH, 0.0)
  observe_fn: Callable[..., Any] = observe_candidates
  if of_cells:
    act = policies.explore_cells(policies.same_cells)
    params = policies.PolicyParams(
      cells.formula_cells(setting.world, setting.action),
      policies.CURVE_HALF_WIDTH,
      0.0,
    )
    observe_fn = env.observe
  return log_parts.log_sessions(
    setting.keys["log"],
    setting.world,
    act,
    params,
    setting.config.sessions,
    setting.config.max_requests,
    exploration=exploration,
    observe_fn=observe_fn,
  )


def _told(log: SessionLog, features: str | None) -> SessionLog:
  """The log as an arm sees it."""
  if features != "attributes" or log.items is None:
    return log if features else log._replace(items=None)
  kept = log.items.features[:, :, len(TASKS) :]
  return log._replace(items=log.items._replace(features=kept))


def _train(
  setting: _Setting, arm: Arm, log: SessionLog, seed: int
) -> tuple[Learner, Any]:
  """The learner of an arm, and its policy."""
  train = setting.config.train_of(arm.learner, seed)
  dataset = transitions.dataset_from(
    transitions.rows_from(_told(log, arm.features)),
    # As it is judged: on these requests.
    cut="end",
    num_steps=train.num_steps,
    discount=train.discount,
  )
  actor, critic = make_networks(
    train, dataset.action.shape[1], dataset.reward.shape[1]
  )
  if LEARNERS[arm.learner].actor_answers:
    # In the middle of its boxes: training is short.
    middle = setting.action
    if LEARNERS[arm.learner].of_cells:
      middle = jnp.zeros((len(TASKS),), jnp.float32)
    actor = with_start(started_actor(actor), middle)
  learner = build_learner(train, actor, critic)
  one = transitions.take_transitions(dataset, jnp.zeros((1,), jnp.int32))
  hyperparams = LEARNERS[arm.learner].hyperparams(**train.hyperparams)
  state = learner.init(
    setting.keys["init"],
    jax.tree.map(lambda leaf: leaf[0], one),
    hyperparams,
    normalization_from(dataset),
  )
  run = loop.train(
    learner,
    # A copy: training takes it over, and all arms begin with the same one.
    loop.start(jax.random.clone(setting.keys["train"]), state),
    dataset,
    train.num_updates,
    batch_size=train.batch_size,
    chunk_size=train.chunk_size,
  )
  return learner, learner.policy(run.learner)


@functools.partial(jax.jit, static_argnames=("act", "observe_fn"))
def _outside(keys, world, act, params, baseline, observe_fn):
  """Exceedance of each candidate's answer, and whether it is shown, `[B, C]`."""

  def one(key):
    reset_key, act_key = jax.random.split(key)
    state = env.reset(reset_key, world)
    seen = observe_fn(world, state)
    pairs = pair_observation(*seen)
    action = jax.vmap(act, (None, 0, None))(params, pairs, act_key)
    slots, _, _ = env.serve(world, state, action)
    offered = env.candidate_slots(world, state)
    beyond = jax.vmap(exceedance, (0, None))(action, action_box(baseline))
    return beyond, jnp.isin(offered, slots)

  return jax.vmap(one)(keys)


def _where(
  setting: _Setting, act: Callable[..., jax.Array], params: Any, features: str
) -> dict[str, float]:
  """Whether answers leave the logged box for items shown and for the others."""
  keys = jax.random.split(setting.keys["where"], _WHERE_SESSIONS)
  beyond, shown = jax.device_get(
    _outside(
      *(keys, setting.world, act, params, setting.action),
      observe_fn=_OBSERVE[features],
    )
  )
  return {
    "outside_shown": float((beyond[shown] > 0).mean()),
    "outside_others": float((beyond[~shown] > 0).mean()),
  }


def _judge(
  setting: _Setting, arm: Arm, learner: Learner, params: Any
) -> ab_test.EvalResult:
  observe_fn, act = env.observe, policies.explore_around(learner.act)
  if arm.features is not None:
    observe_fn = _OBSERVE[arm.features]
    act = policies.explore_each(learner.act)
  elif learner.cells is not None:
    act = policies.explore_cells(learner.cells)
  return ab_test.evaluate(
    setting.keys["judge"],
    setting.judged_world,
    setting.table,
    act,
    policies.PolicyParams(params, 0.0, 0.0),
    setting.config.evaluation_sessions,
    setting.config.max_requests,
    observe_fn,
  )


def measure(
  world: World,
  config: SuccessorsConfig,
  arms: Sequence[Arm],
  seed: int,
  say: Callable[[str], None],
) -> dict[str, Any]:
  """Plays all arms of one seed.

  Args:
    world: of the seed.
    config: sizes.
    arms: of `arms_of`.
    seed: of users, logs and learners.
    say: told which arm is done.

  Returns:
    Ready for JSON: `seed`, `world`, `baseline_action` and `rows`, one an arm:
    its fields, the gains over the baseline policy (`ab_test.figures`), those
    over the first arm of logs drawn alike (`over_first_*`), and for pairs the share
    of candidates whose answer leaves the logged box, among those that it shows
    and the others.
  """
  setting = _setting(world, config, seed)
  rows, first = [], {}
  logs: dict[tuple[str, str, bool], SessionLog] = {}
  for arm in arms:
    drawn = (arm.shared, arm.exploration)
    of_log = (*drawn, LEARNERS[arm.learner].of_cells)
    if of_log not in logs:
      logs = {of_log: _log(setting, *of_log)}  # One is in memory.
    learner, params = _train(setting, arm, logs[of_log], seed)
    judged = _judge(setting, arm, learner, params)
    over = paired_comparison(
      judged.reward, first.setdefault(drawn, judged).reward, judged.user
    )
    rows.append(
      {
        **arm._asdict(),
        **ab_test.figures(judged, setting.base, world.slate_size),
        "over_first_pct": over.gain,
        "over_first_ci95": list(over.ci95),
        **(
          _where(setting, learner.act, params, arm.features)
          if arm.features
          else {}
        ),
      }
    )
    say(f"seed {seed}, {'/'.join(drawn)}, {arm.title}: done")
  return {
    "seed": seed,
    "world": fingerprint(world),
    "baseline_action": np.asarray(setting.action).tolist(),
    "rows": rows,
  }


def table(result: dict[str, Any]) -> Table:
  """The arms of one seed as rows of text."""

  def cell(row: dict[str, Any], name: str, ends: str) -> str:
    low, high = row[ends]
    return f"{row[name]:+.2f} [{low:+.2f}, {high:+.2f}]"

  def share(row: dict[str, Any], name: str) -> str:
    return f"{row[name]:.0%}" if name in row else "-"

  return Table(
    title=f"seed {result['seed']}, world {result['world']}",
    note=(
      "Gains of reward over the baseline policy, and over the first learner of logs"
      " drawn alike, %, same users and sessions; 95% intervals over users. Outside:"
      " candidates whose answer leaves the logged box, shown and not shown."
    ),
    header=[
      *("noise shared by", "drawn each", "learner", "reward %"),
      *("over first %", "outside, shown", "outside, others"),
    ],
    rows=[
      [
        row["shared"],
        row["exploration"],
        Arm(*(row[name] for name in Arm._fields)).title,
        cell(row, "reward_gain_pct", "reward_gain_ci95"),
        cell(row, "over_first_pct", "over_first_ci95"),
        share(row, "outside_shown"),
        share(row, "outside_others"),
      ]
      for row in result["rows"]
    ],
  )
