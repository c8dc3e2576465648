"""d3rlpy's TD3+BC, IQL and CQL set up as the package's own learners.

Same networks, same weights at the start, same numbers, same batches: what differs
after training is what the two implementations do. One reward, which is all that
d3rlpy knows.

What d3rlpy's settings cannot make the same:

- IQL: the critics' target has V from before its step, ours the new V. The
  deviation's logarithm is a sigmoid between its limits, ours is cut there.
- CQL: the critics move before the actor, ours after it. The deviation is affine
  in the last hidden layer of the mean's network, ours in the observation; its
  limits are exp(-20) and exp(2), ours exp(-5) and exp(2). After an exit the
  penalty has samples of the policy at the observation 0, ours at the state
  itself. The temperature's loss is in the temperature, ours in its logarithm,
  which Adam steps nearly alike.
- The critics' losses are summed, ours is their mean: Adam steps the same.

Letters: `N` rows, `S` state features, `A` action components, `U` updates, `B`
transitions of a batch, `C` critic updates before one of the actor.
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from mtf_jax.interop._extras import missing

# Layers from the input on: `(kernel [out, in], bias [out])`.
Layers = list[tuple[np.ndarray, np.ndarray]]

_LOG_STD_LIMITS = (-5.0, 2.0)


def require() -> Any:
  """The package d3rlpy.

  Raises:
    InputError: it is not installed.
  """
  try:
    import d3rlpy
  except ModuleNotFoundError as error:
    raise missing("d3rlpy") from error
  return d3rlpy


class Arrays(NamedTuple):
  """Transitions as d3rlpy has them, in the order of its dataset.

  observation, action, next_observation, next_action: float32 `[N, S]`, `[N, A]`
    and the same of the next step, 0 after an exit.
  reward, terminal: float32 `[N, 1]`.
  """

  observation: np.ndarray
  action: np.ndarray
  reward: np.ndarray
  next_observation: np.ndarray
  next_action: np.ndarray
  terminal: np.ndarray


def arrays_of(dataset: Any) -> Arrays:
  """All transitions of a dataset whose episodes all end in an exit.

  d3rlpy picks them one by one, which takes longer than an update.

  Args:
    dataset: `MDPDataset`.

  Raises:
    ValueError: an episode was cut.
  """
  episodes = dataset.episodes
  if not all(episode.terminated for episode in episodes):
    raise ValueError("dataset: expected episodes that all end in an exit.")
  observation, action, reward = (
    np.concatenate([getattr(episode, name) for episode in episodes])
    for name in ("observations", "actions", "rewards")
  )
  terminal = np.zeros_like(reward)
  lengths = [len(episode.actions) for episode in episodes]
  terminal[np.cumsum(lengths) - 1] = 1

  def following(values):
    return np.where(terminal > 0, np.float32(0), np.roll(values, -1, axis=0))

  return Arrays(
    observation,
    action,
    reward,
    following(observation),
    following(action),
    terminal,
  )


def create(
  name: str,
  numbers: Any,
  hidden_sizes: tuple[int, ...],
  batch_size: int,
  critic_updates: int,
) -> Any:
  """d3rlpy's algorithm with the numbers of a learner.

  Args:
    name: "td3_bc", "iql" or "cql".
    numbers: the learner's `Hyperparams`; told no box, and for "iql" without
      `scale_advantage`, for "cql" with `entropy_backup` and without a threshold.
    hidden_sizes: of all networks.
    batch_size: `B` of one critic update.
    critic_updates: `C`; 1 but for "td3_bc".

  Returns:
    The algorithm, without networks.
  """
  d3rlpy = require()
  encoder = d3rlpy.models.VectorEncoderFactory(list(hidden_sizes))
  common = {
    "actor_learning_rate": float(numbers.actor_learning_rate),
    "critic_learning_rate": float(numbers.critic_learning_rate),
    "actor_encoder_factory": encoder,
    "critic_encoder_factory": encoder,
    "batch_size": batch_size,
    "gamma": float(numbers.discount),
    "tau": float(numbers.target_step_size),
    "n_critics": 2,
  }
  if name == "td3_bc":
    config = d3rlpy.algos.TD3PlusBCConfig(
      **common,
      alpha=float(numbers.value_scale),
      target_smoothing_sigma=float(numbers.target_noise),
      target_smoothing_clip=float(numbers.target_noise_clip),
      update_actor_interval=critic_updates,
    )
  elif name == "iql":
    config = d3rlpy.algos.IQLConfig(
      **common,
      value_encoder_factory=encoder,
      expectile=float(numbers.expectile),
      weight_temp=float(numbers.inverse_temperature),
      max_weight=float(numbers.max_weight),
    )
  else:
    config = d3rlpy.algos.CQLConfig(
      **common,
      temp_learning_rate=float(numbers.temperature_learning_rate),
      initial_temperature=float(numbers.initial_temperature),
      conservative_weight=float(numbers.conservative_scale),
      # The penalty's multiplier stays 1.
      alpha_learning_rate=0.0,
      alpha_threshold=0.0,
      n_action_samples=10,
      soft_q_backup=True,
    )
  return config.create()


def actor_layers(params: Any) -> Layers:
  """Layers of a `started_actor` around `mlp_actor`, the start in the last bias.

  `tanh(z + artanh(start))` is what that actor answers, so that the two are one
  function, and steps of the bias are steps of the bias.

  Args:
    params: `{"network": of mlp_actor, "start": [A]}`.
  """
  dense = params["network"]["params"]["MLP_0"]
  layers = [
    (
      np.asarray(dense[f"Dense_{n}"]["kernel"]).T,
      np.asarray(dense[f"Dense_{n}"]["bias"]),
    )
    for n in range(len(dense))
  ]
  kernel, bias = layers.pop()
  return [*layers, (kernel, bias + np.arctanh(np.asarray(params["start"])))]


def critic_layers(params: Any, member: int) -> Layers:
  """Layers of one member of `mlp_critic` with one group.

  Args:
    params: of the critics.
    member: which.
  """
  own = jax.tree.map(lambda leaf: np.asarray(leaf[0, member]), params["params"])
  parts = [own[f"value_0_kernel_{part}"] for part in ("observation", "action")]
  layers = [(np.concatenate(parts, axis=1), own["value_0_bias"])]
  while f"value_{len(layers)}_kernel" in own:
    n = len(layers)
    layers.append((own[f"value_{n}_kernel"], own[f"value_{n}_bias"]))
  return layers


def _linear(module: Any) -> list[Any]:
  import torch

  return [m for m in module.modules() if isinstance(m, torch.nn.Linear)]


def _load(module: Any, layers: Layers) -> None:
  """Copies layers into the first linear modules, and 0 into the others."""
  import torch

  modules = _linear(module)
  with torch.no_grad():
    for linear, (kernel, bias) in zip(modules, layers, strict=False):
      linear.weight.copy_(torch.from_numpy(kernel.copy()))
      linear.bias.copy_(torch.from_numpy(bias.copy()))
    for linear in modules[len(layers) :]:
      linear.weight.zero_()
      linear.bias.zero_()


def begin(name: str, algorithm: Any, state: Any) -> None:
  """Makes the networks of an algorithm and gives them a learner's weights.

  Args:
    name: as in `create`.
    algorithm: of `create`.
    state: of the learner at its start, one group, its actor a `started_actor`;
      V of "iql" has one member.
  """
  import torch

  actor = state.actor_params
  if name != "td3_bc":
    actor = actor["mean" if name == "iql" else "mode"]
  layers = actor_layers(actor)
  action_size = len(layers[-1][1])
  algorithm.create_impl((layers[0][0].shape[1],), action_size)
  modules = algorithm.impl.modules
  # CQL's deviation is the linear module that is left: 1 at the start, as ours.
  _load(modules.policy, layers)
  for member in range(2):
    own = critic_layers(state.critic_params, member)
    _load(modules.q_funcs[member], own)
    _load(modules.targ_q_funcs[member], own)
  if name == "td3_bc":
    _load(modules.targ_policy, layers)
    # The actor moves after the last of the critics' updates, not the first.
    algorithm.set_grad_step(1)
  if name == "iql":
    (kernel, bias), *others = critic_layers(state.value_params, 0)
    # V is a critic that is always shown the action 0.
    _load(modules.value_func, [(kernel[:, :-action_size], bias), *others])
    low, high = _LOG_STD_LIMITS
    share = -low / (high - low)
    with torch.no_grad():
      modules.policy._logstd.fill_(float(np.log(share / (1 - share))))


def train(
  algorithm: Any,
  arrays: Arrays,
  draw: np.ndarray,
  critic_updates: int,
  seed: int,
) -> None:
  """Updates on given batches.

  One thread of torch: more fight with what JAX still runs.

  Args:
    algorithm: with networks.
    arrays: transitions.
    draw: int `[U, C B]`, the transitions of each of our updates, divided into
      its parts as `actor_critic.delayed` divides them.
    critic_updates: `C`.
    seed: of the noise, which torch draws.
  """
  import torch

  d3rlpy = require()
  d3rlpy.seed(seed)
  torch.set_num_threads(1)
  interval = np.ones((draw.shape[1] // critic_updates, 1), np.float32)
  for numbers in draw:
    for part in numbers.reshape(-1, critic_updates).T:
      rows = Arrays(*(values[part] for values in arrays))
      algorithm.update(
        d3rlpy.dataset.TransitionMiniBatch(
          observations=rows.observation,
          actions=rows.action,
          rewards=rows.reward,
          next_observations=rows.next_observation,
          next_actions=rows.next_action,
          terminals=rows.terminal,
          intervals=interval,
          transitions=[],
        )
      )


def actor_params(algorithm: Any, hidden_sizes: tuple[int, ...]) -> Any:
  """The algorithm's policy as parameters of a `started_actor`, its start 0.

  Args:
    algorithm: trained.
    hidden_sizes: of its networks.
  """
  layers = _linear(algorithm.impl.modules.policy)[: len(hidden_sizes) + 1]
  dense = {
    f"Dense_{n}": {
      "kernel": linear.weight.detach().numpy().T.copy(),
      "bias": linear.bias.detach().numpy().copy(),
    }
    for n, linear in enumerate(layers)
  }
  return {
    "network": {"params": {"MLP_0": dense}},
    "start": np.zeros_like(dense[f"Dense_{len(hidden_sizes)}"]["bias"]),
  }
