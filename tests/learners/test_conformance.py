"""What every learner of the registry promises, whatever it learns.

A new learner gets an entry in `mtf_jax.learners.registry` and a case here.
"""

import functools
import os
import pathlib
import pkgutil
import subprocess
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from mtf_jax import learners, networks
from mtf_jax.data import transitions
from mtf_jax.data.shown_items import pair_observation
from mtf_jax.learners import registry
from mtf_jax.learners.base import normalization_from
from mtf_jax.training import loop
from mtf_jax.training.checkpoints import Checkpoints, digest
from tests.session_logs import log_of, random_log, with_candidates, with_items

_ROOT = pathlib.Path(__file__).parents[2]
SIZES = (8,)
A, G = 2, 2
OPTIONS = {"batch_size": 8, "chunk_size": 2}


class Case(NamedTuple):
  """What the battery must know of a learner.

  others: a value unlike the default for every hyperparameter.
  stochastic: whether `act` draws from its key.
  closed_form: whether a new state knows nothing, whatever its key: what it
    answers is then asked of one that has seen a log.
  placebo_logs: logs that the placebo is judged on.
  improves: whether it seeks reward, and does not just repeat what was logged.
  gains_with: numbers that it needs to find what there is in the placebo's log,
    of 400 updates and rewards of 0.1.
  """

  others: dict[str, Any]
  stochastic: bool = False
  closed_form: bool = False
  placebo_logs: int = 12
  improves: bool = True
  gains_with: dict[str, Any] = {}  # noqa: RUF012 - read only


# IntegratedRL-MTF and the learners around it.
_INTEGRATED = {
  "discount": 0.5,
  "sharpness": 3.0,
  "penalty_scale": 0.2,
  "uncertainty_scale": 0.6,
  "group_weights": (1.0, 0.5),
  "reward_shift": (0.3, 0.1),
  "target_step_size": 0.2,
  "actor_learning_rate": 2e-3,
  "critic_learning_rate": 1e-3,
  "max_gradient_norm": 0.1,
}

