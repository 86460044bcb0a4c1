"""Causal grouped-query attention, with or without rotary positions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from lora_opt.models.axes import constrain
from lora_opt.models.config import DecoderConfig
from lora_opt.models.lora import LoraConfig, Projection
from lora_opt.models.norms import NORMS
from lora_opt.models.step_cache import StepCache, attend_to_cache


class LayerCache(NamedTuple):
  """Keys and values of the tokens seen so far, and where the next ones go."""

  keys: jax.Array  # (batch, slots, kv_heads, head_dim)
  values: jax.Array  # (batch, slots, kv_heads, head_dim)


class View(NamedTuple):
  """What a layer sees of the tokens besides their hidden states."""

  angles: jax.Array | None  # (batch, length, head_dim / 2), None: no rotation
  mask: jax.Array  # (batch, length, keys) bool, queries before keys


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


def rotary_angles(
  config: DecoderConfig, positions: jax.Array, local: bool = False
) -> jax.Array | None:
  """The rotation angle of every position and frequency.

  Args:
    config: Supplies head_dim, rope_theta and rope_divisors.
    positions: (batch, length) int32.
    local: Whether for the windowed layers.

  Returns:
    (batch, length, head_dim / 2) float32, in radians; None for a model with
    learned positions.
  """
  if config.learned_positions:
    return None
  theta, divisors = config.rope_theta, config.rope_divisors
  if local and config.local_rope_theta is not None:
    theta, divisors = config.local_rope_theta, ()
  exponent = jnp.arange(0, config.head_dim, 2, dtype=jnp.float32)
  frequency = theta ** (-exponent / config.head_dim)
  if divisors:
    frequency = frequency / jnp.array(divisors, jnp.float32)
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
    view: View,
    cache: LayerCache | StepCache | None,
    slot: jax.Array | None,
  ) -> tuple[jax.Array, LayerCache | StepCache | None]:
    """Attends from x to itself, or to the cache after adding x to it.

    Args:
      x: (batch, length, embed).
      view: Rotations, and which keys are visible: the slots of the cache, or
        the positions of x without one.
      cache: Earlier keys and values, or None; a `StepCache` for one token.
      slot: Scalar int32, the cache slot of the first new key.

    Returns:
      (batch, length, embed), and the cache with the new keys and values.
    """
    q, k, v = self._queries_keys_values(x)
    q = checkpoint_name(self._placed(q, 'q_norm', view.angles), 'q')
    k = checkpoint_name(self._placed(k, 'k_norm', view.angles), 'k')
    v = checkpoint_name(v, 'v')
    if isinstance(cache, StepCache):
      cache = cache.append(k, v, slot)
      out = attend_to_cache(q, cache, view.mask, self.config.attention_scale)
    else:
      if cache is not None:
        put = jax.lax.dynamic_update_slice_in_dim
        k = put(cache.keys, k.astype(cache.keys.dtype), slot, axis=1)
        v = put(cache.values, v.astype(cache.values.dtype), slot, axis=1)
        cache = LayerCache(k, v)
      # It accumulates bfloat16 in float32 by implicit promotion.
      with jax.numpy_dtype_promotion('standard'):
        out = jax.nn.dot_product_attention(
          q, k, v, mask=view.mask[:, None], scale=self.config.attention_scale
        )
    out = checkpoint_name(out.reshape(*x.shape[:2], -1), 'attended')
    o = self._projection('o', self.config.embed_dim, ('heads', 'embed'))
    return o(out), cache

  def _queries_keys_values(self, x):
    """Three arrays (batch, length, heads, head_dim)."""
    c = self.config
    heads, kv_heads = c.num_heads * c.head_dim, c.num_kv_heads * c.head_dim
    if c.fused_qkv:
      qkv = self._projection('qkv', heads + 2 * kv_heads, ('embed', 'heads'))
      parts = jnp.split(qkv(x), [heads, heads + kv_heads], axis=-1)
    else:
      parts = (
        self._projection('q', heads, ('embed', 'heads'))(x),
        self._projection('k', kv_heads, ('embed', 'kv_heads'))(x),
        self._projection('v', kv_heads, ('embed', 'kv_heads'))(x),
      )

    def split(y, axis):
      y = y.reshape(*y.shape[:2], -1, c.head_dim)
      return constrain(y, 'batch', None, axis, None)

    return map(split, parts, ('heads', 'kv_heads', 'kv_heads'))

  def _placed(self, heads, norm_name, angles):
    """Queries or keys, normalized and rotated as the config says."""
    c = self.config
    if c.qk_norm:
      norm = NORMS[c.norm]
      heads = norm(
        c.norm_eps, self.param_dtype, axis='head_dim', name=norm_name
      )(heads)
    return heads if angles is None else rotate(heads, angles)

  def _projection(self, name, features, axes) -> Projection:
    return Projection(
      features,
      axes,
      self.lora,
      self.dtype,
      self.param_dtype,
      self.config.attention_bias,
      name=name,
    )
