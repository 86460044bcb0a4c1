"""Causal grouped-query attention, with or without rotary positions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from lora_opt.models.attend import attend
from lora_opt.models.axes import constrain
from lora_opt.models.config import DecoderConfig
from lora_opt.models.kept import kept
from lora_opt.models.lora import LoraConfig, Projection
from lora_opt.models.norms import NORMS
from lora_opt.models.rotary import Rotation, rotate
from lora_opt.models.step_cache import StepCache, attend_to_cache
from lora_opt.models.visibility import Visibility


class LayerCache(NamedTuple):
  """Keys and values of one layer: a slot for each token, seen or to come."""

  keys: jax.Array  # (batch, slots, kv_heads, head_dim)
  values: jax.Array  # (batch, slots, kv_heads, head_dim)


class View(NamedTuple):
  """The inputs of a layer that tell it the tokens' positions and visibility."""

  rotation: Rotation | None
  # With a StepCache a mask (batch, length, slots) bool, else a Visibility.
  seen: Visibility | jax.Array


class Attention(nn.Module):
  """Grouped-query attention: q, k, v and o projections around a softmax.

  Attributes are those of `Decoder`.
  """

  config: DecoderConfig
  lora: LoraConfig | None
  dtype: jnp.dtype
  param_dtype: jnp.dtype
  attention: str = 'auto'

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    view: View,
    windowed: jax.Array | None,
    cache: LayerCache | StepCache | None,
    slot: jax.Array | None,
  ) -> tuple[jax.Array, LayerCache | StepCache | None]:
    """Attends from x to itself, or to a `StepCache` after adding x to it.

    Args:
      x: (batch, length, embed).
      view: Rotations, and which keys are visible: slots of a `StepCache`, or
        positions of x.
      windowed: () bool, whether the window applies to this layer. None if all
        layers are alike, and with a `StepCache`, whose mask has the window.
      cache: A `LayerCache` to fill with the keys and values of x from its first
        slot on, a `StepCache` to add one token to, or None.
      slot: Scalar int32, the slot of the new key of a `StepCache`.

    Returns:
      (batch, length, embed), and the cache with the new keys and values.
    """
    q, k, v = self._queries_keys_values(x)
    q = kept(self._placed(q, 'q', 'heads', view.rotation), 'q')
    k = kept(self._placed(k, 'k', 'kv_heads', view.rotation), 'k')
    v = kept(v, 'v')
    c = self.config
    scores = {'scale': c.attention_scale, 'softcap': c.attention_softcap}
    if isinstance(cache, StepCache):
      cache = cache.append(k, v, slot)
      out = attend_to_cache(q, cache, view.seen, **scores)
    else:
      if cache is not None:
        cache = LayerCache(
          k.astype(cache.keys.dtype), v.astype(cache.values.dtype)
        )
      if windowed is None:
        windowed = any(c.windowed_layers)
      out = attend(
        q,
        k,
        v,
        view.seen,
        **scores,
        window=c.window,
        windowed=windowed,
        implementation=self.attention,
      )
    out = out.reshape(*x.shape[:2], -1)
    o = self._projection('o', c.embed_dim, ('heads', 'embed'))
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

  def _placed(self, heads, name, axis, rotation):
    """Queries or keys, normalized and rotated as set in the config."""
    c = self.config

    def norm(axis):
      module = NORMS[c.norm]
      return module(
        c.norm_eps, self.param_dtype, axis=axis, name=f'{name}_norm'
      )

    if c.qk_norm:
      heads = norm('head_dim')(heads)
    if c.wide_qk_norm:
      together = heads.reshape(*heads.shape[:2], -1)
      heads = norm(axis)(together).reshape(heads.shape)
    return heads if rotation is None else rotate(heads, rotation)

  def _projection(self, name, features, axes) -> Projection:
    c = self.config
    bias = c.attention_bias or (c.qkv_bias and name != 'o')
    types = (self.lora, self.dtype, self.param_dtype)
    return Projection(features, axes, *types, bias, name=name)
