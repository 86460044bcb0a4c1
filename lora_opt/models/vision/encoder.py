"""A vision transformer: patches, scanned blocks with the norms inside.

References:
  Dosovitskiy et al. 2020, An Image is Worth 16x16 Words: Transformers for Image
  Recognition at Scale.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lora_opt.models.attend import attend
from lora_opt.models.axes import constrain, gathered
from lora_opt.models.decoder import REMAT_POLICIES
from lora_opt.models.encoder import MLP, drop
from lora_opt.models.kept import kept
from lora_opt.models.lora import LoraConfig, Projection
from lora_opt.models.norms import LayerNorm
from lora_opt.models.products import product
from lora_opt.models.visibility import Visibility
from lora_opt.models.vision.config import CHANNELS, VisionConfig

# Scaled for a linear map of all values in a patch.
_PATCH_INIT = nn.initializers.variance_scaling(
  1.0, 'fan_in', 'truncated_normal', in_axis=(0, 1, 2), out_axis=3
)


class Patches(nn.Module):
  """Embeds the patches of images by a linear map of their pixels.

  Attributes:
    config: Sizes.
    dtype: Type of the computation.
    param_dtype: Type of the stored weights.
  """

  config: VisionConfig
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, pixels: jax.Array) -> jax.Array:
    """Maps (batch, height, width, 3) to (batch, patches, embed)."""
    c = self.config
    # The axes of torch's convolution kernel in reverse order.
    axes = ('patch_width', 'patch_height', 'channels', 'embed')
    shape = (c.patch_width, c.patch_height, CHANNELS, c.embed_dim)
    init = nn.with_logical_partitioning(_PATCH_INIT, axes)
    kernel = self.param('kernel', init, shape, self.param_dtype)
    kernel = gathered(kernel.astype(self.dtype), *axes)
    (rows, columns), (height, width) = c.grid, shape[1::-1]
    whole = pixels[:, : rows * height, : columns * width].astype(self.dtype)
    x = whole.reshape(-1, rows, height, columns, width, CHANNELS)
    x = x.swapaxes(2, 3).reshape(len(pixels), rows * columns, -1)
    kernel = kernel.swapaxes(0, 1).reshape(x.shape[-1], c.embed_dim)
    x = product(x, kernel)
    if c.patch_bias:
      zeros = nn.with_logical_partitioning(nn.initializers.zeros, axes[3:])
      bias = self.param('bias', zeros, shape[3:], self.param_dtype)
      x += jnp.broadcast_to(bias.astype(self.dtype), x.shape)
    return x


class VisionBlock(nn.Module):
  """One layer: attention and MLP, each after a norm and inside a residual.

  Attributes are those of `VisionEncoder`.
  """

  config: VisionConfig
  lora: LoraConfig | None
  dtype: jnp.dtype
  param_dtype: jnp.dtype
  dropout: float
  attention: str

  @nn.compact
  def __call__(self, x: jax.Array, seen: Visibility) -> tuple[jax.Array, None]:
    """Maps x (batch, tokens, embed) to the same shape; no output is stacked."""
    c = self.config
    settings = (self.lora, self.dtype, self.param_dtype)

    def norm(name):
      return LayerNorm(c.norm_eps, self.param_dtype, name=name)

    def residual(x, change):
      return constrain(
        x + drop(self, change, self.dropout), 'batch', None, None
      )

    attention = VisionAttention(c, *settings, self.attention, name='attention')
    x = residual(x, attention(norm('attention_norm')(x), seen))
    x = kept(x, 'middle')
    mlp = MLP(c.mlp_dim, c.activation, *settings, name='mlp')
    return residual(x, mlp(norm('mlp_norm')(x))), None


class VisionAttention(nn.Module):
  """Attention of every token to all tokens of its image.

  Attributes are those of `VisionEncoder`.
  """

  config: VisionConfig
  lora: LoraConfig | None
  dtype: jnp.dtype
  param_dtype: jnp.dtype
  attention: str

  @nn.compact
  def __call__(self, x: jax.Array, seen: Visibility) -> jax.Array:
    """Maps (batch, tokens, embed) to the same shape."""
    c = self.config

    def projection(name, axes, use_bias):
      settings = (self.lora, self.dtype, self.param_dtype)
      return Projection(c.embed_dim, axes, *settings, use_bias, name=name)

    def heads(name):
      y = projection(name, ('embed', 'heads'), c.qkv_bias)(x)
      y = y.reshape(*x.shape[:2], c.num_heads, c.head_dim)
      return kept(y, name)

    q, k, v = (heads(name) for name in 'qkv')
    out = attend(q, k, v, seen, implementation=self.attention)
    o = projection('o', ('heads', 'embed'), use_bias=True)
    return o(out.reshape(x.shape))


class VisionEncoder(nn.Module):
  """Patches, a class token, positions and scanned blocks.

  Attributes:
    config: Sizes and options.
    lora: Adapter settings, or None for the base alone.
    dtype: Type of the computation.
    param_dtype: Type the base is stored in.
    dropout: Rate on the embeddings and on what attention and MLP add to the
      residual stream, used if there is a key for it. (Attention weights have no
      dropout.)
    remat: What the backward pass keeps, see `Decoder`.
    unroll: Layers per step of the scan.
    attention: How attention is computed, see `lora_opt.models.attend`.
  """

  config: VisionConfig
  lora: LoraConfig | None = None
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  dropout: float = 0.0
  remat: str = 'projections'
  unroll: int = 1
  attention: str = 'auto'

  @nn.compact
  def __call__(self, pixels: jax.Array) -> jax.Array:
    """Hidden states of every token.

    Args:
      pixels: (batch, height, width, 3) float32, normalised as the weights
        expect.

    Returns:
      (batch, tokens, embed): the class token if there is one, and the patches
      row by row.
    """
    c = self.config
    settings = (self.lora, self.dtype, self.param_dtype)
    x = Patches(c, self.dtype, self.param_dtype, name='patches')(pixels)
    if c.class_token:
      token = self._learned('class_token', ('embed',), (c.embed_dim,))
      token = jnp.broadcast_to(token, (len(x), 1, c.embed_dim))
      x = jnp.concatenate([token, x], axis=1)
    positions = self._learned(
      'positions', ('positions', 'embed'), (c.tokens, c.embed_dim)
    )
    x += jnp.broadcast_to(positions, x.shape)
    x = drop(self, x, self.dropout)
    if c.input_norm:
      x = self._norm('input_norm')(x)
    x = constrain(x, 'batch', None, None)

    block = VisionBlock
    if self.remat != 'none':
      policy = REMAT_POLICIES[self.remat]
      block = nn.remat(VisionBlock, policy=policy, prevent_cse=False)
    layers = nn.scan(
      block,
      variable_axes={'params': 0, 'lora': 0},
      split_rngs={'params': True, 'lora': True, 'dropout': True},
      in_axes=(nn.broadcast,),
      length=c.num_layers,
      unroll=self.unroll,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )(c, *settings, self.dropout, self.attention, name='layers')
    whole = jnp.ones(x.shape[:2], jnp.int32)
    x, _ = layers(x, Visibility(whole, causal=False))
    return self._norm('final_norm')(x) if c.final_norm else x

  def example_inputs(self) -> tuple[jax.Array, ...]:
    """Arguments of `__call__` for one image."""
    c = self.config
    return (jnp.zeros((1, c.image_height, c.image_width, CHANNELS)),)

  def _norm(self, name: str) -> LayerNorm:
    return LayerNorm(self.config.norm_eps, self.param_dtype, name=name)

  def _learned(self, name, axes, shape) -> jax.Array:
    init = nn.with_logical_partitioning(nn.initializers.normal(0.02), axes)
    return self.param(name, init, shape, self.param_dtype).astype(self.dtype)


class VisionHead(nn.Module):
  """Maps the tokens of each image to its outputs, in float32.

  Attributes:
    config: Sets what is pooled.
    outputs: Number of outputs per image.
    dropout: Rate before the linear map, used if there is a key for it.
  """

  config: VisionConfig
  outputs: int
  dropout: float = 0.0

  @nn.compact
  def __call__(self, hidden: jax.Array) -> jax.Array:
    """Maps (batch, tokens, embed) to (batch, outputs) float32."""
    float32 = jnp.dtype('float32')
    x = drop(self, self.pool(hidden), self.dropout)
    axes = ('pooled', 'outputs')
    out = Projection(
      self.outputs, axes, None, float32, float32, True, name='out'
    )
    return out(x)

  @nn.nowrap
  def pool(self, hidden: jax.Array) -> jax.Array:
    """The first token, or the mean of the patches: (batch, embed) float32."""
    c, hidden = self.config, hidden.astype(jnp.float32)
    if c.pooling == 'first':
      return hidden[:, 0]
    return jnp.mean(hidden[:, int(c.class_token) :], axis=1)

  def example_inputs(self) -> tuple[jax.Array, ...]:
    """Arguments of `__call__` for one image."""
    return (jnp.zeros((1, self.config.tokens, self.config.embed_dim)),)
