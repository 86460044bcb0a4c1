"""Causal grouped-query attention with rotary positions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from lora_opt.models.axes import constrain
from lora_opt.models.config import DecoderConfig
from lora_opt.models.lora import LoraConfig, Projection


class LayerCache(NamedTuple):
  """Keys and values of the tokens seen so far, and where the next ones go."""

  keys: jax.Array  # (batch, slots, kv_heads, head_dim)
  values: jax.Array  # (batch, slots, kv_heads, head_dim)


def packed_mask(
  segment_ids: jax.Array, branches: jax.Array | None = None
) -> jax.Array:
  """Which key each query may see in rows of packed examples.

  A key is visible when it is not later than the query, belongs to the same
  segment, and is in the shared prefix (branch 0) or in the query's branch.

  Args:
    segment_ids: (batch, length) int32, 0 on padding.
    branches: (batch, length) int32, 0 in the prefix of a segment and k > 0 in
      its k-th continuation; None when no segment branches.

  Returns:
    (batch, length, length) bool, queries before keys.

  >>> import jax.numpy as jnp
  >>> packed_mask(jnp.array([[1, 1, 2]])).astype(int)[0].tolist()
  [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
  """
  index = jnp.arange(segment_ids.shape[1])
  mask = (index[None, :] <= index[:, None])[None]
  mask = mask & (segment_ids[:, None, :] == segment_ids[:, :, None])
  if branches is None:
    return mask
  key, query = branches[:, None, :], branches[:, :, None]
  return mask & ((key == 0) | (key == query))


def segment_mask(queries: jax.Array, keys: jax.Array) -> jax.Array:
  """Which key each query may see: those of its own segment.

  Args:
    queries: (batch, length) int32, segments of the queries, 0 on padding.
    keys: (batch, keys) int32, likewise.

  Returns:
    (batch, length, keys) bool. Padding sees padding, which nobody reads.
  """
  return queries[:, :, None] == keys[:, None, :]


def rotary_angles(config: DecoderConfig, positions: jax.Array) -> jax.Array:
  """The rotation angle of every position and frequency.

  Args:
    config: Supplies head_dim, rope_theta and rope_divisors.
    positions: (batch, length) int32.

  Returns:
    (batch, length, head_dim / 2) float32, in radians.
  """
  exponent = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32)
  frequency = config.rope_theta ** (-exponent / config.head_dim)
  if config.rope_divisors:
    frequency = frequency / jnp.array(config.rope_divisors, jnp.float32)
  return positions.astype(jnp.float32)[..., None] * frequency[None, None]


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
  """Rotates pairs (i, i + head_dim / 2) of every head, as Hugging Face does.

  Args:
    x: (batch, length, heads, head_dim).
    angles: (batch, length, head_dim / 2) float32.

  Returns:
    Same shape and type as x.
  """
  cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
  x1, x2 = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  rotated = jnp.concatenate([x1 * cos - x2 * sin, x2 * cos + x1 * sin], -1)
  return rotated.astype(x.dtype)


class Attention(nn.Module):
  """Grouped-query attention: q, k, v and o projections around a softmax.

  Attributes are those of `Decoder`.
  """

  config: DecoderConfig
  lora: LoraConfig | None
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    angles: jax.Array,
    mask: jax.Array,
    cache: LayerCache | None,
    slot: jax.Array | None,
  ) -> tuple[jax.Array, LayerCache | None]:
    """Attends from x to itself, or to the cache after adding x to it.

    Args:
      x: (batch, length, embed).
      angles: (batch, length, head_dim / 2).
      mask: (batch, length, keys) bool; keys are the slots of the cache, or
        the positions of x without one.
      cache: Earlier keys and values, or None.
      slot: Scalar int32, the cache slot of the first new key.

    Returns:
      (batch, length, embed), and the cache with the new keys and values.
    """
    c = self.config
    q = self._heads('q', c.num_heads, 'heads')(x)
    k = self._heads('k', c.num_kv_heads, 'kv_heads')(x)
    v = self._heads('v', c.num_kv_heads, 'kv_heads')(x)

    def split(y, axis):
      y = y.reshape(*y.shape[:2], -1, c.head_dim)
      return constrain(y, 'batch', None, axis, None)

    q = checkpoint_name(rotate(split(q, 'heads'), angles), 'q')
    k = checkpoint_name(rotate(split(k, 'kv_heads'), angles), 'k')
    v = checkpoint_name(split(v, 'kv_heads'), 'v')
    if cache is not None:
      put = jax.lax.dynamic_update_slice_in_dim
      k = put(cache.keys, k.astype(cache.keys.dtype), slot, axis=1)
      v = put(cache.values, v.astype(cache.values.dtype), slot, axis=1)
      cache = LayerCache(k, v)
    # It accumulates bfloat16 in float32 by implicit promotion.
    with jax.numpy_dtype_promotion('standard'):
      out = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None])
    out = checkpoint_name(out.reshape(*x.shape[:2], -1), 'attended')
    o = Projection(
      c.embed_dim,
      ('heads', 'embed'),
      self.lora,
      self.dtype,
      self.param_dtype,
      name='o',
    )
    return o(out), cache

  def _heads(self, name: str, heads: int, axis: str) -> Projection:
    return Projection(
      heads * self.config.head_dim,
      ('embed', axis),
      self.lora,
      self.dtype,
      self.param_dtype,
      name=name,
    )
