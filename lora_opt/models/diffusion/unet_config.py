"""The sizes of a UNet that predicts noise."""

import dataclasses

from lora_opt.models.diffusion.activations import ACTIVATIONS
from lora_opt.models.fields import check_fields

MIDDLES = ('cross', 'plain', 'none')


@dataclasses.dataclass(frozen=True)
class UNetConfig:
  """Sizes and constants of a UNet; the defaults are Stable Diffusion 1's.

  Attributes with an entry for each resolution begin with the full one, except
  `up_cross`.

  Attributes:
    sample_size: Height and width that the weights were trained for.
    in_channels: Channels of what is denoised.
    out_channels: Channels of the prediction.
    channels: Channels at each resolution.
    down_cross: Whether each level of the down path attends to the text.
    up_cross: The same for the up path, which begins with the smallest.
    middle: 'cross' for two residual blocks around a transformer, 'plain' for
      one residual block, 'none'.
    layers: Residual blocks at each resolution of the down path; the up path has
      one more.
    heads: Attention heads at each resolution.
    depths: Transformer blocks per attention at each resolution.
    context_dims: Width of the text encodings at each resolution.
    only_cross: Whether both attentions attend to the text, at each resolution.
    linear_projection: See `SpatialTransformer.linear`.
    groups: Number of groups of every group norm.
    norm_eps: Epsilon of the norms in residual blocks and of the last norm.
    activation: A name of `ACTIVATIONS`.
    scale_shift: See `ResnetBlock`.
    middle_divisor: Divisor of the residual sums in the middle.
    downsample_padding: See `Downsample.padding`, 0 or 1.
    centre_input: Whether the input x is replaced by 2 x - 1.
    cosine_first: See `time_waves`.
    frequency_shift: `shift` of `time_waves`.
    time_dim: Width of the time embedding.
    conv_in_kernel: Width of the first convolution's kernel.
    conv_out_kernel: Width of the last convolution's kernel.

  Raises:
    ValueError: If a setting has the wrong type or is out of bounds, or the
      settings contradict each other.
  """

  sample_size: int = 64
  in_channels: int = 4
  out_channels: int = 4
  channels: tuple[int, ...] = (320, 640, 1280, 1280)
  down_cross: tuple[bool, ...] = (True, True, True, False)
  up_cross: tuple[bool, ...] = (False, True, True, True)
  middle: str = 'cross'
  layers: tuple[int, ...] = (2, 2, 2, 2)
  heads: tuple[int, ...] = (8, 8, 8, 8)
  depths: tuple[int, ...] = (1, 1, 1, 1)
  context_dims: tuple[int, ...] = (768, 768, 768, 768)
  only_cross: tuple[bool, ...] = (False, False, False, False)
  linear_projection: bool = False
  groups: int = 32
  norm_eps: float = 1e-5
  activation: str = 'silu'
  scale_shift: bool = False
  middle_divisor: float = 1.0
  downsample_padding: int = 1
  centre_input: bool = False
  cosine_first: bool = True
  frequency_shift: float = 0.0
  time_dim: int = 1280
  conv_in_kernel: int = 3
  conv_out_kernel: int = 3

  def __post_init__(self):
    check_fields(
      self,
      in_channels=(1, 2**16),
      out_channels=(1, 2**16),
      sample_size=(1, 2**16),
      channels=(1, 2**16),
      layers=(1, 100),
      heads=(1, 2**14),
      depths=(1, 1000),
      context_dims=(1, 2**20),
      groups=(1, 2**16),
      middle_divisor=(1e-6, 1e6),
      downsample_padding=(0, 1),
      frequency_shift=(-1e3, 1e3),
      time_dim=(1, 2**20),
      conv_in_kernel=(1, 31),
      conv_out_kernel=(1, 31),
    )
    count = len(self.channels)
    for name in (
      *('down_cross', 'up_cross', 'layers', 'heads', 'depths'),
      *('context_dims', 'only_cross'),
    ):
      if len(getattr(self, name)) != count:
        raise ValueError(
          f'{name}={getattr(self, name)!r} has {len(getattr(self, name))} '
          f'entries, channels={self.channels!r} has {count}'
        )
    for name, allowed in (('activation', ACTIVATIONS), ('middle', MIDDLES)):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f'{name}={getattr(self, name)!r} must be one of {", ".join(allowed)}'
        )
    for name in ('conv_in_kernel', 'conv_out_kernel'):
      if getattr(self, name) % 2 == 0:
        raise ValueError(
          f'{name}={getattr(self, name)} must be odd, or images change size'
        )
    for i in range(count):
      self._check_channels(i)

  def _check_channels(self, i: int) -> None:
    channels, last = self.channels[i], len(self.channels) - 1
    attends = (
      self.down_cross[i]
      or self.up_cross[last - i]
      or (self.middle == 'cross' and i == last)
    )
    if attends and channels % self.heads[i]:
      raise ValueError(
        f'channels={channels} must be a multiple of heads={self.heads[i]}'
      )
    if channels % self.groups:
      raise ValueError(
        f'channels={channels} must be a multiple of groups={self.groups}'
      )
