"""Attention with biases of relative distance as positions, as in T5."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lora_opt.models.attend import attend, plain
from lora_opt.models.attention import LayerCache
from lora_opt.models.axes import constrain
from lora_opt.models.kept import kept
from lora_opt.models.lora import LoraConfig, Projection
from lora_opt.models.offset_bias import OffsetBias
from lora_opt.models.visibility import Visibility


class Buckets(NamedTuple):
  """How distances share the rows of a table of biases.

  Half of the buckets hold one distance each. The other half grow by equal
  factors up to `max_distance`; all larger distances share the last bucket.
  """

  count: int
  max_distance: int

  def of(self, distance: np.ndarray) -> np.ndarray:
    """The bucket of each distance >= 0, computed exactly, without logarithms.

    >>> Buckets(8, 20).of(np.array([0, 3, 4, 5, 6, 9, 20, 500])).tolist()
    [0, 3, 4, 4, 5, 6, 7, 7]
    """
    exact = self.count // 2
    wide = self.count - exact
    starts = list(range(1, exact + 1))
    # Bucket exact + j starts at exact * (max_distance / exact) ** (j / wide).
    for j in range(1, wide):
      start = starts[-1]
      while (start**wide) * exact**j < self.max_distance**j * exact**wide:
        start += 1
      starts.append(start)
    return np.searchsorted(starts, distance, side='right')


def relative_bucket(
  offset: np.ndarray, buckets: Buckets, *, causal: bool
) -> np.ndarray:
  """The bucket of key position minus query position.

  Args:
    offset: integers of any shape.
    buckets: the table.
    causal: True gives all buckets to the past (the future is masked anyway);
      False gives half to each side.

  Returns:
    Integers below `buckets.count`, of the same shape.

  >>> offset = np.array([-9, -1, 0, 1, 9])
  >>> relative_bucket(offset, Buckets(8, 20), causal=False).tolist()
  [3, 1, 0, 5, 7]
  >>> relative_bucket(offset, Buckets(8, 20), causal=True).tolist()
  [6, 1, 0, 0, 0]
  """
  if causal:
    return buckets.of(np.maximum(-offset, 0))
  half = buckets._replace(count=buckets.count // 2)
  return half.of(np.abs(offset)) + half.count * (offset > 0)


class RelativeBias(nn.Module):
  """A learned bias per head and bucket, added to the scores of all layers.

  Attributes:
    buckets: how distances share the rows of the table.
    heads: number of attention heads.
    causal: see `relative_bucket`.
    param_dtype: type the table is stored in.
  """

  buckets: Buckets
  heads: int
  causal: bool
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, keys: int) -> OffsetBias:
    """Biases of every offset that occurs in rows of this many keys.

    Distances are measured in the row. Within a packed segment they equal the
    distances in the segment, and keys of other segments are not visible.

    Returns:
      Biases in the stored type.
    """
    table = self.param(
      'table',
      nn.with_logical_partitioning(
        nn.initializers.normal(0.02), ('buckets', 'heads')
      ),
      (self.buckets.count, self.heads),
      self.param_dtype,
    )
    offsets = np.arange(-(keys - 1), keys)
    bucket = relative_bucket(offsets, self.buckets, causal=self.causal)
    return OffsetBias(table[bucket].T)


class RelativeAttention(nn.Module):
  """Projections q, k, v and o around attention with unscaled scores.

  Attributes:
    heads: number of heads.
    head_dim: width of one head.
    lora: Adapter settings, or None for the base alone.
    dtype: Type of the computation.
    param_dtype: Type the base is stored in.
    attention: How attention is computed, see `lora_opt.models.attend`.
  """

  heads: int
  head_dim: int
  lora: LoraConfig | None
  dtype: jnp.dtype
  param_dtype: jnp.dtype
  attention: str

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    source: jax.Array | None,
    seen: Visibility | jax.Array,
    bias: OffsetBias | jax.Array | None = None,
    cache: LayerCache | None = None,
    slot: jax.Array | None = None,
  ) -> tuple[jax.Array, LayerCache]:
    """Attends from x to source, or to cached keys and values.

    Args:
      x: (batch, length, embed).
      source: (batch, keys, embed), x itself for self-attention; None if the
        cache already holds all keys and values.
      seen: Which keys each query sees; (batch, length, keys) bool if the keys
        are those of a cache.
      bias: An `OffsetBias`, or an array (1, heads, length, keys); None for no
        bias.
      cache: keys and values, to be read or added to.
      slot: () int32, the slot of the cache where the keys and values of source
        are written; None if the cache is not written.

    Returns:
      (batch, length, embed), and the keys and values that were used.
    """
    width = self.heads * self.head_dim

    def heads(name, y):
      y = self._projection(name, width, ('embed', 'heads'))(y)
      y = y.reshape(*y.shape[:2], self.heads, self.head_dim)
      y = constrain(y, 'batch', None, 'heads', None)
      return kept(y, name)

    q = heads('q', x)
    if source is None:
      k, v = cache
    else:
      k, v = heads('k', source), heads('v', source)
    if slot is not None:
      put = jax.lax.dynamic_update_slice_in_dim
      k = put(cache.keys, k.astype(cache.keys.dtype), slot, axis=1)
      v = put(cache.values, v.astype(cache.values.dtype), slot, axis=1)
    if isinstance(seen, Visibility):
      out = attend(
        q, k, v, seen, scale=1.0, bias=bias, implementation=self.attention
      )
    else:
      out = plain(q, k, v, seen, scale=1.0, bias=bias)
    out = out.reshape(*x.shape[:2], width)
    o = self._projection('o', x.shape[-1], ('heads', 'embed'))
    return o(out), LayerCache(k, v)

  def _projection(self, name, features, axes) -> Projection:
    settings = (self.lora, self.dtype, self.param_dtype)
    return Projection(features, axes, *settings, name=name)
