"""Normalisation of the last axis, in float32."""

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn


class RMSNorm(nn.Module):
  """x / rms(x) * (offset + scale), without a bias.

  Attributes:
    eps: Added to the mean square.
    param_dtype: Type the scale is stored in.
    offset: 1 if checkpoints store the scale minus one (Gemma).
    axis: Logical name of the last axis.
  """

  eps: float
  param_dtype: jnp.dtype
  offset: float = 0.0
  axis: str = 'embed'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalizes the last axis of x (..., width)."""
    start = nn.initializers.constant(1.0 - self.offset)
    scale = _vector(self, 'scale', start, x.shape[-1])
    y = x.astype(jnp.float32)
    y *= jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps)
    return (y * _like(self.offset + scale, y)).astype(x.dtype)


class LayerNorm(nn.Module):
  """(x - mean(x)) / std(x) * scale + bias.

  Attributes:
    eps: Added to the variance.
    param_dtype: Type that scale and bias are stored in.
    axis: Logical name of the last axis.
  """

  eps: float
  param_dtype: jnp.dtype
  axis: str = 'embed'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Normalizes the last axis of x (..., width)."""
    scale = _vector(self, 'scale', nn.initializers.ones, x.shape[-1])
    bias = _vector(self, 'bias', nn.initializers.zeros, x.shape[-1])
    y = x.astype(jnp.float32)
    y -= jnp.mean(y, -1, keepdims=True)
    y *= jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + self.eps)
    return (y * _like(scale, y) + _like(bias, y)).astype(x.dtype)


def _vector(module: nn.Module, name: str, init, width: int) -> jax.Array:
  init = nn.with_logical_partitioning(init, (module.axis,))
  stored = module.param(name, init, (width,), module.param_dtype)
  return stored.astype(jnp.float32)


def _like(vector: jax.Array, x: jax.Array) -> jax.Array:
  return vector.reshape(*[1] * (x.ndim - 1), -1)


# Values of `DecoderConfig.norm`: the module.
NORMS = {
  'rms': RMSNorm,
  'rms_plus_one': functools.partial(RMSNorm, offset=1.0),
  'layer': LayerNorm,
}
