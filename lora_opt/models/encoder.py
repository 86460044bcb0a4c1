"""A BERT-family encoder: attention to all tokens, LayerNorm after each sum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from lora_opt.models.attend import attend
from lora_opt.models.axes import constrain
from lora_opt.models.decoder import REMAT_POLICIES
from lora_opt.models.disentangled import distance_products, table_rows
from lora_opt.models.encoder_config import EncoderConfig
from lora_opt.models.kept import kept
from lora_opt.models.lora import LoraConfig, Projection
from lora_opt.models.norms import LayerNorm
from lora_opt.models.visibility import Visibility
from lora_opt.models.vocabulary import EmbeddingTable


def gelu_quick(x: jax.Array) -> jax.Array:
  """The approximation of GELU by a sigmoid that CLIP uses."""
  return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {
  'gelu': functools.partial(jax.nn.gelu, approximate=False),
  'gelu_tanh': jax.nn.gelu,
  'gelu_quick': gelu_quick,
  'relu': jax.nn.relu,
  'silu': jax.nn.silu,
  'tanh': jnp.tanh,
}


class EncoderAttention(nn.Module):
  """Attention of every token to all tokens of its segment.

  Attributes are those of `Encoder`.
  """

  config: EncoderConfig
  lora: LoraConfig | None
  dtype: jnp.dtype
  param_dtype: jnp.dtype
  attention: str

  @nn.compact
  def __call__(
    self, x: jax.Array, seen: Visibility, table: jax.Array | None
  ) -> jax.Array:
    """Maps (batch, length, embed) to the same shape.

    Args:
      x: (batch, length, embed).
      seen: Which tokens each token sees.
      table: Relative positions, (2 span, embed); None if there are none.
    """
    c = self.config
    own = c.relative.projections if c.relative else ()
    project = {name: self._projection(name) for name in ('q', 'k', 'v', *own)}
    q, k, v = (kept(self._split(project[name](x)), name) for name in 'qkv')
    terms = c.relative.terms if c.relative else ()
    # The variance of the scores grows with the number of products they sum.
    scale = (c.head_dim * (1 + len(terms))) ** -0.5
    bias = None
    if terms:
      bias = scale * self._distances(project, q, k, table)
    out = attend(
      q, k, v, seen, scale=scale, bias=bias, implementation=self.attention
    )
    return self._projection('o')(out.reshape(x.shape))

  def _distances(self, project, q, k, table) -> jax.Array:
    """Sums of content-distance products, (batch, heads, length, length)."""
    relative = self.config.relative
    # Only the rows that occur at this length are projected.
    rows, place = np.unique(
      table_rows(relative, q.shape[1]), return_inverse=True
    )
    table = table[rows]

    def seen_through(content, position):
      projection = project[content if relative.shared else position]
      return self._split(projection(table))

    scores = []
    if 'c2p' in relative.terms:
      keys = seen_through('k', 'position_k')
      scores.append(distance_products(q, keys[place[::-1]]))
    if 'p2c' in relative.terms:
      # Rows are keys here, so distances have the opposite sign.
      queries = seen_through('q', 'position_q')
      scores.append(distance_products(k, queries[place]).swapaxes(2, 3))
    return sum(scores)

  def _split(self, x: jax.Array) -> jax.Array:
    c = self.config
    return x.reshape(*x.shape[:-1], c.num_heads, c.head_dim)

  def _projection(self, name: str) -> Projection:
    axes = ('heads', 'embed') if name == 'o' else ('embed', 'heads')
    return Projection(
      self.config.embed_dim,
      axes,
      self.lora,
      self.dtype,
      self.param_dtype,
      use_bias=True,
      name=name,
    )


class EncoderBlock(nn.Module):
  """One layer: attention and MLP, each inside a residual that a norm follows.

  Attributes are those of `Encoder`.
  """

  config: EncoderConfig
  lora: LoraConfig | None
  dtype: jnp.dtype
  param_dtype: jnp.dtype
  dropout: float
  attention: str

  @nn.compact
  def __call__(
    self, x: jax.Array, seen: Visibility, table: jax.Array | None
  ) -> tuple[jax.Array, None]:
    """Maps x (batch, length, embed) to the same shape; no output is stacked."""
    c = self.config
    settings = (self.lora, self.dtype, self.param_dtype)

    def residual(x, change, name):
      x += drop(self, change, self.dropout)
      x = LayerNorm(c.norm_eps, self.param_dtype, name=name)(x)
      return constrain(x, 'batch', None, None)

    attention = EncoderAttention(c, *settings, self.attention, name='attention')
    x = residual(x, attention(x, seen, table), 'attention_norm')
    x = kept(x, 'middle')
    mlp = MLP(c.mlp_dim, c.activation, *settings, name='mlp')
    return residual(x, mlp(x), 'mlp_norm'), None


class MLP(nn.Module):
  """down(activation(up(x))), with biases.

  Attributes:
    width: Width between the two projections.
    activation: A key of `ACTIVATIONS`.
    lora: Adapter settings, or None.
    dtype: Type of the computation.
    param_dtype: Type of the stored weights.
  """

  width: int
  activation: str
  lora: LoraConfig | None
  dtype: jnp.dtype
  param_dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Maps (batch, length, embed) to the same shape."""

    def projection(width, axes, name):
      settings = (self.lora, self.dtype, self.param_dtype)
      return Projection(width, axes, *settings, use_bias=True, name=name)

    up = projection(self.width, ('embed', 'mlp'), 'up')(x)
    up = ACTIVATIONS[self.activation](kept(up, 'up'))
    return projection(x.shape[-1], ('mlp', 'embed'), 'down')(up)


