"""The shape of a vision transformer, and what tells the families apart."""

import dataclasses

from lora_opt.models.fields import check_fields

ACTIVATIONS = ('gelu', 'gelu_tanh', 'gelu_quick', 'relu', 'silu', 'tanh')
POOLINGS = ('first', 'mean')
CHANNELS = 3
_SIDE = (1, 2**13)  # of images and patches, in pixels


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """Sizes and constants of a vision transformer.

  The defaults are ViT's; CLIP's and SigLIP's towers are further options.

  Attributes:
    image_height, image_width: Pixels of an image. Those that no whole patch
      covers, at the bottom and on the right, are not read.
    patch_height, patch_width: Pixels of a patch.
    embed_dim: Width of the residual stream.
    num_layers: Number of blocks.
    num_heads: Attention heads; divides `embed_dim`.
    mlp_dim: Width of the MLP.
    activation: Of the MLP, one of `ACTIVATIONS`.
    norm_eps: Epsilon of LayerNorm.
    qkv_bias: Biases in the projections of queries, keys and values.
    patch_bias: A bias in the projection of patches.
    class_token: A learned token in front of the patches.
    input_norm: A norm before the first block.
    final_norm: A norm after the last one.
    pooling: What the head reads: the 'first' token, or the 'mean' of the
      patches.

  Raises:
    ValueError: If a setting is not of its type, out of all bounds, or the
      settings contradict each other.
  """

  image_height: int
  image_width: int
  patch_height: int
  patch_width: int
  embed_dim: int
  num_layers: int
  num_heads: int
  mlp_dim: int
  activation: str = 'gelu'
  norm_eps: float = 1e-12
  qkv_bias: bool = True
  patch_bias: bool = True
  class_token: bool = True
  input_norm: bool = False
  final_norm: bool = True
  pooling: str = 'first'

  def __post_init__(self):
    check_fields(
      self,
      image_height=_SIDE,
      image_width=_SIDE,
      patch_height=_SIDE,
      patch_width=_SIDE,
    )
    if self.embed_dim % self.num_heads:
      raise ValueError(
        f'embed_dim={self.embed_dim} must be a multiple of num_heads='
        f'{self.num_heads}'
      )
    for side in ('height', 'width'):
      image, patch = (getattr(self, f'{n}_{side}') for n in ('image', 'patch'))
      if patch > image:
        raise ValueError(
          f'patch_{side}={patch} must be at most image_{side}={image}'
        )
    for name, allowed in (('activation', ACTIVATIONS), ('pooling', POOLINGS)):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f'{name}={getattr(self, name)!r} must be one of {", ".join(allowed)}'
        )
    if self.pooling == 'first' and not self.class_token:
      raise ValueError("pooling='first' needs class_token=True")

  @property
  def head_dim(self) -> int:
    """Width of one attention head."""
    return self.embed_dim // self.num_heads

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of patches."""
    return (
      self.image_height // self.patch_height,
      self.image_width // self.patch_width,
    )

  @property
  def tokens(self) -> int:
    """Patches, and the class token if there is one."""
    rows, columns = self.grid
    return rows * columns + self.class_token

  @property
  def projections(self) -> dict[str, tuple[int, int]]:
    """Module path of everything an adapter fits on: its (fan_in, fan_out)."""
    square = (self.embed_dim, self.embed_dim)
    return {
      **{f'layers/attention/{name}': square for name in 'qkvo'},
      'layers/mlp/up': (self.embed_dim, self.mlp_dim),
      'layers/mlp/down': (self.mlp_dim, self.embed_dim),
    }
