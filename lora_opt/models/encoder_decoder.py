"""A T5-family encoder-decoder: two scanned stacks that share an embedding.

RMSNorm before every part, no biases, and only relative positions, which are
added to the scores of self-attention. The dropout that T5 was trained with is
left out: the base is frozen, and adapters have their own dropout.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from lora_opt.models.attend import is_plain
from lora_opt.models.attention import LayerCache
from lora_opt.models.axes import constrain
from lora_opt.models.decoder import MLP, REMAT_POLICIES
from lora_opt.models.encoder_decoder_config import EncoderDecoderConfig
from lora_opt.models.kept import kept
from lora_opt.models.lora import LoraConfig
from lora_opt.models.norms import RMSNorm
from lora_opt.models.offset_bias import OffsetBias
from lora_opt.models.relative_attention import (
  Buckets,
  RelativeAttention,
  RelativeBias,
)
from lora_opt.models.visibility import Visibility
from lora_opt.models.vocabulary import EmbeddingTable, Head, OutputHead


class BlockCache(NamedTuple):
  """Keys and values of a decoder layer while it generates."""

  own: LayerCache  # of the tokens written so far
  cross: LayerCache | None  # of the encoder; None before the first call


class Block(nn.Module):
  """Self-attention, cross-attention if in the decoder, and MLP.

  Attributes are those of `EncoderDecoder`, and `decodes`: whether the block is
  part of the decoder.
  """

  config: EncoderDecoderConfig
  lora: LoraConfig | None
  dtype: jnp.dtype
  param_dtype: jnp.dtype
  attention: str
  decodes: bool

  @nn.compact
  def __call__(
    self,
    x: jax.Array,
    cache: BlockCache | None,
    seen: Visibility | jax.Array,
    bias: OffsetBias | jax.Array,
    encoded: jax.Array | None,
    cross_seen: Visibility | jax.Array | None,
    slot: jax.Array | None,
  ) -> tuple[jax.Array, BlockCache | None]:
    """Maps x (batch, length, embed) to the same shape, and fills the cache.

    Args:
      x: (batch, length, embed).
      cache: Keys and values of earlier tokens, or None outside of generation.
      seen: Which tokens each token sees; with a cache which slots, (batch,
        length, slots) bool.
      bias: An `OffsetBias`, or an array (1, heads, length, keys).
      encoded: (batch, inputs, embed), in a decoder; None when the cache has
        the keys and values of the inputs.
      cross_seen: Which inputs each token sees, in a decoder; (batch, length,
        inputs) bool with a cache.
      slot: () int32, the slot of the first token of x.
    """
    c, settings = self.config, (self.lora, self.dtype, self.param_dtype)

    def norm(name, x):
      return RMSNorm(c.norm_eps, self.param_dtype, name=name)(x)

    def attention(name, *arguments):
      attend = RelativeAttention(
        c.num_heads, c.head_dim, *settings, self.attention, name=name
      )
      return attend(*arguments)

    h, own = norm('attention_norm', x), None if cache is None else cache.own
    attended, own = attention('attention', h, h, seen, bias, own, slot)
    x = self._kept(x + attended)
    cross = None if cache is None else cache.cross
    if self.decodes:
      h = norm('cross_attention_norm', x)
      attended, cross = attention(
        'cross_attention', h, encoded, cross_seen, None, cross
      )
      x = self._kept(x + attended)
    # Two names, since checkpoints name the weights of the two kinds
    # differently.
    mlp = MLP(c, *settings, name='mlp' if c.gated_mlp else 'plain_mlp')
    x = constrain(x + mlp(norm('mlp_norm', x)), 'batch', None, None)
    return x, None if cache is None else BlockCache(own, cross)

  def _kept(self, x: jax.Array) -> jax.Array:
    """Marks hidden states between two parts, for the backward pass to keep."""
    return kept(constrain(x, 'batch', None, None), 'middle')


class Stack(nn.Module):
  """The encoder or the decoder: scanned blocks and a final norm.

  Attributes are those of `EncoderDecoder`, and `decodes`: whether this is the
  decoder.
  """

  config: EncoderDecoderConfig
  lora: LoraConfig | None
  dtype: jnp.dtype
  param_dtype: jnp.dtype
  remat: str
  unroll: int
  attention: str
  decodes: bool

  @nn.compact
  def __call__(
    self,
    tokens: jax.Array,
    table: jax.Array,
    seen: Visibility | jax.Array,
    cache: BlockCache | None = None,
    encoded: jax.Array | None = None,
    cross_seen: Visibility | jax.Array | None = None,
    slot: jax.Array | None = None,
  ) -> tuple[jax.Array, BlockCache | None]:
    """Maps tokens to hidden states (batch, length, embed); see `Block`.

    Args:
      tokens: (batch, length) int32.
      table: The embedding (vocab, embed), shared by both stacks.
      seen: See `Block`.
      cache: See `Block`; stacked over layers on axis 0.
      encoded, cross_seen, slot: See `Block`; for the decoder only.
    """
    c = self.config
    x, _ = EmbeddingTable(
      c.vocab_size,
      c.embed_dim,
      self.lora,
      self.dtype,
      self.param_dtype,
      name='embedding',
    )(tokens, table)
    x = constrain(x, 'batch', None, None)
    cached = not isinstance(seen, Visibility)
    keys = seen.shape[2] if cached else tokens.shape[1]
    bias = RelativeBias(
      Buckets(c.num_buckets, c.max_distance),
      c.num_heads,
      self.decodes,
      self.param_dtype,
      name='relative_bias',
    )(keys)
    if slot is not None:
      bias = bias.of_all(x.shape[1], slot)
    elif is_plain(self.attention, keys):
      bias = bias.of_all(x.shape[1])  # once for all layers
    block = Block
    if self.remat != 'none':
      policy = REMAT_POLICIES[self.remat]
      block = nn.remat(Block, policy=policy, prevent_cse=False)
    layers = nn.scan(
      block,
      variable_axes={'params': 0, 'lora': 0},
      split_rngs={'params': True, 'lora': True, 'dropout': True},
      in_axes=(0, *[nn.broadcast] * 5),
      length=c.num_decoder_layers if self.decodes else c.num_layers,
      unroll=self.unroll,
      metadata_params={nn.PARTITION_NAME: 'layers'},
    )(
      c,
      self.lora,
      self.dtype,
      self.param_dtype,
      self.attention,
      self.decodes,
      name='layers',
    )
    x, cache = layers(x, cache, seen, bias, encoded, cross_seen, slot)
    norm = RMSNorm(c.norm_eps, self.param_dtype, name='final_norm')
    return norm(x), cache


class EncoderDecoder(nn.Module):
  """Embedding, encoder, decoder and head.

  Attributes:
    config: Sizes.
    lora: Adapter settings, or None for the base alone.
    dtype: Type of the computation.
    param_dtype: Type the base is stored in.
    remat: What the backward pass keeps, see `lora_opt.models.decoder.Decoder`.
    unroll: Layers per step of the scans.
    attention: How attention is computed, see `lora_opt.models.attend`.
  """

  config: EncoderDecoderConfig
  lora: LoraConfig | None = None
  dtype: jnp.dtype = jnp.float32
  param_dtype: jnp.dtype = jnp.float32
  remat: str = 'projections'
  unroll: int = 1
  attention: str = 'auto'

  def setup(self):
    c = self.config
    types = (self.lora, self.dtype, self.param_dtype)
    execution = (self.remat, self.unroll, self.attention)
    self.embedding = self.param(
      'embedding',
      nn.with_logical_partitioning(
        nn.initializers.normal(1.0), ('vocab', 'embed')
      ),
      (c.vocab_size, c.embed_dim),
      self.param_dtype,
    )
    self.encoder = Stack(c, *types, *execution, decodes=False)
    self.decoder = Stack(c, *types, *execution, decodes=True)
    self.head = OutputHead(c.vocab_size, *types)

  def __call__(
    self,
    inputs: jax.Array,
    inputs_seen: Visibility,
    tokens: jax.Array,
    seen: Visibility,
    cross_seen: Visibility,
  ) -> tuple[jax.Array, Head]:
    """Runs everything up to, but not including, the product with the head.

    Args:
      inputs: (batch, inputs) int32, what the encoder reads.
      inputs_seen: Which inputs each input sees.
      tokens: (batch, length) int32, what the decoder reads.
      seen: Which tokens each token sees.
      cross_seen: Which inputs each token sees.

    Returns:
      Hidden states (batch, length, embed) and the head.
    """
    encoded = self.encode(inputs, inputs_seen)
    hidden, head, _ = self.decode(tokens, seen, cross_seen, encoded=encoded)
    return hidden, head

  def encode(self, inputs: jax.Array, seen: Visibility) -> jax.Array:
    """Hidden states (batch, inputs, embed) of the encoder."""
    return self.encoder(inputs, self.embedding, seen)[0]

  def decode(
    self,
    tokens: jax.Array,
    seen: Visibility | jax.Array,
    cross_seen: Visibility | jax.Array,
    cache: BlockCache | None = None,
    encoded: jax.Array | None = None,
    slot: jax.Array | None = None,
  ) -> tuple[jax.Array, Head, BlockCache | None]:
    """Hidden states, head, and the cache with the new keys and values.

    The arguments are those of `Stack`.
    """
    hidden, cache = self.decoder(
      tokens, self.embedding, seen, cache, encoded, cross_seen, slot
    )
    if self.config.scale_output:
      hidden *= self.config.embed_dim**-0.5
    tied = self.embedding if self.config.tie_embeddings else None
    return hidden, self.head(hidden, tied), cache

  def example_inputs(self) -> tuple[jax.Array, ...]:
    """Arguments of `__call__` for one token."""
    one = jnp.zeros((1, 1), jnp.int32)
    both = Visibility(one, causal=False)
    return one, both, one, Visibility(one), both
