"""The configs of all parts of a text-to-image model."""

import dataclasses

from lora_opt.models.diffusion.clip_text_config import ClipTextConfig
from lora_opt.models.diffusion.noise import NoiseSchedule
from lora_opt.models.diffusion.sampler import Sampler
from lora_opt.models.diffusion.unet_config import UNetConfig
from lora_opt.models.diffusion.vae_config import VaeConfig


@dataclasses.dataclass(frozen=True)
class PipelineConfig:
  """The configs of the parts of a model.

  Attributes:
    unet: The network that predicts noise.
    text: The text encoder.
    vae: The autoencoder of images; None for a UNet that works on pixels.
    noise: How noise is added in training.
    sampler: How images are sampled by default.

  Raises:
    ValueError: The parts do not fit together.
  """

  unet: UNetConfig = dataclasses.field(default_factory=UNetConfig)
  text: ClipTextConfig = dataclasses.field(default_factory=ClipTextConfig)
  vae: VaeConfig | None = dataclasses.field(default_factory=VaeConfig)
  noise: NoiseSchedule = dataclasses.field(default_factory=NoiseSchedule)
  sampler: Sampler = dataclasses.field(default_factory=Sampler)

  def __post_init__(self):
    for width in self.unet.context_dims:
      if width != self.text.embed_dim:
        raise ValueError(
          f'the UNet reads texts of width {width} (cross_attention_dim), the '
          f'text encoder writes {self.text.embed_dim} (hidden_size)'
        )
    latents = self.vae.latent_channels if self.vae else self.unet.in_channels
    for name in ('in_channels', 'out_channels'):
      channels = getattr(self.unet, name)
      if channels != latents:
        raise ValueError(
          f"the UNet's {name}={channels}, and what it denoises has {latents} "
          'channels (other inputs, as for inpainting, and predicted variances '
          'are not supported)'
        )

  @property
  def factor(self) -> int:
    """Pixels of an image per latent, along each axis."""
    return self.vae.factor if self.vae else 1

  @property
  def image_channels(self) -> int:
    """Number of channels of an image."""
    return self.vae.in_channels if self.vae else self.unet.in_channels
