"""The timestep embedding: sinusoids, followed by an MLP."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from lora_opt.models.diffusion.activations import ACTIVATIONS
from lora_opt.models.diffusion.adapted import Adapted
from lora_opt.models.lora import Projection


def time_waves(
  timesteps: jax.Array, width: int, *, cosine_first: bool, shift: float
) -> jax.Array:
  """Sines and cosines of the time, with wavelengths of up to 20,000 pi.

  Args:
    timesteps: (rows,), whole or not.
    width: Number of values for each time; if odd, the last one is zero.
    cosine_first: `flip_sin_to_cos` of diffusers.
    shift: `freq_shift`: wavelength i is 2 pi 10,000^(i / (half - shift)), where
      half = width // 2.

  Returns:
    (rows, width) float32.

  >>> time_waves(jnp.zeros(1), 4, cosine_first=True, shift=0.0).tolist()
  [[1.0, 1.0, 0.0, 0.0]]
  """
  half = width // 2
  exponent = jnp.arange(half, dtype=jnp.float32) / (half - shift)
  frequencies = jnp.exp(-math.log(10_000) * exponent)
  angles = timesteps.astype(jnp.float32)[:, None] * frequencies[None]
  waves = [jnp.sin(angles), jnp.cos(angles)]
  if cosine_first:
    waves = waves[::-1]
  return jnp.pad(jnp.concatenate(waves, -1), ((0, 0), (0, width % 2)))


class TimeEmbedding(Adapted):
  """The MLP linear_2(activation(linear_1(waves))).

  Attributes:
    width: Width of the result.
    activation: A name of `ACTIVATIONS`.
  """

  width: int
  activation: str

  @nn.compact
  def __call__(self, waves: jax.Array) -> jax.Array:
    """Maps (rows, any width) to (rows, width)."""

    def linear(name):
      axes = ('embed', None)
      return Projection(
        self.width, axes, *self.settings, use_bias=True, name=name
      )

    hidden = ACTIVATIONS[self.activation](linear('linear_1')(waves))
    return linear('linear_2')(hidden)