CASES = {
  "integrated_rl": Case(_INTEGRATED),
  "constrained_rl": Case(
    {
      **_INTEGRATED,
      "allowed_loss": (-0.2, 0.5),
      "multiplier_learning_rate": 0.1,
      "multiplier_cap": (1e-4, 2e-4),
      "multiplier_damping": (30.0, 0.0),
    }
  ),
  "enhanced_rl": Case(_INTEGRATED),
  "xmtf": Case({**_INTEGRATED, "cells_learning_rate": 2e-3}),
  "preference_rl": Case(
    {
      **_INTEGRATED,
      "concentration": 0.3,
    }
  ),
  "bc": Case(
    {"actor_learning_rate": 2e-3, "max_gradient_norm": 0.1}, improves=False
  ),
  "td3_bc": Case(
    {
      "discount": 0.5,
      "value_scale": 1.0,
      "normalize_value": 0.0,
      "cloning_scale": 0.5,
      "next_cloning_scale": 0.5,
      "climb_least": 1.0,
      "target_noise": 0.1,
      "target_noise_clip": 0.15,
      "group_weights": (1.0, 0.5),
      "told_box": 1.0,
      "target_step_size": 0.2,
      "actor_learning_rate": 2e-3,
      "critic_learning_rate": 1e-3,
      "max_gradient_norm": 0.1,
    }
  ),
  "iql": Case(
    {
      "discount": 0.5,
      "expectile": 0.9,
      "inverse_temperature": 1.0,
      "scale_advantage": 1.0,
      "max_weight": 0.05,
      "cloning_scale": 0.5,
      "value_scale": 0.5,
      "learn_spread": 0.0,
      "group_weights": (1.0, 0.5),
      "told_box": 1.0,
      "target_step_size": 0.2,
      "actor_learning_rate": 2e-3,
      "actor_decay": 3.0,
      "critic_learning_rate": 1e-3,
      "max_gradient_norm": 0.1,
    }
  ),
  "awac": Case(
    {
      "discount": 0.5,
      "temperature": 0.5,
      "normalize_weights": 0.0,
      "max_weight": 0.05,
      "group_weights": (1.0, 0.5),
      "told_box": 1.0,
      "target_step_size": 0.2,
      "actor_learning_rate": 2e-3,
      "critic_learning_rate": 1e-3,
      "max_gradient_norm": 0.1,
    },
    gains_with={"temperature": 0.05},
  ),
  "sac_n": Case(
    {
      "discount": 0.5,
      "target_entropy": -2.0,
      "initial_temperature": 0.1,
      "temperature_learning_rate": 1e-2,
      "group_weights": (1.0, 0.5),
      "told_box": 1.0,
      "target_step_size": 0.2,
      "actor_learning_rate": 2e-3,
      "critic_learning_rate": 1e-3,
      "max_gradient_norm": 0.1,
    }
  ),
  "slope_regression": Case(
    {"curvature": 0.5, "group_weights": (1.0, 0.5)}, closed_form=True
  ),
  "edac": Case(
    {
      "discount": 0.5,
      "diversity_scale": 0.1,
      "target_entropy": -2.0,
      "initial_temperature": 0.1,
      "temperature_learning_rate": 1e-2,
      "group_weights": (1.0, 0.5),
      "told_box": 1.0,
      "target_step_size": 0.2,
      "actor_learning_rate": 2e-3,
      "critic_learning_rate": 1e-3,
      "max_gradient_norm": 0.1,
    },
    # Twelve logs were outside by chance (t = -2.3); all 48 are not (-1.8).
    placebo_logs=48,
  ),
  "cql": Case(
    {
      "discount": 0.5,
      "conservative_scale": 1.0,
      "lagrange_threshold": 1.0,
      "entropy_backup": 1.0,
      "target_entropy": -2.0,
      "initial_temperature": 0.1,
      "temperature_learning_rate": 1e-2,
      "group_weights": (1.0, 0.5),
      "told_box": 1.0,
      "target_step_size": 0.2,
      "actor_learning_rate": 2e-3,
      "critic_learning_rate": 1e-3,
      "max_gradient_norm": 0.1,
    },
    gains_with={"conservative_scale": 0.2, "temperature_learning_rate": 0.01},
  ),
  "bcq": Case(
    {
      "discount": 0.5,
      "perturbation": 0.3,
      "min_weight": 0.2,
      "kl_scale": 0.1,
      "group_weights": (1.0, 0.5),
      "told_box": 1.0,
      "target_step_size": 0.2,
      "generator_target_step_size": 0.1,
      "actor_learning_rate": 2e-3,
      "critic_learning_rate": 2e-3,
      "generator_learning_rate": 2e-3,
      "max_gradient_norm": 0.1,
    }
  ),
}

every_learner = pytest.mark.parametrize("name", list(registry.LEARNERS))


# One learner per name, so that all tests share what is compiled for it.


@functools.cache
def traces(name):
  """Grows by one whenever jax traces the learner's update."""
  del name
  return []


@functools.cache
def build(name):
  learner = registry.LEARNERS[name].build(
    networks.mlp_actor(A, SIZES),
    networks.mlp_critic(G, 2, SIZES),
    critic_updates=2,
  )

  def update(state, batch):
    traces(name).append(1)
    return learner.update(state, batch)

  return learner._replace(update=update)


@functools.cache
def jitted(name):
  return jax.jit(build(name).update)


@functools.cache
def dataset_of(seed=0):
  return transitions.device_dataset(with_columns(random_log(seed)))


def with_columns(log):
  """Shown items and candidates are for those that ask; others do not see them."""
  return with_candidates(with_items(log))


@functools.cache
def batch_of(seed, size=8):
  key = jax.random.key(seed)
  return transitions.sample_transitions(key, dataset_of(), size)


