"""A mesh of devices, and where the arrays of training live on it.

Programs are written for one device and say nothing of a mesh; XLA divides them
(GSPMD) as their arguments and the constraints here are divided, with the result
of one device up to the order of sums. Axes:

  data: the batch, rows in strata, sessions.
  critic: the critics `M` of each reward group.
  seed: the runs `R` of `train_many`.

Letters: `R` runs, `G` reward groups, `M` critics of a group, `B` transitions of
a batch.
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mtf_jax.data.log_strata import LogStrata
from mtf_jax.data.strata import Dataset, Strata
from mtf_jax.io import InputError

AXES = ("data", "critic", "seed")


def parse_axes(text: str) -> dict[str, int]:
  """Sizes by axis from a text such as `data:4,critic:2`.

  Raises:
    InputError: an axis is unknown or named twice, or a size is no count.
  """
  sizes: dict[str, int] = {}
  for item in text.split(","):
    match = re.fullmatch(r"([a-z]+):([1-9][0-9]{0,5})", item, re.ASCII)
    if match is None or match[1] not in AXES or match[1] in sizes:
      raise InputError(
        f"mesh: expected {', '.join(AXES)}, each once at most and with a number"
        f" of devices, as data:4,critic:2, found {text!r}."
      )
    sizes[match[1]] = int(match[2])
  return sizes


def make_mesh(sizes: Mapping[str, int] | None = None) -> Mesh:
  """A mesh over this run's devices.

  Args:
    sizes: devices by axis; an axis that is left out has one. All devices are on
      `data` if omitted.

  Returns:
    The mesh, with all axes of `AXES`.

  Raises:
    InputError: it has more devices than there are, or, with several processes,
      leaves some out.
  """
  devices = jax.devices()
  sizes = {"data": len(devices)} if sizes is None else sizes
  shape = tuple(sizes.get(axis, 1) for axis in AXES)
  count = int(np.prod(shape))
  if count > len(devices) or (jax.process_count() > 1 and count < len(devices)):
    raise InputError(
      f"mesh: expected {'at most ' if jax.process_count() == 1 else ''}"
      f"{len(devices)} devices, as many as there are, found"
      f" {' x '.join(str(size) for size in shape)}."
    )
  return jax.make_mesh(
    shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices[:count]
  )


def check_fits(
  mesh: Mesh, *, batch_size: int, critic_updates: int, num_strata: int
) -> None:
  """Refuses a run that the axes `data` cannot be divided among evenly.

  Args:
    mesh: of `make_mesh`.
    batch_size, critic_updates, num_strata: of the run.

  Raises:
    InputError: the axis does not divide the part of a batch that one critic
      update sees, or the strata where there are several.
  """
  devices = mesh.shape["data"]
  part = batch_size // critic_updates
  if part % devices:
    raise InputError(
      f"mesh: expected a number of devices on data that divides {part}, the"
      f" transitions of one critic update, found {devices}."
    )
  if num_strata > 1 and num_strata % devices:
    raise InputError(
      f"mesh: expected a number of devices on data that divides num_strata ="
      f" {num_strata}, found {devices}."
    )


def _is_of_critics(path: tuple[Any, ...]) -> bool:
  names = jax.tree_util.keystr(path, simple=True, separator=".").split(".")
  return any(name.startswith(("critic_", "target_critic_")) for name in names)


def _state_spec(
  mesh: Mesh, path: tuple[Any, ...], leaf: Any, many: bool
) -> PartitionSpec:
  """Parameters and moments of critics are `[G, M, ...]`; the rest is whole."""
  runs = ("seed",) if many else ()
  split = mesh.shape["critic"] > 1 and _is_of_critics(path)
  if not split or leaf.ndim < len(runs) + 2:
    return PartitionSpec(*runs)
  return PartitionSpec(*runs, None, "critic")


def state_shardings(mesh: Mesh, state: Any, *, many: bool = False) -> Any:
  """Where the leaves of a training state live.

  Args:
    mesh: of `make_mesh`.
    state: pytree of arrays, or of their shapes.
    many: whether every leaf has a leading axis `R`, which is on `seed`.

  Returns:
    A pytree of shardings.

  Raises:
    InputError: an axis of the mesh does not divide what it should.
  """

  def place(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
    spec = _state_spec(mesh, path, leaf, many)
    for axis, size in zip(spec, leaf.shape, strict=False):
      if axis is not None and size % mesh.shape[axis]:
        what = {"seed": "seeds", "critic": "critics of a reward group"}[axis]
        raise InputError(
          f"mesh: expected a number of devices on {axis} that divides the"
          f" {size} {what}, found {mesh.shape[axis]}."
        )
    return NamedSharding(mesh, spec)

  return jax.tree_util.tree_map_with_path(place, state)


def constrain_state(mesh: Mesh, state: Any) -> Any:
  """The state of one run, inside jit, kept where `state_shardings` put it."""
  return jax.lax.with_sharding_constraint(state, state_shardings(mesh, state))


def constrain_batch(mesh: Mesh, batch: Any) -> Any:
  """A batch `[B, ...]`, inside jit, divided over `data`."""
  spec = NamedSharding(mesh, PartitionSpec("data"))
  return jax.lax.with_sharding_constraint(batch, spec)


def constrain_whole(mesh: Mesh, tree: Any) -> Any:
  """Arrays, inside jit, that every device has."""
  spec = NamedSharding(mesh, PartitionSpec())
  return jax.lax.with_sharding_constraint(tree, spec)


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def put(tree: Any, shardings: Any) -> Any:
  """Arrays of this process, the same in all, as arrays over the mesh.

  Args:
    tree: pytree of NumPy or JAX arrays, random keys among them.
    shardings: one for each leaf, or one for all.

  Returns:
    The arrays; a process gives its own devices' parts.
  """
  if isinstance(shardings, NamedSharding):
    shardings = jax.tree.map(lambda _, sharding=shardings: sharding, tree)

  def one(leaf: Any, sharding: NamedSharding) -> jax.Array:
    if _is_key(leaf):
      impl = jax.random.key_impl(leaf)
      data = one(jax.random.key_data(leaf), sharding)
      return jax.random.wrap_key_data(data, impl=impl)
    host = np.asarray(leaf)
    return jax.make_array_from_callback(
      host.shape, sharding, lambda index: host[index]
    )

  return jax.tree.map(one, tree, shardings)


def put_state(mesh: Mesh, state: Any, *, many: bool = False) -> Any:
  """A training state over the mesh, see `state_shardings` and `put`."""
  return put(state, state_shardings(mesh, state, many=many))


def put_dataset(mesh: Mesh, dataset: Dataset) -> Dataset:
  """Rows over the mesh: strata divided over `data`, others on every device.

  Args:
    mesh: of `make_mesh`.
    dataset: of one run or shared by all.

  Returns:
    The dataset.
  """
  axis = "data" if isinstance(dataset, Strata) else None
  return put(dataset, NamedSharding(mesh, PartitionSpec(axis)))


def put_strata(mesh: Mesh, log_strata: LogStrata) -> Strata:
  """Strata of a log over `data`: each process reads those of its own devices.

  Args:
    mesh: of `make_mesh`; its axis `data` divides the number of strata.
    log_strata: the log's.

  Returns:
    The strata. The host holds those of one device at a time.

  Raises:
    InputError: as `LogStrata.load`.
  """
  sharding = NamedSharding(mesh, PartitionSpec("data"))
  count = log_strata.num_strata
  devices: dict[range, list[jax.Device]] = {}
  held = sharding.addressable_devices_indices_map((count,))
  for device, index in held.items():
    assert index is not None  # Of its own devices a process knows it.
    # Devices that differ on other axes hold the same strata.
    devices.setdefault(range(count)[index[0]], []).append(device)
  pieces = []
  for numbers, holders in devices.items():
    loaded = [log_strata.load(number) for number in numbers]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *loaded)
    pieces += [jax.device_put(stacked, device) for device in holders]
  return Strata(
    jax.tree.map(
      lambda *leaves: jax.make_array_from_single_device_arrays(
        (count, *leaves[0].shape[1:]), sharding, list(leaves)
      ),
      *pieces,
    )
  )
