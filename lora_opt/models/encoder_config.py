"""The sizes of a BERT-family encoder and of the head on top of it."""

import dataclasses

from lora_opt.models.fields import check_fields

TERMS = ('c2p', 'p2c')
ACTIVATIONS = ('gelu', 'gelu_tanh', 'relu', 'silu', 'tanh')
POOLINGS = ('first', 'mean')


@dataclasses.dataclass(frozen=True)
class RelativePositions:
  """How DeBERTa's attention represents the distance between two tokens.

  A table of 2 * span rows, shared by all layers, has one row for each distance
  from -span to span - 1; larger distances use the last row on their side. With
  buckets, distances up to half of span have their own rows; beyond that the row
  grows with the logarithm of the distance, so that `max_distance` falls on the
  last one.

  Attributes:
    span: Rows of the table on each side.
    buckets: Whether rows stand for logarithmic buckets.
    max_distance: Scale of the logarithmic buckets: this distance falls into
      the last one. Without buckets it has no effect.
    terms: Products added to that of content with content: 'c2p', the query with
      the position's key, and 'p2c', the key with the position's query.
    shared: Whether positions use the projections of the content.
    norm: Whether the table goes through a LayerNorm.

  Raises:
    ValueError: If a term is unknown, the span is below 2 or, with buckets,
      `max_distance` is not above half of span plus one.
  """

  span: int
  buckets: bool = True
  max_distance: int = 512
  terms: tuple[str, ...] = TERMS
  shared: bool = True
  norm: bool = True

  def __post_init__(self):
    check_fields(self, span=(2, 2**20))
    if unknown := set(self.terms) - set(TERMS):
      raise ValueError(
        f'terms={self.terms!r}: {", ".join(sorted(unknown))} must be of '
        f'{", ".join(TERMS)}'
      )
    if self.buckets and self.max_distance <= self.span // 2 + 1:
      raise ValueError(
        f'max_distance={self.max_distance} must be more than half of span='
        f'{self.span} and one'
      )

  @property
  def projections(self) -> tuple[str, ...]:
    """Names of the projections that are only for positions."""
    if self.shared:
      return ()
    names = {'c2p': 'position_k', 'p2c': 'position_q'}
    return tuple(names[term] for term in TERMS if term in self.terms)


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
  """Sizes and constants of an encoder; everything that determines its weights.

  Attributes:
    vocab_size: Rows of the embedding.
    embed_dim: Width of the residual stream.
    num_layers: Number of blocks.
    num_heads: Attention heads; must divide `embed_dim`.
    mlp_dim: Width of the MLP.
    max_length: Longest sequence of tokens the weights were trained for.
    absolute_positions: Whether a learned vector is added for each position.
    position_offset: Row of the first position in the table of positions;
      RoBERTa's first rows are for padding.
    token_types: Rows of the table of token types; 0 for no table.
    activation: Activation of the MLP, one of `ACTIVATIONS`.
    norm_eps: Epsilon of LayerNorm.
    relative: Relative positions in the attention, or None.
    pooling: What the head reads: the 'first' token, or the 'mean' of all.
    pooler: Activation after a dense layer of the head, one of `ACTIVATIONS`;
      None for a head that is one linear map.

  Raises:
    ValueError: If a setting has the wrong type or is out of bounds, or the
      sizes contradict each other.
  """

  vocab_size: int
  embed_dim: int
  num_layers: int
  num_heads: int
  mlp_dim: int
  max_length: int = 512
  absolute_positions: bool = True
  position_offset: int = 0
  token_types: int = 2
  activation: str = 'gelu'
  norm_eps: float = 1e-12
  relative: RelativePositions | None = None
  pooling: str = 'first'
  pooler: str | None = 'tanh'

  def __post_init__(self):
    check_fields(
      self, position_offset=(0, self.max_length), token_types=(0, 2**16)
    )
    if self.embed_dim % self.num_heads:
      raise ValueError(
        f'embed_dim={self.embed_dim} must be a multiple of num_heads='
        f'{self.num_heads}'
      )
    for name, allowed in (
      ('activation', ACTIVATIONS),
      ('pooling', POOLINGS),
      ('pooler', (None, *ACTIVATIONS)),
    ):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f'{name}={getattr(self, name)!r} must be one of '
          f'{", ".join(map(str, allowed))}'
        )

  @property
  def head_dim(self) -> int:
    """Width of one attention head."""
    return self.embed_dim // self.num_heads

  @property
  def projections(self) -> dict[str, tuple[int, int]]:
    """Module path: (fan_in, fan_out) of every module that can be adapted."""
    square = (self.embed_dim, self.embed_dim)
    positions = self.relative.projections if self.relative else ()
    return {
      **{f'layers/attention/{name}': square for name in 'qkvo'},
      **{f'layers/attention/{name}': square for name in positions},
      'layers/mlp/up': (self.embed_dim, self.mlp_dim),
      'layers/mlp/down': (self.mlp_dim, self.embed_dim),
      'embedding': (self.embed_dim, self.vocab_size),
    }
