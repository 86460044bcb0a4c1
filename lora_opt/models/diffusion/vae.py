"""The autoencoder of Stable Diffusion: images to latents and back."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lora_opt.models.axes import constrain
from lora_opt.models.diffusion.adapted import Adapted
from lora_opt.models.diffusion.conv import Conv
from lora_opt.models.diffusion.group_norm import GroupNorm
from lora_opt.models.diffusion.resnet import Downsample, ResnetBlock, Upsample
from lora_opt.models.diffusion.transformer import Attention
from lora_opt.models.diffusion.vae_config import VaeConfig

_EPS = 1e-6
# Bounds for the logarithm of a latent's variance.
_LEAST, _MOST = -30.0, 20.0


class Stage(Adapted):
  """Residual blocks at one resolution, and the change to the next resolution.

  Attributes:
    config: Sizes of the autoencoder.
    channels: Number of channels at this resolution.
    layers: Number of residual blocks.
    next: 'down' or 'up' to the next resolution; '' if this is the last.
  """

  config: VaeConfig
  channels: int
  layers: int
  next: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns x (rows, height, width, channels) at the next resolution."""
    for i in range(self.layers):
      x = _resnet(self, self.channels, f'resnets.{i}')(x)
    if self.next == 'down':
      x = Downsample(*self.settings, padding=0, name='downsamplers.0')(x)
    elif self.next == 'up':
      x = Upsample(*self.settings, name='upsamplers.0')(x)
    return x


class ImageAttention(Attention):
  """Self-attention over the positions of an image, with norm and residual.

  Attributes:
    groups: Number of groups of the norm.
  """

  groups: int = 32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (rows, height, width, channels) to the same shape."""
    y = GroupNorm(self.groups, _EPS, self.param_dtype, name='group_norm')(x)
    y = y.reshape(x.shape[0], -1, x.shape[-1])
    return x + self.attended(y, y).reshape(x.shape)


class MiddleStage(Adapted):
  """The blocks at the smallest resolution.

  Attributes:
    config: Sizes of the autoencoder.
    attention: How attention is computed, see `lora_opt.models.attend`.
  """

  config: VaeConfig
  attention: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (rows, height, width, channels) to the same shape."""
    x = _resnet(self, x.shape[-1], 'resnets.0')(x)
    if self.config.middle_attention:
      x = ImageAttention(
        *self.settings,
        heads=1,
        bias=True,
        attention=self.attention,
        groups=self.config.groups,
        name='attentions.0',
      )(x)
    return _resnet(self, x.shape[-1], 'resnets.1')(x)


class Encoder(Adapted):
  """From images to the moments of their latents; attributes as in `Vae`."""

  config: VaeConfig
  attention: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (rows, height, width, in_channels) to (..., 2 * latent_channels)."""
    c, last = self.config, len(self.config.channels) - 1
    x = Conv(*self.settings, c.channels[0], name='conv_in')(x)
    for i, channels in enumerate(c.channels):
      x = constrain(x, 'batch', None, None, None)
      then = 'down' if i < last else ''
      x = Stage(
        *self.settings, c, channels, c.layers, then, name=f'down_blocks.{i}'
      )(x)
    x = MiddleStage(*self.settings, c, self.attention, name='mid_block')(x)
    return _ending(self, x, 2 * c.latent_channels)


class Decoder(Adapted):
  """From latents to images; attributes as in `Vae`."""

  config: VaeConfig
  attention: str

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (rows, height, width, latent_channels) to (..., in_channels)."""
    c, last = self.config, len(self.config.channels) - 1
    x = Conv(*self.settings, c.channels[-1], name='conv_in')(x)
    x = MiddleStage(*self.settings, c, self.attention, name='mid_block')(x)
    for i, channels in enumerate(c.channels[::-1]):
      x = constrain(x, 'batch', None, None, None)
      then = 'up' if i < last else ''
      x = Stage(
        *self.settings, c, channels, c.layers + 1, then, name=f'up_blocks.{i}'
      )(x)
    return _ending(self, x, c.in_channels)


class Vae(Adapted):
  """A variational autoencoder.

  Attributes:
    config: Sizes.
    attention: How attention is computed, see `lora_opt.models.attend`.
  """

  config: VaeConfig
  attention: str = 'auto'

  def setup(self):
    c = self.config
    self.encoder = Encoder(*self.settings, c, self.attention)
    self.decoder = Decoder(*self.settings, c, self.attention)
    if c.quant_conv:
      self.quant_conv = self._pointwise(2 * c.latent_channels)
    if c.post_quant_conv:
      self.post_quant_conv = self._pointwise(c.latent_channels)

  def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and standard deviation of the latents of images.

    Args:
      images: (rows, height, width, in_channels), from -1 to 1.

    Returns:
      Both (rows, height / factor, width / factor, latent_channels) float32.
    """
    moments = self.encoder(images.astype(self.dtype))
    if self.config.quant_conv:
      moments = self.quant_conv(moments)
    mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return mean, jnp.exp(0.5 * jnp.clip(log_variance, _LEAST, _MOST))

  def decode(self, latents: jax.Array) -> jax.Array:
    """The inverse of `encode`: images as float32 of about -1 to 1."""
    latents = latents.astype(self.dtype)
    if self.config.post_quant_conv:
      latents = self.post_quant_conv(latents)
    return self.decoder(latents).astype(jnp.float32)

  def scaled(self, latents: jax.Array) -> jax.Array:
    """Scales latents for the UNet."""
    return (latents - self.config.shift_factor) * self.config.scaling_factor

  def unscaled(self, latents: jax.Array) -> jax.Array:
    """The inverse of `scaled`."""
    return latents / self.config.scaling_factor + self.config.shift_factor

  def _pointwise(self, channels: int) -> Conv:
    return Conv(*self.settings, channels, kernel=1, axes=(None, None))


def _resnet(module: Adapted, channels: int, name: str) -> ResnetBlock:
  c = module.config
  return ResnetBlock(
    *module.settings, channels, c.groups, _EPS, c.activation, name=name
  )


def _ending(module: Adapted, x: jax.Array, channels: int) -> jax.Array:
  groups = module.config.groups
  norm = GroupNorm(groups, _EPS, module.param_dtype, name='conv_norm_out')
  axes = (None, None)
  conv = Conv(*module.settings, channels, axes=axes, name='conv_out')
  return conv(jax.nn.silu(norm(x)))