def acted_on(name, rows):
  """What `act` and `value` of a learner take, of rows with items, `[B, ...]`."""
  observation, items = (
    (rows.observation_tm1, rows.items_tm1)
    if isinstance(rows, transitions.Transition)
    else (rows.observation, rows.items)
  )
  if not registry.LEARNERS[name].of_pairs:
    return observation
  return jax.vmap(pair_observation)(observation, items.features)[:, 0]


def numbers(name, *fields):
  """Hyperparameters, the given fields unlike their defaults."""
  others = CASES[name].others
  defaults = registry.LEARNERS[name].hyperparams()
  changed = defaults._replace(**{field: others[field] for field in fields})
  # One shape whichever are changed, so that runs can be stacked.
  return type(defaults)(
    *(
      np.broadcast_to(np.asarray(value, np.float32), np.shape(others[field]))
      for field, value in changed._asdict().items()
    )
  )


def start(name, *fields, seed=0):
  return build(name).init(
    jax.random.key(seed),
    jax.tree.map(lambda leaf: leaf[0], batch_of(9, 1)),
    numbers(name, *fields),
    normalization_from(dataset_of()),
  )


def informed(name, seed=0):
  """A new state, or in closed form one that has seen a log."""
  if not CASES[name].closed_form:
    return start(name, seed=seed)
  log = log_with_an_effect(seed, permuted=False, personal=1.0)
  dataset = transitions.device_dataset(log, num_steps=3)
  one = transitions.sample_transitions(jax.random.key(0), dataset, 1)
  state = build(name).init(
    jax.random.key(seed),
    jax.tree.map(lambda leaf: leaf[0], one),
    # Steps that do not end at the box.
    numbers(name, *CASES[name].others),
    normalization_from(dataset),
  )
  return jax.jit(build(name).fit)(state, dataset)[0]


def start_run(name, *fields, seed=0):
  state = start(name, *fields, seed=seed)
  return loop.start(jax.random.key(seed + 100), state)


def plain(tree):
  """NumPy copies; keys as the integers that they hold."""

  def one(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    return np.array(leaf)

  return jax.tree.map(one, tree)


def assert_close(found, expected):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
    plain(found),
    plain(expected),
  )


def kinds(tree):
  return jax.tree.map(
    lambda leaf: (leaf.shape, str(leaf.dtype), leaf.aval.weak_type), tree
  )


def test_every_learner_is_registered_and_has_a_case():
  assert set(CASES) == set(registry.LEARNERS)
  files = {module.name for module in pkgutil.iter_modules(learners.__path__)}
  registered = {
    entry.hyperparams.__module__.rpartition(".")[2]
    for entry in registry.LEARNERS.values()
  }
  # Files of shared parts, the registry, the searches, which ask a fitness and see
  # no transitions, and the evaluation of somebody's policy.
  shared = {"base", "actor_critic", "box_units", "soft_actor", "normal_actor"}
  shared |= {"slope_statistics", "integrated_steps"}
  assert files - shared - {"registry", "es", "cem", "fqe"} == registered


# Operation by operation, which takes a minute for those with networks: of them one.
@pytest.mark.parametrize("name", ["integrated_rl", "slope_regression"])
def test_jit_changes_nothing(name):
  state, batch = start(name), batch_of(1)
  assert_close(jitted(name)(state, batch), build(name).update(state, batch))


