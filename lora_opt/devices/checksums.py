"""Checksums of arrays that do not depend on where or how an array is split.

A checksum is the sum, modulo 2**32, of a hash of each element's bits and
position. Such a sum is exact in any order. So each device can sum its own part,
and a state saved from one mesh can be checked on another, or on the host.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}


@jax.jit
def checksums(arrays: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
  """The checksum of each array, () uint32.

  >>> x = jnp.arange(6.0).reshape(2, 3)
  >>> int(checksums({'x': x})['x']) == host_checksum(np.asarray(x))
  True
  """

  def bits(x):
    if x.dtype == jnp.bool_:
      return x.astype(jnp.uint32)
    unsigned = _UNSIGNED[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(x, unsigned).astype(jnp.uint32)

  return {name: _mixed_sum(jnp, bits(x)) for name, x in arrays.items()}


def host_checksum(x: np.ndarray) -> int:
  """The same checksum of an array on the host.

  >>> host_checksum(np.array([1, 2])) == host_checksum(np.array([2, 1]))
  False
  """
  x = np.ascontiguousarray(x).reshape(x.shape)
  unsigned = _UNSIGNED[x.dtype.itemsize]
  split = x.dtype.itemsize // np.dtype(unsigned).itemsize
  shape = x.shape if split == 1 else (*x.shape, split)
  bits = x.reshape(-1).view(unsigned).reshape(shape).astype(np.uint32)
  return int(_mixed_sum(np, bits))


def _mixed_sum(xp, bits):
  """Sums a hash of each element and its position; uint32 wraps around."""
  bits = bits.reshape(bits.shape or (1,))
  mixed = _scramble(bits)
  for axis, size in enumerate(bits.shape):
    stride = math.prod(bits.shape[axis + 1 :]) % 2**32
    place = xp.arange(size, dtype=np.uint32) * np.uint32(stride)
    around = [1] * bits.ndim
    around[axis] = size
    mixed = mixed + _scramble(place).reshape(around)
  return xp.sum(_scramble(mixed), dtype=np.uint32)


def _scramble(x):
  x = (x ^ (x >> np.uint32(16))) * np.uint32(0x85EBCA6B)
  return x ^ (x >> np.uint32(13))
