"""Relative positions as DeBERTa uses them: products of content and distance.

The score of query i and key j gets q_i . K[i - j] and k_j . Q[i - j], where K
and Q are the key and query projections of a table of distances. The direct way,
a gather of (length, length) entries of each head, is slow in both the forward
and the backward pass. Instead, the products with all distances are computed at
once, (length, 2 length - 1), and row i is shifted by i with a reshape.
"""

import jax
import jax.numpy as jnp
import numpy as np

from lora_opt.models.encoder_config import RelativePositions


def table_rows(relative: RelativePositions, length: int) -> np.ndarray:
  """The row of the table for each distance.

  Args:
    relative: Settings.
    length: Tokens in a sequence.

  Returns:
    (2 length - 1,) int32: rows for the distances 1 - length to length - 1.

  >>> near = RelativePositions(span=4, max_distance=16)
  >>> table_rows(near, 8)[7:].tolist()
  [4, 5, 6, 7, 7, 7, 7, 7]
  >>> table_rows(near, 8)[:8].tolist()
  [1, 1, 1, 1, 1, 2, 3, 4]
  """
  distance = np.arange(1 - length, length)
  row = distance
  if relative.buckets:
    # In float32, so that the ceiling rounds as it did in training.
    one = np.float32
    middle = relative.span // 2
    far = np.maximum(np.abs(distance), middle).astype(np.float32)
    steps = np.log(far / one(middle)) / np.log(
      one((relative.max_distance - 1) / middle)
    )
    bucket = np.ceil(steps * one(middle - 1)) + middle
    near = np.abs(distance) <= middle
    row = np.where(near, distance, np.sign(distance) * bucket).astype(np.int32)
  row = np.clip(row + relative.span, 0, 2 * relative.span - 1)
  return row.astype(np.int32)


def distance_products(x: jax.Array, table: jax.Array) -> jax.Array:
  """x_i . table[i - j] for all i and j.

  Args:
    x: (batch, length, heads, head_dim).
    table: (2 length - 1, heads, head_dim), distances length - 1 down to
      1 - length.

  Returns:
    (batch, heads, length, length) float32, with axes i and j in this order.
  """
  batch, length, heads, _ = x.shape
  products = jnp.einsum(
    'blhd,chd->bhlc', x, table, preferred_element_type=jnp.float32
  )
  # Entry (i, j) is in column j + length - 1 - i. With rows padded to 2 length
  # entries, its flat index is i (2 length - 1) + j + length - 1. So without the
  # first length - 1 entries, rows of 2 length - 1 entries are aligned.
  width = 2 * length - 1
  flat = jnp.pad(products, ((0, 0), (0, 0), (0, 0), (0, 1)))
  flat = flat.reshape(batch, heads, -1)[..., length - 1 :]
  flat = flat[..., : length * width]
  return flat.reshape(batch, heads, length, width)[..., :length]
