"""The UNet of Stable Diffusion, which predicts the noise in an image."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from lora_opt.models.axes import constrain
from lora_opt.models.diffusion.activations import ACTIVATIONS
from lora_opt.models.diffusion.adapted import Adapted
from lora_opt.models.diffusion.conv import Conv
from lora_opt.models.diffusion.group_norm import GroupNorm
from lora_opt.models.diffusion.resnet import Downsample, ResnetBlock, Upsample
from lora_opt.models.diffusion.time_embedding import TimeEmbedding, time_waves
from lora_opt.models.diffusion.transformer import SpatialTransformer
from lora_opt.models.diffusion.unet_config import UNetConfig

Skips = list[jax.Array]


class Level(Adapted):
  """The blocks at one resolution: residual blocks, and attention after each.

  Attributes:
    config: Sizes of the UNet.
    index: Index of the resolution; 0 is the full one.
    cross: Whether there is attention.
    remat: 'full' recomputes the blocks in the backward pass.
    attention: How attention is computed, see `lora_opt.models.attend`.
  """

  config: UNetConfig
  index: int
  cross: bool
  remat: str
  attention: str

  @nn.nowrap
  def resnet(self, i: int, divisor: float = 1.0) -> ResnetBlock:
    """Makes the i-th residual block."""
    c = self.config
    return self._kept(ResnetBlock)(
      *self.settings,
      features=c.channels[self.index],
      groups=c.groups,
      eps=c.norm_eps,
      activation=c.activation,
      scale_shift=c.scale_shift,
      divisor=divisor,
      name=f'resnets.{i}',
    )

  @nn.nowrap
  def transformer(self, i: int, only_cross: bool) -> SpatialTransformer:
    """Makes the i-th attention."""
    c = self.config
    return self._kept(SpatialTransformer)(
      *self.settings,
      heads=c.heads[self.index],
      depth=c.depths[self.index],
      groups=c.groups,
      linear=c.linear_projection,
      only_cross=only_cross,
      attention=self.attention,
      name=f'attentions.{i}',
    )

  @nn.nowrap
  def _kept(self, block):
    return nn.remat(block) if self.remat == 'full' else block


class DownLevel(Level):
  """A level of the down path; all its outputs are kept for the up path."""

  @nn.compact
  def __call__(
    self, x: jax.Array, time: jax.Array, context: jax.Array
  ) -> tuple[jax.Array, Skips]:
    """Returns the next level's x (rows, height, width, channels), and skips."""
    c, skips = self.config, []
    for i in range(c.layers[self.index]):
      x = self.resnet(i)(x, time)
      if self.cross:
        x = self.transformer(i, c.only_cross[self.index])(x, context)
      skips.append(x)
    if self.index < len(c.channels) - 1:
      x = Downsample(
        *self.settings, c.downsample_padding, name='downsamplers.0'
      )(x)
      skips.append(x)
    return x, skips


class Middle(Level):
  """The level at the smallest resolution, between down path and up path."""

  @nn.compact
  def __call__(
    self, x: jax.Array, time: jax.Array, context: jax.Array
  ) -> jax.Array:
    """Maps x (rows, height, width, channels) to the same shape."""
    divisor = self.config.middle_divisor
    x = self.resnet(0, divisor)(x, time)
    if self.cross:
      x = self.transformer(0, only_cross=False)(x, context)
      x = self.resnet(1, divisor)(x, time)
    return x


class UpLevel(Level):
  """A level of the up path; its blocks read the skips, the last one first."""

  @nn.compact
  def __call__(
    self, x: jax.Array, time: jax.Array, context: jax.Array, skips: Skips
  ) -> jax.Array:
    """Returns x (rows, height, width, channels) for the next level."""
    c = self.config
    for i in range(c.layers[self.index] + 1):
      x = jnp.concatenate([x, skips.pop()], axis=-1)
      x = self.resnet(i)(x, time)
      if self.cross:
        x = self.transformer(i, c.only_cross[self.index])(x, context)
    if self.index > 0:
      # Odd sizes were rounded up in the down path.
      size = skips[-1].shape[1:3]
      x = Upsample(*self.settings, name='upsamplers.0')(x, size)
    return x


class UNet(Adapted):
  """Predicts the noise in images, or what the scheduler asks for instead.

  Attributes:
    config: Sizes.
    remat: What the backward pass keeps: 'none' recomputes nothing, 'full'
      recomputes every block.
    attention: How attention is computed, see `lora_opt.models.attend`.
  """

  config: UNetConfig
  remat: str = 'none'
  attention: str = 'auto'

  @nn.compact
  def __call__(
    self, x: jax.Array, timesteps: jax.Array, context: jax.Array
  ) -> jax.Array:
    """Predicts what was added to x.

    Args:
      x: (rows, height, width, in_channels).
      timesteps: (rows,), the times, which say how noisy x is.
      context: (rows, tokens, context_dims), the encoded text.

    Returns:
      (rows, height, width, out_channels).
    """
    c = self.config
    x, context = x.astype(self.dtype), context.astype(self.dtype)
    if c.centre_input:
      x = 2 * x - 1
    waves = time_waves(
      timesteps,
      c.channels[0],
      cosine_first=c.cosine_first,
      shift=c.frequency_shift,
    )
    time = TimeEmbedding(
      *self.settings, c.time_dim, c.activation, name='time_embedding'
    )(waves.astype(self.dtype))

    def level(kind, index, cross, name):
      rest = (self.remat, self.attention)
      return kind(*self.settings, c, index, cross, *rest, name=name)

    def conv(channels, kernel, name):
      axes = (None, 'embed' if name == 'conv_in' else None)
      return Conv(*self.settings, channels, kernel, axes=axes, name=name)

    x = conv(c.channels[0], c.conv_in_kernel, 'conv_in')(x)
    x = constrain(x, 'batch', None, None, None)
    skips = [x]
    for i, cross in enumerate(c.down_cross):
      down = level(DownLevel, i, cross, f'down_blocks.{i}')
      x, kept = down(x, time, context)
      skips += kept
    last = len(c.channels) - 1
    if c.middle != 'none':
      middle = level(Middle, last, c.middle == 'cross', 'mid_block')
      x = middle(x, time, context)
    for i, cross in enumerate(c.up_cross):
      up = level(UpLevel, last - i, cross, f'up_blocks.{i}')
      x = up(x, time, context, skips)
    norm = GroupNorm(
      c.groups, c.norm_eps, self.param_dtype, name='conv_norm_out'
    )
    x = ACTIVATIONS[c.activation](norm(x))
    return conv(c.out_channels, c.conv_out_kernel, 'conv_out')(x)
