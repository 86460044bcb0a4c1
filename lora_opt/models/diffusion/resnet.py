"""Residual blocks of convolutions, downsampling and upsampling."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lora_opt.models.axes import constrain
from lora_opt.models.diffusion.activations import ACTIVATIONS
from lora_opt.models.diffusion.adapted import Adapted, added
from lora_opt.models.diffusion.conv import Conv
from lora_opt.models.diffusion.group_norm import GroupNorm
from lora_opt.models.lora import Projection


class ResnetBlock(Adapted):
  """(shortcut(x) + conv2(act(norm2(conv1(act(norm1(x))) + time)))) / divisor.

  Attributes:
    features: Number of output channels. If x has a different number, the
      shortcut is a 1 x 1 convolution.
    groups: Number of groups of the norms.
    eps: Epsilon of the norms.
    activation: A name of `ACTIVATIONS`.
    scale_shift: Whether the time scales and shifts the output of `norm2`,
      instead of being added before it.
    divisor: Divisor of the residual sum.
  """

  features: int
  groups: int
  eps: float
  activation: str = 'silu'
  scale_shift: bool = False
  divisor: float = 1.0

  @nn.compact
  def __call__(self, x: jax.Array, time: jax.Array | None = None) -> jax.Array:
    """Maps (rows, height, width, channels) to (rows, ..., features).

    Args:
      x: Images.
      time: (rows, width) time embedding; None in networks without one.
    """
    activation = ACTIVATIONS[self.activation]

    def norm(name):
      return GroupNorm(self.groups, self.eps, self.param_dtype, name=name)

    def conv(name, kernel=3):
      return Conv(*self.settings, self.features, kernel, name=name)

    y = conv('conv1')(activation(norm('norm1')(x)))
    if time is not None:
      width = self.features * (2 if self.scale_shift else 1)
      time = Projection(
        width,
        ('embed', None),
        *self.settings,
        use_bias=True,
        name='time_emb_proj',
      )(activation(time))
    if time is None or not self.scale_shift:
      y = norm('norm2')(y if time is None else added(y, time))
    else:
      scale, shift = jnp.split(time, 2, axis=-1)
      y = norm('norm2')(y)
      y = added(y * added(jnp.ones_like(y), scale), shift)
    y = conv('conv2')(activation(y))
    if x.shape[-1] != self.features:
      x = conv('conv_shortcut', kernel=1)(x)
    return constrain((x + y) / self.divisor, 'batch', None, None, None)


class Downsample(Adapted):
  """A convolution with stride 2.

  Attributes:
    padding: Pixels of zero padding on every side; 0 for one pixel on the right
      and at the bottom only.
  """

  padding: int = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (rows, height, width, channels) to half the height and width."""
    padding = (self.padding, self.padding) if self.padding else (0, 1)
    conv = Conv(
      *self.settings, x.shape[-1], stride=2, padding=padding, name='conv'
    )
    return conv(x)


class Upsample(Adapted):
  """Nearest-neighbour upsampling, followed by a convolution."""

  @nn.compact
  def __call__(
    self, x: jax.Array, size: tuple[int, int] | None = None
  ) -> jax.Array:
    """Maps (rows, height, width, channels) to twice the height and width.

    Args:
      x: Images.
      size: Height and width to use instead of twice those of x.
    """
    size = size or (2 * x.shape[1], 2 * x.shape[2])
    return Conv(*self.settings, x.shape[-1], name='conv')(nearest(x, size))


def nearest(x: jax.Array, size: tuple[int, int]) -> jax.Array:
  """Resizes images by nearest-neighbour interpolation.

  >>> nearest(jnp.arange(3.0).reshape(1, 1, 3, 1), (1, 5)).ravel().tolist()
  [0.0, 0.0, 1.0, 1.0, 2.0]
  """
  for axis, new in zip((1, 2), size, strict=True):
    old = x.shape[axis]
    if new == 2 * old:
      x = jnp.repeat(x, 2, axis)
    elif new != old:
      x = jnp.take(x, np.arange(new) * old // new, axis)
  return x
