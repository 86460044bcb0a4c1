"""Convolutions of (rows, height, width, channels) images, with adapters."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from lora_opt.models.axes import gathered
from lora_opt.models.diffusion.adapted import Adapted
from lora_opt.models.lora import drop_input, lora_factors
from lora_opt.models.products import product

# A kernel is (width, height, in, out): torch's (out, in, height, width) with
# its axes reversed, just as other kernels are the transpose of torch's. An
# adapter changes it as the matrix (width * height * in, out).
_DIMENSIONS = ('NHWC', 'WHIO', 'NHWC')


class Conv(Adapted):
  """The convolution kernel * x + bias + scale * up @ (down * dropout(x)).

  The adapter is PEFT's: a convolution like this one down to the rank, and a
  1 x 1 convolution up. Its factors are stored as the matrices lora_a
  (width * height * in, rank) and lora_b (rank, out), so that optimizers see an
  ordinary pair. Their product is the change of the kernel as a matrix.

  Attributes:
    features: Number of output channels.
    kernel: Width and height of the kernel.
    stride: Stride in pixels.
    padding: Pixels of zero padding (before, after) each axis; None for as many
      as keep the size.
    axes: Logical names of the input and output channels.
  """

  features: int
  kernel: int = 3
  stride: int = 1
  padding: tuple[int, int] | None = None
  axes: tuple[str | None, str | None] = (None, 'embed')

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (rows, height, width, channels) to (rows, ..., features)."""
    size, channels = self.kernel, x.shape[-1]
    axes = (None, None, *self.axes)
    init = nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes)
    shape = (size, size, channels, self.features)
    kernel = self.param('kernel', init, shape, self.param_dtype)
    y = self._convolve(x, gathered(kernel.astype(self.dtype), *axes))
    if self.lora is not None and self.lora.adapts('/'.join(self.path)):
      matrix = (size * size * channels, self.features)
      a, b = lora_factors(self, matrix, (None, self.axes[1]))
      down = a.reshape(size, size, channels, self.lora.rank)
      code = self._convolve(drop_input(self, x), down) * self.lora.scale
      y += product(code, b)
    zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[1:])
    bias = self.param('bias', zeros, (self.features,), self.param_dtype)
    return y + jnp.broadcast_to(bias.astype(self.dtype), y.shape)

  @nn.nowrap
  def _convolve(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
    same = (self.kernel - 1) // 2
    padding = (same, same) if self.padding is None else self.padding
    return lax.conv_general_dilated(
      x,
      kernel,
      (self.stride, self.stride),
      (padding, padding),
      dimension_numbers=_DIMENSIONS,
    )
