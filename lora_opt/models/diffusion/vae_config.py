"""The sizes of an image autoencoder."""

import dataclasses

from lora_opt.models.diffusion.activations import ACTIVATIONS
from lora_opt.models.fields import check_fields


@dataclasses.dataclass(frozen=True)
class VaeConfig:
  """Sizes of an autoencoder; the defaults are Stable Diffusion 1's and 2's.

  Attributes:
    sample_size: Height and width that the weights were trained for.
    in_channels: Channels of images, in and out.
    latent_channels: Channels of latents.
    channels: Channels at each resolution, from the full one down.
    layers: Residual blocks at each resolution of the encoder; the decoder has
      one more.
    groups: Number of groups of every group norm.
    activation: A name of `ACTIVATIONS`, for the residual blocks.
    middle_attention: Whether the middle has attention.
    quant_conv: Whether a 1 x 1 convolution ends the encoder.
    post_quant_conv: Whether a 1 x 1 convolution starts the decoder.
    scaling_factor: Factor that latents are multiplied by for the UNet.
    shift_factor: Subtracted from latents before they are scaled.

  Raises:
    ValueError: If a setting has the wrong type or is out of bounds, or the
      settings contradict each other.
  """

  sample_size: int = 512
  in_channels: int = 3
  latent_channels: int = 4
  channels: tuple[int, ...] = (128, 256, 512, 512)
  layers: int = 2
  groups: int = 32
  activation: str = 'silu'
  middle_attention: bool = True
  quant_conv: bool = True
  post_quant_conv: bool = True
  scaling_factor: float = 0.18215
  shift_factor: float = 0.0

  def __post_init__(self):
    check_fields(
      self,
      sample_size=(1, 2**16),
      in_channels=(1, 2**16),
      latent_channels=(1, 2**16),
      channels=(1, 2**16),
      layers=(1, 100),
      groups=(1, 2**16),
      scaling_factor=(1e-6, 1e6),
      shift_factor=(-1e6, 1e6),
    )
    if self.activation not in ACTIVATIONS:
      raise ValueError(
        f'activation={self.activation!r} must be one of '
        f'{", ".join(ACTIVATIONS)}'
      )
    if not self.channels:
      raise ValueError('channels=() must name at least one resolution')
    for channels in self.channels:
      if channels % self.groups:
        raise ValueError(
          f'channels={channels} must be a multiple of groups={self.groups}'
        )

  @property
  def factor(self) -> int:
    """Pixels of an image per latent, along each axis."""
    return 2 ** (len(self.channels) - 1)
