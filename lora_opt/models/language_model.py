"""The base class of models that generate text."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from lora_opt.data.tokenizer import Tokenizer
from lora_opt.models.attend import check_implementation
from lora_opt.models.decoder import REMAT_POLICIES
from lora_opt.models.lora import LoraConfig, check_dtype
from lora_opt.models.loss import project_to_vocabulary
from lora_opt.models.model_files import Family
from lora_opt.models.quantized import stored_dtype
from lora_opt.models.start import adapter_in_force
from lora_opt.models.variables import (
  Tree,
  apply_variables,
  init_adapter,
  logical_axes,
)
from lora_opt.models.vocabulary import token_losses

Batch = Mapping[str, jax.Array]

# Checkpoints pad the embedding to a round size by at most this many rows; a
# larger difference means that the tokenizer belongs to other weights.
MAX_VOCAB_PADDING = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class LanguageModel:
  """A network with frozen weights, its tokenizer and its adapter settings.

  Every method that computes is a pure function of its arguments, to be jitted
  by the caller; `base` is passed in rather than read from the object, so that
  it is an argument of the compiled program and not a constant inside it.

  A subclass implements how its network reads a batch (`_inputs`) and how it
  generates (`start_decoding`, `decode_step`). It also sets `network`, its Flax
  module, whose call returns hidden states and `Head`; `batch_form`, see
  lora_opt.data.forms; and `task_type`, PEFT's name for this kind of model.

  Attributes:
    name: Name of the model; an exported adapter names it as its base.
    family: The format of its checkpoints; names the tensors of an export.
    config: Sizes of the network.
    tokenizer: Maps text to ids and back; None for a model that has shapes
      instead of weights.
    base: Frozen weights, a nested dict of arrays, or of their shapes.
    lora_config: Adapter settings, or None for a model without an adapter.
    dtype: Type of the computation, 'float32' or 'bfloat16'.
    remat: What the backward pass keeps, see `Decoder`.
    unroll: Layers per step of the scan over layers.
    attention: How attention is computed, see `lora_opt.models.attend`.
    loss_rows: Number of positions whose logits a device holds at once in
      `token_losses`; None to choose it by platform.
    start: Factors that `lora_config.start` took out of `base`; used in place of
      an adapter when there is none. See `split_base`.

  Raises:
    ValueError: If the target matches no projection, the rank is larger than a
      projection, `remat` or `attention` is unknown, or the tokenizer does not
      fit.
  """

  network: ClassVar[type[nn.Module]]
  batch_form: ClassVar[str]
  task_type: ClassVar[str]

  name: str
  family: Family
  config: Any
  tokenizer: Tokenizer | None
  base: Tree
  lora_config: LoraConfig | None = None
  dtype: str = 'float32'
  remat: str = 'projections'
  unroll: int = 1
  attention: str = 'auto'
  loss_rows: int | None = None
  start: Tree | None = None

  def __post_init__(self):
    check_settings(
      self.config, self.tokenizer, self.lora_config, self.remat, self.dtype
    )
    check_implementation(self.attention)

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
      names layers, vocab, embed, heads, kv_heads, mlp, buckets and lora_rank.
    """
    return logical_axes(self._network(self.lora_config))

  def token_losses(
    self, base: Tree, lora: Tree | None, batch: Batch, rng=None
  ) -> jax.Array:
    """Cross-entropy of `batch['targets']` at each position.

    Differentiable in `lora`; the gradient of `base` is zero by definition.

    Args:
      base: Frozen weights.
      lora: Adapter, or None for the base model.
      batch: Arrays by name, see the class; weights are optional.
      rng: Key for the adapter's dropout; None for no dropout.

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

  def export(self, folder: str | os.PathLike, lora: Tree) -> None:
    """Writes the adapter in PEFT's format; see `pretrained.peft`."""
    self.family.files.export(folder, lora, self)

  def load_adapter(self, folder: str | os.PathLike) -> Tree:
    """Reads an adapter in PEFT's format; see `pretrained.peft`."""
    return self.family.files.load_adapter(folder, self)

  def merge(
    self,
    folder: str | os.PathLike,
    lora: Tree | None,
    *,
    source: str | os.PathLike | None = None,
    dtype: str | None = None,
  ) -> None:
    """Writes base and adapter as one model; see `pretrained.merge`."""
    self.family.files.merge(folder, lora, self, source=source, dtype=dtype)

  def _hidden(self, base, lora, batch, rng):
    network, variables = self._with(base, lora)
    rngs = None if rng is None else {'dropout': rng}
    hidden, head, *_ = network.apply(variables, *self._inputs(batch), rngs=rngs)
    return hidden, head

  def _with(self, base: Tree, lora: Tree | None) -> tuple[nn.Module, Tree]:
    """The network and its variables, with the adapter or of the checkpoint."""
    settings, lora = adapter_in_force(self.lora_config, lora, self.start)
    return self._network(settings), apply_variables(base, lora)

  def _network(self, lora: LoraConfig | None) -> nn.Module:
    return self.network(
      self.config,
      lora,
      jnp.dtype(self.dtype),
      stored_dtype(self.base),
      self.remat,
      self.unroll,
      self.attention,
    )


def check_settings(
  config: Any,
  tokenizer: Tokenizer | None,
  lora: LoraConfig | None,
  remat: str,
  *dtypes: str,
) -> None:
  """Raises ValueError if the parts of a model do not fit together."""
  for dtype in dtypes:
    check_dtype(dtype)
  if tokenizer is not None:
    check_tokenizer(config, tokenizer)
  if remat != 'none' and remat not in REMAT_POLICIES:
    raise ValueError(
      f'remat={remat!r} must be one of none, {", ".join(REMAT_POLICIES)}'
    )
  if lora is not None:
    lora.sites(config.projections)


def check_tokenizer(config: Any, tokenizer: Tokenizer) -> None:
  """Raises ValueError if a tokenizer does not belong to a vocabulary."""
  padding = config.vocab_size - tokenizer.vocab_size
  if not 0 <= padding <= MAX_VOCAB_PADDING:
    raise ValueError(
      f'tokenizer and model disagree: the tokenizer has '
      f'{tokenizer.vocab_size} tokens, the embedding {config.vocab_size} rows; '
      'take the tokenizer that belongs to the weights'
    )
  # A tokenizer without `largest_id` has consecutive ids.
  largest = getattr(tokenizer, 'largest_id', tokenizer.vocab_size - 1)
  if largest >= config.vocab_size:
    raise ValueError(
      f'tokenizer and model disagree: the tokenizer has a token of id '
      f'{largest}, the embedding {config.vocab_size} rows; take the tokenizer '
      'that belongs to the weights'
    )
