"""Sessions against their number, the candidates of a request, and the slate."""

import functools

import jax

from benchmarks import harness, played
from benchmarks.growth import curves
from mtf_jax.fitting import synthetic
from mtf_jax.worlds.world import World

SESSIONS = tuple(8**n for n in range(6))
CANDIDATES = (8, 16, 32, 64, 128, 256)
SLATES = (1, 2, 4, 8, 16, 32, 64, 128)
_WORLD = functools.cache(lambda: synthetic.synthetic_world("small"))
_BATCH, _REQUESTS = 1024, 16
_WINDOW_S = 0.3


def _uniforms() -> curves.Ceiling:
  key = jax.random.key(0)
  draw, _ = harness.compile_ahead(played.draw_uniforms, key)
  return curves.Ceiling(
    "uniforms",
    _window(lambda: jax.block_until_ready(draw(key))),
    draw(key).size,
  )


def _window(call):
  """A timer whose windows are long enough for the clock."""
  call()
  seconds = curves.timer(call)().processor_s
  return curves.timer(call, max(1, round(_WINDOW_S / seconds)))


def _case(
  curve: str,
  size: int,
  world: World,
  num_sessions: int,
  ceiling: curves.Ceiling,
) -> curves.Case:
  """Compiles a batch of sessions of a fixed action; its cost is the batch's."""
  harness.say(f"{curve}: {size}")
  key = jax.random.key(2)
  compiled, _ = harness.compile_ahead(
    lambda world, key: played.play(world, key, num_sessions, _REQUESTS),
    world,
    key,
  )
  numbers = num_sessions * _REQUESTS * played.uniforms_of_request(world)
  return curves.Case(
    curve,
    size,
    _window(lambda: jax.block_until_ready(compiled(world, key))),
    num_sessions,
    {"random numbers": (ceiling, numbers)},
  )


def sessions(rounds: int) -> dict:
  """Batches of 1 to 32,768 sessions, with few and with many candidates.

  Args:
    rounds: windows of each size.

  Returns:
    As `curves.measure_axis`.
  """
  world, ceiling = _WORLD(), _uniforms()
  cases = [
    _case(
      f"{candidates} candidates",
      size,
      world.replace(num_candidates=candidates),
      size,
      ceiling,
    )
    for candidates in (50, 200)
    for size in SESSIONS
  ]
  return curves.measure_axis(cases, rounds, expected=1)


def candidates(rounds: int) -> dict:
  """1,024 sessions with slates of 6, by the candidates of a request.

  Args:
    rounds: windows of each size.

  Returns:
    As `curves.measure_axis`.
  """
  world, ceiling = _WORLD(), _uniforms()
  cases = [
    _case(
      f"slates of {world.slate_size}",
      size,
      world.replace(num_candidates=size),
      _BATCH,
      ceiling,
    )
    for size in CANDIDATES
  ]
  return curves.measure_axis(cases, rounds, expected=1)


def slate(rounds: int) -> dict:
  """1,024 sessions with 256 candidates a request, by the items shown of them.

  Args:
    rounds: windows of each size.

  Returns:
    As `curves.measure_axis`.
  """
  world, ceiling = _WORLD().replace(num_candidates=256), _uniforms()
  cases = [
    _case(
      "256 candidates",
      size,
      world.replace(slate_size=size),
      _BATCH,
      ceiling,
    )
    for size in SLATES
  ]
  return curves.measure_axis(cases, rounds, expected=1)
