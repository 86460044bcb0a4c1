"""Biases of attention scores that depend on the offset of key and query.

They are stored as one number per offset; an array of the biases of all pairs
would grow with the square of the length.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class OffsetBias(NamedTuple):
  """A bias for each head and offset.

  Attributes:
    values: (heads, 2 keys - 1), for the offsets 1 - keys to keys - 1: position
      of the key minus position of the query.
  """

  values: jax.Array

  def of_all(self, length: int, first: jax.Array | int = 0) -> jax.Array:
    """The biases of queries first ... first + length - 1 for all keys.

    Args:
      length: Number of queries.
      first: () int32, position of the first query.

    Returns:
      (1, heads, length, keys) in the type of the values.

    >>> OffsetBias(jnp.array([[-2, -1, 0, 1, 2]])).of_all(3)[0, 0].tolist()
    [[0, 1, 2], [-1, 0, 1], [-2, -1, 0]]
    """
    keys = (self.values.shape[1] + 1) // 2
    query = jnp.arange(length) + first
    offset = jnp.arange(keys)[None, :] - query[:, None]
    return self.values[:, offset + keys - 1][None]

  def of_block(self, i: jax.Array, j: jax.Array, block: int) -> jax.Array:
    """The biases of one block of queries for one block of keys.

    Args:
      i: () int32, index of the block of queries.
      j: () int32, index of the block of keys.
      block: Queries, and keys, in a block.

    Returns:
      (heads, block, block) float32; 0 beyond the last key.
    """
    heads, count = self.values.shape
    # Index of the offset between the block's first key and its last query.
    first = (j - i) * block - (block - 1) + (count - 1) // 2
    room = [(0, 0), (block, 2 * block)]
    values = jnp.pad(self.values.astype(jnp.float32), room)
    near = jax.lax.dynamic_slice_in_dim(values, first + block, 2 * block, 1)
    # Each row is the previous one shifted by one. Repeating the values and
    # reshaping to rows that are one entry shorter produces these shifts.
    shifted = jnp.tile(near, (1, block))[:, : block * (2 * block - 1)]
    shifted = shifted.reshape(heads, block, 2 * block - 1)
    return shifted[:, :, block - 1 :]


@jax.custom_vjp
def frozen(bias: OffsetBias) -> OffsetBias:
  """Returns the bias itself, but refuses to be differentiated.

  Raises:
    ValueError: If its gradient is taken.
  """
  return bias


def _refuse(residuals, cotangent):
  raise ValueError(
    'relative biases of long rows have no gradient here: they belong to the '
    "frozen base; to train them take attention='plain'"
  )


frozen.defvjp(lambda bias: (bias, None), _refuse)
