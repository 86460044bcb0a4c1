"""The decoder that training and evaluation receive."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from lora_opt.models.attention import LayerCache
from lora_opt.models.axes import constrain
from lora_opt.models.config import DecoderConfig
from lora_opt.models.decoder import Decoder
from lora_opt.models.language_model import Batch, LanguageModel
from lora_opt.models.loss import project_to_vocabulary
from lora_opt.models.rotary import text_lengths
from lora_opt.models.step_cache import StepCache
from lora_opt.models.unstacked import unstacked
from lora_opt.models.variables import Tree, abstract_params, init_collection
from lora_opt.models.visibility import Visibility


class DecodeCache(NamedTuple):
  """The state of cached decoding; `start_decoding` creates it."""

  layers: list[StepCache]  # by layer
  valid: jax.Array  # (batch, slots) bool, False on padding and unused slots
  next_slot: jax.Array  # () int32, the same for every row


@dataclasses.dataclass(frozen=True, eq=False)
class CausalLM(LanguageModel):
  """A decoder; see `LanguageModel` for its attributes and most methods.

  Batches hold (batch, length) arrays tokens, targets, positions, segment_ids
  and optionally branches and weights.
  """

  network: ClassVar = Decoder
  batch_form: ClassVar[str] = 'decoder'
  task_type: ClassVar[str] = 'CAUSAL_LM'

  @property
  def axis_units(self) -> Mapping[str, int]:
    """The most parts that each axis can be split into; heads stay whole."""
    return {
      'heads': self.config.num_heads,
      'kv_heads': self.config.num_kv_heads,
    }

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
      max_new_tokens: The most tokens that will be written.

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
    # Padding sees padding, but its results are never used.
    seen = Visibility(valid.astype(jnp.int32))
    written = jnp.pad(valid, [(0, 0), (0, max_new_tokens)])
    cache, room = LayerCache(empty, empty), self._room(written)
    logits, stacked = self._next(
      base, lora, tokens, positions, seen, cache, None, room
    )
    layers = [
      StepCache.start(stacked.keys[i], stacked.values[i], max_new_tokens)
      for i in range(c.num_layers)
    ]
    return logits, DecodeCache(layers, written, jnp.int32(length))

  def decode_step(
    self, base: Tree, lora: Tree | None, cache: DecodeCache, tokens: jax.Array
  ) -> tuple[jax.Array, DecodeCache]:
    """Appends one token to every row and predicts the next.

    Args:
      base: Frozen weights; both they and the adapter may be from `by_layer`.
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
    given = tokens[:, None], positions, seen[:, None], cache.layers, slot
    logits, layers = self._next(base, lora, *given, self._room(cache.valid))
    return logits, DecodeCache(layers, seen, slot + 1)

  def by_layer(self, base: Tree, lora: Tree | None) -> tuple[Tree, Tree | None]:
    """Unstacks base and adapter for `decode_step`, before a loop of steps.

    Worth the extra memory on CPUs, see `lora_opt.models.unstacked`.
    """
    return unstacked(base), unstacked(lora)

  def _room(self, written):
    """The most tokens that each row can have, if rotations depend on it.

    Args:
      written: (batch, slots) bool, which slots are written, with padding on the
        left.

    Returns:
      (batch, 1) int32, or None.
    """
    slots, context = written.shape[1], self.config.rope_context
    if context is None or slots <= context:
      return None
    return slots - jnp.argmax(written, axis=1).astype(jnp.int32)[:, None]

  def _next(self, base, lora, *given):
    """Logits after the last token, (batch, vocab), and the new cache."""
    decoder, variables = self._with(base, lora)
    hidden, head, cache = decoder.apply(variables, *given)
    last = None if head.codes is None else head.codes[:, -1]
    head = head._replace(codes=last)
    return project_to_vocabulary(hidden[:, -1], *head), cache

  def _inputs(self, batch: Batch) -> tuple[jax.Array, ...]:
    positions = batch['positions']
    seen = Visibility(
      batch['segment_ids'], branches=batch.get('branches'), positions=positions
    )
    context = self.config.rope_context
    given = batch['tokens'], positions, seen
    if context is None or positions.shape[1] <= context:
      return given
    return *given, None, None, text_lengths(batch['segment_ids'], positions)


def init_base(config: DecoderConfig, rng: jax.Array, dtype: str) -> Tree:
  """Random base weights, as for training from scratch."""
  decoder = Decoder(config, param_dtype=jnp.dtype(dtype))
  return init_collection(decoder, 'params', rng)


def abstract_base(config: DecoderConfig) -> Tree:
  """Shapes of the base weights: a tree of `jax.ShapeDtypeStruct`."""
  return abstract_params(Decoder(config))
