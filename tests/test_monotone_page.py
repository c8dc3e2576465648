"""The code of the page about monotone fusion runs, and does what it says."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np

import mtf_jax

_PAGE = pathlib.Path(__file__).parents[1] / "docs" / "monotone_fusion.md"


def _blocks():
  return re.findall(
    r"^```python\n(.*?)^```$",
    _PAGE.read_text(encoding="utf-8"),
    re.MULTILINE | re.DOTALL,
  )


def test_the_policy_in_a_world_logs_what_the_learner_needs(small_world):
  given = {"world": small_world, "action": jnp.zeros(10)}
  given |= {"key": jax.random.key(0)}
  exec(_blocks()[1], given)
  log = given["rows"].log
  assert log.candidates.scores.shape == (64, 5, 16, 5)
  assert log.action.shape == (64, 5, 5)


def test_the_code_serves_and_its_inner_stage_has_a_gradient():
  page = {}
  exec(_blocks()[0], page)
  rng = np.random.default_rng(0)
  batch, params = 8, page["params"]
  observation = rng.normal(size=(batch, page["S"])).astype(np.float32)
  scores = rng.uniform(0, 1, (batch, page["C"], page["K"])).astype(np.float32)
  action = rng.uniform(-1, 1, (batch, page["K"])).astype(np.float32)

  # A new network fuses as Eq. 1 does, but for chords and its small start.
  slates = page["serve"](params, observation, scores, 0 * action)
  log_scores = jax.vmap(mtf_jax.fused_log_score, (0, None))(
    scores, page["weights"]
  )
  best = jax.vmap(lambda z: mtf_jax.rank_slate(z, 6))(log_scores)
  assert np.mean(np.asarray(slates) == np.asarray(best)) > 0.95

  loss, gradient = jax.value_and_grad(page["inner_loss"])(
    params, params, observation, scores, action
  )
  assert 0 < loss < np.log(2)
  assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(gradient))
