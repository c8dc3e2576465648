"""The two stages of xMTF by kernels, without the faults of its released code.

That code is not the model of the paper. Each test names what the code does.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mtf_jax

B, C, K, J = 7, 6, 3, 5


def _request(seed=0):
  rng = np.random.default_rng(seed)
  knots = np.cumsum(rng.uniform(0.1, 0.3, (K, J)), axis=1)
  cells = mtf_jax.MonotoneCells(
    *map(
      np.float32, (knots, rng.normal(size=K), rng.uniform(0.1, 1, (K, J - 1)))
    )
  )
  scores = rng.uniform(0, 1, (C, K)).astype(np.float32)
  return scores, cells, rng.uniform(-1, 1, K).astype(np.float32)


def _fuse(*request):
  return np.asarray(jax.jit(mtf_jax.monotone_fused_score)(*request))


def test_a_cell_reads_its_own_score_alone():
  """There each of six heads reads all scores."""
  scores, cells, action = _request()
  others, _, _ = _request(1)
  raised = np.float32([0.5, 0, 0])
  others[:, 0] = scores[:, 0]
  change = _fuse(scores + raised, cells, action) - _fuse(scores, cells, action)
  again = _fuse(others + raised, cells, action) - _fuse(others, cells, action)
  assert np.count_nonzero(np.abs(change) > 0.05) > C / 2
  np.testing.assert_allclose(change, again, atol=1e-6)


def test_a_candidate_is_scored_for_itself():
  """There attention over 100 items mixes them."""
  scores, cells, action = _request()
  others, _, _ = _request(1)
  others[2] = scores[2]
  assert _fuse(scores, cells, action)[2] == _fuse(others, cells, action)[2]


def test_fused_scores_are_not_squeezed():
  """There a last sigmoid flattens all that is far from 0."""
  _, cells, _ = _request()
  cells = cells._replace(increments=np.full((K, J - 1), 100, np.float32))
  scores = np.stack([cells.knots[:, -2], cells.knots[:, -1]])
  z = _fuse(scores, cells, np.zeros(K, np.float32))
  np.testing.assert_allclose(z[1] - z[0], 100 * K, rtol=1e-5)


def test_the_length_of_a_request_does_not_scale_the_loss():
  """There the losses of pairs are summed."""
  inner, outer = np.random.default_rng(0).normal(size=(2, C))
  once = mtf_jax.ranking_transfer_loss(jnp.float32(inner), jnp.float32(outer))
  twice = mtf_jax.ranking_transfer_loss(
    *(jnp.tile(jnp.float32(x), 2) for x in (inner, outer))
  )
  np.testing.assert_allclose(once, twice, rtol=1e-6)


def test_every_ordered_pair_counts():
  """There half of the pairs are drawn at random."""
  inner, outer = (
    jnp.float32(x) for x in np.random.default_rng(0).normal(size=(2, C))
  )
  alone = []
  for i in range(C):
    for j in range(i):
      pair = jnp.full(C, jnp.nan)
      pair = pair.at[jnp.array([i, j])].set(outer[jnp.array([i, j])])
      alone.append(mtf_jax.ranking_transfer_loss(inner, pair))
  assert min(alone) > 0
  np.testing.assert_allclose(
    mtf_jax.ranking_transfer_loss(inner, outer), np.mean(alone), rtol=1e-6
  )


def test_the_inner_stage_learns_from_an_order_and_not_from_a_label():
  """There it fits seven logged labels. No gradient reaches the outer stage."""
  inner, outer = (
    jnp.float32(x) for x in np.random.default_rng(0).normal(size=(2, C))
  )
  loss, (of_inner, of_outer) = jax.value_and_grad(
    mtf_jax.ranking_transfer_loss, argnums=(0, 1)
  )(inner, outer)
  # Any other numbers of the same order teach the same.
  assert mtf_jax.ranking_transfer_loss(inner, jnp.exp(3 * outer)) == loss
  np.testing.assert_array_equal(of_outer, np.zeros(C))
  # The best is to rise, the worst is to fall.
  assert of_inner[jnp.argmax(outer)] < 0 < of_inner[jnp.argmin(outer)]


def _transitions():
  rng = np.random.default_rng(0)
  r_t = rng.normal(size=B)
  discount_t = 0.9 * (rng.random(B) < 0.6)
  assert 0 < np.count_nonzero(discount_t) < B
  return r_t, discount_t, rng.normal(size=B), rng.normal(size=B)


def test_the_outer_stage_is_made_of_the_kernels_of_actors_and_critics():
  """Against float64: one group, one critic, no price and no pessimism."""
  r_t, discount_t, q_t, q_tm1 = _transitions()
  r, d, q_next, q = (
    x.astype(np.float32)
    for x in (r_t[:, None], discount_t, q_t[:, None, None], q_tm1)
  )
  targets = jax.vmap(mtf_jax.td_targets)(r, d, np.ones_like(d), q_next)
  y = np.array([r_t[i] + discount_t[i] * q_t[i] for i in range(B)])
  np.testing.assert_allclose(targets[:, 0, 0], y, rtol=1e-6)
  loss = jax.vmap(mtf_jax.critic_loss)(q[:, None, None], targets)
  np.testing.assert_allclose(loss, (q_tm1 - y) ** 2, rtol=1e-5)
  value = jax.vmap(lambda q: mtf_jax.actor_loss(q, jnp.ones(1), 0.0, 0.0, 0.0))(
    q[:, None, None]
  )
  np.testing.assert_allclose(value, -q_tm1, rtol=1e-6)


def test_a_target_is_its_own_transitions():
  """There r `[B, 1]` + q `[B]` regresses on all next values at once."""
  r_t, discount_t, q_t, _ = map(np.float32, _transitions())

  def targets(q_t):
    return jax.vmap(mtf_jax.td_targets)(
      r_t[:, None], discount_t, np.ones_like(discount_t), q_t[:, None, None]
    )[:, 0, 0]

  for row in range(B):
    moved = q_t.copy()
    moved[row] += 1
    changed = np.flatnonzero(targets(moved) != targets(q_t))
    assert changed.tolist() == [row] * bool(discount_t[row])
  with pytest.raises(ValueError, match=r"^q_t: expected shape \[G, M\]"):
    mtf_jax.td_targets(r_t, 0.9, 1.0, q_t)


def test_nothing_follows_the_end_of_a_session():
  """There no row says that a session has ended."""
  r_t, discount_t, q_t, _ = map(np.float32, _transitions())
  q_t = np.where(discount_t == 0, np.float32(np.nan), q_t)
  targets = jax.vmap(mtf_jax.td_targets)(
    r_t[:, None], discount_t, np.ones_like(discount_t), q_t[:, None, None]
  )[:, 0, 0]
  ended = discount_t == 0
  np.testing.assert_array_equal(targets[ended], r_t[ended])
  assert np.all(np.isfinite(targets))
