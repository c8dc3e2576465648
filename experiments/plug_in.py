"""The kernels in somebody else's loop: plain JAX and optax, no flax."""

import jax
import jax.numpy as jnp
import optax

import mtf_jax as mtf

B, C, K, S, G, M = 8192, 50, 5, 5, 2, 8  # Sessions, candidates, tasks, ...


def mlp(layers, x):
  for kernel, bias in layers[:-1]:
    x = jax.nn.relu(x @ kernel + bias)
  return x @ layers[-1][0] + layers[-1][1]


def init_mlp(rng_key, *sizes):
  keys = jax.random.split(rng_key, len(sizes) - 1)
  return [
    (jax.random.normal(key, (m, n)) / m**0.5, jnp.zeros(n))
    for key, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)
  ]


def serve(rng_key, actor, half_width):
  """One request: explore around the policy, fuse, rank, see the reward."""
  state_key, score_key, box_key = jax.random.split(rng_key, 3)
  state = jax.random.normal(state_key, (S,))
  scores = jax.random.uniform(score_key, (C, K))
  box = mtf.action_box(jnp.tanh(mlp(actor, state)), -half_width, half_width)
  action = mtf.sample_box(box_key, box)
  weights = mtf.weights_from_action(action, mtf.FusionSpec())
  slate = mtf.rank_slate(mtf.fused_log_score(scores, weights), 6)
  taste = jax.nn.softmax(2 * state)  # What each task is worth to this user.
  r_t = mtf.list_reward(scores[slate], jnp.stack([taste, taste[::-1]]))
  return (state, action, box, r_t), slate


def loss(params, row):
  """Critic and actor loss of one request; the user leaves after it."""
  state, action, box, r_t = row

  def critic(layers, action):
    return mlp(layers, jnp.concatenate([state, action])).reshape(G, M)

  q_tm1 = critic(params["critic"], action)
  targets = mtf.td_targets(r_t, 0.0, 1.0, jnp.zeros((G, M)))
  own = jnp.tanh(mlp(params["actor"], state))
  q = critic(jax.lax.stop_gradient(params["critic"]), own)
  d = mtf.relaxation_penalty(mtf.exceedance(own, box), 10.0)
  return mtf.critic_loss(q_tm1, targets) + mtf.actor_loss(
    q, jnp.ones(G), d, penalty_scale=1.0, uncertainty_scale=0.1
  )


@jax.jit
def train(params, rows):
  optimizer = optax.adam(1e-3)

  def batch_loss(params):
    return jnp.mean(jax.vmap(loss, (None, 0))(params, rows))

  def update(carry, _):
    params, opt_state = carry
    value, gradient = jax.value_and_grad(batch_loss)(params)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return (optax.apply_updates(params, updates), opt_state), value

  (params, _), losses = jax.lax.scan(
    update, (params, optimizer.init(params)), length=500
  )
  return params, losses


keys = jax.random.split(jax.random.key(0), 3)
params = {
  "actor": init_mlp(keys[0], S, 32, 2 * K),
  "critic": init_mlp(keys[1], S + 2 * K, 64, G * M),
}
params["actor"][-1] = jax.tree.map(jnp.zeros_like, params["actor"][-1])
requests = jax.jit(jax.vmap(serve, (0, None, None)))
rows, slates = requests(jax.random.split(keys[2], B), params["actor"], 0.15)
trained, losses = train(params, rows)
print("slates", slates.shape, "loss", losses[0], "to", losses[-1])
for name, actor in (("before", params["actor"]), ("after", trained["actor"])):
  (*_, r_t), _ = requests(jax.random.split(jax.random.key(1), B), actor, 0.0)
  print(f"reward {name} training: {r_t.sum(1).mean():.3f}")