class Encoder(nn.Module):
  """Embeddings and scanned blocks; every token sees its whole segment.

  Attributes:
    config: Sizes.
    lora: Adapter settings, or None for the base alone.
    dtype: Type of the computation.
    param_dtype: Type the base is stored in.
    dropout: Rate on the embeddings and on what attention and MLP add to the
      residual stream, used if there is a key for it. (Attention weights have no
      dropout.)
    remat: What the backward pass keeps, see `Decoder`.
    unroll: Layers per step of the scan.
    attention: How attention is computed, see `lora_opt.models.attend`.
  """

  config: EncoderConfig
  lora: LoraConfig | None = None
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  dropout: float = 0.0
  remat: str = 'projections'
  unroll: int = 1
  attention: str = 'auto'

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    positions: jax.Array,
    token_types: jax.Array,
    segment_ids: jax.Array,
  ) -> jax.Array:
    """Hidden states of every token.

    Args:
      tokens: (batch, length) int32.
      positions: (batch, length) int32, from 0 in each segment.
      token_types: (batch, length) int32, 0 in a first text and 1 in a second.
      segment_ids: (batch, length) int32; a token sees the tokens with the same
        number.

    Returns:
      (batch, length, embed).
    """
    c = self.config
    settings = (self.lora, self.dtype, self.param_dtype)
    x, _ = EmbeddingTable(
      c.vocab_size, c.embed_dim, *settings, name='embedding'
    )(tokens)
    if c.absolute_positions:
      size = c.max_length + c.position_offset
      x += self._table('positions', size)[positions + c.position_offset]
    if c.token_types:
      x += self._table('token_types', c.token_types)[token_types]
    x = drop(self, self._norm('embedding_norm')(x), self.dropout)
    x = constrain(x, 'batch', None, None)

    block = EncoderBlock
    if self.remat != 'none':
      policy = REMAT_POLICIES[self.remat]
      block = nn.remat(EncoderBlock, policy=policy, prevent_cse=False)
    layers = nn.scan(
      block,
      variable_axes={'params': 0, 'lora': 0},
      split_rngs={'params': True, 'lora': True, 'dropout': True},
      in_axes=(nn.broadcast, nn.broadcast),
      length=c.num_layers,
      unroll=self.unroll,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )(c, *settings, self.dropout, self.attention, name='layers')
    seen = Visibility(segment_ids, causal=False)
    return layers(x, seen, self._distances())[0]

  def example_inputs(self) -> tuple[jax.Array, ...]:
    """Arguments of `__call__` for one token."""
    return (jnp.zeros((1, 1), jnp.int32),) * 4

  def _distances(self) -> jax.Array | None:
    """The table of relative positions, (2 span, embed)."""
    relative = self.config.relative
    if relative is None:
      return None
    table = self._table('distances', 2 * relative.span)
    return self._norm('distances_norm')(table) if relative.norm else table

  def _norm(self, name: str) -> LayerNorm:
    return LayerNorm(self.config.norm_eps, self.param_dtype, name=name)

  def _table(self, name: str, rows: int) -> jax.Array:
    init = nn.with_logical_partitioning(
      nn.initializers.normal(0.02), (name, 'embed')
    )
    shape = (rows, self.config.embed_dim)
    return self.param(name, init, shape, self.param_dtype).astype(self.dtype)