@every_learner
@pytest.mark.parametrize("own_runs", [False, True])
def test_shard_map(name, own_runs):
  """With its default checks: one run on all devices, or each its own.

  One run stays the same on every device although the batch is split.
  """
  if CASES[name].closed_form and not own_runs:
    pytest.skip("sums of several devices are for the caller to add")
  part = PartitionSpec("devices")
  update = build(name).update
  state, batch = start(name), batch_of(1)
  of_state = PartitionSpec()
  if own_runs:
    update, of_state = jax.vmap(update), part
    state, batch = jax.tree.map(lambda leaf: leaf[None], (state, batch))

  def with_axis(state, batch):
    state, metrics = update(state, batch)
    return state, jax.tree.map(lambda leaf: leaf[None], metrics)

  over_mesh = jax.shard_map(
    with_axis,
    mesh=Mesh(jax.devices()[:1], ("devices",)),
    in_specs=(of_state, part),
    out_specs=(of_state, part),
  )
  found, _ = jax.eval_shape(over_mesh, state, batch)
  shapes = functools.partial(jax.tree.map, lambda x: (x.shape, str(x.dtype)))
  assert shapes(found) == shapes(state)


@every_learner
def test_states_are_arrays_with_explicit_dtypes(name):
  state = start(name)
  new_state, metrics = jitted(name)(state, batch_of(0))
  for leaf in jax.tree.leaves((state, new_state, metrics)):
    assert isinstance(leaf, jax.Array)
    assert not leaf.aval.weak_type
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    assert is_key or leaf.dtype in (jnp.float32, jnp.int32)
  assert kinds(new_state) == kinds(state)


@every_learner
def test_every_hyperparameter_is_a_leaf_that_counts(name):
  fields = registry.LEARNERS[name].hyperparams._fields
  assert set(CASES[name].others) == set(fields)

  def after_updates(*changed):
    state = start(name, *changed)
    for seed in range(2):
      state, _ = jitted(name)(state, batch_of(seed))
    return plain(build(name).policy(state)), plain(state)

  policy, state = after_updates()
  first = len(traces(name))
  for field in fields:
    other_policy, other = after_updates(field)
    differ = jax.tree.map(np.array_equal, state, other)
    same_policy = jax.tree.map(np.array_equal, policy, other_policy)
    acts_alike = all(jax.tree.leaves(same_policy))
    if CASES[name].closed_form:
      # The statistics are sums, whatever the numbers; the policy is made of both.
      assert not acts_alike, field
      continue
    # Its own leaf differs anyway. A number may be for what is served alone.
    assert jax.tree.leaves(differ).count(False) > 1 or not acts_alike, field
    if field == "actor_learning_rate":
      assert not acts_alike
  assert len(traces(name)) == first


@every_learner
def test_runs_at_once_are_the_runs_one_by_one(name):
  """Two seeds, each with the default numbers and with others."""
  others = CASES[name].others
  runs = [(seed, f) for seed in (0, 1) for f in ((), tuple(others))]
  state = jax.tree.map(
    lambda *leaves: jnp.stack(leaves),
    *(start_run(name, *fields, seed=seed) for seed, fields in runs),
  )
  dataset = dataset_of()
  state = loop.train_many(build(name), state, dataset, 4, **OPTIONS)
  for run, (seed, fields) in enumerate(runs):
    expected = loop.train(
      build(name),
      start_run(name, *fields, seed=seed),
      dataset,
      4,
      **OPTIONS,
    )
    found = jax.tree.map(lambda leaf, run=run: leaf[run], state)
    assert_close(found, expected)


@every_learner
def test_nothing_compiles_twice(name):
  """More updates, other numbers, another dataset of the same size."""
  learner = build(name)
  state = loop.train(learner, start_run(name), dataset_of(), 2, **OPTIONS)
  first = len(traces(name))
  state = loop.train(learner, state, dataset_of(), 6, **OPTIONS)
  state = loop.train(learner, state, dataset_of(seed=1), 8, **OPTIONS)
  other = start_run(name, *CASES[name].others, seed=1)
  loop.train(learner, other, dataset_of(), 2, **OPTIONS)
  assert len(traces(name)) == first


