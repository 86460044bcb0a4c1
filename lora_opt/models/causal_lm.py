"""The model object that training and evaluation receive."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from lora_opt.data.tokenizer import Tokenizer
from lora_opt.models.attention import LayerCache, packed_mask
from lora_opt.models.axes import constrain
from lora_opt.models.config import DecoderConfig
from lora_opt.models.decoder import REMAT_POLICIES, Decoder
from lora_opt.models.lora import LoraConfig, check_dtype
from lora_opt.models.loss import project_to_vocabulary
from lora_opt.models.pretrained.merge import merge_adapter
from lora_opt.models.pretrained.peft import export_adapter, import_adapter
from lora_opt.models.quantized import stored_dtype
from lora_opt.models.start import adapter_in_force
from lora_opt.models.step_cache import StepCache
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

# Checkpoints pad the embedding to a round size by at most so many rows; more
# means that the tokenizer belongs to other weights.
MAX_VOCAB_PADDING = 1024


class DecodeCache(NamedTuple):
  """What cached decoding remembers; `start_decoding` makes it."""

  layers: list[StepCache]  # by layer
  valid: jax.Array  # (batch, slots) bool, False on padding and unused slots
  next_slot: jax.Array  # () int32, the same for every row


@dataclasses.dataclass(frozen=True, eq=False)
class CausalLM:
  """A decoder with frozen weights, its tokenizer and its adapter settings.

  Every method that computes is a pure function of its arguments, to be jitted
  by the caller; `base` is passed in rather than read from the object, so that
  it is an argument of the compiled program and not a constant inside it.

  Attributes:
    name: What the model is called; an exported adapter names it as its base.
    family: What its checkpoints are like; names the tensors of an export.
    config: Sizes of the decoder.
    tokenizer: Text to ids and back.
    base: Frozen weights, a nested dict of arrays.
    lora_config: Adapter settings, or None for a model without adapter.
    dtype: Type of the computation, 'float32' or 'bfloat16'.
    remat: What the backward pass keeps, see `Decoder`.
    unroll: Layers per step of the scan over layers.
    loss_rows: Positions whose logits are held together by `token_losses`.
    start: Factors that `lora_config.start` took out of `base`; without an
      adapter they stand in for it. See `split_base`.

  Raises:
    ValueError: For a target that matches no projection, a rank larger than a
      projection, an unknown `remat`, or a tokenizer that does not fit.
  """

  task_type: ClassVar[str] = 'CAUSAL_LM'
  name: str
  family: Family
  config: DecoderConfig
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

  def init(self, rng: jax.Array) -> Tree:
    """Returns a fresh adapter: nested dict with lora_a and lora_b leaves."""
    if self.lora_config is None:
      return {}
    return init_adapter(
      self._decoder(self.lora_config), self.base, self.start, rng
    )

  def logical_axes(self) -> tuple[Tree, Tree]:
    """Names the axes of every array, for sharding rules.

    Returns:
      Trees of `PartitionSpec` like `base` and like the adapter, with the
      names layers, vocab, embed, heads, kv_heads, mlp and lora_rank.
    """
    return logical_axes(self._decoder(self.lora_config))

  @property
  def axis_units(self) -> Mapping[str, int]:
    """Into how many parts an axis can be split: whole heads stay together."""
    return {
      'heads': self.config.num_heads,
      'kv_heads': self.config.num_kv_heads,
    }

  def token_losses(
    self, base: Tree, lora: Tree | None, batch: Batch, rng=None
  ) -> jax.Array:
    """Cross-entropy of `batch['targets']` at each position.

    Differentiable in `lora`; the gradient of `base` is zero by definition.

    Args:
      base: Frozen weights.
      lora: Adapter, or None for the base model.
      batch: (batch, length) arrays tokens, targets, positions, segment_ids
        and optionally branches and weights.
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
    tokens: jax.Array,
    valid: jax.Array,
    max_new_tokens: int,
  ) -> tuple[jax.Array, DecodeCache]:
    """Reads prompts, and predicts the first token of each completion.

    Args:
      base: Frozen weights.
      lora: Adapter, or None for the base model.
      tokens: (batch, length) int32, padded on the left.
      valid: (batch, length) bool, False on padding.
      max_new_tokens: Tokens that will be written at most.

    Returns:
      Logits (batch, vocab) float32, and the cache for `decode_step`.
    """
    rows, length = tokens.shape
    c = self.config
    shape = (c.num_layers, rows, length, c.num_kv_heads, c.head_dim)
    empty = constrain(
      jnp.zeros(shape, self.dtype), None, 'batch', None, 'kv_heads', None
    )
    positions = jnp.maximum(jnp.cumsum(valid, axis=1) - 1, 0)
    order = jnp.arange(length)
    mask = (order[None, :] <= order[:, None])[None] & valid[:, None, :]
    start = jnp.zeros((), jnp.int32)
    logits, stacked = self._next(
      base, lora, tokens, positions, mask, LayerCache(empty, empty), start
    )
    layers = [
      StepCache.start(stacked.keys[i], stacked.values[i], max_new_tokens)
      for i in range(c.num_layers)
    ]
    seen = jnp.pad(valid, [(0, 0), (0, max_new_tokens)])
    return logits, DecodeCache(layers, seen, start + length)

  def decode_step(
    self, base: Tree, lora: Tree | None, cache: DecodeCache, tokens: jax.Array
  ) -> tuple[jax.Array, DecodeCache]:
    """Appends one token to every row and predicts the next.

    Args:
      base: Frozen weights.
      lora: Adapter, or None for the base model.
      cache: From `start_decoding` or an earlier call.
      tokens: (batch,) int32.

    Returns:
      Logits (batch, vocab) float32, and the new cache.
    """
    slot = cache.next_slot
    positions = jnp.sum(cache.valid, axis=1, dtype=jnp.int32)[:, None]
    written = jnp.ones((tokens.shape[0], 1), bool)
    seen = jax.lax.dynamic_update_slice_in_dim(cache.valid, written, slot, 1)
    logits, layers = self._next(
      base, lora, tokens[:, None], positions, seen[:, None], cache.layers, slot
    )
    return logits, DecodeCache(layers, seen, slot + 1)

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
    """Writes base and adapter as one model; see `merge_adapter`."""
    merge_adapter(folder, lora, self, source=source, dtype=dtype)

  def _next(self, base, lora, tokens, positions, mask, cache, slot):
    """Logits after the last token, (batch, vocab), and the new cache."""
    decoder, variables = self._with(base, lora)
    hidden, head, cache = decoder.apply(
      variables, tokens, positions, mask, cache, slot
    )
    last = None if head.codes is None else head.codes[:, -1]
    return project_to_vocabulary(
      hidden[:, -1], head.table, last, head.up
    ), cache

  def _hidden(self, base, lora, batch, rng):
    mask = packed_mask(batch['segment_ids'], batch.get('branches'))
    decoder, variables = self._with(base, lora)
    hidden, head, _ = decoder.apply(
      variables,
      batch['tokens'],
      batch['positions'],
      mask,
      rngs=None if rng is None else {'dropout': rng},
    )
    return hidden, head

  def _with(self, base: Tree, lora: Tree | None) -> tuple[Decoder, Tree]:
    """The decoder and its variables, adapted or as the checkpoint has it."""
    settings, lora = adapter_in_force(self.lora_config, lora, self.start)
    return self._decoder(settings), apply_variables(base, lora)

  def _decoder(self, lora: LoraConfig | None) -> Decoder:
    return Decoder(
      self.config,
      lora,
      jnp.dtype(self.dtype),
      stored_dtype(self.base),
      self.remat,
      self.unroll,
    )


