"""The base class of models with a head for labels or numbers."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import linen as nn

from lora_opt.buckets.paths import as_path, is_bucket
from lora_opt.data import hub
from lora_opt.models.attend import check_implementation
from lora_opt.models.labels import read_labels, write_labels
from lora_opt.models.language_model import check_settings
from lora_opt.models.lora import LoraConfig
from lora_opt.models.model_files import Family
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

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
  """A frozen network, its adapter settings, and a head.

  The trainable parameters are one tree: the factors of the adapter, and the
  head under 'head'. The methods are pure functions, as in `CausalLM`.

  A subclass sets its Flax modules, `network` and `network_head`, and implements
  how they read a batch (`_hidden`, `_read`) and the check of its tokenizer
  (`_check_tokenizer`). It also sets `batch_form`, see lora_opt.data.forms, and
  `task_type`, PEFT's name for this kind of model.

  Attributes:
    name: Name of the model; an exported adapter names it as its base.
    family: The format of its checkpoints; names the tensors of an export.
    config: Sizes of the network and form of the head.
    tokenizer: Turns an example into the network's input; None for a model that
      has shapes instead of weights.
    base: Frozen weights, a nested dict of arrays, or of their shapes.
    lora_config: Adapter settings, or None to train only the head.
    dtype: Type of the network's computation, 'float32' or 'bfloat16'.
    remat: What the backward pass keeps, see `Decoder`.
    unroll: Layers per step of the scan over layers.
    attention: How attention is computed, see `lora_opt.models.attend`.
    outputs: Number of labels; 1 for a regression.
    head: The parts of the head that the checkpoint had, which training starts
      from. The other parts are drawn at random.
    labels: Names of the outputs, in order; () if they are not known.
    head_labels: Names of the outputs in the checkpoint's head, in the order
      that adapters of the checkpoint use.
    dropout: Rate on hidden states during training.
    head_dropout: Rate before the last linear map of the head during training.
    start: Factors that `lora_config.start` took out of `base`; used in place of
      an adapter when there is none. See `split_base`.

  Raises:
    ValueError: If settings do not fit together.
  """

  network: ClassVar[type[nn.Module]]
  network_head: ClassVar[type[nn.Module]]
  batch_form: ClassVar[str]

  name: str
  family: Family
  config: Any
  tokenizer: Any
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
    check_settings(self.config, None, self.lora_config, self.remat, self.dtype)
    if self.tokenizer is not None:
      self._check_tokenizer()
    check_implementation(self.attention)
    values.integer(self.outputs, 'outputs', 1, 2**20)
    for name in ('dropout', 'head_dropout'):
      rate = values.number(getattr(self, name), name)
      if not 0 <= rate < 1:
        raise ValueError(f'{name}={rate} must be in [0, 1)')

  @property
  def drawn(self) -> tuple[str, ...]:
    """Paths of the parts of the head that `init` draws at random."""
    parts = abstract_params(self._head).keys() - self.head.keys()
    return tuple(f'head/{part}' for part in sorted(parts))

  def init(self, rng: jax.Array) -> Tree:
    """Returns the trainable parameters: a fresh adapter and an initial head."""
    adapter_key, head_key = jax.random.split(rng)
    adapter = {}
    if self.lora_config is not None:
      network = self._network(self.lora_config)
      adapter = init_adapter(network, self.base, self.start, adapter_key)
    head = init_collection(self._head, 'params', head_key)
    # Copied, since a training step may overwrite its arguments.
    given = jax.tree.map(jnp.copy, self.head)
    return adapter | {'head': head | given}

  def logical_axes(self) -> tuple[Tree, Tree]:
    """Names the axes of every array, for sharding rules.

    Returns:
      Trees of `PartitionSpec` like `base` and like the trainable parameters.
    """
    base, adapter = logical_axes(self._network(self.lora_config))
    head, _ = logical_axes(self._head)
    return base, adapter | {'head': head}

  @property
  def axis_units(self) -> Mapping[str, int]:
    """The most parts that each axis can be split into; heads stay whole."""
    return {'heads': self.config.num_heads}

  def token_losses(
    self, base: Tree, trainable: Tree | None, batch: Batch, rng=None
  ) -> jax.Array:
    """Cross-entropy of each label, or squared error of each number.

    Differentiable in `trainable`; the gradient of `base` is zero by definition.

    Args:
      base: Frozen weights.
      trainable: Adapter and head; None for the head that the model came with.
      batch: The network's inputs, and (rows, segments) float32 arrays labels
        (the index of a label, or the number) and weights.
      rng: Key for dropout; None for no dropout.

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
      batch: As for `token_losses`, but labels are not needed.

    Returns:
      (rows, segments, outputs) float32.
    """
    return self._outputs(base, trainable, batch, None)

  def named(
    self, labels: Sequence[str], words: Sequence[str] = ()
  ) -> Classifier:
    """Returns the model with its outputs in the order of a task's labels.

    Args:
      labels: The task's names of the labels, in its order.
      words: Other names that the task has for them, in the same order.

    Raises:
      ValueError: If the number of labels is not `outputs`, or the head of the
        checkpoint is for other labels.
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
    """Reorders the outputs of a trained head to the order of this model.

    Args:
      trainable: Adapter and head.
      labels: Names of its outputs, in order; () if they are not known.

    Raises:
      ValueError: If these are not the labels of this model.
    """
    if not (labels and self.labels):
      return trainable
    order = _order(labels, self.labels, self.name)
    return trainable | {'head': _reordered(trainable['head'], order)}

  def export(self, folder: str | os.PathLike, trainable: Tree) -> None:
    """Writes adapter and head in PEFT's format; see `pretrained.peft`.

    The names of the outputs are written to labels.json in the same folder.
    """
    self.write_labels(folder)
    self.family.files.export(folder, trainable, self)

  def load_adapter(self, folder: str | os.PathLike) -> Tree:
    """Reads adapter and head in PEFT's format; see `pretrained.peft`.

    The names of its outputs are read from labels.json in the same folder;
    without that file they are those of the checkpoint's head. The outputs are
    reordered to the order of this model.
    """
    theirs = self.read_labels(folder) or self.head_labels
    if not (theirs and self.labels):
      return self.family.files.load_adapter(folder, self)
    order = _order(theirs, self.labels, str(folder))
    # Parts that the adapter does not train come from this model's head, which
    # therefore has to be in the adapter's order.
    head = _reordered(self.head, [order.index(i) for i in range(len(order))])
    there = dataclasses.replace(self, head=head, labels=theirs)
    return self.in_order(self.family.files.load_adapter(folder, there), theirs)

  def write_labels(self, folder: str | os.PathLike) -> None:
    """Writes labels.json, if the names of the outputs are known."""
    if self.labels:
      write_labels(as_path(folder), self.labels)

  def read_labels(self, folder: str | os.PathLike) -> tuple[str, ...]:
    """Reads labels.json in the folder of an adapter; () if there is none."""
    if is_bucket(folder):
      return read_labels(as_path(folder))
    return read_labels(hub.model_folder(folder))

  def merge(
    self,
    folder: str | os.PathLike,
    trainable: Tree | None,
    *,
    source: str | os.PathLike | None = None,
    dtype: str | None = None,
    labels: Sequence[str] | None = None,
  ) -> None:
    """Writes network, adapter and head as one model; see `pretrained.merge`."""
    head = self._head_in_force(trainable)
    if trainable is None:
      trainable = (self.start or {}) | {'head': head}
    self.family.files.merge(
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
    network_rngs, head_rngs = None, None
    if rng is not None:
      network_rngs, head_rngs = (
        {'dropout': key} for key in jax.random.split(rng)
      )
    hidden = self._hidden(base, trainable, batch, network_rngs)
    return self._read({'params': head}, hidden, batch, head_rngs)

  def _with(self, base: Tree, trainable: Tree | None) -> tuple[nn.Module, Tree]:
    """The network and its variables, with the adapter or of the checkpoint."""
    adapter = {k: v for k, v in (trainable or {}).items() if k != 'head'}
    settings, adapter = adapter_in_force(
      self.lora_config, adapter or None, self.start
    )
    return self._network(settings), apply_variables(base, adapter)

  def _check_tokenizer(self) -> None:
    """Raises ValueError if the tokenizer does not belong to the network."""
    raise AssertionError(f'{type(self).__name__} must check its input')

  def _network(self, lora: LoraConfig | None) -> nn.Module:
    return self.network(
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
  def _head(self) -> nn.Module:
    return self.network_head(self.config, self.outputs, self.head_dropout)

  def _hidden(self, base, trainable, batch, rngs) -> jax.Array:
    """The network's hidden states of a batch."""
    raise AssertionError(f'{type(self).__name__} must read batches')

  def _read(self, variables, hidden, batch, rngs) -> jax.Array:
    """The outputs of the head, (rows, segments, outputs) float32."""
    raise AssertionError(f'{type(self).__name__} must read hidden states')


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
  """Returns the head with old output order[i] as its output i."""
  if 'out' not in head:
    return head
  index = np.asarray(order)
  return head | {'out': {k: v[..., index] for k, v in head['out'].items()}}
