"""The sizes of a T5-family encoder-decoder."""

import dataclasses
from typing import ClassVar

from lora_opt.models.config import ACTIVATIONS
from lora_opt.models.fields import check_fields


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig:
  """Sizes and constants of an encoder-decoder that determine its weights.

  Attributes:
    vocab_size: Rows of the embedding, which both stacks share.
    embed_dim: Width of the residual stream.
    num_layers: Blocks of the encoder.
    num_decoder_layers: Blocks of the decoder.
    num_heads: Heads of every attention.
    head_dim: Width of one head; num_heads * head_dim need not be embed_dim.
    mlp_dim: Width of the MLP.
    num_buckets: Rows of the tables of relative biases; must be even.
    max_distance: Distance from which on all positions share the last bucket.
    activation: As in `DecoderConfig`.
    gated_mlp: Whether the MLP has a gate (T5 v1.1) or not (T5).
    norm_eps: Epsilon of RMSNorm.
    tie_embeddings: Whether the embedding is also the output head.
    scale_output: Whether the last hidden state is divided by sqrt(embed_dim),
      as T5 does and T5 v1.1 does not.
    start_id: First token of every decoder input; also pads batches.

  Raises:
    ValueError: If a setting has the wrong type or is out of bounds, or the
      sizes contradict each other.

  >>> EncoderDecoderConfig(64, 16, 1, 1, num_heads=2, head_dim=8, mlp_dim=32,
  ...                      num_buckets=32, max_distance=16)
  Traceback (most recent call last):
    ...
  ValueError: max_distance=16 must be above num_buckets / 2 = 16
  """

  mlp_bias: ClassVar[bool] = False
  fused_gate: ClassVar[bool] = False
  vocab_size: int
  embed_dim: int
  num_layers: int
  num_decoder_layers: int
  num_heads: int
  head_dim: int
  mlp_dim: int
  num_buckets: int = 32
  max_distance: int = 128
  activation: str = 'gelu_tanh'
  gated_mlp: bool = True
  norm_eps: float = 1e-6
  tie_embeddings: bool = False
  scale_output: bool = False
  start_id: int = 0

  def __post_init__(self):
    check_fields(self, num_buckets=(4, 2**16), start_id=(0, 2**24))
    if self.num_buckets % 2:
      raise ValueError(f'num_buckets={self.num_buckets} must be even')
    if self.start_id >= self.vocab_size:
      raise ValueError(
        f'start_id={self.start_id} must be below vocab_size={self.vocab_size}'
      )
    if self.max_distance <= self.num_buckets // 2:
      raise ValueError(
        f'max_distance={self.max_distance} must be above num_buckets / 2 = '
        f'{self.num_buckets // 2}'
      )
    if self.activation not in ACTIVATIONS:
      raise ValueError(
        f'activation={self.activation!r} must be one of '
        f'{", ".join(ACTIVATIONS)}'
      )

  @property
  def projections(self) -> dict[str, tuple[int, int]]:
    """Module path: (fan_in, fan_out) of every projection."""
    width, mlp = self.embed_dim, self.mlp_dim
    heads = self.num_heads * self.head_dim
    attention = dict.fromkeys('qkv', (width, heads)) | {'o': (heads, width)}
    up = dict.fromkeys(
      ('gate', 'up') if self.gated_mlp else ('up',), (width, mlp)
    )
    parts = {
      'layers/attention': attention,
      'layers/cross_attention': attention,
      'layers/mlp' if self.gated_mlp else 'layers/plain_mlp': up
      | {'down': (mlp, width)},
    }
    vocabulary = (width, self.vocab_size)
    found = {}
    for stack in ('encoder', 'decoder'):
      found[f'{stack}/embedding'] = vocabulary
      for part, projections in parts.items():
        if stack == 'decoder' or 'cross' not in part:
          found |= {f'{stack}/{part}/{p}': s for p, s in projections.items()}
    return found | {'head': vocabulary}
