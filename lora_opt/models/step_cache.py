"""Keys and values as decoding one token at a time wants them.

The slots of a head lie together, so that scores and sums over the slots are
plain matrix products. With the heads between the slots, the CPU would copy the
whole cache for each of them, which costs more than everything else in a step.
Keys have their slots last, since a product with few rows is faster there if
nothing of its other side has to be transposed.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from lora_opt.models.softcap import capped


class StepCache(NamedTuple):
  """Keys and values of one layer; the slots beyond those written are empty."""

  keys: jax.Array  # (batch, kv_heads, head_dim, slots)
  values: jax.Array  # (batch, kv_heads, slots, head_dim)

  @classmethod
  def start(
    cls, keys: jax.Array, values: jax.Array, max_new_tokens: int
  ) -> StepCache:
    """The cache after a prompt, with room for more.

    Args:
      keys: (batch, length, kv_heads, head_dim).
      values: Likewise.
      max_new_tokens: Empty slots to add.
    """
    room = [(0, 0), (0, 0), (0, max_new_tokens), (0, 0)]
    keys, values = (jnp.pad(x.swapaxes(1, 2), room) for x in (keys, values))
    return cls(keys.swapaxes(2, 3), values)

  def append(
    self, keys: jax.Array, values: jax.Array, slot: jax.Array
  ) -> StepCache:
    """The cache with one more token, (batch, 1, kv_heads, head_dim) each."""

    def put(cache, x, axis):
      x = x.astype(cache.dtype)
      return jax.lax.dynamic_update_slice_in_dim(cache, x, slot, axis)

    keys, values = keys.swapaxes(1, 2), values.swapaxes(1, 2)
    return StepCache(
      put(self.keys, keys.swapaxes(2, 3), 3), put(self.values, values, 2)
    )


def attend_to_cache(
  queries: jax.Array,
  cache: StepCache,
  mask: jax.Array,
  scale: float | None = None,
  softcap: float | None = None,
) -> jax.Array:
  """Softmax attention of one query in each row, as `dot_product_attention`.

  Args:
    queries: (batch, 1, heads, head_dim); heads that share keys are neighbours.
    cache: Of this layer.
    mask: (batch, 1, slots) bool, which slots are visible.
    scale: Factor of the scores; None for 1 / sqrt(head_dim).
    softcap: What they are capped at softly; None for nothing.

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
