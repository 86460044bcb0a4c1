"""The encoder-decoder that training and evaluation receive."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from lora_opt.data.tokenizer import Tokenizer
from lora_opt.models.attention import LayerCache, packed_mask, segment_mask
from lora_opt.models.causal_lm import check_settings
from lora_opt.models.encoder_decoder import BlockCache, EncoderDecoder
from lora_opt.models.encoder_decoder_config import EncoderDecoderConfig
from lora_opt.models.lora import LoraConfig
from lora_opt.models.loss import project_to_vocabulary
from lora_opt.models.pretrained.family import leaves_by_path
from lora_opt.models.pretrained.merge import merge_adapter
from lora_opt.models.pretrained.peft import export_adapter, import_adapter
from lora_opt.models.quantized import stored_dtype
from lora_opt.models.start import adapter_in_force
from lora_opt.models.variables import (
  Tree,
  abstract_params,
  apply_variables,
  init_adapter,
  init_collection,
  logical_axes,
)
from lora_opt.models.vocabulary import token_losses

if TYPE_CHECKING:
  from lora_opt.models.pretrained.family import Family

Batch = Mapping[str, jax.Array]


class Seq2SeqCache(NamedTuple):
  """What cached decoding remembers; `start_decoding` makes it."""

  layers: BlockCache  # each (layers, batch, slots or inputs, heads, head_dim)
  readable: jax.Array  # (batch, 1, inputs) bool, False on padding
  next_slot: jax.Array  # () int32, the same for every row


@dataclasses.dataclass(frozen=True, eq=False)
class Seq2SeqLM:
  """An encoder-decoder with frozen weights, its tokenizer and adapter settings.

  The sibling of `CausalLM`, with the same attributes and methods; every method
  that computes is a pure function of its arguments. Batches hold

    encoder_tokens, encoder_segment_ids    (batch, inputs) int32
    tokens, targets, segment_ids           (batch, length) int32, and
    optionally weights float32 and branches int32

  A position of the decoder sees the encoder's segment of the same number, and
  of the decoder's what is before it in its segment and branch: so many
  completions of one prompt share one pass of the encoder.

  Raises:
    ValueError: For a target that matches no projection, a rank larger than a
      projection, an unknown `remat`, or a tokenizer that does not fit.
  """

  batch_form: ClassVar[str] = 'encoder_decoder'
  task_type: ClassVar[str] = 'SEQ_2_SEQ_LM'
  name: str
  family: Family
  config: EncoderDecoderConfig
  tokenizer: Tokenizer
  base: Tree
  lora_config: LoraConfig | None = None
  dtype: str = 'float32'
  remat: str = 'projections'
  unroll: int = 1
  loss_rows: int = 256
  start: Tree | None = None

  def __post_init__(self):
    check_settings(
      self.config, self.tokenizer, self.lora_config, self.remat, self.dtype
    )
    if self.tokenizer.pad_id != self.config.start_id:
      raise ValueError(
        f'the padding token of the tokenizer has id {self.tokenizer.pad_id}, '
        f'but the decoder starts with id {self.config.start_id}; T5 takes one '
        'token for both'
      )

  def init(self, rng: jax.Array) -> Tree:
    """Returns a fresh adapter: nested dict with lora_a and lora_b leaves."""
    if self.lora_config is None:
      return {}
    return init_adapter(
      self._network(self.lora_config), self.base, self.start, rng
    )

  def logical_axes(self) -> tuple[Tree, Tree]:
    """Names the axes of every array, for sharding rules.

    Returns:
      Trees of `PartitionSpec` like `base` and like the adapter, with the
      names layers, vocab, embed, heads, mlp, buckets and lora_rank.
    """
    return logical_axes(self._network(self.lora_config))

  @property
  def axis_units(self) -> Mapping[str, int]:
    """Into how many parts an axis can be split: whole heads stay together."""
    return {'heads': self.config.num_heads}

  def token_losses(
    self, base: Tree, lora: Tree | None, batch: Batch, rng=None
  ) -> jax.Array:
    """Cross-entropy of `batch['targets']` at each position of the decoder.

    Differentiable in `lora`; the gradient of `base` is zero by definition.

    Args:
      base: Frozen weights.
      lora: Adapter, or None for the base model.
      batch: See the class.
      rng: Key of the adapter's dropout; None for no dropout.

    Returns:
      (batch, length) float32, in nats; 0 where the weight is 0, since nothing
      is computed there.
    """
    hidden, head = self._hidden(jax.lax.stop_gradient(base), lora, batch, rng)
    return token_losses(hidden, head, batch, self.loss_rows)

  def logits(self, base: Tree, lora: Tree | None, batch: Batch) -> jax.Array:
    """All logits, (batch, length, vocab) float32: for tests and inspection."""
    hidden, head = self._hidden(base, lora, batch, None)
    return project_to_vocabulary(hidden, *head)

  def start_decoding(
    self,
    base: Tree,
    lora: Tree | None,
    inputs: jax.Array,
    valid: jax.Array,
    max_new_tokens: int,
  ) -> tuple[jax.Array, Seq2SeqCache]:
    """Encodes the inputs, and predicts the first token of each completion.

    Args:
      base: Frozen weights.
      lora: Adapter, or None for the base model.
      inputs: (batch, inputs) int32, padded on either side.
      valid: (batch, inputs) bool, False on padding.
      max_new_tokens: Tokens that will be written at most.

    Returns:
      Logits (batch, vocab) float32, and the cache for `decode_step`.
    """
    c, rows = self.config, inputs.shape[0]
    network, variables = self._with(base, lora)
    segments = valid.astype(jnp.int32)
    encoded = network.apply(
      variables,
      inputs,
      segment_mask(segments, segments),
      method=EncoderDecoder.encode,
    )
    shape = (
      c.num_decoder_layers,
      rows,
      max_new_tokens,
      c.num_heads,
      c.head_dim,
    )
    empty = jnp.zeros(shape, self.dtype)
    cache = Seq2SeqCache(
      BlockCache(LayerCache(empty, empty), None),
      valid[:, None, :],
      jnp.zeros((), jnp.int32),
    )
    start = jnp.full((rows,), c.start_id, jnp.int32)
    return self._step(base, lora, cache, start, encoded)

  def decode_step(
    self, base: Tree, lora: Tree | None, cache: Seq2SeqCache, tokens: jax.Array
  ) -> tuple[jax.Array, Seq2SeqCache]:
    """Appends one token to every row and predicts the next.

    Args:
      base: Frozen weights.
      lora: Adapter, or None for the base model.
      cache: From `start_decoding` or an earlier call.
      tokens: (batch,) int32.

    Returns:
      Logits (batch, vocab) float32, and the new cache.
    """
    return self._step(base, lora, cache, tokens, None)

  def export(self, folder: str | os.PathLike, lora: Tree) -> None:
    """Writes the adapter in PEFT's format; see `export_adapter`."""
    export_adapter(folder, lora, self)

  def load_adapter(self, folder: str | os.PathLike) -> Tree:
    """Reads an adapter in PEFT's format; see `import_adapter`."""
    return import_adapter(folder, self)

  def merge(
    self,
    folder: str | os.PathLike,
    lora: Tree | None,
    *,
    source: str | os.PathLike | None = None,
    dtype: str | None = None,
  ) -> None:
    """Writes base and adapter as one model; see `merge_adapter`.

    Raises:
      ValueError: also for an adapter of one use of a table that has others:
        such a model has no place for the sum.
    """
    shared = {'encoder/embedding', 'decoder/embedding'}
    if self.config.tie_embeddings:
      shared.add('head')
    sites = {path.rpartition('/')[0] for path in leaves_by_path(lora or {})}
    if sites & shared:
      raise ValueError(
        f'{", ".join(sorted(sites & shared))}: the adapter cannot be merged, '
        'since the table is also used without it; keep it as an adapter'
      )
    merge_adapter(folder, lora, self, source=source, dtype=dtype)

  def _step(self, base, lora, cache, tokens, encoded):
    slot = cache.next_slot
    slots = jnp.arange(cache.layers.own.keys.shape[2])
    network, variables = self._with(base, lora)
    hidden, head, layers = network.apply(
      variables,
      tokens[:, None],
      jnp.broadcast_to(slots <= slot, (tokens.shape[0], 1, slots.size)),
      cache.readable,
      cache.layers,
      encoded,
      slot,
      method=EncoderDecoder.decode,
    )
    logits = project_to_vocabulary(hidden, *head)[:, 0]
    return logits, Seq2SeqCache(layers, cache.readable, slot + 1)

  def _hidden(self, base, lora, batch, rng):
    inputs, own = batch['encoder_segment_ids'], batch['segment_ids']
    network, variables = self._with(base, lora)
    return network.apply(
      variables,
      batch['encoder_tokens'],
      segment_mask(inputs, inputs),
      batch['tokens'],
      packed_mask(own, batch.get('branches')),
      segment_mask(own, inputs),
      rngs=None if rng is None else {'dropout': rng},
    )

  def _with(self, base: Tree, lora: Tree | None) -> tuple[EncoderDecoder, Tree]:
    """The network and its variables, adapted or as the checkpoint has it."""
    settings, lora = adapter_in_force(self.lora_config, lora, self.start)
    return self._network(settings), apply_variables(base, lora)

  def _network(self, lora: LoraConfig | None) -> EncoderDecoder:
    return EncoderDecoder(
      self.config,
      lora,
      jnp.dtype(self.dtype),
      stored_dtype(self.base),
      self.remat,
      self.unroll,
    )


def init_base(config: EncoderDecoderConfig, rng: jax.Array, dtype: str) -> Tree:
  """Random base weights, as for training from scratch."""
  network = EncoderDecoder(config, param_dtype=jnp.dtype(dtype))
  return init_collection(network, 'params', rng)


def abstract_base(config: EncoderDecoderConfig) -> Tree:
  """Shapes of the base weights: a tree of `jax.ShapeDtypeStruct`."""
  return abstract_params(EncoderDecoder(config))
