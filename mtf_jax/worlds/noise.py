"""Counter-based uniforms: the noise of a user towards one candidate.

Every number is a hash of where it is used: the session's key, the request, the
candidate's place among the candidates and a column. So the noise that a
candidate meets does not depend on which policy showed it or in which position
(common random numbers), and only shown candidates cost anything. A JAX key per
candidate would give the same at ten times the operations; JAX's own generator
seeds each session's key.

References:
  [1] Wellons, "Prospecting for Hash Functions", nullprogram.com, 2018: the
  32-bit finaliser `lowbias32`.
"""

import chex
import jax
import jax.numpy as jnp

# Counters of one request, and hence the largest candidates x columns.
COUNTERS_PER_REQUEST = 1 << 16


def _mix(bits: jax.Array) -> jax.Array:
  """A bijection of uint32 without visible structure, lowbias32 of [1]."""
  bits = (bits ^ (bits >> jnp.uint32(16))) * jnp.uint32(0x7FEB352D)
  bits = (bits ^ (bits >> jnp.uint32(15))) * jnp.uint32(0x846CA68B)
  return bits ^ (bits >> jnp.uint32(16))


def counter_uniforms(
  noise_key: chex.Array, request: chex.Array, counter: chex.Array
) -> jax.Array:
  """Uniforms in (0, 1), one per counter.

  Args:
    noise_key: uint32 `[2]`, random bits of the session.
    request: int32 scalar, the request's number in the session.
    counter: int32 `[...]` below `COUNTERS_PER_REQUEST`.

  Returns:
    float32 `[...]`, multiples of 2^-24 shifted by half a step, so that neither
    0 nor 1 occurs.
  """
  place = request * COUNTERS_PER_REQUEST + counter
  # Two rounds with a key word each: neighbouring counters and keys, which
  # differ in few bits, then share nothing.
  bits = _mix(_mix(place.astype(jnp.uint32) ^ noise_key[0]) + noise_key[1])
  unit = (bits >> jnp.uint32(8)).astype(jnp.float32)
  return (unit + 0.5) * jnp.float32(2.0**-24)