@every_learner
def test_resumed_from_a_checkpoint_it_ends_in_the_same_bits(name, tmp_path):
  learner, dataset = build(name), dataset_of()
  whole = loop.train(learner, start_run(name), dataset, 6, **OPTIONS)
  half = loop.train(learner, start_run(name), dataset, 2, **OPTIONS)
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(2, half, {})
  # Another seed and other numbers: all of the state comes from the disk.
  template = start_run(name, *CASES[name].others, seed=1)
  restored, _ = checkpoints.restore(template)
  checkpoints.close()
  assert kinds(restored) == kinds(half)
  resumed = loop.train(learner, restored, dataset, 6, **OPTIONS)
  assert digest(resumed) == digest(whole)


@every_learner
def test_a_run_stays_at_its_last_good_state(name):
  learner, dataset = build(name), dataset_of()
  # A round in closed form is one update, and there is none after it.
  done = 0 if CASES[name].closed_form else 2
  state = loop.train(learner, start_run(name), dataset, done, **OPTIONS)
  expected = plain(state)
  bad = dataset._replace(observation=jnp.full_like(dataset.observation, np.nan))
  with pytest.raises(loop.NonFiniteError) as raised:
    loop.train(learner, state, bad, 4, **OPTIONS)
  assert raised.value.step == done
  jax.tree.map(
    np.testing.assert_array_equal, plain(raised.value.state), expected
  )


@every_learner
def test_an_action_is_in_range_and_comes_from_what_is_given(name):
  learner = build(name)
  params = learner.policy(informed(name))
  observation = acted_on(name, batch_of(0))
  act = jax.jit(jax.vmap(learner.act, in_axes=(None, 0, None)))
  rng_key, other_key = jax.random.split(jax.random.key(3))
  action = act(params, observation, rng_key)
  assert action.shape == (observation.shape[0], A)
  assert action.dtype == observation.dtype
  np.testing.assert_allclose(
    learner.act(params, observation[0], rng_key), action[0], atol=1e-6
  )
  others = learner.policy(informed(name, seed=1))
  assert not np.array_equal(act(others, observation, rng_key), action)
  assert np.unique(action, axis=0).shape == action.shape
  again = act(params, observation, other_key)
  assert np.array_equal(again, action) is not CASES[name].stochastic
  if CASES[name].closed_form:
    return
  # Also where the network would go far beyond it.
  huge = params._replace(
    actor_params=jax.tree.map(lambda leaf: 50 * leaf, params.actor_params)
  )
  far = np.abs(act(huge, 50 * observation, rng_key))
  assert 0.5 < far.max() <= 1


@every_learner
def test_a_value_is_one_number_for_each_group(name):
  learner = build(name)
  if learner.value is None:
    pytest.skip("learns no value")
  batch = batch_of(0)
  value = jax.vmap(learner.value, in_axes=(None, 0, 0, 0))
  given = (acted_on(name, batch), batch.action_tm1, batch.box_tm1)
  found = value(informed(name), *given)
  assert found.shape == (batch.discount_t.shape[0], G)
  assert np.all(np.isfinite(found))
  for place in (0, 1):
    changed = [*given[:place], given[place] + 1, *given[place + 1 :]]
    assert not np.any(value(informed(name), *changed) == found)


def log_with_an_effect(seed, permuted, personal=0.0):
  """Sessions of three requests; reward rises with a session's deviation.

  By how much more it does for some than for others is `personal`. Permuted, the deviations are another session's and explain nothing.
  """
  rng = np.random.default_rng(seed)
  sessions, length = 256, 3
  deviation = rng.uniform(-0.15, 0.15, (sessions, A))
  # As large as the deviation's own effect: a log in which it is plain.
  noise = 0.1 * rng.normal(size=(sessions * length, G))
  reward = 1 + np.repeat(deviation.sum(axis=1), length)[:, None] + noise
  if permuted:
    deviation = deviation[rng.permutation(sessions)]
  observation = rng.normal(size=(sessions * length, 3))
  own = personal * (deviation * observation[::length, :A]).sum(axis=1)
  reward = reward + np.repeat(own, length)[:, None]
  action = np.repeat(deviation, length, axis=0)
  return log_of(observation, action, reward, session_length=length)


