"""Normalisation of groups of channels, in float32."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class GroupNorm(nn.Module):
  """(x - mean) / std * scale + bias, over positions and a group of channels.

  Attributes:
    groups: Number of groups of neighbouring channels; divides the number of
      channels.
    eps: Added to the variance.
    param_dtype: Type that scale and bias are stored in.
  """

  groups: int
  eps: float
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (rows, ..., channels) to the same shape and type."""
    channels = x.shape[-1]
    scale = self._vector('scale', nn.initializers.ones, channels)
    bias = self._vector('bias', nn.initializers.zeros, channels)
    y = x.astype(jnp.float32)
    y = y.reshape(x.shape[0], -1, self.groups, channels // self.groups)
    y -= jnp.mean(y, (1, 3), keepdims=True)
    y *= jax.lax.rsqrt(jnp.mean(y * y, (1, 3), keepdims=True) + self.eps)
    y = y.reshape(x.shape)
    scale, bias = (jnp.broadcast_to(v, x.shape) for v in (scale, bias))
    return (y * scale + bias).astype(x.dtype)

  def _vector(self, name, init, channels) -> jax.Array:
    init = nn.with_logical_partitioning(init, (None,))
    stored = self.param(name, init, (channels,), self.param_dtype)
    return stored.astype(jnp.float32)
