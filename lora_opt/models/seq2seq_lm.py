"""The encoder-decoder that training and evaluation receive."""

import dataclasses
import os
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from lora_opt.models.attention import LayerCache
from lora_opt.models.encoder_decoder import BlockCache, EncoderDecoder
from lora_opt.models.encoder_decoder_config import EncoderDecoderConfig
from lora_opt.models.language_model import Batch, LanguageModel
from lora_opt.models.loss import project_to_vocabulary
from lora_opt.models.quantized import leaves_by_path
from lora_opt.models.variables import Tree, abstract_params, init_collection
from lora_opt.models.visibility import Visibility


class Seq2SeqCache(NamedTuple):
  """The state of cached decoding; `start_decoding` creates it."""

  layers: BlockCache  # each (layers, batch, slots or inputs, heads, head_dim)
  readable: jax.Array  # (batch, 1, inputs) bool, False on padding
  next_slot: jax.Array  # () int32, the same for every row


@dataclasses.dataclass(frozen=True, eq=False)
class Seq2SeqLM(LanguageModel):
  """An encoder-decoder; see `LanguageModel` for attributes and most methods.

  Batches hold

    encoder_tokens, encoder_segment_ids    (batch, inputs) int32
    tokens, targets, segment_ids           (batch, length) int32, and
    optionally weights float32 and branches int32

  A position of the decoder sees the encoder's segment of the same number, and
  the earlier decoder positions of its own segment and branch. So several
  completions of one prompt share one pass of the encoder.

  Raises:
    ValueError: As for `LanguageModel`, or if the token that starts the decoder
      is not the tokenizer's padding token.
  """

  network: ClassVar = EncoderDecoder
  batch_form: ClassVar[str] = 'encoder_decoder'
  task_type: ClassVar[str] = 'SEQ_2_SEQ_LM'

  def __post_init__(self):
    super().__post_init__()
    if self.tokenizer is None:
      return
    if self.tokenizer.pad_id != self.config.start_id:
      raise ValueError(
        f'the padding token of the tokenizer has id {self.tokenizer.pad_id}, '
        f'but the decoder starts with id {self.config.start_id}; T5 takes one '
        'token for both'
      )

  @property
  def axis_units(self) -> Mapping[str, int]:
    """The most parts that each axis can be split into; heads stay whole."""
    return {'heads': self.config.num_heads}

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
      max_new_tokens: The most tokens that will be written.

    Returns:
      Logits (batch, vocab) float32, and the cache for `decode_step`.
    """
    c, rows = self.config, inputs.shape[0]
    network, variables = self._with(base, lora)
    segments = valid.astype(jnp.int32)
    encoded = network.apply(
      variables,
      inputs,
      Visibility(segments, causal=False),
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

  def merge(
    self,
    folder: str | os.PathLike,
    lora: Tree | None,
    *,
    source: str | os.PathLike | None = None,
    dtype: str | None = None,
  ) -> None:
    """Writes base and adapter as one model; see `LanguageModel`.

    Raises:
      ValueError: Also if the adapter changes one use of a table that has other
        uses: a merged model has no place for their different sums.
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
    super().merge(folder, lora, source=source, dtype=dtype)

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

  def _inputs(self, batch: Batch) -> tuple[jax.Array, ...]:
    inputs, own = batch['encoder_segment_ids'], batch['segment_ids']
    return (
      batch['encoder_tokens'],
      Visibility(inputs, causal=False),
      batch['tokens'],
      Visibility(own, branches=batch.get('branches')),
      Visibility(own, inputs, causal=False),
    )


def init_base(config: EncoderDecoderConfig, rng: jax.Array, dtype: str) -> Tree:
  """Random base weights, as for training from scratch."""
  network = EncoderDecoder(config, param_dtype=jnp.dtype(dtype))
  return init_collection(network, 'params', rng)


def abstract_base(config: EncoderDecoderConfig) -> Tree:
  """Shapes of the base weights: a tree of `jax.ShapeDtypeStruct`."""
  return abstract_params(EncoderDecoder(config))