def drop(module: nn.Module, x: jax.Array, rate: float) -> jax.Array:
  """Dropout, if the module was given a key for it."""
  deterministic = not module.has_rng('dropout')
  return nn.Dropout(rate, deterministic=deterministic)(x)


class Head(nn.Module):
  """Maps the tokens of each segment to its outputs, in float32.

  Attributes:
    config: Sets what is pooled and whether a dense layer follows.
    outputs: Number of outputs per segment.
    dropout: Rate before the last linear map, used if there is a key for it.
  """

  config: EncoderConfig
  outputs: int
  dropout: float = 0.0

  @nn.compact
  def __call__(
    self,
    hidden: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array,
    weights: jax.Array,
  ) -> jax.Array:
    """Reads as many segments of each row as `weights` has columns.

    Args: as for `pool`.

    Returns:
      (batch, segments, outputs) float32.
    """
    c = self.config
    x = self.pool(hidden, segment_ids, positions, weights)

    def linear(features, axes, name):
      settings = (None, jnp.dtype('float32'), jnp.dtype('float32'))
      return Projection(features, axes, *settings, use_bias=True, name=name)

    if c.pooler is not None:
      x = linear(c.embed_dim, ('embed', 'pooled'), 'dense')(x)
      x = ACTIVATIONS[c.pooler](x)
    x = drop(self, x, self.dropout)
    return linear(self.outputs, ('pooled', 'outputs'), 'out')(x)

  @nn.nowrap
  def pool(
    self,
    hidden: jax.Array,
    segment_ids: jax.Array,
    positions: jax.Array,
    weights: jax.Array,
  ) -> jax.Array:
    """The first token of each segment, or the mean of its tokens.

    Args:
      hidden: (batch, length, embed).
      segment_ids: (batch, length) int32.
      positions: (batch, length) int32, from 0 in each segment.
      weights: (batch, segments); only its shape is used.

    Returns:
      (batch, segments, embed) float32, 0 for segments that are not in a row.
    """
    number = jnp.arange(1, weights.shape[1] + 1)[None, :, None]
    read = segment_ids[:, None, :] == number
    if self.config.pooling == 'first':
      read &= (positions == 0)[:, None, :]
    read = read.astype(jnp.float32)
    read /= jnp.maximum(read.sum(-1, keepdims=True), 1.0)
    return jnp.einsum('bsl,ble->bse', read, hidden.astype(jnp.float32))

  def example_inputs(self) -> tuple[jax.Array, ...]:
    """Arguments of `__call__` for one token."""
    one = jnp.zeros((1, 1), jnp.int32)
    return jnp.zeros((1, 1, self.config.embed_dim)), one, one, one
