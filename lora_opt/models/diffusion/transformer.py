"""Attention over the positions of an image, and to a text."""

import contextlib

import jax
import jax.numpy as jnp
from flax import linen as nn

from lora_opt.models.attend import attend
from lora_opt.models.axes import constrain, unsplit
from lora_opt.models.diffusion.adapted import Adapted
from lora_opt.models.diffusion.conv import Conv
from lora_opt.models.diffusion.group_norm import GroupNorm
from lora_opt.models.lora import Projection
from lora_opt.models.norms import LayerNorm
from lora_opt.models.visibility import Visibility

# Epsilons of the norms within a transformer, which no setting changes.
_NORM_EPS = 1e-5
_GROUP_NORM_EPS = 1e-6


class Attention(Adapted):
  """Softmax attention from every position to all of a context.

  Scores and their softmax are in float32 whatever `dtype` is, as diffusers'
  `upcast_attention` asks for.

  Attributes:
    heads: Number of heads; divides the width.
    bias: Whether queries, keys and values have biases.
    attention: How attention is computed, see `lora_opt.models.attend`.
  """

  heads: int
  bias: bool = False
  attention: str = 'auto'

  @nn.compact
  def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
    """Maps x (rows, positions, width) to the same shape.

    Args:
      x: The input of the queries.
      context: (rows, keys, any width), the input of keys and values.
    """
    return self.attended(x, context)

  @nn.nowrap
  def attended(self, x: jax.Array, context: jax.Array) -> jax.Array:
    """Computes the result of `__call__`."""
    width = x.shape[-1]
    # A single head is not split over devices, even if other heads are.
    axis = 'heads' if self.heads > 1 else None

    def project(name, x):
      axes = ('embed', axis)
      y = Projection(width, axes, *self.settings, self.bias, name=name)(x)
      return y.reshape(*y.shape[:2], self.heads, width // self.heads)

    q, k, v = (
      project(name, source)
      for name, source in (('to_q', x), ('to_k', context), ('to_v', context))
    )
    places, keys = (jnp.ones(y.shape[:2], jnp.int32) for y in (q, k))
    seen = Visibility(places, keys, causal=False)
    with contextlib.nullcontext() if axis else unsplit('heads'):
      out = attend(q, k, v, seen, implementation=self.attention)
    return Projection(
      width, (axis, 'embed'), *self.settings, use_bias=True, name='to_out.0'
    )(out.reshape(x.shape))


class FeedForward(Adapted):
  """The MLP down(up * gelu(gate)), with four times the width inside."""

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (rows, positions, width) to the same shape."""

    def linear(features, axes, name):
      return Projection(
        features, axes, *self.settings, use_bias=True, name=name
      )

    width = x.shape[-1]
    wide = linear(8 * width, ('embed', 'mlp'), 'net.0.proj')(x)
    up, gate = jnp.split(wide, 2, axis=-1)
    inner = up * jax.nn.gelu(gate, approximate=False)
    return linear(width, ('mlp', 'embed'), 'net.2')(inner)


class TransformerBlock(Adapted):
  """Attention to the image, attention to the text, and an MLP.

  Attributes:
    heads: Number of heads of both attentions.
    only_cross: Whether the first attention attends to the text too.
    attention: How attention is computed, see `lora_opt.models.attend`.
  """

  heads: int
  only_cross: bool = False
  attention: str = 'auto'

  @nn.compact
  def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
    """Maps x (rows, positions, width) to the same shape; context: the text."""

    def attend_to(name, x, context):
      return Attention(
        *self.settings, self.heads, attention=self.attention, name=name
      )(x, context)

    def norm(name):
      return LayerNorm(_NORM_EPS, self.param_dtype, name=name)

    y = norm('norm1')(x)
    x += attend_to('attn1', y, context if self.only_cross else y)
    x += attend_to('attn2', norm('norm2')(x), context)
    x += FeedForward(*self.settings, name='ff')(norm('norm3')(x))
    return constrain(x, 'batch', None, None)


class SpatialTransformer(Adapted):
  """Transformer blocks over image positions, with a residual connection.

  Attributes:
    heads: Number of heads of each attention.
    depth: Number of blocks.
    groups: Number of groups of the norm.
    linear: Whether the maps at both ends are stored as matrices instead of
      1 x 1 convolutions.
    only_cross: See `TransformerBlock`.
    attention: How attention is computed, see `lora_opt.models.attend`.
  """

  heads: int
  depth: int
  groups: int
  linear: bool = False
  only_cross: bool = False
  attention: str = 'auto'

  @nn.compact
  def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
    """Maps x (rows, height, width, channels) to the same shape."""
    rows, height, width, channels = x.shape

    def project(name, x):
      if self.linear:
        axes = ('embed', None) if name == 'proj_in' else (None, 'embed')
        return Projection(
          channels, axes, *self.settings, use_bias=True, name=name
        )(x)
      x = x.reshape(rows, height, width, channels)
      y = Conv(*self.settings, channels, kernel=1, name=name)(x)
      return y.reshape(rows, height * width, channels)

    y = GroupNorm(self.groups, _GROUP_NORM_EPS, self.param_dtype, name='norm')(
      x
    )
    y = project('proj_in', y.reshape(rows, height * width, channels))
    for i in range(self.depth):
      y = TransformerBlock(
        *self.settings,
        self.heads,
        self.only_cross,
        self.attention,
        name=f'transformer_blocks.{i}',
      )(y, context)
    return x + project('proj_out', y).reshape(x.shape)
