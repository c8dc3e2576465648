"""What both packages are given is the same, and sums over trainings."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtf_jax.data import transitions
from mtf_jax.data.session_log import validate
from mtf_jax.learners.base import Learner, Normalization
from mtf_jax.studies.compare import elsewhere, elsewhere_log
from mtf_jax.studies.compare.config import PRESETS
from mtf_jax.training import loop
from tests.session_logs import random_log


class _Seen(NamedTuple):
  reward: jax.Array


def test_draws_are_those_of_the_training_loop():
  log = random_log(groups=1)
  dataset = transitions.device_dataset(log, cut="end")
  seen = []
  spy = Learner(
    init=None,
    update=lambda state, batch: (state, _Seen(batch.r_t[:, 0])),
    policy=None,
    act=None,
    value=None,
  )
  key = jax.random.key(7)
  loop.train(
    spy,
    loop.start(jnp.copy(key), {"nothing": jnp.zeros(())}),
    dataset,
    6,
    batch_size=8,
    chunk_size=3,
    on_chunk=lambda _, metrics: seen.append(metrics.reward),
  )
  draw = elsewhere_log.draws_of(key, dataset.num_transitions, 6, 8)
  # All rows of this log are requests.
  np.testing.assert_array_equal(np.concatenate(seen), log.reward[draw, 0])


def test_the_export_has_our_transitions():
  log = random_log()
  # The second session was cut after two requests, the third request is known.
  extra = np.arange(len(log.step)) == 6
  rows = transitions.rows_from(
    log._replace(bootstrap_only=extra, terminal=log.step == 3),
    valid=np.arange(len(log.step)) != 7,
  )
  single = elsewhere_log.one_reward(rows)
  normalization = Normalization(jnp.full((3,), 2.0), jnp.full((3,), 0.5))
  found = elsewhere_log.exported(single, normalization)
  validate(found)
  dataset = transitions.dataset_from(single, cut="end")
  number = int(dataset.num_transitions)
  start = np.asarray(dataset.start_row)[:number]
  np.testing.assert_array_equal(found.reward, dataset.reward[start])
  np.testing.assert_allclose(
    found.reward[:, 0], log.reward[start].sum(axis=1), rtol=1e-6
  )
  np.testing.assert_array_equal(
    found.observation, (log.observation[start] - 2) / np.float32(0.5)
  )
  np.testing.assert_array_equal(found.terminal, dataset.discount[start] == 0)
  assert found.terminal[5] and found.session_id[5] != found.session_id[6]


@pytest.mark.parametrize("name", elsewhere.SETTINGS)
def test_both_packages_train_the_published_version(name):
  train = elsewhere.config_of(PRESETS["cpu"], name)
  assert (train.critic, train.num_steps, train.ensemble_size) == ("mlp", 1, 2)
  assert train.critic_updates == (2 if "td3_bc" in name else 1)
  assert train.hyperparam("told_box", None) == 0
  held = name == "td3_bc_held"
  if name.startswith("td3_bc"):
    assert train.hyperparam("value_scale", None) == (0.2 if held else 2.5)
  if name == "iql":
    assert train.hyperparam("scale_advantage", None) == 0
  if name == "cql":
    assert train.hyperparam("entropy_backup", None) == 1


def _row(difference, half_width):
  def found(pct, width=1.0):
    return {"pct": pct, "ci95": [pct - width, pct + width], "p_value": 0.5}

  return {
    "learner": "iql",
    "gain": {"ours": found(2 + difference), "d3rlpy": found(2.0)},
    "ours_over_d3rlpy": found(difference, half_width),
    "ours_over_other_batches": found(0.0),
    "at_limit": {"ours": 0.5},
    "rms": {"ours_d3rlpy": abs(difference)},
  }


def test_rows_are_summed_up_by_learner():
  (found,) = elsewhere.summary([_row(1.0, 2.0), _row(3.0, 0.5)])
  assert found["rows"] == 2
  assert found["gain_ours"]["pct"] == 4.0
  assert found["intervals_with_0"] == 1
  low, high = found["ours_over_d3rlpy"]["ci95"]
  # Student's t with one degree of freedom, a standard error of 1.
  assert (low, high) == pytest.approx((2 - 12.706, 2 + 12.706))
  assert found["at_limit"] == 0.5
  assert found["rms"] == {"ours_d3rlpy": 2.0}
  assert elsewhere.summary([_row(1.0, 2.0)])[0]["gain_ours"]["ci95"] is None
