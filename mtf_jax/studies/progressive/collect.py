"""Sessions of a round, logged and left on the device as rows.

Letters: `R` seeds, `B` sessions, `T` requests, `N` rows.
"""

import functools

import chex
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mtf_jax import policies
from mtf_jax.data.transitions import (
  Rows,
  TransitionDataset,
  dataset_from,
  rows_from,
)
from mtf_jax.distributed import mesh as mesh_lib
from mtf_jax.studies.progressive.experiment import over_seeds
from mtf_jax.worlds import rollout as rollout_lib
from mtf_jax.worlds.rollout import Rollout
from mtf_jax.worlds.world import World


def flat_rows(rows: Rollout) -> Rows:
  """Rows of a rollout, `N = B (T + 1)`, those that do not exist among them.

  They stay where they are and are never drawn: every round then has one shape,
  which `rollout.pack` would not give.

  Args:
    rows: of `rollout`, `[B, T + 1, ...]`.

  Returns:
    The rows, `[N, ...]`.
  """
  flat = jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), rows)
  return rows_from(flat.log, flat.valid)


def as_dataset(
  rows: Rows, num_steps: int = 1, discount: chex.Numeric = 1.0
) -> TransitionDataset:
  """Rows as a dataset, without leaving the device; `[R, N, ...]`.

  A session that was cut counts as ended. What is judged are the first `T`
  requests; critics that bootstrap beyond them value what is not judged, here
  nearly twice the value at hand, and pay for long sessions with reward.

  Args:
    rows: of all parts of a round, `[R, N, ...]`.
    num_steps, discount: as in `dataset_from`.

  Returns:
    The dataset of each seed.
  """
  return jax.vmap(
    lambda rows: dataset_from(
      rows, cut="end", num_steps=num_steps, discount=discount
    )
  )(rows)


@functools.partial(
  jax.jit,
  static_argnames=(
    "act",
    "num_sessions",
    "max_requests",
    "exploration",
    "mesh",
  ),
)
def collect_part(
  rng_key: chex.PRNGKey,
  world: World,
  act: policies.Act,
  params: policies.PolicyParams,
  num_sessions: int,
  max_requests: int,
  exploration: str,
  mesh: Mesh | None = None,
) -> Rows:
  """Logs sessions of each seed.

  Args:
    rng_key: keys `[R]`, consumed.
    world: leading axis `R`.
    act: the policy, exploring, static.
    params: its parameters, leading axis `R`.
    num_sessions: `B` of a seed, static.
    max_requests: `T`, static.
    exploration: as in `rollout.rollout`, static.
    mesh: of the run, static. Sessions are divided over `data`, the rows are on
      all of its devices afterwards: any of them may be drawn anywhere.

  Returns:
    The rows, `[R, N, ...]` with `N = B (T + 1)`.
  """

  def one(rng_key, world, params):
    rows = flat_rows(
      rollout_lib.rollout(
        rng_key,
        world,
        act,
        params,
        num_sessions,
        max_requests,
        exploration,
        mesh,
      )
    )
    return rows if mesh is None else mesh_lib.constrain_whole(mesh, rows)

  return over_seeds(one, mesh)(rng_key, world, params)


@functools.partial(jax.jit, static_argnames="parts")
def empty_rows(part: Rows, parts: int) -> Rows:
  """Room for the rows of several parts.

  Args:
    part: rows of one part, `[R, N, ...]`; only shapes and dtypes count.
    parts: how many, static.

  Returns:
    Zeros, `[R, parts N, ...]`.
  """
  return jax.tree.map(
    lambda leaf: jnp.zeros(
      (leaf.shape[0], parts * leaf.shape[1], *leaf.shape[2:]), leaf.dtype
    ),
    part,
  )


@functools.partial(jax.jit, donate_argnames="rows")
def put_rows(rows: Rows, part: Rows, first: chex.Array) -> Rows:
  """Writes a part, in place, from a row on.

  Args:
    rows: of `empty_rows`, donated.
    part: rows of one part, `[R, N, ...]`.
    first: int scalar, row that the part begins at.

  Returns:
    The rows with the part among them.
  """
  return jax.tree.map(
    lambda whole, new: jax.lax.dynamic_update_slice_in_dim(
      whole, new, first, axis=1
    ),
    rows,
    part,
  )
