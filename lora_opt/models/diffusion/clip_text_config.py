"""The sizes of CLIP's text encoder."""

import dataclasses

from lora_opt.models.diffusion.activations import ACTIVATIONS
from lora_opt.models.fields import check_fields


@dataclasses.dataclass(frozen=True)
class ClipTextConfig:
  """Sizes of a text encoder; the defaults are those of CLIP ViT-L/14.

  Attributes:
    vocab_size: Rows of the embedding.
    embed_dim: Width of the residual stream.
    num_layers: Number of blocks. Stable Diffusion 2 reads the output of the
      last but one of its encoder's 24 blocks; its folders hold 23.
    num_heads: Attention heads; divides `embed_dim`.
    mlp_dim: Width of the MLP.
    max_length: Number of positions; texts are padded to this many tokens.
    activation: A name of `ACTIVATIONS`.
    norm_eps: Epsilon of LayerNorm.

  Raises:
    ValueError: If a setting has the wrong type or is out of bounds, or the
      settings contradict each other.
  """

  vocab_size: int = 49_408
  embed_dim: int = 768
  num_layers: int = 12
  num_heads: int = 12
  mlp_dim: int = 3072
  max_length: int = 77
  activation: str = 'quick_gelu'
  norm_eps: float = 1e-5

  def __post_init__(self):
    check_fields(self, max_length=(1, 2**20))
    if self.embed_dim % self.num_heads:
      raise ValueError(
        f'embed_dim={self.embed_dim} must be a multiple of num_heads='
        f'{self.num_heads}'
      )
    if self.activation not in ACTIVATIONS:
      raise ValueError(
        f'activation={self.activation!r} must be one of '
        f'{", ".join(ACTIVATIONS)}'
      )
