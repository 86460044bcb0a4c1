"""The shape of a Llama-family decoder."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Sizes and constants of a decoder; everything that fixes its weights.

  Attributes:
    vocab_size: Rows of the embedding.
    embed_dim: Width of the residual stream.
    num_layers: Number of blocks.
    num_heads: Query heads.
    num_kv_heads: Key and value heads; divides `num_heads`.
    head_dim: Width of one head; even, for the rotary pairs.
    mlp_dim: Width of the gated MLP.
    rope_theta: Base of the rotary wavelengths.
    rope_divisors: One divisor per rotary frequency, or empty for none. Long
      context recipes (linear, Llama 3) are all of this form.
    norm_eps: Epsilon of RMSNorm.
    tie_embeddings: Whether the output head is the embedding.
    max_length: Context length the weights were trained for.

  Raises:
    ValueError: If the sizes contradict each other.

  >>> DecoderConfig(64, 16, 1, num_heads=3, num_kv_heads=2, head_dim=4,
  ...               mlp_dim=32)
  Traceback (most recent call last):
    ...
  ValueError: num_heads=3 must be a multiple of num_kv_heads=2
  """

  vocab_size: int
  embed_dim: int
  num_layers: int
  num_heads: int
  num_kv_heads: int
  head_dim: int
  mlp_dim: int
  rope_theta: float = 10_000.0
  rope_divisors: tuple[float, ...] = ()
  norm_eps: float = 1e-5
  tie_embeddings: bool = True
  max_length: int = 2048

  def __post_init__(self):
    for field in dataclasses.fields(self)[:7]:
      value = getattr(self, field.name)
      if value < 1:
        raise ValueError(f'{field.name}={value} must be at least 1')
    if self.num_heads % self.num_kv_heads:
      raise ValueError(
        f'num_heads={self.num_heads} must be a multiple of '
        f'num_kv_heads={self.num_kv_heads}'
      )
    if self.head_dim % 2:
      raise ValueError(f'head_dim={self.head_dim} must be even')
    if len(self.rope_divisors) not in (0, self.head_dim // 2):
      raise ValueError(
        f'rope_divisors has {len(self.rope_divisors)} entries, must have '
        f'head_dim / 2 = {self.head_dim // 2} or none'
      )

  @property
  def projections(self) -> dict[str, tuple[int, int]]:
    """Module path of every projection: its (fan_in, fan_out)."""
    heads = self.num_heads * self.head_dim
    kv_heads = self.num_kv_heads * self.head_dim
    return {
      'layers/attention/q': (self.embed_dim, heads),
      'layers/attention/k': (self.embed_dim, kv_heads),
      'layers/attention/v': (self.embed_dim, kv_heads),
      'layers/attention/o': (heads, self.embed_dim),
      'layers/mlp/gate': (self.embed_dim, self.mlp_dim),
      'layers/mlp/up': (self.embed_dim, self.mlp_dim),
      'layers/mlp/down': (self.mlp_dim, self.embed_dim),
    }
