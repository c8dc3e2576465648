"""Critics against the world: Q beside the true discounted return.

The rows are those that a learner trains on: states visited, and actions drawn,
in the box around a policy in service. From each state, as the simulator has it,
the session is continued many times under the policy that the critics judge,
each time with other candidates and another noise of the user to come: a policy
decides before it sees either.

Two questions, the second the harder one. Does Q tell rich states from poor
ones: `Q(s, a)` against the return. Does it tell actions apart, which is all the
actor uses: `Q(s, a) - Q(s, a')` against the difference of the returns, `a'`
being `a` mirrored at the middle of the box, both continued with the same random
numbers. (A term that is even in the deviation cancels there.) What follows an
action is asked twice. *Once*: the policy to be judged answers from the next
request on, which is what a critic of one step estimates. *Held*: the policy
that was logged goes on with its deviation in the box until the session ends,
which is what returns of whole sessions show whose exploration is held over a
session. Those also show what the deviation did to the mood before the request,
so that their critics' differences may exceed either truth.

What is compared with what: where Q bootstraps it does so with phi, the true
return with 1, so that a policy outside its box has then a Q below its return by
construction. The true return knows the user and how the session went, hidden
mood included, Q an observation; a perfect critic therefore has slope 1 and
intercept 0, and a correlation below 1.

Letters: `K` states, `M` continuations of each, `A` action components, `G`
reward groups, `R` bootstrap replicates.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mtf_jax.arrays import as_numbers
from mtf_jax.evaluation import statistics as stats
from mtf_jax.evaluation.tables import Table
from mtf_jax.policies import Act, Decision, is_held
from mtf_jax.worlds import env
from mtf_jax.worlds import returns as returns_lib
from mtf_jax.worlds.env import SessionState
from mtf_jax.worlds.returns import ExpectedRewards
from mtf_jax.worlds.rollout import scan_requests
from mtf_jax.worlds.world import World

# States continued at once: bounds the memory.
_BLOCK = 256
_DECILES = 10


class Effort(NamedTuple):
  """How much is simulated; everything static.

  states: `K`.
  continuations: `M`, 2 or more: they tell the noise of a return from what states
    differ in. Slopes are surer with more states, correlations without noise
    with more continuations.
  sessions: sessions that the states are drawn from.
  max_requests: `T` of these sessions and of their continuations, as in the log:
    a cut session counts as ended there.
  exploration: "session" or "request", as it was logged, see `rollout.rollout`.
  """

  states: int = 2048
  continuations: int = 8
  sessions: int = 4096
  max_requests: int = 16
  exploration: str = "session"


class Compared(NamedTuple):
  """Critics and world on the same states and actions.

  user: int32 `[K]`.
  predicted: float32 `[K, 2]` Q at the drawn action and at its mirror image.
  true: float32 `[K, M, 2, 2]` returns of the continuations, of the two actions
    with the deviation made once, and held.
  """

  user: jax.Array
  predicted: jax.Array
  true: jax.Array


def _visited(
  rng_key: chex.PRNGKey, world: World, act: Act, params: Any, effort: Effort
) -> tuple[SessionState, jax.Array]:
  """`[K]` states of requests that took place, each as likely as any other.

  And the keys `[K]` that their actions were drawn with.
  """
  world_key, policy_key, row_key = jax.random.split(rng_key, 3)

  held = is_held(effort.exploration)

  def emit(_, request):
    return None, (request.state, request.key)

  def one(world_key, policy_key):
    return scan_requests(
      world,
      act,
      params,
      env.reset(world_key, world),
      policy_key,
      emit,
      max_requests=effort.max_requests,
      held=held,
    )[2]

  visited = jax.vmap(one)(
    jax.random.split(world_key, effort.sessions),
    jax.random.split(policy_key, effort.sessions),
  )
  visited = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), visited)
  active = visited[0].active.astype(jnp.float32)
  row = jax.random.choice(
    row_key, active.shape[0], (effort.states,), p=active / jnp.sum(active)
  )
  return jax.tree.map(lambda x: x[row], visited)


def _mirrored(decision: Decision) -> jax.Array:
  return decision.box.lower + decision.box.upper - decision.action


class Objective(NamedTuple):
  """What a learner's values are values of.

  discount: gamma, scalar in [0, 1].
  group_weights: scalar or `[G]`, weight of each reward group.
  reward_shift: scalar or `[G]`, added to every reward.
  """

  discount: chex.Numeric
  group_weights: chex.Numeric
  reward_shift: chex.Numeric


@functools.partial(jax.jit, static_argnames=("act", "value", "effort"))
def compare_with_returns(
  rng_key: chex.PRNGKey,
  world: World,
  table: ExpectedRewards,
  act: Act,
  behaviour: Any,
  target: Any,
  holding: Any,
  value: Callable[..., jax.Array],
  state: Any,
  objective: Objective,
  effort: Effort,
) -> Compared:
  """Puts a learner's Q beside the true return.

  Args:
    rng_key: random number generator key, consumed.
    world: the world.
    table: `returns.expected_rewards` of the world, or of one that has its
      reward groups first.
    act: the policy, static.
    behaviour: its parameters in service when the rows were logged, exploring.
    target: its parameters to be judged, not exploring.
    holding: its parameters where the deviation is held, exploring.
    value: of the learner's interface, static.
    state: the learner's.
    objective: what its values are values of.
    effort: sizes, static.

  Returns:
    The values. Sums over the groups with the learner's weights, mean over an
    ensemble.
  """
  groups = world.group_weights.shape[0]
  visit_key, key = jax.random.split(rng_key)
  states, action_keys = _visited(visit_key, world, act, behaviour, effort)

  def q(observation, action, box):
    by_group = value(state, observation, action, box)
    return jnp.sum(objective.group_weights * by_group)

  def one(inputs):
    visited, action_key, key = inputs
    policy_key, future_key = jax.random.split(key)
    observation = env.observe(world, visited)
    decision = act(behaviour, observation, action_key)
    both = jnp.stack([decision.action, _mirrored(decision)])
    predicted = jax.vmap(q, in_axes=(None, 0, None))(
      observation, both, decision.box
    )

    def following(params, observation, rng_key):
      """The policy, or its deviation of before: the same draw, the same side."""
      mirror, hold = params
      own = act(target, observation, rng_key)
      # The key is used again on purpose, as in `policies.request_key`.
      held = act(holding, observation, action_key)
      side = jnp.where(mirror, _mirrored(held), held.action)
      return own._replace(action=jnp.where(hold, side, own.action))

    def true(mirror, hold, future):
      found = returns_lib.action_value(
        world,
        table,
        following,
        (mirror, hold),
        future,
        jnp.where(mirror, both[1], both[0]),
        objective.discount,
        effort.max_requests,
        policy_key,
      )
      reward = found.reward[:groups] + objective.reward_shift * found.requests
      return jnp.sum(objective.group_weights * reward)

    futures = jax.vmap(env.redraw, in_axes=(0, None))(
      jax.random.split(future_key, effort.continuations), visited
    )
    either = jnp.array([False, True])
    over_holds = jax.vmap(true, in_axes=(None, 0, None))
    over_actions = jax.vmap(over_holds, in_axes=(0, None, None))
    over_futures = jax.vmap(over_actions, in_axes=(None, None, 0))
    true_value = over_futures(either, either, futures)
    return Compared(visited.user, predicted, true_value)

  keys = jax.random.split(key, effort.states)
  return jax.lax.map(one, (states, action_keys, keys), batch_size=_BLOCK)


def _agreement(x, y, error, counts, centred):
  """Figures of `y` against `x` in each replicate `[R]`."""
  size = counts.sum(axis=1)

  def average(values):
    return counts @ values / size

  mean_x, mean_y = average(x), average(y)
  if not centred:
    mean_x, mean_y = np.zeros_like(mean_x), np.zeros_like(mean_y)
  xx = average(x * x) - mean_x**2
  yy = average(y * y) - mean_y**2
  xy = average(x * y) - mean_x * mean_y
  with np.errstate(divide="ignore", invalid="ignore"):
    correlation = xy / np.sqrt(xx * yy)
    reliability = 1 - average(error) / yy
    slope = xy / xx
    found = {
      "correlation": correlation,
      "reliability": reliability,
      # What it would be if the returns carried no noise of their own.
      "correlation_without_noise": correlation / np.sqrt(reliability),
      "slope": slope,
    }
  if centred:
    found["intercept"] = mean_y - slope * mean_x
  return found


def _ready(found):
  """The first replicate is the sample itself, the others give intervals."""
  result = {}
  for name, values in found.items():
    value = float(values[0])
    result[name] = value if np.isfinite(value) else None
    result[f"{name}_ci95"] = stats.interval(values[1:])
  return result


def figures(
  compared: Compared, *, replicates: int = 1000, seed: int = 0
) -> dict[str, Any]:
  """Correlation and calibration, ready for JSON.

  Args:
    compared: of `compare_with_returns`.
    replicates: `R` of the bootstrap over users.
    seed: of the bootstrap.

  Returns:
    `value` for Q against the return: `correlation`, `slope` and `intercept` of
    the return on Q, `deciles` by predicted Q; `value_held` where the deviation
    is held in the return; `advantage` for differences,
    through the origin, because which of two actions comes first is arbitrary;
    `advantage_held` likewise.
    `reliability` is the share of the variance of the `M` continuations' mean
    that is not noise, `correlation_without_noise` the correlation divided by
    its root. Each with `_ci95`; None where it is undefined.

  Raises:
    InputError: values that are masked or not finite: sorted by Q they would
      have a decile.
  """
  predicted = as_numbers(compared.predicted, "Q").astype(np.float64)
  true = as_numbers(compared.true, "return").astype(np.float64)
  continuations = true.shape[1]
  _, unit = np.unique(as_numbers(compared.user, "user"), return_inverse=True)
  counts = stats.resample(unit.max() + 1, replicates, seed)[:, unit]
  counts = np.r_[np.ones((1, len(unit))), counts]

  def moments(values):
    error = values.var(axis=1, ddof=1) / continuations
    return values.mean(axis=1), error

  def advantage(returns):
    return _ready(
      _agreement(
        predicted[:, 0] - predicted[:, 1],
        *moments(returns[:, :, 0] - returns[:, :, 1]),
        counts,
        False,
      )
    )

  def level(returns):
    value, error = moments(returns)
    return value, {
      "mean_predicted": float(predicted[:, 0].mean()),
      "mean_true": float(value.mean()),
      **_ready(_agreement(predicted[:, 0], value, error, counts, True)),
    }

  value, once = level(true[:, :, 0, 0])
  _, held = level(true[:, :, 0, 1])
  order = np.argsort(predicted[:, 0], kind="stable")
  deciles = []
  for part in np.array_split(order, _DECILES):
    weight = counts[1:, part]
    # A replicate without any user of the decile is undefined.
    with np.errstate(divide="ignore", invalid="ignore"):
      means = weight @ value[part] / weight.sum(axis=1)
    deciles.append(
      {
        "predicted": float(predicted[part, 0].mean()),
        "true": float(value[part].mean()),
        "true_ci95": stats.interval(means),
      }
    )
  return {
    "states": len(value),
    "users": int(unit.max() + 1),
    "continuations": continuations,
    "value": {**once, "deciles": deciles},
    "value_held": held,
    "advantage": advantage(true[..., 0]),
    "advantage_held": advantage(true[..., 1]),
  }


def table(title: str, found: Mapping[str, Any]) -> Table:
  """`figures` for reading: calibration by decile, the rest in the note.

  Args:
    title: heading.
    found: of `figures`.
  """

  def cell(part, name):
    value, (low, high) = part[name], part[f"{name}_ci95"]
    if value is None:
      return "undefined"
    if low is None:
      return f"{value:.2f}"
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"

  value, advantage = found["value"], found["advantage"]
  held = found["advantage_held"]
  note = (
    f"Q against the true discounted return of {found['states']} states x"
    f" {found['continuations']} continuations: correlation"
    f" {cell(value, 'correlation_without_noise')}, slope"
    f" {cell(value, 'slope')}. Differences between two actions of a state:"
    f" correlation {cell(advantage, 'correlation_without_noise')} without the"
    f" returns' noise, {cell(advantage, 'correlation')} with it; slope"
    f" {cell(advantage, 'slope')}. The same where the deviation is held until"
    f" the session ends: correlation {cell(held, 'correlation_without_noise')},"
    f" {cell(held, 'correlation')}; slope {cell(held, 'slope')}. 95% intervals"
    " over users."
  )
  rows = []
  for number, part in enumerate(value["deciles"], 1):
    low, high = part["true_ci95"]
    between = "" if low is None else f" [{low:.1f}, {high:.1f}]"
    rows.append(
      (
        str(number),
        f"{part['predicted']:.1f}",
        f"{part['true']:.1f}{between}",
      )
    )
  header = ("decile of Q", "mean Q", "mean true return [95%]")
  return Table(title, note, header, rows)