def gains_of_seeds(name, permuted, num_seeds=12):
  """True gain over the logging policy, from as many logs and starts."""
  learner = build(name)
  fields = registry.LEARNERS[name].hyperparams()
  rates = ("actor_learning_rate", "critic_learning_rate")
  faster = {rate: 0.01 for rate in rates if rate in fields._fields}
  runs, datasets = [], []
  for seed in range(num_seeds):
    dataset = transitions.device_dataset(
      with_columns(log_with_an_effect(seed, permuted)),
      # In closed form returns must be whole.
      num_steps=3 if CASES[name].closed_form else 1,
    )
    one = transitions.sample_transitions(jax.random.key(0), dataset, 1)
    state = learner.init(
      jax.random.key(seed),
      jax.tree.map(lambda leaf: leaf[0], one),
      fields._replace(**faster, **CASES[name].gains_with),
      normalization_from(dataset),
    )
    runs.append(loop.start(jax.random.key(100 + seed), state))
    datasets.append(dataset)
  state, dataset = (
    jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)
    for trees in (runs, datasets)
  )
  state = loop.train_many(
    learner, state, dataset, 400, batch_size=64, chunk_size=400
  )
  act = jax.vmap(learner.act, (None, 0, None))
  action = jax.vmap(act, (0, 0, None))(
    jax.vmap(learner.policy)(state.learner),
    jax.vmap(functools.partial(acted_on, name))(dataset),
    jax.random.key(1),
  )
  return np.asarray(jnp.mean(jnp.sum(action, axis=2), axis=1), np.float64)


@every_learner
def test_a_placebo_gains_nothing(name):
  """The same logs with the deviations permuted across sessions."""

  def interval(gains):
    # Student's t for one degree of freedom less than there are logs, 95%.
    quantile = {12: 2.201, 48: 2.012}[gains.size]
    error = quantile * gains.std(ddof=1) / np.sqrt(gains.size)
    return gains.mean() - error, gains.mean() + error

  logs = CASES[name].placebo_logs
  low, high = interval(gains_of_seeds(name, permuted=True, num_seeds=logs))
  assert low <= 0 <= high
  if CASES[name].improves:
    assert interval(gains_of_seeds(name, permuted=False))[0] > max(high, 0)


# One program is less to compile than every operation by itself.
@functools.partial(jax.jit, static_argnames="name")
def first_update(name, batch):
  state = start(name)
  return state, *build(name).update(state, batch)


def run_in_x64():
  """Float32 data stays float32 although float64 is the default."""
  import tests.conftest  # noqa: F401 - its strictness

  assert jnp.zeros(1).dtype == jnp.float64
  batch_of(
    9, 1
  )  # Before it is asked for inside jit, which would leave tracers.
  # What a program's types are is known before it is compiled.
  for name in registry.LEARNERS:
    state, new_state, metrics = jax.eval_shape(
      functools.partial(first_update, name), batch_of(0)
    )
    assert types(new_state) == types(state), name
    for leaf in jax.tree.leaves((state, metrics)):
      known = (np.float32, np.int32, np.uint32)
      assert jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) or (
        leaf.dtype in known
      ), name
  state, _, metrics = first_update("integrated_rl", batch_of(0))
  for leaf in jax.tree.leaves(plain((state, metrics))):
    assert not np.any(np.isnan(leaf))


def types(tree):
  return jax.tree.map(
    lambda leaf: (leaf.shape, str(leaf.dtype), leaf.weak_type), tree
  )


def test_works_where_float64_is_the_default():
  subprocess.run(
    (
      sys.executable,
      "-c",
      "from tests.learners.test_conformance import run_in_x64; run_in_x64()",
    ),
    cwd=_ROOT,
    env={**os.environ, "JAX_ENABLE_X64": "1"},
    check=True,
    timeout=300,
  )
