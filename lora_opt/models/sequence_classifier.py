"""An encoder with a head for labels or numbers, for training and evaluation."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from lora_opt.data.tokenizer import Tokenizer
from lora_opt.models.attend import check_implementation
from lora_opt.models.encoder import Encoder, Head
from lora_opt.models.encoder_config import EncoderConfig
from lora_opt.models.labels import read_labels, write_labels
from lora_opt.models.language_model import check_settings
from lora_opt.models.lora import LoraConfig
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
from lora_opt.reading import values
from lora_opt.reading.label_order import order_of

if TYPE_CHECKING:
  from lora_opt.models.pretrained.family import Family

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class SequenceClassifier:
  """A frozen encoder, its tokenizer, its adapter settings, and a head.

  What is trained is one tree: the factors of the adapter, and the head under
  'head'. The methods are pure functions, as those of `CausalLM`.

  Attributes:
    name: What the model is called; an exported adapter names it as its base.
    family: What its checkpoints are like; names the tensors of an export.
    config: Sizes of the encoder, pooling and form of the head.
    tokenizer: Text to ids; None for a model of shapes alone.
    base: Frozen weights, a nested dict of arrays, or of their shapes.
    lora_config: Adapter settings, or None for training the head alone.
    dtype: Type of the encoder's computation, 'float32' or 'bfloat16'.
    remat: What the backward pass keeps, see `Decoder`.
    unroll: Layers per step of the scan over layers.
    attention: How attention is computed, see `lora_opt.models.attend`.
    outputs: Number of labels; 1 for a regression.
    head: Where training starts: 'dense' and 'out', or what of them the
      checkpoint had. The rest is drawn at random.
    labels: What the outputs are called, in order; () if that is not known.
    head_labels: What the head of the checkpoint calls them, in the order in
      which an adapter of it has them.
    dropout: Rate on hidden states while training.
    head_dropout: Rate before the last map of the head while training.
    start: Factors that `lora_config.start` took out of `base`; without an
      adapter they stand in for it. See `split_base`.

  Raises:
    ValueError: For settings that do not fit together.
  """

  batch_form: ClassVar[str] = 'encoder'

  name: str
  family: Family
  config: EncoderConfig
  tokenizer: Tokenizer | None
  base: Tree
  lora_config: LoraConfig | None = None
  dtype: str = 'float32'
  remat: str = 'projections'
  unroll: int = 1
  attention: str = 'auto'
  outputs: int = 2
  head: Tree = dataclasses.field(default_factory=dict)
  labels: Sequence[str] = ()
  head_labels: Sequence[str] = ()
  dropout: float = 0.0
  head_dropout: float = 0.0
  start: Tree | None = None

  def __post_init__(self):
    check_settings(
      self.config, self.tokenizer, self.lora_config, self.remat, self.dtype
    )
    check_implementation(self.attention)
    values.integer(self.outputs, 'outputs', 1, 2**20)
    for name in ('dropout', 'head_dropout'):
      rate = values.number(getattr(self, name), name)
      if not 0 <= rate < 1:
        raise ValueError(f'{name}={rate} must be in [0, 1)')

  @property
  def task_type(self) -> str:
    """What PEFT calls it; transformers knows no classifier of a mean."""
    mean = self.config.pooling == 'mean' or self.config.pooler is None
    return 'FEATURE_EXTRACTION' if mean else 'SEQ_CLS'

  @property
  def drawn(self) -> tuple[str, ...]:
    """Paths of the parts of the head that `init` draws at random."""
    parts = abstract_head(self.config, self.outputs).keys() - self.head.keys()
    return tuple(f'head/{part}' for part in sorted(parts))

  def init(self, rng: jax.Array) -> Tree:
    """Returns what is trained: a fresh adapter, and the head to start from."""
    adapter_key, head_key = jax.random.split(rng)
    adapter = {}
    if self.lora_config is not None:
      encoder = self._encoder(self.lora_config)
      adapter = init_adapter(encoder, self.base, self.start, adapter_key)
    head = init_collection(self._head, 'params', head_key)
    # Copied, since a training step may overwrite what it is given.
    given = jax.tree.map(jnp.copy, self.head)
    return adapter | {'head': head | given}

  def logical_axes(self) -> tuple[Tree, Tree]:
    """Names the axes of every array, for sharding rules.

    Returns:
      Trees of `PartitionSpec` like `base` and like what is trained.
    """
    base, adapter = logical_axes(self._encoder(self.lora_config))
    head, _ = logical_axes(self._head)
    return base, adapter | {'head': head}

  @property
  def axis_units(self) -> Mapping[str, int]:
    """Into how many parts an axis can be split: whole heads stay together."""
    return {'heads': self.config.num_heads}

  def token_losses(
    self, base: Tree, trainable: Tree | None, batch: Batch, rng=None
  ) -> jax.Array:
    """Cross-entropy of each label, or squared error of each number.

    Differentiable in `trainable`; the gradient of `base` is zero by definition.

    Args:
      base: Frozen weights.
      trainable: Adapter and head; None for the head that the model came with.
      batch: (rows, length) arrays tokens, token_types, positions, segment_ids;
        (rows, segments) float32 arrays labels (the index of a label, or the
        number) and weights, of which column s belongs to segment s + 1.
      rng: Key of dropout; None for no dropout.

    Returns:
      (rows, segments) float32.
    """
    outputs = self._outputs(jax.lax.stop_gradient(base), trainable, batch, rng)
    if self.outputs == 1:
      return jnp.square(outputs[..., 0] - batch['labels'])
    index = batch['labels'].astype(jnp.int32)[..., None]
    label = jnp.take_along_axis(outputs, index, axis=-1)[..., 0]
    return jax.nn.logsumexp(outputs, axis=-1) - label

  def predict(
    self, base: Tree, trainable: Tree | None, batch: Batch
  ) -> jax.Array:
    """The logits of the labels, or the number, of every segment.

    Args:
      base: Frozen weights.
      trainable: Adapter and head; None for the head that the model came with.
      batch: As of `token_losses`; labels are not needed.

    Returns:
      (rows, segments, outputs) float32.
    """
    return self._outputs(base, trainable, batch, None)

  def pooled(
    self, base: Tree, trainable: Tree | None, batch: Batch
  ) -> jax.Array:
    """What the head reads of every segment: for probes and inspection.

    Returns:
      (rows, segments, embed) float32.
    """
    hidden = self._hidden(base, trainable, batch, None)
    return self._head.pool(hidden, *_places(batch))

  def named(
    self, labels: Sequence[str], words: Sequence[str] = ()
  ) -> SequenceClassifier:
    """The model with its outputs in the order of a task's labels.

    Args:
      labels: What the task calls them, in its order.
      words: What it calls them as well, in the same order.

    Raises:
      ValueError: The head of the checkpoint is for other labels.
    """
    if len(labels) != self.outputs:
      raise ValueError(
        f'{len(labels)} labels {list(labels)!r} for {self.name}, which has '
        f'outputs={self.outputs}'
      )
    named = dataclasses.replace(self, labels=tuple(labels))
    if 'out' not in self.head:
      return named
    theirs = self.labels or self.head_labels
    if not theirs:
      logging.warning(
        '%s: its head has numbers for labels, no names: they are taken to be '
        '%s, in this order',
        self.name,
        ', '.join(labels),
      )
      return named
    order = order_of(theirs, labels, words)
    if order is None:
      raise ValueError(
        f'the head of {self.name} has the labels {list(theirs)!r}, the task '
        f'{list(labels)!r}. If they mean the same, give the task classes='
        f'{tuple(theirs)!r} in the order of its labels; if not, start a new '
        'head by models.from_folder.new_head = True'
      )
    return dataclasses.replace(named, head=_reordered(self.head, order))

  def in_order(self, trainable: Tree, labels: Sequence[str]) -> Tree:
    """What was trained with outputs in another order, in that of this model.

    Args:
      trainable: Adapter and head.
      labels: What its outputs are called, in order; () if not known.

    Raises:
      ValueError: They are others than those of this model.
    """
    if not (labels and self.labels):
      return trainable
    order = _order(labels, self.labels, self.name)
    return trainable | {'head': _reordered(trainable['head'], order)}

  def export(self, folder: str | os.PathLike, trainable: Tree) -> None:
    """Writes adapter and head in PEFT's format; see `export_adapter`.

    What the outputs are called is in a file labels.json beside them.
    """
    self.write_labels(folder)
    export_adapter(folder, trainable, self)

  def load_adapter(self, folder: str | os.PathLike) -> Tree:
    """Reads adapter and head in PEFT's format; see `import_adapter`.

    Its outputs are called what labels.json beside it says or, without one,
    what the head of the checkpoint calls them, and are put in the order of
    this model.
    """
    theirs = self.read_labels(folder) or self.head_labels
    if not (theirs and self.labels):
      return import_adapter(folder, self)
    order = _order(theirs, self.labels, str(folder))
    # What the adapter does not train comes from the model, in its order too.
    head = _reordered(self.head, [order.index(i) for i in range(len(order))])
    there = dataclasses.replace(self, head=head, labels=theirs)
    return self.in_order(import_adapter(folder, there), theirs)

  def write_labels(self, folder: str | os.PathLike) -> None:
    """Writes labels.json, if it is known what the outputs are called."""
    if self.labels:
      write_labels(pathlib.Path(folder), self.labels)

  def read_labels(self, folder: str | os.PathLike) -> tuple[str, ...]:
    """What labels.json in a folder says; () without one."""
    return read_labels(pathlib.Path(folder))

  def merge(
    self,
    folder: str | os.PathLike,
    trainable: Tree | None,
    *,
    source: str | os.PathLike | None = None,
    dtype: str | None = None,
    labels: Sequence[str] | None = None,
  ) -> None:
    """Writes encoder, adapter and head as one model; see `merge_adapter`."""
    head = self._head_in_force(trainable)
    if trainable is None:
      trainable = (self.start or {}) | {'head': head}
    merge_adapter(
      folder, trainable, self, source=source, dtype=dtype, labels=labels
    )

  def _head_in_force(self, trainable: Tree | None) -> Tree:
    head = self.head if trainable is None else trainable['head']
    if trainable is None and self.drawn:
      raise ValueError(
        f'{self.name} came without a trained head, it lacks '
        f'{" and ".join(self.drawn)}: it needs an adapter'
      )
    return head

  def _outputs(self, base, trainable, batch, rng):
    head = self._head_in_force(trainable)
    encoder_rngs, head_rngs = None, None
    if rng is not None:
      encoder_rngs, head_rngs = (
        {'dropout': key} for key in jax.random.split(rng)
      )
    hidden = self._hidden(base, trainable, batch, encoder_rngs)
    return self._head.apply(
      {'params': head}, hidden, *_places(batch), rngs=head_rngs
    )

  def _hidden(self, base, trainable, batch, rngs):
    length = batch['tokens'].shape[1]
    if self.config.absolute_positions and length > self.config.max_length:
      raise ValueError(
        f'rows of {length} tokens are too long for {self.name}, which has '
        f'positions for {self.config.max_length}'
      )
    adapter = {k: v for k, v in (trainable or {}).items() if k != 'head'}
    settings, adapter = adapter_in_force(
      self.lora_config, adapter or None, self.start
    )
    return self._encoder(settings).apply(
      apply_variables(base, adapter),
      batch['tokens'],
      batch['positions'],
      batch['token_types'],
      batch['segment_ids'],
      rngs=rngs,
    )

  def _encoder(self, lora: LoraConfig | None) -> Encoder:
    return Encoder(
      self.config,
      lora,
      jnp.dtype(self.dtype),
      stored_dtype(self.base),
      self.dropout,
      self.remat,
      self.unroll,
      self.attention,
    )

  @property
  def _head(self) -> Head:
    return Head(self.config, self.outputs, self.head_dropout)


def init_base(config: EncoderConfig, rng: jax.Array, dtype: str) -> Tree:
  """Random base weights, as for training from scratch."""
  encoder = Encoder(config, param_dtype=jnp.dtype(dtype))
  return init_collection(encoder, 'params', rng)


def abstract_base(config: EncoderConfig) -> Tree:
  """Shapes of the base weights: a tree of `jax.ShapeDtypeStruct`."""
  return abstract_params(Encoder(config))


def abstract_head(config: EncoderConfig, outputs: int) -> Tree:
  """Shapes of the head's weights: a tree of `jax.ShapeDtypeStruct`."""
  return abstract_params(Head(config, outputs))


def _order(
  theirs: Sequence[str], ours: Sequence[str], source: str
) -> list[int]:
  order = order_of(theirs, ours)
  if order is None:
    raise ValueError(
      f'{source}: the adapter was trained for the labels {list(theirs)!r}, not '
      f'for {list(ours)!r}; take the task that it was trained on'
    )
  return order


def _reordered(head: Tree, order: list[int]) -> Tree:
  """A head whose output i is what output order[i] was."""
  if 'out' not in head:
    return head
  index = np.asarray(order)
  return head | {'out': {k: v[..., index] for k, v in head['out'].items()}}


def _places(batch: Batch) -> tuple[jax.Array, ...]:
  return batch['segment_ids'], batch['positions'], batch['weights']