def check_settings(
  config: DecoderConfig,
  tokenizer: Tokenizer,
  lora: LoraConfig | None,
  remat: str,
  *dtypes: str,
) -> None:
  """Raises ValueError if the parts of a model do not fit together."""
  for dtype in dtypes:
    check_dtype(dtype)
  padding = config.vocab_size - tokenizer.vocab_size
  if not 0 <= padding <= MAX_VOCAB_PADDING:
    raise ValueError(
      f'tokenizer and model disagree: the tokenizer has '
      f'{tokenizer.vocab_size} tokens, the embedding {config.vocab_size} rows; '
      'take the tokenizer that belongs to the weights'
    )
  if remat != 'none' and remat not in REMAT_POLICIES:
    raise ValueError(
      f'remat={remat!r} must be one of none, {", ".join(REMAT_POLICIES)}'
    )
  if lora is not None:
    lora.sites(config.projections)


def init_base(config: DecoderConfig, rng: jax.Array, dtype: str) -> Tree:
  """Random base weights, as for training from scratch."""
  decoder = Decoder(config, param_dtype=jnp.dtype(dtype))
  return init_collection(decoder, 'params', rng)


def abstract_base(config: DecoderConfig) -> Tree:
  """Shapes of the base weights: a tree of `jax.ShapeDtypeStruct`."""
  return abstract_params(Decoder(config))
