"""All networks of a text-to-image model in one module."""

import jax
import jax.numpy as jnp

from lora_opt.models.diffusion.adapted import Adapted
from lora_opt.models.diffusion.clip_text import ClipText
from lora_opt.models.diffusion.pipeline_config import PipelineConfig
from lora_opt.models.diffusion.unet import UNet
from lora_opt.models.diffusion.vae import Vae


class TextToImageNetwork(Adapted):
  """UNet, text encoder and autoencoder, under the names of their folders.

  Only UNet and text encoder can have adapters.

  Attributes:
    config: Sizes of all parts.
    remat: What the backward pass keeps: 'none' recomputes nothing, 'full'
      recomputes every block.
    attention: How attention is computed, see `lora_opt.models.attend`.
  """

  config: PipelineConfig
  remat: str = 'none'
  attention: str = 'auto'

  def setup(self):
    c, how = self.config, (self.remat, self.attention)
    self.unet = UNet(*self.settings, c.unet, *how)
    self.text_encoder = ClipText(*self.settings, c.text, *how)
    if c.vae is not None:
      fixed = (None, self.dtype, self.param_dtype)
      self.vae = Vae(*fixed, c.vae, self.attention)

  def __call__(
    self, images: jax.Array, timesteps: jax.Array, tokens: jax.Array
  ) -> jax.Array:
    """Runs every part once, to create its variables."""
    mean, deviation = self.encode(images)
    latents = self.unet(mean + deviation, timesteps, self.text_encoder(tokens))
    return self.decode(latents)

  def predict(
    self, latents: jax.Array, timesteps: jax.Array, context: jax.Array
  ) -> jax.Array:
    """The UNet's prediction, in float32; see `UNet`."""
    return self.unet(latents, timesteps, context).astype(jnp.float32)

  def encode_text(self, tokens: jax.Array) -> jax.Array:
    """Encodes tokens (rows, length) to (rows, length, embed)."""
    return self.text_encoder(tokens)

  def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of what the UNet denoises, both float32.

    Args:
      images: (rows, height, width, channels), from -1 to 1.
    """
    if self.config.vae is None:
      images = images.astype(jnp.float32)
      return images, jnp.zeros_like(images)
    mean, deviation = self.vae.encode(images)
    return self.vae.scaled(mean), deviation * self.config.vae.scaling_factor

  def decode(self, latents: jax.Array) -> jax.Array:
    """Decodes what the UNet denoises to float32 images of about -1 to 1."""
    if self.config.vae is None:
      return latents.astype(jnp.float32)
    return self.vae.decode(self.vae.unscaled(latents))

  def example_inputs(self) -> tuple[jax.Array, ...]:
    """Arguments of `__call__`, for an image of one pixel at the last level."""
    c = self.config
    size = c.factor * 2 ** (len(c.unet.channels) - 1)
    images = jnp.zeros((1, size, size, c.image_channels))
    return images, jnp.zeros(1), jnp.zeros((1, 1), jnp.int32)
