"""Keys and values in a layout for decoding one token at a time.

The slots of a head are contiguous, so that scores and sums over the slots are
plain matrix products. With the heads between the slots, the CPU would copy the
whole cache for each product, which costs more than everything else in a step.
The slots are the last axis of the keys, since a CPU's product with few rows is
faster if the other operand needs no transposition.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lora_opt.models.softcap import capped


class StepCache(NamedTuple):
  """Keys and values of one layer; slots that are not yet written are empty."""

  keys: jax.Array  # (batch, kv_heads, head_dim, slots)
  values: jax.Array  # (batch, kv_heads, slots, head_dim)

  @classmethod
  def start(
    cls, keys: jax.Array, values: jax.Array, max_new_tokens: int
  ) -> StepCache:
    """The cache after a prompt, with room for more tokens.

    Args:
      keys: (batch, length, kv_heads, head_dim).
      values: Like keys.
      max_new_tokens: Empty slots to add.
    """
    room = [(0, 0), (0, 0), (0, max_new_tokens), (0, 0)]
    keys, values = (jnp.pad(x.swapaxes(1, 2), room) for x in (keys, values))
    return cls(keys.swapaxes(2, 3), values)

  def append(
    self, keys: jax.Array, values: jax.Array, slot: jax.Array
  ) -> StepCache:
    """Adds one token, with keys and values (batch, 1, kv_heads, head_dim)."""

    def put(cache, x, axis):
      return _put(cache, x.astype(cache.dtype), slot, axis)

    keys, values = keys.swapaxes(1, 2), values.swapaxes(1, 2)
    return StepCache(
      put(self.keys, keys.swapaxes(2, 3), 3), put(self.values, values, 2)
    )


def _put(cache: jax.Array, x: jax.Array, slot: jax.Array, axis: int):
  """Writes x to a slot of the cache.

  XLA's compiler for CPUs has no update of 16-bit floats: it would convert the
  whole cache to float32 and back for every token. Updates of the same bits as
  integers are in place. (Without the barrier, it would also compute x inside of
  the update, one element at a time.)
  """

  def plain(cache, x):
    return lax.dynamic_update_slice_in_dim(cache, x, slot, axis)

  def as_bits(cache, x):
    cache_bits, bits = (
      lax.bitcast_convert_type(y, jnp.uint16) for y in (cache, x)
    )
    new = plain(cache_bits, lax.optimization_barrier(bits))
    return lax.bitcast_convert_type(new, cache.dtype)

  cpu = as_bits if cache.dtype.itemsize == 2 else plain
  return lax.platform_dependent(cache, x, cpu=cpu, default=plain)


def attend_to_cache(
  queries: jax.Array,
  cache: StepCache,
  mask: jax.Array,
  scale: float | None = None,
  softcap: float | None = None,
) -> jax.Array:
  """Softmax attention of one query per row, like `dot_product_attention`.

  Args:
    queries: (batch, 1, heads, head_dim); heads that share keys are adjacent.
    cache: The cache of this layer.
    mask: (batch, 1, slots) bool, which slots are visible.
    scale: Factor of the scores; None for 1 / sqrt(head_dim).
    softcap: Soft cap of the scores; None for no cap.

  Returns:
    (batch, 1, heads, head_dim), of the type of `queries`.
  """
  batch, _, heads, head_dim = queries.shape
  kv_heads = cache.keys.shape[1]
  scale = 1 / math.sqrt(head_dim) if scale is None else scale
  rows = queries.reshape(batch, kv_heads, heads // kv_heads, head_dim)
  scores = scale * jnp.einsum(
    'bkgd,bkds->bkgs', rows, cache.keys, preferred_element_type=jnp.float32
  )
  scores = capped(scores, softcap)
  lowest = jnp.finfo(jnp.float32).min
  weights = jax.nn.softmax(jnp.where(mask[:, None], scores, lowest))
  out = jnp.einsum(
    'bkgs,bksd->bkgd',
    weights.astype(cache.values.dtype),
    cache.values,
    preferred_element_type=jnp.float32,
  )
  return out.reshape(queries.shape).astype(queries.dtype)
