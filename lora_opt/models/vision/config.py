"""The sizes of a vision transformer, and the options of model families."""

import dataclasses

from lora_opt.models.fields import check_fields

ACTIVATIONS = ('gelu', 'gelu_tanh', 'gelu_quick', 'relu', 'silu', 'tanh')
POOLINGS = ('first', 'mean')
CHANNELS = 3
_SIDE = (1, 2**13)  # of images and patches, in pixels


@dataclasses.dataclass(frozen=True)
class VisionConfig:
  """Sizes and constants of a vision transformer.

  The defaults are ViT's; the towers of CLIP and SigLIP set other options.

  Attributes:
    image_height, image_width: Size of an image in pixels. Pixels at the bottom
      and on the right that do not fill a whole patch are not read.
    patch_height, patch_width: Size of a patch in pixels.
    embed_dim: Width of the residual stream.
    num_layers: Number of blocks.
    num_heads: Attention heads; must divide `embed_dim`.
    mlp_dim: Width of the MLP.
    activation: Activation of the MLP, one of `ACTIVATIONS`.
    norm_eps: Epsilon of LayerNorm.
    qkv_bias: Biases in the projections of queries, keys and values.
    patch_bias: A bias in the projection of patches.
    class_token: A learned token in front of the patches.
    input_norm: A norm before the first block.
    final_norm: A norm after the last block.
    pooling: What the head reads: the 'first' token, or the 'mean' of the
      patches.

  Raises:
    ValueError: If a setting has the wrong type or is out of bounds, or the
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
    """Number of tokens: patches, and the class token if there is one."""
    rows, columns = self.grid
    return rows * columns + self.class_token

  @property
  def projections(self) -> dict[str, tuple[int, int]]:
    """Module path: (fan_in, fan_out) of every module that can be adapted."""
    square = (self.embed_dim, self.embed_dim)
    return {
      **{f'layers/attention/{name}': square for name in 'qkvo'},
      'layers/mlp/up': (self.embed_dim, self.mlp_dim),
      'layers/mlp/down': (self.mlp_dim, self.embed_dim),
    }
